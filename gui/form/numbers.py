"""Editors of numbers: counts, sizes and shares; and how what is typed into them is read."""

from __future__ import annotations

from PySide6.QtCore import Signal, Slot
from PySide6.QtGui import QPainter, QPaintEvent, QValidator, QWheelEvent
from PySide6.QtWidgets import QAbstractSpinBox, QStyle, QStyleOptionSpinBox, QWidget

from gui.form.manners import BY_KEY_OR_CLICK, wheel_if_focused
from gui.kept import lay_down, rests
from gui.theme import font, theme
from gui.translate import tr
from planner.units import GIB

_SUFFIXES = {"k": 2**10, "m": 2**20}
_ALLOWED = frozenset("0123456789kKmM,_ ")
_DECIMAL = frozenset("0123456789.")
_BOTH_WAYS = QAbstractSpinBox.StepEnabledFlag.StepUpEnabled | QAbstractSpinBox.StepEnabledFlag.StepDownEnabled


class NumberField(QAbstractSpinBox):
    """A whole number; empty means the default. ``8k`` is 8192. The arrow keys step by one, or double and halve."""

    edited = Signal(object)

    def __init__(self, *, doubles: bool = False, least: int = 1, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._doubles, self._least = doubles, least
        self._default = 1
        self.setFocusPolicy(BY_KEY_OR_CLICK)
        self.lineEdit().setPlaceholderText(tr("not set"))
        self._restyle_figures()
        theme().changed.connect(self._restyle_figures)
        self.setCorrectionMode(QAbstractSpinBox.CorrectionMode.CorrectToPreviousValue)
        self.lineEdit().textEdited.connect(self._typed)
        self.editingFinished.connect(self._tidy)

    def value(self) -> int | str | None:
        """The number; None for the default; the text itself when it is no number."""
        return read_count(self.lineEdit().text())

    def set_value(self, value: object) -> None:
        """Show ``value`` unless the text already means it."""
        if self.value() != value:
            self.lineEdit().setText("" if value is None else str(value))

    def set_default(self, value: object) -> None:
        """What an empty field stands for."""
        if isinstance(value, int):
            self._default = value
            self.lineEdit().setPlaceholderText(tr("{}  (default)").format(value))
        elif value is None:
            self.lineEdit().setPlaceholderText(tr("not set"))

    def set_placeholder(self, value: object) -> None:
        """What an empty field stands for, in few words."""
        if isinstance(value, int):
            self._default = value
            self.lineEdit().setPlaceholderText(str(value))

    def stepBy(self, steps: int) -> None:
        """One step of the arrows."""
        now = self.value()
        start = now if isinstance(now, int) else self._default
        changed = _doubled(start, steps) if self._doubles else max(self._least, start + steps)
        self.lineEdit().setText(str(changed))
        self.edited.emit(changed)

    def stepEnabled(self) -> QAbstractSpinBox.StepEnabledFlag:
        """Both ways: there is always a next number, and below one the step stays."""
        return _BOTH_WAYS

    def validate(self, text: str, position: int) -> tuple[QValidator.State, str, int]:  # type: ignore[override]
        """Digits, separators and a suffix can be typed, nothing else."""
        good = all(character in _ALLOWED for character in text) and len(text) <= 24
        return (QValidator.State.Acceptable if good else QValidator.State.Invalid), text, position

    def paintEvent(self, event: QPaintEvent) -> None:
        """As ever; while it rests, from a picture. The number itself is painted by the line in it."""
        if rests(self) and not self.lineEdit().hasFocus():
            lay_down(self, self.property("role"), self._draw)
        else:
            super().paintEvent(event)

    def _draw(self, painter: QPainter) -> None:
        option = QStyleOptionSpinBox()
        self.initStyleOption(option)
        self.style().drawComplexControl(QStyle.ComplexControl.CC_SpinBox, option, painter, self)

    def wheelEvent(self, event: QWheelEvent) -> None:
        """Scroll the form, not the number, unless the field has the focus."""
        wheel_if_focused(self, event, super().wheelEvent)

    @Slot()
    def _restyle_figures(self) -> None:
        for part in (self, self.lineEdit()):
            part.setFont(font(tabular=True))

    @Slot()
    def _typed(self) -> None:
        self.edited.emit(self.value())

    @Slot()
    def _tidy(self) -> None:
        value = self.value()
        if isinstance(value, int):
            self.lineEdit().setText(str(value))


class SizeField(NumberField):
    """Bytes, written in GiB with or without a fraction; empty means the default."""

    def value(self) -> int | str | None:
        """The bytes; None for the default; the text itself when it is no size."""
        return read_gib(self.lineEdit().text())

    def set_value(self, value: object) -> None:
        """Show ``value`` bytes unless the text already means it."""
        if self.value() != value:
            self.lineEdit().setText(f"{value / GIB:.6g}" if isinstance(value, int) else "" if value is None else str(value))

    def set_default(self, value: object) -> None:
        """What an empty field stands for."""
        if isinstance(value, int):
            self._default = value
            self.lineEdit().setPlaceholderText(tr("{}  (default)").format(f"{value / GIB:.2f}"))

    def stepBy(self, steps: int) -> None:
        """One GiB for each step of the arrows."""
        now = self.value()
        start = now if isinstance(now, int) else self._default
        changed = max(1, round(start / GIB) + steps)
        self.lineEdit().setText(str(changed))
        self.edited.emit(changed * GIB)

    def validate(self, text: str, position: int) -> tuple[QValidator.State, str, int]:  # type: ignore[override]
        """Digits and one point."""
        good = all(character in _DECIMAL for character in text) and text.count(".") <= 1 and len(text) <= 12
        return (QValidator.State.Acceptable if good else QValidator.State.Invalid), text, position

    @Slot()
    def _tidy(self) -> None:
        """A size stays as it was typed."""


class ShareField(NumberField):
    """A share from 0 to 1; empty means none. The arrow keys step by a tenth."""

    def value(self) -> float | str:  # type: ignore[override]
        """The share; the text itself when it is none."""
        text = self.lineEdit().text().strip()
        try:
            return float(text) if text else 0.0
        except ValueError:
            return text

    def set_value(self, value: object) -> None:
        """Show ``value`` unless the text already means it."""
        if self.value() != value:
            self.lineEdit().setText("" if not value else f"{value:g}" if isinstance(value, int | float) else str(value))

    def set_default(self, _value: object) -> None:
        """Nothing is offloaded by default."""
        self.lineEdit().setPlaceholderText(tr("0  (none)"))

    def stepBy(self, steps: int) -> None:
        """A tenth for each step of the arrows."""
        now = self.value()
        changed = min(1.0, max(0.0, round((now if isinstance(now, float) else 0.0) + steps / 10, 1)))
        self.lineEdit().setText(f"{changed:g}")
        self.edited.emit(changed)

    def validate(self, text: str, position: int) -> tuple[QValidator.State, str, int]:  # type: ignore[override]
        """Digits and one point."""
        good = all(character in _DECIMAL for character in text) and text.count(".") <= 1 and len(text) <= 6
        return (QValidator.State.Acceptable if good else QValidator.State.Invalid), text, position

    @Slot()
    def _tidy(self) -> None:
        """A share stays as it was typed."""


def read_count(text: str) -> int | str | None:
    """``8192``, ``8,192``, ``8k`` and ``8 K`` are 8192; empty is None; what is no count comes back as it is."""
    plain = text.replace(",", "").replace("_", "").replace(" ", "").lower()
    if not plain:
        return None
    factor = _SUFFIXES.get(plain[-1], 1)
    digits = plain[:-1] if factor > 1 else plain
    return int(digits) * factor if digits.isdigit() else text


def read_gib(text: str) -> int | str | None:
    """``23.5`` GiB in bytes; empty is None; what is no size comes back as it is."""
    try:
        return round(float(text) * GIB) if text.strip() else None
    except (ValueError, OverflowError):
        return text


def _doubled(value: int, steps: int) -> int:
    return value << steps if steps > 0 else max(1, value >> -steps)
