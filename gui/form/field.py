"""One row of the form: label, editor, and below them what is wrong with the value."""

from __future__ import annotations

from typing import TYPE_CHECKING

from PySide6.QtCore import Qt, Signal, Slot
from PySide6.QtGui import QPainter, QPaintEvent
from PySide6.QtWidgets import QGridLayout, QLabel, QStyle, QStyleOption, QWidget

from gui.form.editors import ChoiceField, NamesField, SearchField
from gui.form.numbers import NumberField
from gui.kept import lay_down, rests
from gui.theme import px, set_role, theme
from gui.translate import tr

if TYPE_CHECKING:
    from gui.form.fields import FieldSpec

LABEL_WIDTH = 104
_TYPED = (NumberField, NamesField, SearchField)


class QuietLabel(QLabel):
    """One line that nothing can be done with but read it."""

    def paintEvent(self, event: QPaintEvent) -> None:
        """As ever; while it rests, from a picture."""
        if rests(self):
            lay_down(self, (self.text(), self.property("role")), self._draw)
        else:
            super().paintEvent(event)

    def _draw(self, painter: QPainter) -> None:
        option = QStyleOption()
        option.initFrom(self)
        flags = self.alignment() | (Qt.TextFlag.TextShowMnemonic if self.buddy() else Qt.TextFlag(0))
        if not self.style().styleHint(QStyle.StyleHint.SH_UnderlineShortcut, option, self):
            flags |= Qt.TextFlag.TextHideMnemonic
        self.style().drawItemText(
            painter, self.contentsRect(), flags, option.palette, self.isEnabled(), self.text(), self.foregroundRole()
        )


class Field(QWidget):
    """Shows and edits the value at ``spec.path``."""

    edited = Signal(str, object, str, bool)
    """Path, value, words for the undo menu, and whether it is one of several strokes of typing."""
    ended = Signal()
    """The typing has come to an end: Return, another field, or a name picked from the list."""

    def __init__(self, spec: FieldSpec, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.spec = spec
        self._default: object = None
        self.editor = spec.make()
        self.label = QuietLabel(tr(spec.label), self)
        self._fault = QLabel(self, wordWrap=True, visible=False)
        set_role(self._fault, "fault")
        self._describe()
        self._lay_out()
        self.editor.edited.connect(self._edited)
        if isinstance(self.editor, _TYPED):
            self.editor.editingFinished.connect(self.ended)
        if isinstance(self.editor, SearchField):
            self.editor.picked.connect(self.ended)

    def set_value(self, value: object) -> None:
        """Show ``value``."""
        self.editor.set_value(value)

    def set_default(self, value: object) -> None:
        """Show what the default comes to."""
        if value != self._default or isinstance(self.editor, ChoiceField):
            self._default = value
            self.editor.set_default(value)

    def focus_editor(self) -> None:
        """Put the keyboard into the field, so that typing replaces what stands there."""
        self.editor.setFocus(Qt.FocusReason.TabFocusReason)
        if isinstance(self.editor, _TYPED):
            self.editor.selectAll()

    def set_fault(self, message: str) -> None:
        """Show what is wrong; empty when nothing is."""
        if message != self._fault.text():
            self._fault.setText(message)
            self._fault.setVisible(bool(message))
            set_role(self.editor, "bad" if message else "")
            self.editor.setAccessibleDescription(message or tr(self.spec.tip))

    @Slot()
    def restyle(self) -> None:
        """Room for the label."""
        self.label.setFixedWidth(px(LABEL_WIDTH))

    @property
    def fault(self) -> str:
        """What is shown to be wrong."""
        return self._fault.text()

    def _describe(self) -> None:
        name, tip = tr(self.spec.label).replace("&", ""), tr(self.spec.tip)
        self.editor.setObjectName(self.spec.path)
        self.editor.setAccessibleName(name)
        self.editor.setAccessibleDescription(tip)
        self.editor.setToolTip(tip)
        self.label.setToolTip(tip)
        self.label.setBuddy(self.editor)

    def _lay_out(self) -> None:
        grid = QGridLayout(self)
        grid.setContentsMargins(0, 0, 0, 0)
        grid.setHorizontalSpacing(8)
        grid.setVerticalSpacing(2)
        grid.setColumnStretch(1, 1)
        if self.spec.wide:
            self.label.hide()
            grid.addWidget(self.editor, 0, 0, 1, 2)
        else:
            self.restyle()
            theme().changed.connect(self.restyle)
            grid.addWidget(self.label, 0, 0)
            grid.addWidget(self.editor, 0, 1)
        grid.addWidget(self._fault, 1, 0 if self.spec.wide else 1, 1, 2 if self.spec.wide else 1)

    @Slot(object)
    def _edited(self, value: object) -> None:
        typing = isinstance(self.editor, _TYPED)
        self.edited.emit(self.spec.path, value, self.spec.label.replace("&", "").lower(), typing)
