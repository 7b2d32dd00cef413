"""Texts that give way: what does not fit is said shorter, or left out in the middle, and told whole by the tool tip."""

from __future__ import annotations

from PySide6.QtCore import QRect, QSize, Qt
from PySide6.QtGui import QPainter, QPaintEvent
from PySide6.QtWidgets import QLabel, QLineEdit, QStyle, QStyleOptionFrame, QToolButton

from gui.theme import theme

_INSIDE = 2
"""Pixels that a line edit keeps free at either side of its text."""
_KEPT, _NARROWEST = 64, 60


class ElidedLabel(QLabel):
    """One line of text, as much of it as there is room for."""

    _asked: tuple[int, tuple[str, ...], int] | None = None
    _shown = ""
    """What was shown when it was asked for last."""

    def setText(self, text: str, *shorter: str) -> None:
        """Show ``text``, or the first of the ``shorter`` ways of saying it that fits."""
        self._shorter = shorter
        super().setText(text)
        self.setToolTip(text)
        self.update()

    @property
    def shown(self) -> str:
        """What is painted."""
        room, ways = self.contentsRect().width(), (self.text(), *getattr(self, "_shorter", ()))
        if self._asked != (room, ways, theme().percent):
            metrics = self.fontMetrics()
            whole = next((way for way in ways if metrics.horizontalAdvance(way) <= room), None)
            self._asked = (room, ways, theme().percent)
            self._shown = whole if whole is not None else metrics.elidedText(ways[-1], Qt.TextElideMode.ElideMiddle, room)
        return self._shown

    def minimumSizeHint(self) -> QSize:
        """Next to nothing."""
        return QSize(24, super().minimumSizeHint().height())

    def paintEvent(self, _event: QPaintEvent) -> None:
        """The text, its middle left out when it is too long."""
        painter = QPainter(self)
        painter.setPen(self.palette().color(self.foregroundRole()))
        painter.drawText(self.contentsRect(), self.alignment(), self.shown)
        painter.end()


class FlowingLabel(QLabel):
    """A text that flows over lines and can be selected. Its heights are kept: Qt lays such a text out anew whenever it is asked."""

    def __init__(self) -> None:
        self._heights: dict[tuple[str, int, int], int] = {}
        super().__init__(wordWrap=True, textInteractionFlags=Qt.TextInteractionFlag.TextSelectableByMouse)

    def heightForWidth(self, width: int) -> int:
        """What the text needs at ``width``."""
        asked = (self.text(), width, self.fontInfo().pixelSize())
        if asked not in self._heights:
            if len(self._heights) == _KEPT:
                self._heights.clear()
            self._heights[asked] = super().heightForWidth(width)
        return self._heights[asked]

    def sizeHint(self) -> QSize:
        """As wide as there is room; its height follows."""
        return QSize(_NARROWEST, self.heightForWidth(max(self.width(), _NARROWEST)))

    def minimumSizeHint(self) -> QSize:
        """The width gives way."""
        return QSize(_NARROWEST, self.fontMetrics().height())


class ElidedEdit(QLineEdit):
    """A line that, while nobody types into it, leaves out the middle of a text that is too long: a name differs at its end."""

    _asked: tuple[int, str, int] | None = None
    _shown = ""
    """What was shown when it was asked for last."""

    @property
    def shown(self) -> str:
        """What can be read of the text."""
        if self.hasFocus():
            return self.text()
        asked = (self.width(), self.text(), theme().percent)
        if self._asked != asked:
            self._asked = asked
            self._shown = self.fontMetrics().elidedText(self.text(), Qt.TextElideMode.ElideMiddle, self._room().width())
        return self._shown

    def _room(self) -> QRect:
        """Where the text stands, beside the buttons inside the line."""
        option = QStyleOptionFrame()
        self.initStyleOption(option)
        room = self.style().subElementRect(QStyle.SubElement.SE_LineEditContents, option, self)
        margins = self.textMargins()
        found = self.findChildren(QToolButton, options=Qt.FindChildOption.FindDirectChildrenOnly)
        buttons = sum(button.sizeHint().width() + 4 for button in found)
        return room.adjusted(margins.left() + _INSIDE, 0, -margins.right() - _INSIDE - buttons, 0)

    def paintEvent(self, event: QPaintEvent) -> None:
        """The line as ever while its text is typed or fits."""
        text = self.shown
        if text == self.text():
            super().paintEvent(event)
            return
        option = QStyleOptionFrame()
        self.initStyleOption(option)
        painter = QPainter(self)
        self.style().drawPrimitive(QStyle.PrimitiveElement.PE_PanelLineEdit, option, painter, self)
        painter.setPen(self.palette().color(self.foregroundRole()))
        painter.drawText(self._room(), Qt.AlignmentFlag.AlignLeft | Qt.AlignmentFlag.AlignVCenter, text)
        painter.end()
