"""The thin strip at the bottom: this machine's GPUs, or why there are none to show."""

from __future__ import annotations

from math import isnan

from PySide6.QtCore import QSize, Qt, Slot
from PySide6.QtWidgets import QHBoxLayout, QLabel, QProgressBar, QWidget

from gui.icons import icon
from gui.machine import Machine
from gui.theme import font, set_role, theme
from gui.translate import tr
from gui.units import format_bytes
from probes.readings import GpuReading

_STEPS = 1000


class GpuStrip(QWidget):
    """One cell per GPU, read twice a second."""

    def __init__(self, machine: Machine, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._machine = machine
        self._icon = QLabel()
        self._words = QLabel(tr("Looking for GPUs …"))
        self._cells: list[_Cell] = []
        self._row = QHBoxLayout(self)
        self._row.setContentsMargins(14, 5, 14, 5)
        self._row.setSpacing(18)
        set_role(self, "strip")
        self.setAttribute(Qt.WidgetAttribute.WA_StyledBackground)
        set_role(self._words, "small")
        self.setAccessibleName(tr("GPUs of this machine"))
        self._row.addWidget(self._icon)
        self._row.addWidget(self._words, 1)
        machine.changed.connect(self._rebuild)
        machine.read.connect(self._show)
        theme().changed.connect(self._restyle)
        self._restyle()

    @property
    def text(self) -> str:
        """What the strip says in words."""
        return self._words.text()

    @Slot()
    def _rebuild(self) -> None:
        for cell in self._cells:
            self._row.removeWidget(cell)
            cell.deleteLater()
        self._cells = [_Cell() for _ in self._machine.readings]
        for cell in self._cells:
            self._row.insertWidget(self._row.count() - 1, cell)
        state = self._machine.state
        self._words.setText("" if state is None or self._cells else str(state) or tr("The NVIDIA driver lists no GPU."))

    @Slot(object)
    def _show(self, readings: tuple[GpuReading, ...]) -> None:
        for cell, reading in zip(self._cells, readings, strict=False):
            cell.show_reading(reading)

    @Slot()
    def _restyle(self) -> None:
        self._icon.setPixmap(icon("gpu", "muted").pixmap(QSize(16, 16)))


class _Cell(QWidget):
    """One GPU: its name, how full it is, and how it is doing."""

    def __init__(self) -> None:
        super().__init__()
        self._text = QLabel()
        self._text.setFont(font(11, tabular=True))
        self._bar = QProgressBar(textVisible=False, maximum=_STEPS)
        self._bar.setFixedWidth(110)
        row = QHBoxLayout(self)
        row.setContentsMargins(0, 0, 0, 0)
        row.addWidget(self._bar)
        row.addWidget(self._text)

    def show_reading(self, reading: GpuReading) -> None:
        """Show what the driver says now; what it does not say is N/A."""
        memory = reading.memory
        known = memory.used_bytes is not None and memory.total_bytes
        self._bar.setVisible(bool(known))
        if known:
            self._bar.setValue(_STEPS * (memory.used_bytes or 0) // (memory.total_bytes or 1))
        self._text.setText(reading.trouble or _words(reading))
        self.setAccessibleName(tr("GPU {}: {}").format(reading.index, self._text.text()))


def _words(reading: GpuReading) -> str:
    used, total = (format_bytes(_number(size)) for size in (reading.memory.used_bytes, reading.memory.total_bytes))
    state = (
        _reading(reading.utilization_percent, "%"), _reading(reading.temperature_celsius, "°C"), _reading(reading.power_watts, "W"),
    )  # fmt: skip
    return f"{reading.index}  {reading.name}   {used} of {total}   {'  '.join(state)}"


def _number(size: int | None) -> float:
    return float("nan") if size is None else float(size)


def _reading(value: float, unit: str) -> str:
    return "N/A" if isnan(value) else f"{value:.0f} {unit}"
