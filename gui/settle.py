"""Laying out a page at once and from the outside.

Left to itself, Qt lays out the inmost first, in the room it had before, where it squeezes what has to grow; then what is around it,
a level at a time, and it paints in between.
"""

from __future__ import annotations

from PySide6.QtWidgets import QWidget


def settle(page: QWidget, *changed: QWidget) -> None:
    """Give what stands in ``page`` the room it now needs; ``changed`` are those of it in which something has changed its size."""
    for part in changed:
        part.updateGeometry()
    page.layout().activate()
