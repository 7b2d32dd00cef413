"""The History tab: find a run, open its scenario, compare it, replay its recording, export or forget it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from PySide6.QtCore import QTimer, Slot
from PySide6.QtGui import QHideEvent, QResizeEvent, QShowEvent
from PySide6.QtWidgets import QFileDialog, QHBoxLayout, QLabel, QLineEdit, QPushButton, QVBoxLayout, QWidget

from gui.cells import TABLE_STRETCH
from gui.export import TableMenu, tell
from gui.history.table import RunTable
from gui.operations import Operation
from gui.theme import px, set_role
from gui.translate import tr
from gui.units import units
from planner.faults import Faults
from planner.scenario import Scenario, parse_scenario
from resources.history import History, HistoryError, Run

if TYPE_CHECKING:
    from gui.context import Context

_PAUSE_MS = 150
_ROOM_FOR_BUTTONS = 540
_MOST = 5000
_FILES = "CSV (*.csv);;JSON (*.json)"
_EMPTY = "No run yet. Measure or Rehearse in the Probe tab, and it is listed here with its error."
_NOTHING = "No run has every word of that."


class HistoryTab(QWidget):
    """Reads the database in the background, whenever the tab comes to the front, a run has ended, or the filter changes."""

    def __init__(self, context: Context, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._context = context
        self._history = History()
        self.filter = QLineEdit(placeholderText=tr("Filter by model, card, engine, outcome"), clearButtonEnabled=True)
        self.tags = QLineEdit(placeholderText=tr("Tags of the chosen runs"), toolTip=tr("Words of your own; the filter finds them"))
        self.table = RunTable()
        self.note = QLabel(wordWrap=True, visible=False)
        self.buttons = {
            "open": self._button(tr("&Open"), tr("Put the run's scenario into the form")),
            "pin": self._button(tr("Co&mpare"), tr("Pin the plans of the selected runs")),
            "replay": self._button(tr("&Replay"), tr("Play the recording into the Probe tab")),
            "calibrate": self._button(
                tr("Cali&brate …"), tr("Fit this machine's overheads on the recordings of the selected runs")
            ),
            "export": self._button(tr("&Export …"), tr("The selected runs, or all, as CSV or JSON")),
            "delete": self._button(tr("&Delete"), tr("Forget the selected runs; their recordings stay")),
        }
        self._pause = QTimer(self, singleShot=True, interval=_PAUSE_MS)
        self._lay_out()
        self._connect()

    def _button(self, text: str, tip: str) -> QPushButton:
        return QPushButton(text, toolTip=tip)

    def _lay_out(self) -> None:
        self.filter.setAccessibleName(tr("Filter the runs"))
        set_role(self.note, "muted")
        self.tags.setAccessibleName(tr("Tags of the chosen runs"))
        row = QHBoxLayout()
        row.setSpacing(6)
        for button in self.buttons.values():
            row.addWidget(button)
        row.addStretch(1)
        column = QVBoxLayout(self)
        column.setContentsMargins(12, 12, 12, 12)
        column.setSpacing(10)
        top = QHBoxLayout()
        top.addWidget(self.filter, 3)
        top.addWidget(self.tags, 2)
        column.addLayout(top)
        column.addWidget(self.note)
        column.addWidget(self.table, TABLE_STRETCH)
        column.addLayout(row)
        column.addStretch(1)
        TableMenu(self.table, self.table.runs)
        self._show_choice()

    def _connect(self) -> None:
        self.filter.textChanged.connect(self._pause.start)
        self._pause.timeout.connect(self.refresh)
        self.table.chosen.connect(self._show_choice)
        self.table.opened.connect(self._open)
        self.tags.editingFinished.connect(self._tag)
        slots = {
            "open": self._open,
            "pin": self._pin,
            "replay": self._replay,
            "calibrate": self._calibrate,
            "export": self._export,
            "delete": self._delete,
        }
        for name, slot in slots.items():
            self.buttons[name].clicked.connect(slot)
        self._context.state.run_kept.connect(self.refresh)
        units().changed.connect(self.refresh)

    def resizeEvent(self, event: QResizeEvent) -> None:
        """Buttons are smaller where they would be cut."""
        super().resizeEvent(event)
        role = "compact" if self.width() < px(_ROOM_FOR_BUTTONS) else ""
        for button in self.buttons.values():
            if (button.property("role") or "") != role:
                set_role(button, role)

    def hideEvent(self, event: QHideEvent) -> None:
        """Out of sight nothing is asked."""
        self._pause.stop()
        super().hideEvent(event)

    def showEvent(self, event: QShowEvent) -> None:
        """Read what came since."""
        super().showEvent(event)
        self.refresh()

    @Slot()
    def refresh(self) -> None:
        """Read the runs anew, in the background."""
        if self.isVisible():
            self._in_background("history", partial(self._history.runs, self.filter.text(), _MOST), self._take)

    @Slot(object)
    def _take(self, runs: list[Run]) -> None:
        self.table.runs.show_runs(runs)
        said = self._history.trouble or ("" if runs else tr(_NOTHING) if self.filter.text() else tr(_EMPTY))
        self._say(said)
        self._show_choice()

    @Slot(object)
    def _fail(self, error: Exception) -> None:
        if not isinstance(error, HistoryError | OSError | ValueError):
            raise error
        self._say(str(error))

    def _say(self, text: str) -> None:
        self.note.setText(text)
        self.note.setVisible(bool(text))

    @Slot()
    def _show_choice(self) -> None:
        chosen = self.table.selected()
        self.buttons["open"].setEnabled(len(chosen) == 1)
        self.buttons["pin"].setEnabled(bool(chosen))
        self.buttons["replay"].setEnabled(len(chosen) == 1 and bool(chosen[0].recording))
        self.buttons["delete"].setEnabled(bool(chosen))
        self.tags.setEnabled(bool(chosen))
        if not self.tags.hasFocus():
            self.tags.setText(chosen[0].tags if len({run.tags for run in chosen}) == 1 else "")
        self.buttons["calibrate"].setEnabled(any(run.recording for run in chosen))
        self.buttons["export"].setEnabled(bool(self.table.runs.rowCount()))

    @Slot()
    def _open(self) -> None:
        chosen = self.table.selected()
        if len(chosen) == 1:
            self._in_background("history run", partial(_scenarios_of, self._history, chosen), self._open_scenario)

    @Slot(object)
    def _open_scenario(self, found: list[tuple[str, Scenario]]) -> None:
        for name, scenario in found:
            self._context.state.open(scenario, tr("open run of {}").format(name))
            tell(self, tr("The scenario of the run is in the form"))

    @Slot()
    def _pin(self) -> None:
        chosen = self.table.selected()
        self._in_background("history run", partial(_scenarios_of, self._history, chosen), self._pin_scenarios)

    @Slot(object)
    def _pin_scenarios(self, found: list[tuple[str, Scenario]]) -> None:
        tell(self, self._context.pins.add(found))

    @Slot()
    def _replay(self) -> None:
        chosen = self.table.selected()
        if not chosen:
            return
        path = Path(chosen[0].recording)
        if path.exists():
            self.window().replay(path)
        else:
            self._say(tr("The recording is gone: {}").format(path))

    @Slot()
    def _calibrate(self) -> None:
        self.window().calibrate([Path(run.recording) for run in self.table.selected() if run.recording])

    @Slot()
    def _tag(self) -> None:
        words, chosen = " ".join(self.tags.text().split()), self.table.selected()
        changed = [run.id for run in chosen if run.tags != words]
        if changed and self.tags.isModified():
            self.tags.setModified(False)
            self._in_background("history tag", partial(self._history.tag, changed, words), self._tagged, lasting=True)

    @Slot(object)
    def _tagged(self, count: int) -> None:
        tell(self, tr("{} tagged").format(count))
        self.refresh()

    @Slot()
    def _delete(self) -> None:
        numbers = [run.id for run in self.table.selected()]
        self._in_background("history delete", partial(self._history.delete, numbers), self._deleted, lasting=True)

    @Slot(object)
    def _deleted(self, count: int) -> None:
        tell(self, tr("{} forgotten").format(count))
        self.refresh()

    @Slot()
    def _export(self) -> None:
        numbers = [run.id for run in self.table.selected()]
        path, kind = QFileDialog.getSaveFileName(self, tr("Save runs"), "history.csv", _FILES)
        if path:
            as_json = path.endswith(".json") or (not path.endswith(".csv") and "json" in kind)
            work = partial(_export, self._history, numbers, Path(path), as_json)
            self._in_background("history export", work, self._exported, lasting=True)

    @Slot(object)
    def _exported(self, path: Path) -> None:
        tell(self, tr("Saved {}").format(path))

    def _in_background(
        self, key: str, work: Callable[[], object], take: Callable[[object], None], *, lasting: bool = False
    ) -> None:
        self._context.operations.start(Operation(key, work, take, self._fail, lasting))


def _scenarios_of(history: History, runs: list[Run]) -> list[tuple[str, Scenario]]:
    """Each run's scenario, under the model's name. Raises ValueError where one can't be read any more."""
    found = []
    for run in runs:
        try:
            found.append((run.model.rsplit("/", 1)[-1], parse_scenario(history.run(run.id).result.get("scenario"))))
        except Faults as faults:
            raise ValueError(tr("The scenario of this run can't be read: {}").format(faults)) from faults
    return found


def _export(history: History, numbers: list[int], path: Path, as_json: bool) -> Path:  # noqa: FBT001  positional for partial
    pieces = history.export_json(numbers) if as_json else history.export_csv(numbers)
    with path.open("w", encoding="utf-8", newline="") as file:
        file.writelines(pieces)
    return path
