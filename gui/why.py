"""The why panel: the formula behind a component, the numbers put in, where they came from, and how sure they are."""

from __future__ import annotations

import re
from functools import partial
from typing import TYPE_CHECKING

from PySide6.QtCore import Slot
from PySide6.QtGui import QShowEvent
from PySide6.QtWidgets import QLabel, QVBoxLayout, QWidget

from gui.form.fields import FIELDS
from gui.operations import Operation
from gui.page import BODY, FORMULA, HEAD, MUTED, PART, ROW, SIZE, SMALL_PRINT, TITLE, Page, Paragraph
from gui.theme import set_role
from gui.translate import tr
from gui.units import format_bytes, units
from gui.words import word
from planner.footprint import HOST
from planner.sensitivity import Driver, drivers_of
from planner.solve import Asked
from planner.words import CERTAINTIES, COMPONENTS, PHASES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gui.state import State
    from planner.footprint import Footprint, Phase, Term
    from planner.scenario import Scenario
    from probes.peaks import OpenedPeak, TensorGroup
    from resources.plan import Plan

WIDTH, NARROW = 300, 222
_PAGE_MARGIN = 4
_UNKNOWN = "unknown: "
_BEFORE = "Every number of the plan opens here: its formula, what was put in, where that came from, and how sure it is."
DRIVEN = ("does_not_fit", "tight")
"""Verdicts that ask which control drives them."""
_GROUPS_SHOWN = 12
_OPTIONS = re.compile(r"\b(inference|training)\.engine_options\.")
"""Options go by their own names, as they are typed: with their paths they are wider than the panel."""
_LABELS = {spec.path: spec.label.replace("&", "") for spec in FIELDS}


class WhyPanel(QWidget):
    """Explains the state's selection."""

    def __init__(self, state: State, parent: QWidget | None = None) -> None:
        super().__init__(parent, autoFillBackground=True)
        self._state = state
        self._behind: tuple[tuple[str, str, int], list[Paragraph]] = (("", "", 0), [])
        """What was explained last, and how: it stays for the moment until the terms of an edit have come."""
        self._drivers: tuple[object, tuple[Driver, ...]] = (None, ())
        """Of which plan, and what drives it."""
        self._page = Page()
        self._page.setAccessibleName(tr("Why this number"))
        self._lay_out()
        state.plan_changed.connect(self._refresh)
        state.explained.connect(self._refresh)
        state.explained.connect(self._ask_drivers)
        state.selection_changed.connect(self._refresh)
        units().changed.connect(self._refresh)
        self._refresh()

    def text(self) -> str:
        """What is shown, without marks."""
        return self._page.toPlainText()

    def focus(self) -> None:
        """Take the keyboard, so that the page can be scrolled."""
        self._page.setFocus()

    def showEvent(self, event: QShowEvent) -> None:
        """The first plan was explained before anyone could listen."""
        super().showEvent(event)
        if self._state.terms is not None:
            self._ask_drivers()

    def _lay_out(self) -> None:
        self.setMinimumWidth(NARROW)
        heading = QLabel(tr("WHY"))
        set_role(heading, "section")
        heading.setIndent(_PAGE_MARGIN)
        column = QVBoxLayout(self)
        column.setContentsMargins(14, 12, 6, 8)
        column.setSpacing(6)
        column.addWidget(heading)
        column.addWidget(self._page, 1)

    @Slot()
    def _refresh(self) -> None:
        self._page.show_paragraphs(self._paragraphs())

    @Slot()
    def _ask_drivers(self) -> None:
        """Once nobody types any more: what drives a plan that lacks room."""
        plan = self._state.plan
        if plan is not None and plan is not self._drivers[0] and plan.footprint.verdict in DRIVEN:
            work = partial(_drivers, plan, self._state.settled)
            self._state.operations.start(Operation("drivers", work, self._take_drivers, self._crash))

    @Slot(object)
    def _take_drivers(self, found: tuple[object, tuple[Driver, ...]]) -> None:
        self._drivers = found
        self._refresh()

    @Slot(object)
    def _crash(self, error: Exception) -> None:
        raise error

    def _paragraphs(self) -> list[Paragraph]:
        shown, footprint, selection = self._state.shown_phase(), self._state.footprint, self._state.selection
        if selection.pace is not None:
            from gui.fits.why import paced  # noqa: PLC0415  not needed for the first paint

            return paced(selection.pace)
        if selection.peak is not None:
            return opened(selection.peak)
        if footprint is None:
            return [Paragraph(MUTED, tr(_BEFORE))]
        if shown is None:
            return [Paragraph(TITLE, tr("No closed form")), *unknown(footprint), *notes(footprint)]
        gpu, phase = shown
        component = selection.component
        if component is None or not phase.components.get(component):
            component = max(phase.components, key=lambda name: phase.components[name], default="weights")
        what = (component, phase.name, gpu.index)
        if (terms := self._state.terms) is not None:
            self._behind = (what, _reasons(footprint, phase, component, terms, gpu.index))
        drives = driven(footprint, phase, self._drivers[1]) if self._drivers[0] is self._state.plan else []
        whose = gpu.index if len(footprint.gpus) > 1 and gpu.index != HOST else None
        return [*headline(phase, component, whose), *drives, *(self._behind[1] if self._behind[0] == what else [])]


