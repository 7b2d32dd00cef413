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


def _advice(context: Context) -> QWidget:
    from gui.advice.tab import AdviceTab  # noqa: PLC0415  see _footprint

    return AdviceTab(context)


def _commands(context: Context) -> QWidget:
    from gui.commands.tab import CommandsTab  # noqa: PLC0415  see _footprint

    return CommandsTab(context)


def _compare(context: Context) -> QWidget:
    from gui.compare.tab import CompareTab  # noqa: PLC0415  see _footprint

    return CompareTab(context)


def _history(context: Context) -> QWidget:
    from gui.history.tab import HistoryTab  # noqa: PLC0415  see _footprint

    return HistoryTab(context)


def _monitor(context: Context) -> QWidget:
    from gui.monitor.tab import MonitorTab  # noqa: PLC0415  see _footprint

    return MonitorTab(context)


def _fits(context: Context) -> QWidget:
    from gui.fits.tab import FitsTab  # noqa: PLC0415  see _footprint

    return FitsTab(context)


def _probe(context: Context) -> QWidget:
    from gui.probe.tab import ProbeTab  # noqa: PLC0415  pyqtgraph is not needed for the first paint

    return ProbeTab(context)


TABS: tuple[Tab, ...] = (
    Tab("footprint", "Footprint", "Where the bytes go, and whether it fits", _footprint),
    Tab("fits", "What fits", "Other loads on this card, this load on other cards", _fits),
    Tab("advice", "Advice", "What would make it fit, or give it room", _advice),
    Tab("probe", "Probe", "Measure a real run beside the prediction", _probe),
    Tab("compare", "Compare", "Several plans side by side, and what differs", _compare),
    Tab("history", "History", "Every run, what was predicted and what it took", _history),
    Tab("commands", "Commands", "The launch line or config that runs the plan", _commands),
    Tab("monitor", "Monitor", "Every GPU of this machine over time, and who holds its memory", _monitor),
)
