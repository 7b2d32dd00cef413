"""The thin strip at the bottom: this machine's GPUs, or why there are none to show; and at its end what the window has to say."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import isnan

from PySide6.QtCore import QSize, Qt, Slot
from PySide6.QtGui import QResizeEvent
from PySide6.QtWidgets import QHBoxLayout, QLabel, QProgressBar, QWidget

from gui.elided import ElidedLabel
from gui.icons import icon
from gui.machine import Machine
from gui.text import width_of
from gui.theme import SMALL, font, px, set_role, theme
from gui.translate import tr
from gui.units import format_bytes
from probes.readings import GpuReading

_STEPS = 1000
_MARGIN, _SPACE, _INSIDE, _ICON = 14, 18, 6, 16
_SAID_SHARE = 0.6
"""Of the strip's width, the most that a message may take."""
_FULL, _BUSIEST = 100.0, 1000.0


class GpuStrip(QWidget):
    """One cell per GPU, read twice a second. However many there are, it is as wide as the window: cells tell less instead."""

    def __init__(self, machine: Machine, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._machine = machine
        self._icon = QLabel()
        self._words = ElidedLabel()
        self._words.setText(tr("Looking for GPUs …"))
        self._said = ElidedLabel(visible=False, alignment=Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter)
        self._cells: list[_Cell] = []
        self._row = QHBoxLayout(self)
        self._row.setContentsMargins(_MARGIN, 5, _MARGIN, 5)
        self._row.setSpacing(_SPACE)
        set_role(self, "strip")
        self.setAttribute(Qt.WidgetAttribute.WA_StyledBackground)
        self.setMinimumWidth(1)
        set_role(self._words, "small")
        self.setAccessibleName(tr("GPUs of this machine"))
        self._said.setAccessibleName(tr("Message"))
        for part in (self._icon, self._words):
            self._row.addWidget(part)
        self._row.addStretch(1)
        self._row.addWidget(self._said)
        machine.changed.connect(self._rebuild)
        machine.read.connect(self._show)
        theme().changed.connect(self._restyle)
        self._restyle()

    @property
    def text(self) -> str:
        """What the strip says in words."""
        return self._words.text()

    @property
    def said(self) -> str:
        """The message at its end."""
        return self._said.text()

    @property
    def told(self) -> list[str]:
        """What each cell tells."""
        return [cell.text for cell in self._cells]

    def say(self, text: str) -> None:
        """Tell ``text`` at the end of the strip; empty takes it away. Nothing above the strip moves."""
        self._said.setText(text)
        self._said.setVisible(bool(text))
        self._fit()

    def resizeEvent(self, event: QResizeEvent) -> None:
        """More or less is told of each GPU."""
        super().resizeEvent(event)
        self._fit()

    @Slot()
    def _rebuild(self) -> None:
        for cell in self._cells:
            self._row.removeWidget(cell)
            cell.deleteLater()
        self._cells = [_Cell(reading) for reading in self._machine.readings]
        for cell in self._cells:
            self._row.insertWidget(self._row.count() - 2, cell)
        self._fit()

    @Slot(object)
    def _show(self, readings: tuple[GpuReading, ...]) -> None:
        for cell, reading in zip(self._cells, readings, strict=False):
            cell.show_reading(reading)

    def _fit(self) -> None:
        """As much of each GPU as there is room for beside what is said."""
        room = self.width() - 2 * _MARGIN - _ICON - _SPACE
        said = min(self._said.sizeHint().width(), round(room * _SAID_SHARE)) if self._said.text() else 0
        self._said.setFixedWidth(max(said, 1))
        room -= said + _SPACE if said else 0
        if not self._cells:
            state = self._machine.state
            self._name(tr("Looking for GPUs …") if state is None else str(state) or tr("The NVIDIA driver lists no GPU."), room)
            return
        name, detail = _fitting(self._machine.readings, room)
        self._name(name, room)
        self._row.setSpacing(detail.space)
        for cell in self._cells:
            cell.tell(detail)

    def _name(self, text: str, room: float) -> None:
        self._words.setText(text)
        self._words.setVisible(bool(text))
        self._words.setFixedWidth(max(1, min(round(width_of(text, SMALL)) + 4, round(room))))

    @Slot()
    def _restyle(self) -> None:
        self._icon.setPixmap(icon("gpu", "muted").pixmap(QSize(_ICON, _ICON)))
        self._said.setFont(font(SMALL))
        self._words.setFont(font(SMALL))
        self._fit()


@dataclass(frozen=True, slots=True)
class _Detail:
    """How much a cell tells."""

    tell: Callable[[GpuReading], str]
    bar: int
    space: int = _SPACE
    named: bool = False

    def width(self, reading: GpuReading) -> int:
        """Pixels of a cell whatever its GPU does, so that no figure that changes moves the others."""
        return px(self.bar) + _INSIDE + round(width_of(self.tell(_at_most(reading)), SMALL, tabular=True)) + 2


class _Cell(QWidget):
    """One GPU: how full it is, and how it is doing."""

    def __init__(self, reading: GpuReading) -> None:
        super().__init__()
        self._reading = reading
        self._detail = _DETAILS[0]
        self._text = ElidedLabel()
        self._bar = QProgressBar(textVisible=False, maximum=_STEPS)
        row = QHBoxLayout(self)
        row.setContentsMargins(0, 0, 0, 0)
        row.setSpacing(_INSIDE)
        row.addWidget(self._bar)
        row.addWidget(self._text)

    @property
    def text(self) -> str:
        """What is told."""
        return self._text.text()

    def tell(self, detail: _Detail) -> None:
        """Tell this much."""
        self._detail = detail
        self._text.setFont(font(SMALL, tabular=True))
        self._bar.setFixedWidth(px(detail.bar))
        self.setFixedWidth(detail.width(self._reading))
        self.show_reading(self._reading)

    def show_reading(self, reading: GpuReading) -> None:
        """Show what the driver says now; what it does not say is N/A."""
        self._reading = reading
        memory = reading.memory
        known = memory.used_bytes is not None and memory.total_bytes
        self._bar.setVisible(bool(known))
        if known:
            self._bar.setValue(_STEPS * (memory.used_bytes or 0) // (memory.total_bytes or 1))
        self._text.setText(self._detail.tell(reading))
        whole = _all(reading)
        self.setToolTip(whole)
        self.setAccessibleName(tr("GPU {}: {}").format(reading.index, whole))


def _fitting(readings: Sequence[GpuReading], room: float) -> tuple[str, _Detail]:
    """What stands before the cells, and how much they tell: figures come before the name that all have."""
    for detail in _DETAILS:
        cells = sum(detail.width(reading) + detail.space for reading in readings)
        name = "" if detail.named else _common_name(readings)
        for told in dict.fromkeys((name, "")):
            if cells + (width_of(told, SMALL) + detail.space if told else 0) <= room:
                return told, detail
    return "", _DETAILS[-1]


def _at_most(reading: GpuReading) -> GpuReading:
    """The longest that a cell of this GPU can have to say."""
    memory = replace(reading.memory, used_bytes=reading.memory.total_bytes)
    return replace(reading, memory=memory, utilization_percent=_FULL, temperature_celsius=_FULL, power_watts=_BUSIEST)


def _common_name(readings: Sequence[GpuReading]) -> str:
    """The name that all of them have, with their number."""
    names = {reading.name for reading in readings}
    return f"{len(readings)} × {names.pop()}" if len(names) == 1 else ""


def _all(reading: GpuReading) -> str:
    return reading.trouble or f"{reading.index}  {reading.name}   {_memory(reading)}   {_doing(reading)}"


def _unnamed(reading: GpuReading) -> str:
    return f"{reading.index}  {reading.trouble or f'{_memory(reading)}   {_doing(reading)}'}"


def _sized(reading: GpuReading) -> str:
    return f"{reading.index}  {reading.trouble or _memory(reading)}"


def _shared(reading: GpuReading) -> str:
    used, total = reading.memory.used_bytes, reading.memory.total_bytes
    return (
        f"{reading.index}  {reading.trouble or ('N/A' if used is None or not total else f'{used / total:.0%}'.replace('%', ' %'))}"
    )


def _numbered(reading: GpuReading) -> str:
    return str(reading.index)


def _memory(reading: GpuReading) -> str:
    used, total = (format_bytes(_number(size)) for size in (reading.memory.used_bytes, reading.memory.total_bytes))
    return tr("{} of {}").format(used, total)


def _doing(reading: GpuReading) -> str:
    return "  ".join((
        _reading(reading.utilization_percent, "%"), _reading(reading.temperature_celsius, "°C"), _reading(reading.power_watts, "W"),
    ))  # fmt: skip


def _number(size: int | None) -> float:
    return float("nan") if size is None else float(size)


def _reading(value: float, unit: str) -> str:
    return "N/A" if isnan(value) else f"{value:.0f} {unit}"


_DETAILS = (
    _Detail(_all, 110, named=True), _Detail(_unnamed, 80), _Detail(_sized, 60), _Detail(_shared, 40), _Detail(_numbered, 24, 8),
)  # fmt: skip
"""From the most to the least."""
