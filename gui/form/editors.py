"""Editors of one value each. All have ``value()``, ``set_value(value)``, ``set_default(text)`` and ``edited``."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from PySide6.QtCore import QStringListModel, Qt, Signal, Slot
from PySide6.QtGui import QAction, QFocusEvent, QKeyEvent, QMouseEvent, QPainter, QPaintEvent, QPalette, QWheelEvent
from PySide6.QtWidgets import (
    QAbstractButton,
    QButtonGroup,
    QComboBox,
    QCompleter,
    QHBoxLayout,
    QLineEdit,
    QSizePolicy,
    QStyle,
    QStyleOptionComboBox,
    QStyleOptionToolButton,
    QToolButton,
    QWidget,
)

from gui.elided import ElidedEdit
from gui.form.manners import BY_KEY_OR_CLICK, wheel_if_focused
from gui.form.numbers import NumberField
from gui.icons import icon
from gui.kept import lay_down, rests
from gui.theme import NORMAL, SMALL, font, px, set_role, theme
from gui.translate import tr

SEGMENT_HEIGHT = 30
_INSIDE = 2
"""Pixels that a combo box keeps free beside its text."""
_NARROW_SEGMENT = 72
_OPEN = ("auto", "native")
"""Choices that leave the choice to the plan."""


class NamesField(QLineEdit):
    """Names parted by commas."""

    edited = Signal(object)

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.textEdited.connect(self._typed)

    def value(self) -> object:
        """The names as a tuple."""
        return tuple(name.strip() for name in self.text().split(",") if name.strip())

    def set_value(self, value: object) -> None:
        """Show ``value`` unless the text already means it."""
        if isinstance(value, tuple) and self.value() != value:
            self.setText(", ".join(value))
            self.setCursorPosition(0)

    def set_default(self, value: object) -> None:
        """What an empty field stands for: nothing, which is said to be wrong."""

    @Slot()
    def _typed(self) -> None:
        self.edited.emit(self.value())


class ChoiceField(QComboBox):
    """One of a few names."""

    edited = Signal(object)

    def __init__(self, choices: Sequence[tuple[str, str]], parent: QWidget | None = None) -> None:
        super().__init__(parent)
        for value, label in choices:
            self.addItem(label, value)
        self._open_index = next((index for index, (value, _) in enumerate(choices) if value in _OPEN), -1)
        self.setSizeAdjustPolicy(QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon)
        self.setMinimumContentsLength(8)
        self.setFocusPolicy(BY_KEY_OR_CLICK)
        self.activated.connect(self._picked)

    def value(self) -> object:
        """The chosen name."""
        return self.currentData()

    def set_value(self, value: object) -> None:
        """Show ``value``; one that is not in the list is added, so that nothing is hidden."""
        if self.currentData() == value:
            return
        index = next((at for at in range(self.count()) if self.itemData(at) == value), -1)
        if index < 0:
            self.addItem(str(value), value)
            index = self.count() - 1
        self.setCurrentIndex(index)

    def set_default(self, value: object) -> None:
        """Say what ``auto`` or ``native`` comes to, where the plan tells."""
        index = self._open_index
        if index >= 0:
            told = index == self.currentIndex() and value != self.itemData(index)
            text = f"{self.itemData(index)}  ({value})" if told else self.itemData(index)
            if text != self.itemText(index):
                self.setItemText(index, text)

    @property
    def shown(self) -> str:
        """What can be read of the choice."""
        option = QStyleOptionComboBox()
        self.initStyleOption(option)
        return option.currentText

    def initStyleOption(self, option: QStyleOptionComboBox) -> None:
        """Leave out the middle of a name that is too long: names differ at their ends."""
        super().initStyleOption(option)
        part = QStyle.SubControl.SC_ComboBoxEditField
        room = self.style().subControlRect(QStyle.ComplexControl.CC_ComboBox, option, part, self).width() - _INSIDE
        option.currentText = self.fontMetrics().elidedText(option.currentText, Qt.TextElideMode.ElideMiddle, room)

    def paintEvent(self, event: QPaintEvent) -> None:
        """As ever; while it rests, from a picture."""
        if rests(self):
            lay_down(self, (self.currentText(), self.property("role")), self._draw)
        else:
            super().paintEvent(event)

    def _draw(self, painter: QPainter) -> None:
        option = QStyleOptionComboBox()
        self.initStyleOption(option)
        painter.setPen(self.palette().color(QPalette.ColorRole.Text))
        self.style().drawComplexControl(QStyle.ComplexControl.CC_ComboBox, option, painter, self)
        self.style().drawControl(QStyle.ControlElement.CE_ComboBoxLabel, option, painter, self)

    def wheelEvent(self, event: QWheelEvent) -> None:
        """Scroll the form, not the choice, unless the field has the focus."""
        wheel_if_focused(self, event, super().wheelEvent)

    @Slot(int)
    def _picked(self, _index: int) -> None:
        self.edited.emit(self.currentData())


class SearchField(ElidedEdit):
    """A name found by typing any words of it; the arrow key or the chevron opens the list."""

    edited = Signal(object)
    picked = Signal()
    """A name was taken from the list, after ``edited``."""

    def __init__(self, find: Callable[[str], Sequence[str]], parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._find = find
        self._clicked_into = False
        self._names = QStringListModel(self)
        self._completer = QCompleter(self._names, self)
        self._completer.setCompletionMode(QCompleter.CompletionMode.UnfilteredPopupCompletion)
        self._completer.setWidget(self)
        self._completer.setMaxVisibleItems(14)
        self._completer.activated.connect(self._take)
        self._list = QAction(tr("Show all"), self)
        self._list.triggered.connect(self._show_all)
        self.addAction(self._list, QLineEdit.ActionPosition.TrailingPosition)
        self.textEdited.connect(self._typed)
        self.editingFinished.connect(self._finished)
        theme().changed.connect(self._restyle)
        self._restyle()

    def value(self) -> object:
        """The text, trimmed."""
        return self.text().strip()

    def set_value(self, value: object) -> None:
        """Show ``value`` from its beginning."""
        text = "" if value is None else str(value)
        if self.text() != text:
            self.setText(text)
            self.setCursorPosition(0)

    def set_default(self, value: object) -> None:
        """What an empty field stands for."""
        self.setPlaceholderText(str(value or ""))

    def keyPressEvent(self, event: QKeyEvent) -> None:
        """Down opens the list."""
        if event.key() == Qt.Key.Key_Down and not self._completer.popup().isVisible():
            self._show_all()
            return
        super().keyPressEvent(event)

    def focusInEvent(self, event: QFocusEvent) -> None:
        """Select all, so that typing starts a new search; for a click that is done when the button is let go."""
        super().focusInEvent(event)
        self._clicked_into = event.reason() == Qt.FocusReason.MouseFocusReason
        if event.reason() in (Qt.FocusReason.TabFocusReason, Qt.FocusReason.BacktabFocusReason):
            self.selectAll()

    def mouseReleaseEvent(self, event: QMouseEvent) -> None:
        """The click that enters the field selects all, unless it was drawn over a part; the next one sets the cursor."""
        super().mouseReleaseEvent(event)
        if self._clicked_into and not self.hasSelectedText():
            self.selectAll()
        self._clicked_into = False

    @Slot(str)
    def _typed(self, text: str) -> None:
        names = list(self._find(text))
        if text in names:
            self.edited.emit(text)
        self._offer(names)

    @Slot()
    def _show_all(self) -> None:
        self.setFocus()
        self._offer(list(self._find("")))

    def _offer(self, names: list[str]) -> None:
        self._names.setStringList(names)
        if names:
            self._completer.complete()
        else:
            self._completer.popup().hide()

    @Slot(str)
    def _take(self, name: str) -> None:
        self.setText(name)
        self.setCursorPosition(0)
        self.edited.emit(name)
        self.picked.emit()

    @Slot()
    def _finished(self) -> None:
        if not self._completer.popup().isVisible():
            self.edited.emit(self.value())

    @Slot()
    def _restyle(self) -> None:
        self._list.setIcon(icon("chevron-down", "muted"))


class Segments(QWidget):
    """A few choices side by side, one of them down; the arrow keys move between them."""

    edited = Signal(object)

    def __init__(self, choices: Sequence[tuple[str, str, str]] = (), width: int = 0, parent: QWidget | None = None) -> None:
        """``width``: of each choice in pixels, where choices come and go and must not move; 0 shares the room out."""
        super().__init__(parent)
        self._width = width
        self._group = QButtonGroup(self)
        self._group.setExclusive(True)
        self._group.idClicked.connect(self._clicked)
        self._values: list[str] = []
        theme().changed.connect(self._restyle)
        self._row = QHBoxLayout(self)
        self._row.setContentsMargins(0, 0, 0, 0)
        self._row.setSpacing(0)
        self.set_choices(choices)

    def set_choices(self, choices: Sequence[tuple[str, str, str]]) -> None:
        """Replace the choices by (value, label, tool tip); nothing happens when the values are the same."""
        values = [value for value, _, _ in choices]
        if values == self._values:
            return
        self._values = values
        for index, (_, label, tip) in enumerate(choices):
            button = self._button(index)
            _dress(button, label, tip, _place(index, len(values)))
            if button.isHidden():
                button.setVisible(True)
        for spare in self._group.buttons()[len(values) :]:
            spare.setVisible(False)

    def _button(self, index: int) -> QAbstractButton:
        """The button there; buttons are kept, since making one takes longer than relabelling it."""
        button = self._group.button(index)
        if button is None:
            button = _Segment(self, checkable=True)
            button.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
            self._fit(button)
            self._group.addButton(button, index)
            self._row.addWidget(button)
        return button

    def set_width(self, width: int) -> None:
        """Another width of each choice."""
        if width != self._width:
            self._width = width
            self._restyle()

    @Slot()
    def _restyle(self) -> None:
        for button in self._group.buttons():
            self._fit(button)

    def _fit(self, button: QAbstractButton) -> None:
        if self._width:
            button.setFixedSize(px(self._width), px(SEGMENT_HEIGHT))
            button.setFont(font(SMALL if self._width < _NARROW_SEGMENT else NORMAL))

    def value(self) -> object:
        """The chosen value, None before any."""
        index = self._group.checkedId()
        return self._values[index] if 0 <= index < len(self._values) else None

    def set_value(self, value: object) -> None:
        """Push the button of ``value``."""
        if value in self._values:
            self._group.button(self._values.index(str(value))).setChecked(True)

    def set_default(self, value: object) -> None:
        """Segments always show what holds."""

    @Slot(int)
    def _clicked(self, index: int) -> None:
        self.edited.emit(self._values[index])


class _Segment(QToolButton):
    """One choice."""

    def paintEvent(self, event: QPaintEvent) -> None:
        """As ever; while it rests, from a picture."""
        if rests(self) and not self.isDown():
            lay_down(self, (self.text(), self.isChecked(), self.property("role")), self._draw)
        else:
            super().paintEvent(event)

    def _draw(self, painter: QPainter) -> None:
        option = QStyleOptionToolButton()
        self.initStyleOption(option)
        self.style().drawComplexControl(QStyle.ComplexControl.CC_ToolButton, option, painter, self)


Editor = NumberField | NamesField | ChoiceField | SearchField | Segments


def _dress(button: QAbstractButton, label: str, tip: str, role: str) -> None:
    if button.text() != label:
        button.setText(label)
        button.setAccessibleName(label)
    if button.toolTip() != tip:
        button.setToolTip(tip)
    if button.property("role") != role:
        set_role(button, role)


def _place(index: int, count: int) -> str:
    """Which end of the row a button is rounded at."""
    return "segment-first" if index == 0 else "segment-last" if index == count - 1 else "segment"