def headline(phase: Phase, component: str, gpu: int | None = None) -> list[Paragraph]:
    """What a component takes; of which of several GPUs."""
    named, size = word(COMPONENTS, component), phase.components.get(component, 0)
    where = [] if gpu is None else [tr("GPU {}").format(gpu)]
    return [
        Paragraph(TITLE, named.label),
        Paragraph(SIZE, format_bytes(size)),
        Paragraph(MUTED, " · ".join([tr("{} bytes").format(f"{size:,}"), word(PHASES, phase.name).label.lower(), *where])),
        Paragraph(MUTED, named.meaning),
    ]


def _reasons(footprint: Footprint, phase: Phase, component: str, terms: Sequence[Term], gpu: int) -> list[Paragraph]:
    if gpu != HOST:
        return behind(footprint, phase, component, [term for term in terms if term.gpu in (None, gpu)])
    held = {term.formula: term for term in terms if term.gpu == HOST and term.component == component}
    loading = [term for term in footprint.host.terms if term.bytes]
    heading = [Paragraph(HEAD, tr("WHILE LOADING"))] if loading else []
    parts = [part for term in loading for part in _term(term, alone=False)]
    return [*_terms(list(held.values())), *heading, *parts, *notes(footprint)]


def driven(footprint: Footprint, phase: Phase, drivers: tuple[Driver, ...]) -> list[Paragraph]:
    """Which control makes the plan as large as it is, and how far it would have to come down."""
    told = [_driver_words(one, fits=footprint.verdict != "does_not_fit") for one in drivers]
    if footprint.verdict == "does_not_fit" and not any(one.most for one in drivers):
        largest = max(phase.components, key=lambda name: phase.components[name], default="weights")
        size = format_bytes(phase.components.get(largest, 0))
        told.append(
            tr("Largest part: {}, {}. No shorter context and no smaller batch makes it fit; Advice tells what does.").format(
                word(COMPONENTS, largest).label, size
            )
        )
    return [Paragraph(HEAD, tr("WHAT DRIVES IT")), *(Paragraph(BODY, line) for line in told)] if told else []


def _driver_words(driver: Driver, *, fits: bool) -> str:
    """One sentence: ``Context adds 16.20 GiB; at 40,960 tokens it fits``."""
    sentences = {
        "context": (tr("Context adds {}"), tr("; at {} tokens it fits"), tr("; up to {} tokens fit")),
        "batch": (tr("Batch adds {}"), tr("; at {} it fits"), tr("; up to {} fit")),
    }
    adds, at, upto = sentences[driver.control]
    limit = (upto if fits else at).format(f"{driver.most:,}") if driver.most else ""
    return f"{adds.format(format_bytes(driver.added_bytes))}{limit}."


def _drivers(plan: Plan, settled: Scenario) -> tuple[object, tuple[Driver, ...]]:
    return plan, drivers_of(Asked(settled, plan.architecture, plan.gpu, plan.model.native), plan.footprint)


