"""The vocabulary of the planner in the language of the window."""

from __future__ import annotations

from collections.abc import Mapping

from gui.translate import tr
from planner.words import Word
from planner.words import word as planner_word


def word(table: Mapping[str, Word], name: str) -> Word:
    """How ``name`` is shown, and the sentence that teaches it."""
    found = planner_word(table, name)
    return Word(tr(found.label), tr(found.meaning))
