"""The What fits tab: inverse answers, the map of loads, the table of cards; all answered in the background."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from threading import Event
from typing import TYPE_CHECKING

from PySide6.QtCore import Qt, QTimer, Slot
from PySide6.QtGui import QHideEvent, QShowEvent
from PySide6.QtWidgets import (
    QFrame,
    QGridLayout,
    QHBoxLayout,
    QLabel,
    QPushButton,
    QSizePolicy,
    QSplitter,
    QStackedWidget,
    QVBoxLayout,
    QWidget,
)

from gui.elided import ElidedLabel
from gui.export import ChartMenu, TableMenu
from gui.fits.answers import Answer, Fits, Inverse, NotWanted, batch_of, context_of, fits_of
from gui.fits.cards import CardTable
from gui.fits.heat_map import HeatMap
from gui.fits.speed_chart import SpeedChart
from gui.fits.speeds import Pace, open_pace
from gui.form.editors import Segments
from gui.operations import Operation
from gui.theme import set_role
from gui.translate import tr
from gui.units import units
from planner.engines.served import SERVED

if TYPE_CHECKING:
    from gui.context import Context
    from resources.plan import Plan

_PAUSE_MS = 120
_QUESTIONS = 5
_VIEW_WIDTH = 150
VIEWS = (
    ("map", "Context × batch", "What fits of every load on this card"),
    ("speed", "Speed × concurrency", "How fast the load runs with more sequences at once"),
)
_KEYS = {
    "map": (
        "Share of a card's memory at the peak; the red line is where it stops fitting",
        "Peak as a share of the card's memory",
        "% of memory",
    ),
    "pool": (
        "Share of the cache's tokens; the red line is where they no longer fit",
        "Share of the cache's tokens",
        "% of the cache",
    ),
    "speed": ("Estimated from the card's bandwidth and compute", "Estimated"),
}
"""What the figures of a chart are, and shorter."""
_NO_ANSWER = "There is no closed form for this choice yet, so nothing can be turned around. Rehearse it in the Probe tab."


class FitsTab(QWidget):
    """What fits."""

    def __init__(self, context: Context, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._state, self._operations = context.state, context.operations
        self.heat_map, self.speeds, self.table = HeatMap(), SpeedChart(), CardTable()
        self.views = Segments([(name, tr(label), tr(tip)) for name, label, tip in VIEWS], width=_VIEW_WIDTH)
        self.views.set_value("map")
        self.answers = [InverseAnswer() for _ in range(_QUESTIONS)]
        self.note = QLabel(wordWrap=True, visible=False)
        self._key = ElidedLabel()
        self._key.setAlignment(Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter)
        self._of: Plan | None = None
        self._fits: Fits | None = None
        self._unwanted = Event()
        self._pause = QTimer(self, singleShot=True, interval=_PAUSE_MS)
        self._lay_out()
        self._connect()

    def _lay_out(self) -> None:
        set_role(self.note, "muted")
        set_role(self._key, "small")
        inverse, card = QGridLayout(), QFrame()
        inverse.setSpacing(10)
        for index, answer in enumerate(self.answers):
            inverse.addWidget(answer, index // 2, index % 2, 1, 1 + (index == _QUESTIONS - 1 and index % 2 == 0))
        for column in range(2):
            inverse.setColumnStretch(column, 1)
        set_role(card, "card")
        inside = QVBoxLayout(card)
        inside.setContentsMargins(10, 8, 10, 6)
        self._charts = QStackedWidget()
        for chart in (self.heat_map, self.speeds):
            self._charts.addWidget(chart)
        self._turn("map")
        head = QHBoxLayout()
        head.addWidget(self.views)
        head.addWidget(self._key, 1)
        inside.addLayout(head)
        inside.addWidget(self._charts, 1)
        split = QSplitter(Qt.Orientation.Vertical, childrenCollapsible=False, handleWidth=10)
        split.addWidget(card)
        split.addWidget(self.table)
        split.setSizes([340, 280])
        self.table.setMinimumHeight(96)
        column = QVBoxLayout(self)
        column.setContentsMargins(12, 12, 12, 12)
        column.setSpacing(10)
        column.addLayout(inverse)
        column.addWidget(self.note)
        column.addWidget(split, 1)
        ChartMenu(self.heat_map)
        ChartMenu(self.speeds)
        TableMenu(self.table, self.table.cards)

    def _connect(self) -> None:
        self._state.plan_changed.connect(self._plan_changed)
        self._state.faults_changed.connect(self._show_currency)
        self._state.busy_changed.connect(self._show_currency)
        self._pause.timeout.connect(self._ask)
        units().changed.connect(self._show)
        self.heat_map.adopted.connect(self._adopt)
        self.table.adopted.connect(self._adopt)
        self.speeds.adopted.connect(self._adopt)
        self.speeds.picked.connect(self._explain)
        self.views.edited.connect(self._turn)
        for answer in self.answers:
            answer.use.clicked.connect(self._adopt_inverse)

    def hideEvent(self, event: QHideEvent) -> None:
        """Out of sight nothing is asked."""
        self._pause.stop()
        self._unwanted.set()
        super().hideEvent(event)

    def showEvent(self, event: QShowEvent) -> None:
        """Catch up with the plan."""
        super().showEvent(event)
        self._show_currency()
        self._ask()

    @property
    def settled(self) -> bool:
        """Whether what is shown answers the plan on screen."""
        return self._of is self._state.plan and self._fits is not None and not self._operations.running("fits")

    @Slot()
    def _plan_changed(self) -> None:
        """While someone types, only the last plan is asked about."""
        if self.isVisible():
            self._unwanted.set()
            self.heat_map.set_dimmed()
            self.speeds.set_dimmed()
            self._pause.start()

    @Slot()
    def _ask(self) -> None:
        plan = self._state.plan
        if plan is None or plan is self._of or not self.isVisible():
            return
        self._of = plan
        self._unwanted.set()
        self._unwanted = Event()
        work = partial(fits_of, plan, self._state.settled, self._unwanted)
        self._operations.start(Operation("fits", work, self._take, self._fail))

    @Slot(object)
    def _take(self, found: Fits) -> None:
        self._fits = found
        self._show()

    @Slot(object)
    def _fail(self, error: Exception) -> None:
        self._of = None
        if not isinstance(error, NotWanted):
            raise error

    @Slot()
    def _show(self) -> None:
        if self._fits is None or self._of is None:
            return
        settled = self._state.settled
        self.heat_map.show_map(self._fits.map, batch_of(settled), context_of(settled))
        self.speeds.show_paces(self._fits.paces, batch_of(settled), fitting=self._any_fits)
        self.table.show_cards(self._fits.cards, self._of.gpu.name)
        for index, answer in enumerate(self.answers):
            known = index < len(self._fits.inverse)
            answer.setVisible(known)
            if known:
                answer.show_answer(self._fits.inverse[index])
        self._tell_what()
        self._show_currency()

    @Slot()
    def _show_currency(self) -> None:
        """Why nothing is shown, or why it is old."""
        unanswered = tr(_NO_ANSWER) if self._fits is not None and not self._fits.inverse else ""
        said = self._state.trouble if self._state.faults or self._state.plan is None else unanswered
        self.note.setText(said)
        self.note.setVisible(bool(said))
        if self._state.plan is None:
            for answer in self.answers:
                answer.hide()
            self.heat_map.say(tr("Nothing to turn around yet."))
        elif not self._state.current:
            self.heat_map.set_dimmed()
            self.speeds.set_dimmed()

    @property
    def _any_fits(self) -> bool:
        """Whether the smallest load of the map does, or it is not known."""
        return self._fits is None or self._fits.map.answers[0][0].verdict != "does_not_fit"

    @Slot(object)
    def _turn(self, view: object) -> None:
        self._charts.setCurrentWidget(self.speeds if view == "speed" else self.heat_map)
        self._tell_what()

    @Slot()
    def _tell_what(self) -> None:
        """What the figures of the chart are: an engine with a pool is full when its cache is."""
        settled = self._state.settled
        pooled = settled.task == "inference" and settled.engine in SERVED
        shown = "speed" if self._charts.currentWidget() is self.speeds else "pool" if pooled else "map"
        self._key.setText(*(tr(way) for way in _KEYS[shown]))

    @Slot(object)
    def _adopt(self, answer: Answer | Pace) -> None:
        self._state.open(answer.scenario, tr("adopt what fits"))

    @Slot(object)
    def _explain(self, pace: Pace) -> None:
        """The why panel tells of a point of the speed."""
        if self._of is not None:
            self._state.select(replace(self._state.selection, peak=None, pace=open_pace(self._of, pace)))

    @Slot()
    def _adopt_inverse(self) -> None:
        for answer in self.answers:
            if answer.use is self.sender() and answer.shown is not None and answer.shown.scenario is not None:
                self._state.open(answer.shown.scenario, tr(answer.shown.question).lower())


class InverseAnswer(QFrame):
    """One inverse question with its answer, and a button that takes it into the form."""

    def __init__(self) -> None:
        super().__init__()
        self.shown: Inverse | None = None
        self._question, self.value = ElidedLabel(), ElidedLabel()
        self.use = QPushButton(tr("Use"), toolTip=tr("Take it into the form; Ctrl+Z takes it back"), enabled=False)
        self.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Fixed)
        set_role(self, "card")
        set_role(self._question, "small")
        set_role(self.value, "head")
        set_role(self.use, "compact")
        grid = QGridLayout(self)
        grid.setContentsMargins(12, 6, 10, 6)
        grid.setVerticalSpacing(0)
        grid.setColumnStretch(0, 1)
        grid.addWidget(self._question, 0, 0)
        grid.addWidget(self.value, 1, 0)
        grid.addWidget(self.use, 0, 1, 2, 1)

    def show_answer(self, answer: Inverse) -> None:
        """Show ``answer``."""
        self.shown = answer
        self._question.setText(tr(answer.question))
        self.value.setText(answer.value, answer.value.partition(" (")[0])
        self.use.setEnabled(answer.scenario is not None)
        self.use.setAccessibleName(tr("Use: {}, {}").format(tr(answer.question), answer.value))
