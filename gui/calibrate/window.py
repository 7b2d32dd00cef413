"""Calibrate: a guided battery, what it comes to, and whether predictions use it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from PySide6.QtCore import Qt, Signal, Slot
from PySide6.QtGui import QCloseEvent
from PySide6.QtWidgets import (
    QDialog,
    QFileDialog,
    QHBoxLayout,
    QLabel,
    QProgressBar,
    QPushButton,
    QVBoxLayout,
    QWidget,
)

from gui.calibrate import work
from gui.cells import CellModel, CellTable, Column, dress
from gui.export import TableMenu
from gui.form.editors import ChoiceField
from gui.operations import Operation
from gui.theme import set_role
from gui.translate import tr
from probes.battery import Battery, Progress
from probes.outcome import Outcome
from probes.preflight import why_not

if TYPE_CHECKING:
    from gui.context import Context
    from probes.calibration import Fit

_SIZE, _ROW_HEIGHT = (860, 520), 26
_KEPT = "calibrations"
"""Work on what is kept."""
_WIDTHS = (120, 92, 84, 52, 100, 76)
_INTRO = (
    "What a machine adds outside the tensors (the CUDA context, the allocator's slack, how near it comes to the card's rates) "
    "differs from one to the next. The battery measures it in under five minutes; a figure is used only when it brings "
    "predictions closer to runs that it was not fitted on."
)


class CalibrateWindow(QDialog):
    """``changed`` when predictions use other figures than before."""

    changed = Signal()
    _told = Signal(object)

    def __init__(self, context: Context, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._context = context
        self._battery: Battery | None = None
        self._fits: tuple[Fit, ...] = ()
        self._kept: tuple[work.Kept, ...] = ()
        self.device = ChoiceField([("cpu", "CPU")])
        self.card = ChoiceField([])
        self.run = QPushButton(tr("Run the battery"), toolTip=tr("Short runs of small and cut models, one after the other"))
        self.stop = QPushButton(tr("Stop"), enabled=False)
        self.fit = QPushButton(tr("Fit on recordings"), toolTip=tr("Judge what runs recorded here say, without running anything"))
        self.progress = QProgressBar(textVisible=False, visible=False)
        self.status, self.judged, self.held = (QLabel(wordWrap=True) for _ in range(3))
        self.figures = CellModel([Column(tr(column.heading), column.figures) for column in work.COLUMNS], self)
        self.table = CellTable()
        self.use = QPushButton(tr("Use it"), enabled=False, toolTip=tr("Predictions for this card use the accepted figures"))
        self.back = QPushButton(tr("Take back"), toolTip=tr("Go back to the calibration before, or to the catalog"))
        self.reset = QPushButton(tr("Reset all"), toolTip=tr("Every card goes back to the catalog's typical values"))
        self.export = QPushButton(tr("Export …"), toolTip=tr("Everything that is kept, as JSON"))
        self._lay_out()
        self._connect()
        self._list_devices()
        self._in_background(_KEPT, work.kept, self._show_kept)

    def fit_on(self, paths: Sequence[Path]) -> None:
        """Judge what these recordings say; none: all that there are."""
        self._busy(busy=True)
        self.status.setText(tr("Fitting …"))
        self._in_background("calibrate", partial(work.fits_of, tuple(paths)), self._show_fits)

    def closeEvent(self, event: QCloseEvent) -> None:
        """End the battery."""
        self._stop()
        super().closeEvent(event)

    def _lay_out(self) -> None:
        self.setWindowTitle(tr("Calibrate"))
        self.setAttribute(Qt.WidgetAttribute.WA_QuitOnClose, on=False)
        self.resize(*_SIZE)
        dress(self.table, self.figures, _ROW_HEIGHT)
        self.table.setAccessibleName(tr("Fitted figures"))
        for number, width in enumerate(_WIDTHS):
            self.table.setColumnWidth(number, width)
        self.table.horizontalHeader().setStretchLastSection(True)
        TableMenu(self.table, self.figures)
        intro = QLabel(tr(_INTRO), wordWrap=True)
        for label in (intro, self.status, self.held):
            set_role(label, "muted")
        set_role(self.judged, "head")
        set_role(self.run, "primary")
        self.device.setAccessibleName(tr("Device"))
        self.card.setAccessibleName(tr("Card"))
        column = QVBoxLayout(self)
        column.setContentsMargins(16, 14, 16, 12)
        column.setSpacing(10)
        column.addWidget(intro)
        column.addLayout(_row(self.device, self.run, self.stop, self.fit))
        column.addWidget(self.progress)
        column.addWidget(self.status)
        column.addWidget(self.card, 0, Qt.AlignmentFlag.AlignLeft)
        column.addWidget(self.judged)
        column.addWidget(self.table, 1)
        column.addWidget(self.held)
        column.addLayout(_row(self.use, self.back, self.reset, self.export))
        self.card.hide()

    def _connect(self) -> None:
        self.run.clicked.connect(self._run)
        self.stop.clicked.connect(self._stop)
        self.fit.clicked.connect(self._fit_all)
        self.use.clicked.connect(self._use)
        self.back.clicked.connect(self._take_back)
        self.reset.clicked.connect(self._reset)
        self.export.clicked.connect(self._export)
        self.card.edited.connect(self._show_fit)
        self._told.connect(self._tell)
        self._context.machine.changed.connect(self._list_devices)

    @Slot()
    def _list_devices(self) -> None:
        chosen = self.device.value()
        self.device.clear()
        for reading in self._context.machine.readings:
            self.device.addItem(f"cuda:{reading.index}  {reading.name}", f"cuda:{reading.index}")
        self.device.addItem(tr("CPU"), "cpu")
        if chosen != "cpu":
            self.device.set_value(chosen or self.device.itemData(0))

    @Slot()
    def _run(self) -> None:
        problem = why_not()
        if problem:
            self.status.setText(problem)
            return
        self._battery = Battery(str(self.device.value()), self._told.emit)
        self._busy(busy=True)
        self._in_background("calibrate", self._battery.run, self._ended)

    @Slot()
    def _stop(self) -> None:
        if self._battery is not None:
            self._battery.stop()
            self.status.setText(tr("Stopping …"))

    @Slot(object)
    def _tell(self, progress: Progress) -> None:
        title = tr("{} of {}: {} …").format(progress.done + 1, progress.total, progress.title)
        self.status.setText("\n".join((title, *progress.notes)))
        self.progress.setMaximum(progress.total)
        self.progress.setValue(progress.done)

    @Slot(object)
    def _ended(self, outcome: Outcome) -> None:
        battery, self._battery = self._battery, None
        self._busy(busy=False)
        if outcome.kind != "completed":
            self.status.setText(outcome.text)
        elif battery is not None and battery.device == "cpu":
            self.status.setText(_cpu_words(battery))
        else:
            self._context.state.run_kept.emit()
            self.fit_on(())

    @Slot()
    def _fit_all(self) -> None:
        self.fit_on(())

    @Slot(object)
    def _show_fits(self, found: tuple[Fit, ...]) -> None:
        self._busy(busy=False)
        self._fits = found
        self.card.clear()
        for one in found:
            self.card.addItem(one.card, one.card)
        self.card.setVisible(len(found) > 1)
        self.status.setText("" if found else tr(work.NO_RECORDING))
        self._show_fit()

    @Slot()
    def _show_fit(self) -> None:
        found = self._fit
        self.figures.show_cells(work.cells_of(found) if found else [])
        self.use.setEnabled(found is not None and found.is_better)
        self.judged.setText(_judgement(found) if found else "")

    @property
    def _fit(self) -> Fit | None:
        return next((one for one in self._fits if one.card == self.card.value()), None)

    @Slot()
    def _use(self) -> None:
        if self._fit is not None:
            self._in_background(_KEPT, partial(work.use, self._fit), self._show_changed)

    @Slot()
    def _take_back(self) -> None:
        if self._kept:
            card = str(self.card.value() or self._kept[0].card)
            self._in_background(_KEPT, partial(work.take_back, card), self._show_changed)

    @Slot()
    def _reset(self) -> None:
        self._in_background(_KEPT, work.reset, self._show_changed)

    @Slot()
    def _export(self) -> None:
        path, _ = QFileDialog.getSaveFileName(self, tr("Export calibrations"), "calibration.json", "JSON (*.json)")
        if path:
            self._in_background(_KEPT, partial(work.export, Path(path)), self.status.setText)

    @Slot(object)
    def _show_changed(self, found: tuple[work.Kept, ...]) -> None:
        self._show_kept(found)
        self.changed.emit()

    @Slot(object)
    def _show_kept(self, found: tuple[work.Kept, ...]) -> None:
        self._kept = found
        lines = [tr("{} · {} · {} kept").format(one.card, one.source, one.count) for one in found]
        nothing = tr("Nothing is calibrated here: predictions use the catalog's typical values.")
        self.held.setText("\n".join(lines) or nothing)
        self.back.setEnabled(bool(found))
        self.reset.setEnabled(bool(found))
        self.export.setEnabled(bool(found))

    @Slot(object)
    def _failed(self, error: Exception) -> None:
        self._battery = None
        self._busy(busy=False)
        self.status.setText(str(error) or repr(error))

    def _busy(self, *, busy: bool) -> None:
        for widget in (self.run, self.fit, self.device):
            widget.setEnabled(not busy)
        self.stop.setEnabled(busy and self._battery is not None)
        self.progress.setVisible(busy and self._battery is not None)

    def _in_background(self, key: str, task: Callable[[], object], take: Callable[..., None]) -> None:
        self._context.operations.start(Operation(key, task, take, self._failed, lasting=key == _KEPT))


def _judgement(found: Fit) -> str:
    if not found.is_better:
        return tr("{}: nothing proved itself, predictions stay as they are.").format(found.card)
    if found.error_before is None or found.error_after is None:
        return found.card
    before, after = (f"{100 * error:.2f} %" for error in (found.error_before, found.error_after))
    return tr("{}: runs that it was not fitted on are off by {} without, {} with it.").format(found.card, before, after)


def _cpu_words(battery: Battery) -> str:
    rate = float(battery.figures.get("bandwidth_bytes_per_s") or 0) / 1e9
    return tr("A copy moves {} GB/s. A CPU has no context and no caching allocator to calibrate: nothing is kept.").format(
        f"{rate:.1f}"
    )


def _row(*widgets: QWidget) -> QHBoxLayout:
    line = QHBoxLayout()
    for widget in widgets:
        line.addWidget(widget)
    line.addStretch(1)
    return line