def behind(footprint: Footprint, phase: Phase, component: str, terms: Sequence[Term]) -> list[Paragraph]:
    """Why it takes that: every term of it, largest first, and what was taken by default."""
    mine = [term for term in terms if term.component == component and term.phase in (None, phase.name)]
    return [*_terms(sorted(mine, key=lambda term: -term.bytes)), *notes(footprint)]


def unknown(footprint: Footprint) -> list[Paragraph]:
    """What stands in the way of an answer."""
    reasons = [note.removeprefix(_UNKNOWN) for note in footprint.notes if note.startswith(_UNKNOWN)]
    return [Paragraph(BODY, f"{reason[:1].upper()}{reason[1:]}.") for reason in reasons]


def notes(footprint: Footprint) -> list[Paragraph]:
    """What was taken by default, and what else there is to know."""
    told = [note for note in footprint.notes if not note.startswith(_UNKNOWN)]
    heading = [Paragraph(HEAD, tr("DEFAULTS AND NOTES"))] if told else []
    return [*heading, *(Paragraph(SMALL_PRINT, _named(note)) for note in told)]


def _named(note: str) -> str:
    """A note that begins with the path of a field begins with its name in the form instead."""
    path, colon, rest = note.partition(": ")
    return f"{tr(_LABELS[path])}: {rest}" if colon and path in _LABELS else _OPTIONS.sub("", note)


def opened(peak: OpenedPeak) -> list[Paragraph]:
    """What lived at the highest moment of a rehearsed phase, and who reached it."""
    phase = word(PHASES, peak.phase).label
    place = tr("held from the start")
    if peak.operator:
        place = tr("at {} of {}: {}").format(peak.phase, peak.module or tr("the model"), peak.operator)
    groups = peak.condensed()
    rest = groups[_GROUPS_SHOWN:]
    told = [line for group in groups[:_GROUPS_SHOWN] for line in _group(group)]
    if rest:
        told.append(Paragraph(PART, format_bytes(sum(group.bytes for group in rest)), tr("The rest")))
    return [
        Paragraph(TITLE, tr("{}, rehearsed peak").format(phase)),
        Paragraph(SIZE, format_bytes(peak.allocated_bytes)),
        Paragraph(FORMULA, place),
        Paragraph(MUTED, tr("{} bytes allocated. What lived then, largest first:").format(f"{peak.allocated_bytes:,}")),
        *told,
    ]


def _group(group: TensorGroup) -> list[Paragraph]:
    count = (tr("{} tensors") if group.count > 1 else tr("{} tensor")).format(f"{group.count:,}")
    made = " · ".join(filter(None, (count, group.operator, group.module)))
    return [Paragraph(PART, word(COMPONENTS, group.component).label, format_bytes(group.bytes)), Paragraph(SMALL_PRINT, made)]


def _terms(terms: list[Term]) -> list[Paragraph]:
    """Each term with the numbers put in; sources and certainties that repeat are told once, after the last."""
    if not terms:
        return []
    parts = [Paragraph(HEAD, tr("FORMULA") if len(terms) == 1 else tr("SUM OF {} TERMS").format(len(terms)))]
    for term, after in zip(terms, [*terms[1:], None], strict=True):
        parts += _term(term, alone=len(terms) == 1)
        if after is None or (after.certainty, after.because) != (term.certainty, term.because):
            sure = word(CERTAINTIES, term.certainty)
            parts.append(Paragraph(SMALL_PRINT, sure.meaning, f"{sure.label}."))
            parts.append(Paragraph(SMALL_PRINT, term.because))
    return parts


def _term(term: Term, *, alone: bool) -> list[Paragraph]:
    if alone:
        rows = [Paragraph(ROW, f"{_spaced(name)}\t{_number(value)}") for name, value in term.values.items()]
        return [Paragraph(FORMULA, term.formula), *rows]
    values = " · ".join(f"{_spaced(name)} {_number(value)}" for name, value in term.values.items())
    return [Paragraph(PART, format_bytes(term.bytes)), Paragraph(FORMULA, term.formula), Paragraph(SMALL_PRINT, values)]


def _spaced(name: str) -> str:
    return name.replace("_", " ")


def _number(value: float | str) -> str:
    if isinstance(value, str):
        return value
    return f"{value:,}" if isinstance(value, int) else f"{value:,.6g}"
