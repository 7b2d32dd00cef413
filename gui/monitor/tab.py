"""The Monitor tab: a card for each GPU, and the processes that hold memory. It reads only while it can be seen."""

from __future__ import annotations

from math import nan
from typing import TYPE_CHECKING

from PySide6.QtCore import QObject, Qt, Signal, Slot
from PySide6.QtGui import QCloseEvent, QResizeEvent
from PySide6.QtWidgets import QFrame, QHBoxLayout, QHeaderView, QLabel, QPushButton, QScrollArea, QVBoxLayout, QWidget

from gui.cells import Cell, CellModel, CellTable, Column, dress
from gui.export import TableMenu
from gui.monitor.floating import Dock, Panel
from gui.monitor.gpu_card import GpuCard
from gui.monitor.host_card import HostCard
from gui.theme import px, set_role
from gui.translate import tr
from gui.units import format_bytes
from probes.monitor import Holder, Monitor, Snapshot, gpu_label
from probes.sampler import IDLE_INTERVAL_S, Sampler

if TYPE_CHECKING:
    from gui.context import Context

_COLUMNS = (
    Column("GPU"), Column("PID", figures=True), Column("Name"), Column("User"), Column("Memory", figures=True),
    Column("RAM", figures=True),
)  # fmt: skip
_WIDTHS = {0: 64, 1: 80, 3: 90, 4: 96, 5: 96}
_NAME = 2
_ROW_HEIGHT, _LEAST_TABLE = 24, 120
_AROUND_CHART, _HIGHEST_CHART = 60, 200
_NO_DRIVER = "There is no NVIDIA driver here, so there is no GPU to watch."
_NOBODY = "No process holds memory of a GPU, or the driver does not say."


