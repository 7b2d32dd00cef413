"""One command or file, and how its words are written down."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from planner.scenario import InlineConfig, ModelPath

if TYPE_CHECKING:
    from collections.abc import Iterable

    from planner.scenario import Scenario

Language = Literal["shell", "python", "json", "yaml"]
LINE_CHARACTERS = 100


@dataclass(frozen=True, slots=True)
class Command:
    """``text`` to copy; ``file``: the name to save it under where it is a file. ``version``: the release it was written for."""

    title: str
    engine: str
    version: str
    language: Language
    text: str
    file: str = ""
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, object]:
        """JSON-ready data."""
        return {
            "title": self.title, "engine": self.engine, "version": self.version, "language": self.language,
            "text": self.text, "file": self.file, "notes": list(self.notes),
        }  # fmt: skip


def model_name(scenario: Scenario) -> str:
    """What the engine is told to load: an id or a path."""
    model = scenario.model
    if isinstance(model, ModelPath):
        return model.path.removesuffix("/config.json")
    return "PATH/TO/MODEL" if isinstance(model, InlineConfig) else model


def model_notes(scenario: Scenario) -> tuple[str, ...]:
    """What the reader has to fill in."""
    if isinstance(scenario.model, InlineConfig):
        return ("the plan is of a config alone: put the folder of its weights for PATH/TO/MODEL",)
    return ()


def shell_line(program: Iterable[str], options: Iterable[tuple[str, object]]) -> str:
    """A command for a POSIX shell: quoted, one option a line once it is long. An option whose value is True stands alone."""
    head = " ".join(shlex.quote(word) for word in program)
    words = [
        name if value is True else f"{name} {shlex.quote(_text(value))}" for name, value in options if value not in (None, False)
    ]
    line = " ".join((head, *words))
    return line if len(line) <= LINE_CHARACTERS else " \\\n  ".join((head, *words))


def _text(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
