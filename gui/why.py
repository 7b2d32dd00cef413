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

WIDTH, NARROW = 300, 222


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
        self.setMinimumWidth(NARROW)
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
        if footprint is None:
            self._text.setHtml("")
            return
        self._text.document().setDefaultStyleSheet(_sheet())
        if shown is None:
            self._text.setHtml("".join(f"<p class='note'>{escape(note)}</p>" for note in footprint.notes))
            return
        _, phase = shown
        component = self._state.selection.component
        if component is None or not phase.components.get(component):
            component = max(phase.components, key=lambda name: phase.components[name], default="weights")
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
    parts += _terms(sorted(terms, key=lambda term: -term.bytes))
    if footprint.notes:
        parts.append("<p class='head'>DEFAULTS AND NOTES</p>")
        parts += [f"<p class='note'>{escape(note)}</p>" for note in footprint.notes]
    return "".join(parts)


def _terms(terms: list[Term]) -> list[str]:
    """Each term with the numbers put in; sources and certainties that repeat are told once, after the last."""
    if not terms:
        return []
    parts = [f"<p class='head'>{'FORMULA' if len(terms) == 1 else f'SUM OF {len(terms)} TERMS'}</p>"]
    for term, after in zip(terms, [*terms[1:], None], strict=True):
        parts.append(_term(term, alone=len(terms) == 1))
        if after is None or (after.certainty, after.because) != (term.certainty, term.because):
            sure = word(CERTAINTIES, term.certainty)
            parts.append(f"<p class='source'><b>{escape(sure.label)}.</b> {escape(sure.meaning)}</p>")
            parts.append(f"<p class='source'>{escape(term.because)}</p>")
    return parts


def _term(term: Term, *, alone: bool) -> str:
    formula = f"<p class='formula'>{escape(term.formula)}</p>"
    if alone:
        rows = "".join(
            f"<tr><td class='name'>{escape(_spaced(name))}</td><td align='right'>{_number(value)}</td></tr>"
            for name, value in term.values.items()
        )
        return f"{formula}<table width='100%' cellspacing='0' cellpadding='2'>{rows}</table>"
    values = " · ".join(f"{escape(_spaced(name))} {_number(value)}" for name, value in term.values.items())
    return f"<p class='part'>{format_bytes(term.bytes)}</p>{formula}<p class='values'>{values}</p>"


def _spaced(name: str) -> str:
    return name.replace("_", " ")


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
    .part {{ font-weight: 600; margin: 7px 0 1px 0; }}
    .formula {{ color: {accent}; margin-bottom: 2px; }}
    .values {{ color: {muted}; font-size: 11px; }}
    """
