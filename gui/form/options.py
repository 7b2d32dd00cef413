"""Options of an engine under its own names, as ``name=value`` parted by commas; empty: all as the engine has them."""

from __future__ import annotations

from PySide6.QtWidgets import QWidget

from gui.form.editors import NamesField
from gui.translate import tr

_WORDS = {"true": True, "false": False}


class OptionsField(NamesField):
    """What stands there is checked with the scenario, and complained of at the field."""

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setPlaceholderText(tr("name=value, …"))

    def value(self) -> object:
        """The options by name."""
        parts = (part.partition("=") for part in self.text().split(",") if part.strip())
        return {name.strip(): read_value(value.strip()) for name, _, value in parts}

    def set_value(self, value: object) -> None:
        """Show ``value`` unless the text already means it."""
        if isinstance(value, dict) and self.value() != value:
            self.setText(", ".join(f"{name}={written(one)}" for name, one in value.items()))
            self.setCursorPosition(0)


def read_value(text: str) -> bool | int | float | str:
    """``true`` and numbers are what they look like, all else is text."""
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def written(value: object) -> str:
    """The value as it is typed."""
    return str(value).lower() if isinstance(value, bool) else str(value)
