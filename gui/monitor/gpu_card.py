"""One GPU: its name, its state, and four meters over time."""

from __future__ import annotations

from math import isnan, nan

from PySide6.QtWidgets import QFrame, QHBoxLayout, QLabel, QVBoxLayout, QWidget

from gui.monitor.chart import MeterChart
from gui.probe.series import Ring
from gui.theme import set_role
from gui.translate import tr
from gui.units import format_bytes
from probes.monitor import gpu_label
from probes.readings import GpuReading

SPAN_S = 300.0
KEPT = 1200
_HOTTEST_CELSIUS, _LEAST_POWER_W = 100.0, 100.0


class GpuCard(QFrame):
    """Keeps the last minutes of one GPU's meters."""

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        set_role(self, "card")
        self.title = QLabel()
        self.charts = {
            "memory": MeterChart(tr("Memory"), "allocated", SPAN_S),
            "load": MeterChart(tr("Utilisation"), "fits", SPAN_S),
            "power": MeterChart(tr("Power"), "reserved", SPAN_S),
            "heat": MeterChart(tr("Temperature"), "device", SPAN_S),
        }
        self._series = Ring(len(self.charts), KEPT)
        self._power_limit = _LEAST_POWER_W
        set_role(self.title, "head")
        row = QHBoxLayout()
        row.setSpacing(12)
        for chart in self.charts.values():
            row.addWidget(chart, 1)
        column = QVBoxLayout(self)
        column.setContentsMargins(12, 8, 12, 8)
        column.addWidget(self.title)
        column.addLayout(row)

    def add(self, time_s: float, reading: GpuReading) -> None:
        """One reading; what the driver does not say is a gap, and N/A."""
        used, total = reading.memory.used_bytes, reading.memory.total_bytes
        values = (_number(used), reading.utilization_percent, reading.power_watts, reading.temperature_celsius)
        self._series.add(time_s, values)
        if not isnan(reading.power_watts):
            self._power_limit = max(self._power_limit, reading.power_watts * 1.1)
        texts = (
            f"{format_bytes(_number(used))} / {format_bytes(_number(total))}", _said(reading.utilization_percent, "%"),
            _said(reading.power_watts, "W"), _said(reading.temperature_celsius, "°C"),
        )  # fmt: skip
        limits = (float(total or 1), 100.0, self._power_limit, _HOTTEST_CELSIUS)
        trouble = f"  ·  {reading.trouble}" if reading.trouble else ""
        self.title.setText(f"{gpu_label(reading)}  {reading.name}{trouble}")
        for number, (chart, limit, text) in enumerate(zip(self.charts.values(), limits, texts, strict=True)):
            chart.show_series(self._series.time_s, self._series.column(number), limit, text)


def _number(size: int | None) -> float:
    return nan if size is None else float(size)


def _said(value: float, unit: str) -> str:
    return tr("N/A") if isnan(value) else f"{value:.0f} {unit}"
