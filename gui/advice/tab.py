"""The Advice tab: proposals for the plan on screen, each predicted anew in the background, adopted with one click."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from PySide6.QtCore import Qt, Slot
from PySide6.QtGui import QShowEvent
from PySide6.QtWidgets import QHBoxLayout, QLabel, QPushButton, QVBoxLayout, QWidget

from gui.advice.table import AdviceTable
from gui.cells import TABLE_STRETCH
from gui.operations import Operation
from gui.theme import set_role
from gui.translate import tr
from gui.units import format_bytes
from gui.words import word
from planner.advise import Advice, advise
from planner.words import VERDICTS
from resources.family import answer_for, smaller_models

if TYPE_CHECKING:
    from gui.context import Context
    from planner.scenario import Scenario
    from resources.plan import Plan

_KEY = "advice"


class AdviceTab(QWidget):
    """What would make it fit."""

    def __init__(self, context: Context, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._state = context.state
        self._operations = context.operations
        self._of: Plan | None = None
        self._advised: tuple[Advice, ...] | None = None
        self.headline = QLabel()
        self.table = AdviceTable()
        self.why = QLabel()
        self.apply = QPushButton(tr("&Apply change"))
        self._lay_out()
        self._state.plan_changed.connect(self._ask)
        self._state.faults_changed.connect(self._show_currency)
        self._state.busy_changed.connect(self._show_currency)
        self.table.chosen.connect(self._choose)
        self.table.adopted.connect(self._adopt)
        self.apply.clicked.connect(self._apply)

    def _lay_out(self) -> None:
        set_role(self.headline, "title")
        set_role(self.apply, "primary")
        set_role(self.why, "muted")
        self.headline.setWordWrap(True)
        self.why.setWordWrap(True)
        self.why.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
        self.apply.setToolTip(tr("Take the chosen change into the plan; Ctrl+Z undoes it"))
        foot = QHBoxLayout()
        foot.addWidget(self.why, 1)
        foot.addWidget(self.apply)
        column = QVBoxLayout(self)
        column.setContentsMargins(12, 12, 12, 12)
        column.setSpacing(10)
        column.addWidget(self.headline)
        column.addWidget(self.table, TABLE_STRETCH)
        column.addLayout(foot)
        column.addStretch(1)

    def showEvent(self, event: QShowEvent) -> None:
        """Catch up with the plan."""
        super().showEvent(event)
        self._show_currency()
        self._ask()

    @Slot()
    def _ask(self) -> None:
        plan = self._state.plan
        if plan is None or plan is self._of or not self.isVisible():
            return
        self._of = plan
        self._show_currency()
        self._operations.start(Operation(_KEY, partial(_advice_for, plan, self._state.settled), self._take, self._fail))

    @Slot(object)
    def _take(self, found: object) -> None:
        self._advised = found if isinstance(found, tuple) else ()
        self.table.show_advice(self._advised)
        self._show_currency()

    @Slot(object)
    def _fail(self, error: Exception) -> None:
        self._of = None
        raise error

    @Slot()
    def _show_currency(self) -> None:
        """What is shown belongs to the plan on screen, or can't be applied."""
        fresh = self._state.current and not self._operations.running(_KEY)
        self.apply.setEnabled(fresh and self.table.current() is not None)
        self.table.setEnabled(self._state.current)
        role = "fault-title" if self._state.faults else "title"
        if self.headline.property("role") != role:
            set_role(self.headline, role)
        if self._state.faults or self._state.plan is None:
            self.headline.setText(self._state.trouble)
        elif fresh and self._advised is not None:
            self.headline.setText(_headline(self._of, self._advised))

    @Slot(object)
    def _choose(self, advice: Advice | None) -> None:
        self.why.setText(tr("Source: {source}").format(source=advice.because) if advice and advice.because else "")
        self._show_currency()

    @Slot()
    def _apply(self) -> None:
        self._adopt(self.table.current())

    @Slot(object)
    def _adopt(self, advice: Advice | None) -> None:
        if advice is not None and self._state.current:
            self._state.open(advice.scenario, advice.title)


def _advice_for(plan: Plan, scenario: Scenario) -> tuple[Advice, ...]:
    return advise(scenario, plan.architecture, answer_for(plan), smaller_models(plan))


def _headline(plan: Plan | None, advice: tuple[Advice, ...]) -> str:
    if plan is None:
        return ""
    verdict = plan.footprint.verdict
    label = word(VERDICTS, verdict).label
    if verdict == "unknown":
        return tr("Nothing can be advised on a plan that has no closed form yet. Rehearse it in the Probe tab.")
    fitting = [one for one in advice if one.verdict in ("fits", "tight")]
    if verdict == "does_not_fit":
        if not fitting:
            return tr("{verdict}, and no change that is known makes it fit.").format(verdict=label)
        best = fitting[0]
        words = tr("{verdict}. The cheapest change that makes it fit: {change} (−{saving}).")
        return words.format(verdict=label, change=best.title, saving=format_bytes(best.gain_bytes))
    if not advice:
        return tr("{verdict}; no change that is known would take less.").format(verdict=label)
    return tr("{verdict}. These changes would give it more room.").format(verdict=label)
