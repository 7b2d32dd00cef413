"""Loads libraries that are slow to import, on whatever thread asks, without holding the window up.

What they bring stays for good: the collector would look through all of it time and again, and every thread waits meanwhile.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from functools import cache


@cache
def load_hub() -> None:
    """The Hub's client with its session."""
    _undisturbed(_hub)


@cache
def load_plot() -> None:
    """The Probe tab with its plot."""
    _undisturbed(_plot)


def _undisturbed(load: Callable[[], None]) -> None:
    gc.disable()
    try:
        load()
    finally:
        gc.freeze()
        gc.enable()


def _hub() -> None:
    from huggingface_hub.utils import get_session  # noqa: PLC0415  that is what this is for

    from resources import hub  # noqa: F401, PLC0415

    get_session()


def _plot() -> None:
    from gui.probe import tab  # noqa: F401, PLC0415
