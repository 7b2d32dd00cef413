"""The machine itself: its memory and its processors over time, also where there is no GPU."""

from __future__ import annotations

import psutil
from PySide6.QtWidgets import QFrame, QHBoxLayout, QLabel, QVBoxLayout, QWidget

from gui.monitor.chart import MeterChart
from gui.monitor.gpu_card import KEPT, SPAN_S
from gui.probe.series import Ring
from gui.theme import set_role
from gui.translate import tr
from gui.units import format_bytes


class HostCard(QFrame):
    """Keeps the last minutes of the host's meters."""

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        set_role(self, "card")
        self.memory, self.load = MeterChart(tr("Memory"), "allocated", SPAN_S), MeterChart(tr("Processors"), "fits", SPAN_S)
        self._series = Ring(2, KEPT)
        title, row, column = QLabel(tr("Host")), QHBoxLayout(), QVBoxLayout(self)
        set_role(title, "head")
        row.setSpacing(12)
        row.addWidget(self.memory, 1)
        row.addWidget(self.load, 1)
        column.setContentsMargins(12, 8, 12, 8)
        column.addWidget(title)
        column.addLayout(row)

    @property
    def charts(self) -> dict[str, MeterChart]:
        """Its charts by name."""
        return {"memory": self.memory, "load": self.load}

    def read(self, time_s: float) -> None:
        """One reading more. What other processes could still take counts as free, as the system tells it."""
        memory, load = psutil.virtual_memory(), psutil.cpu_percent(None)
        used = memory.total - memory.available
        self._series.add(time_s, (float(used), load))
        times = self._series.time_s
        words = f"{format_bytes(used)} / {format_bytes(memory.total)}"
        self.memory.show_series(times, self._series.column(0), float(memory.total), words)
        self.load.show_series(times, self._series.column(1), 100.0, f"{load:.0f} %")
