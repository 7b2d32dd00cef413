"""Which tabs the window has. A tab is one entry here and one widget that takes the context."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from PySide6.QtWidgets import QWidget

from gui.context import Context


@dataclass(frozen=True, slots=True)
class Tab:
    """``make`` is called when the tab is first shown."""

    name: str
    title: str
    tip: str
    make: Callable[[Context], QWidget]


def _footprint(context: Context) -> QWidget:
    from gui.footprint.tab import FootprintTab  # noqa: PLC0415  a tab is loaded when it is first shown

    return FootprintTab(context)


def _probe(context: Context) -> QWidget:
    from gui.probe.tab import ProbeTab  # noqa: PLC0415  pyqtgraph is not needed for the first paint

    return ProbeTab(context)


TABS: tuple[Tab, ...] = (
    Tab("footprint", "Footprint", "Where the bytes go, and whether it fits", _footprint),
    Tab("probe", "Probe", "Measure a real run beside the prediction", _probe),
)