class MonitorTab(QWidget):
    """Reads on a thread of its own."""

    def __init__(self, _context: Context, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.cards: dict[str, GpuCard] = {}
        self._charted = 0
        self.host = HostCard()
        self.words = QLabel(tr("Looking for GPUs …"), wordWrap=True)
        self.holders = CellModel([Column(tr(column.heading), column.figures) for column in _COLUMNS], self)
        self.table = CellTable()
        self.float = QPushButton(tr("Own window"), toolTip=tr("Keep the monitor beside whatever you do; closing it brings it back"))
        self._reader = Reader(self)
        self.panel = Panel()
        self.dock = Dock(self.panel, tr("Monitor"))
        self._lay_out()
        self.float.clicked.connect(self.dock.undock)
        self.panel.seen.connect(self._seen)
        self._reader.read.connect(self.show_snapshot)

    def _lay_out(self) -> None:
        set_role(self.words, "muted")
        dress(self.table, self.holders, _ROW_HEIGHT)
        self.table.setAccessibleName(tr("Processes that hold GPU memory"))
        header = self.table.horizontalHeader()
        header.setSectionResizeMode(_NAME, QHeaderView.ResizeMode.Stretch)
        for column, width in _WIDTHS.items():
            self.table.setColumnWidth(column, px(width))
        self.table.setMinimumHeight(_LEAST_TABLE)
        TableMenu(self.table, self.holders)
        body, scroll = QWidget(), QScrollArea(widgetResizable=True, frameShape=QFrame.Shape.NoFrame)
        self._column = QVBoxLayout(body)
        self._column.setContentsMargins(0, 0, 0, 0)
        self._column.setSpacing(10)
        self._column.addWidget(self.host)
        self._column.addStretch(1)
        set_role(body, "side")
        scroll.setWidget(body)
        scroll.setFocusPolicy(Qt.FocusPolicy.NoFocus)
        set_role(self.float, "compact")
        head = QHBoxLayout()
        head.addWidget(self.words, 1)
        head.addStretch(0)
        head.addWidget(self.float, 0, Qt.AlignmentFlag.AlignTop | Qt.AlignmentFlag.AlignRight)
        whole = QVBoxLayout(self)
        whole.setContentsMargins(0, 0, 0, 0)
        whole.addWidget(self.dock)
        column = QVBoxLayout(self.panel)
        column.setContentsMargins(12, 12, 12, 12)
        column.setSpacing(10)
        column.addLayout(head)
        column.addWidget(scroll, 2)
        column.addWidget(self.table, 1)

    def resizeEvent(self, event: QResizeEvent) -> None:
        """Charts are higher in a high window."""
        super().resizeEvent(event)
        self._stretch_charts()

    def _stretch_charts(self) -> None:
        cards: list[GpuCard | HostCard] = [self.host, *self.cards.values()]
        height = min(self.height() // (2 * len(cards)) - px(_AROUND_CHART), px(_HIGHEST_CHART))
        for chart in (chart for card in cards for chart in card.charts.values()):
            chart.set_height(height)

    def closeEvent(self, event: QCloseEvent) -> None:
        """End the thread, and the window of its own."""
        self.dock.dock()
        self._reader.stop()
        super().closeEvent(event)

    @Slot(bool)
    def _seen(self, seen: bool) -> None:  # noqa: FBT001  a signal's argument
        """What cannot be seen is not read."""
        if seen:
            self._reader.start()
        else:
            self._reader.stop()

    @Slot(object)
    def show_snapshot(self, snapshot: Snapshot) -> None:
        """One reading of everything."""
        for reading in snapshot.gpus:
            name = gpu_label(reading)
            if name not in self.cards:
                self.cards[name] = GpuCard()
                self._column.insertWidget(self._column.count() - 2, self.cards[name])
            self.cards[name].add(snapshot.t, reading)
        for name in [name for name in self.cards if name not in {gpu_label(gpu) for gpu in snapshot.gpus}]:
            self.cards.pop(name).deleteLater()
        if len(self.cards) != self._charted:
            self._charted = len(self.cards)
            self._stretch_charts()
        self.host.read(snapshot.t)
        self.holders.show_cells([_cells(holder) for holder in snapshot.holders])
        told = "" if snapshot.gpus else str(snapshot.state) or tr(_NO_DRIVER)
        self.words.setText(told or ("" if snapshot.holders else tr(_NOBODY)))
        self.table.setVisible(bool(snapshot.gpus))


class Reader(QObject):
    """A monitor on a thread: ``read`` brings each snapshot into the window's thread."""

    read = Signal(object)
    _came = Signal(object)

    def __init__(self, parent: QObject) -> None:
        super().__init__(parent)
        self._monitor: Monitor | None = None
        self._sampler: Sampler | None = None
        self._came.connect(self._deliver, Qt.ConnectionType.QueuedConnection)

    def start(self) -> None:
        """Begin, unless it runs."""
        if self._sampler is None:
            self._monitor = self._monitor or Monitor()
            self._sampler = Sampler(self._read_once, IDLE_INTERVAL_S, "monitor")
            self._sampler.start()

    def stop(self) -> None:
        """End the thread; the clock of the charts goes on."""
        if self._sampler is not None:
            self._sampler.stop()
            self._sampler = None

    def _read_once(self) -> None:
        if self._monitor is not None:
            self._came.emit(self._monitor.read())

    @Slot(object)
    def _deliver(self, snapshot: Snapshot) -> None:
        if self._sampler is not None:
            self.read.emit(snapshot)


def _cells(holder: Holder) -> list[Cell]:
    return [
        Cell(holder.gpu, holder.gpu),
        Cell(str(holder.pid), holder.pid),
        Cell(holder.name or tr("N/A"), holder.name, bold=bool(holder.name)),
        Cell(holder.user or tr("N/A"), holder.user, ink="muted"),
        _size(holder.used_bytes),
        _size(holder.rss_bytes),
    ]


def _size(size: int | None) -> Cell:
    return Cell(tr("N/A"), nan, "", "muted") if size is None else Cell(format_bytes(size), size, f"{size:,} bytes")
