"""The why panel: the formula behind a component, the numbers put in, where they came from, and how sure they are."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from PySide6.QtCore import Slot
from PySide6.QtWidgets import QLabel, QTextBrowser, QVBoxLayout, QWidget

from gui.theme import set_role, theme
from gui.words import CERTAINTIES, COMPONENTS, PHASES, word
from planner.units import format_bytes

if TYPE_CHECKING:
    from gui.state import State
    from planner.footprint import Footprint, Phase, Term

WIDTH = 300


class WhyPanel(QWidget):
    """Explains the state's selection."""

    def __init__(self, state: State, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._state = state
        self._text = QTextBrowser(openLinks=False)
        self._text.setAccessibleName("Why this number")
        self._lay_out()
        state.plan_changed.connect(self._refresh)
        state.selection_changed.connect(self._refresh)
        theme().changed.connect(self._refresh)
        self._refresh()

    def text(self) -> str:
        """What is shown, without marks."""
        return self._text.toPlainText()

    def _lay_out(self) -> None:
        set_role(self, "side")
        self.setMinimumWidth(220)
        heading = QLabel("WHY")
        set_role(heading, "section")
        column = QVBoxLayout(self)
        column.setContentsMargins(14, 12, 6, 8)
        column.setSpacing(6)
        column.addWidget(heading)
        column.addWidget(self._text, 1)

    @Slot()
    def _refresh(self) -> None:
        shown, footprint = self._state.shown_phase(), self._state.footprint
        if shown is None or footprint is None:
            self._text.setHtml("")
            return
        _, phase = shown
        component = self._state.selection.component
        if component is None or not phase.components.get(component):
            component = max(phase.components, key=lambda name: phase.components[name], default="weights")
        self._text.document().setDefaultStyleSheet(_sheet())
        self._text.setHtml(explanation(footprint, phase, component))


def explanation(footprint: Footprint, phase: Phase, component: str) -> str:
    """The panel's text as HTML."""
    named = word(COMPONENTS, component)
    size = phase.components.get(component, 0)
    terms = [term for term in footprint.terms if term.component == component and term.phase in (None, phase.name)]
    parts = [
        f"<p class='title'>{escape(named.label)}</p>",
        f"<p class='size'>{format_bytes(size)}</p>",
        f"<p class='muted'>{size:,} bytes · {escape(word(PHASES, phase.name).label.lower())}</p>",
        f"<p class='muted'>{escape(named.meaning)}</p>",
    ]
    parts += [_term(term, alone=len(terms) == 1) for term in terms]
    if footprint.notes:
        parts.append("<p class='head'>DEFAULTS AND NOTES</p>")
        parts += [f"<p class='note'>{escape(note)}</p>" for note in footprint.notes]
    return "".join(parts)


def _term(term: Term, *, alone: bool) -> str:
    sure = word(CERTAINTIES, term.certainty)
    rows = "".join(
        f"<tr><td class='name'>{escape(name.replace('_', ' '))}</td><td align='right'>{_number(value)}</td></tr>"
        for name, value in term.values.items()
    )
    size = "" if alone else f"<p class='part'>{format_bytes(term.bytes)}</p>"
    return (
        f"<p class='head'>FORMULA</p>{size}<p class='formula'>{escape(term.formula)}</p>"
        f"<table width='100%' cellspacing='0' cellpadding='2'>{rows}</table>"
        f"<p class='source'><b>{escape(sure.label)}.</b> {escape(sure.meaning)}</p>"
        f"<p class='source'>{escape(term.because)}</p>"
    )


def _number(value: float | str) -> str:
    if isinstance(value, str):
        return escape(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:,.6g}"


def _sheet() -> str:
    text, muted, accent = (theme().colour(name).name() for name in ("text", "muted", "accent"))
    return f"""
    p {{ margin: 0 0 5px 0; color: {text}; }}
    td {{ color: {text}; }}
    .title {{ font-size: 15px; font-weight: 600; margin-bottom: 1px; }}
    .size {{ font-size: 21px; margin-bottom: 1px; }}
    .muted, .name, .note, .source {{ color: {muted}; }}
    .source, .note {{ font-size: 11px; }}
    .head {{ color: {muted}; font-size: 11px; font-weight: 600; margin-top: 14px; }}
    .part {{ font-weight: 600; }}
    .formula {{ color: {accent}; font-weight: 600; }}
    """
