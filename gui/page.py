"""A page of styled paragraphs that can be read, selected and copied; showing a new text touches only what changed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PySide6.QtCore import Slot
from PySide6.QtGui import (
    QFont,
    QResizeEvent,
    QTextBlockFormat,
    QTextCharFormat,
    QTextCursor,
    QTextOption,
)
from PySide6.QtWidgets import QTextBrowser, QWidget

from gui.theme import LARGE, NORMAL, SMALL, font, theme

_DISPLAY = 21


@dataclass(frozen=True, slots=True)
class Style:
    """Size and weight, the colour role, and the space before and after in pixels. ``row``: name at the left, value at the right."""

    size: int = NORMAL
    bold: bool = False
    colour: str = "text"
    above: int = 0
    below: int = 5
    row: bool = False


TITLE = Style(LARGE, bold=True, below=1)
SIZE = Style(_DISPLAY, below=1)
BODY = Style()
MUTED = Style(colour="muted")
SMALL_PRINT = Style(SMALL, colour="muted")
HEAD = Style(SMALL, bold=True, colour="muted", above=14)
PART = Style(bold=True, above=7, below=1)
FORMULA = Style(colour="accent", below=2)
ROW = Style(below=2, row=True)


@dataclass(frozen=True, slots=True)
class Paragraph:
    """One paragraph; ``lead`` stands before the text in bold. In a row a tab parts name and value."""

    style: Style
    text: str
    lead: str = ""


class Page(QTextBrowser):
    """Shows paragraphs."""

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._paragraphs: tuple[Paragraph, ...] = ()
        self.setUndoRedoEnabled(False)
        self.setOpenLinks(False)
        theme().changed.connect(self._restyle)

    def show_paragraphs(self, paragraphs: Sequence[Paragraph]) -> None:
        """Show these; the page stays where it was scrolled to as long as it is built the same way."""
        before, after = self._paragraphs, tuple(paragraphs)
        if before == after:
            return
        self._paragraphs = after
        if [one.style for one in before] != [one.style for one in after]:
            self._write_all()
            return
        cursor = QTextCursor(self.document())
        cursor.beginEditBlock()
        for number, (old, new) in enumerate(zip(before, after, strict=True)):
            if old != new:
                cursor.setPosition(self.document().findBlockByNumber(number).position())
                cursor.movePosition(QTextCursor.MoveOperation.EndOfBlock, QTextCursor.MoveMode.KeepAnchor)
                self._write(cursor, new)
        cursor.endEditBlock()

    def resizeEvent(self, event: QResizeEvent) -> None:
        """Values of rows stay at the right edge."""
        super().resizeEvent(event)
        if event.oldSize().width() != event.size().width() and any(one.style.row for one in self._paragraphs):
            self._write_all()

    @Slot()
    def _restyle(self) -> None:
        self._write_all()

    def _write_all(self) -> None:
        cursor = QTextCursor(self.document())
        cursor.beginEditBlock()
        cursor.select(QTextCursor.SelectionType.Document)
        cursor.removeSelectedText()
        for number, paragraph in enumerate(self._paragraphs):
            if number:
                cursor.insertBlock()
            cursor.setBlockFormat(self._block(paragraph.style))
            self._write(cursor, paragraph)
        cursor.endEditBlock()
        self.moveCursor(QTextCursor.MoveOperation.Start)

    def _write(self, cursor: QTextCursor, paragraph: Paragraph) -> None:
        style = paragraph.style
        if paragraph.lead:
            cursor.insertText(f"{paragraph.lead} ", _letters(style, bold=True))
            cursor.insertText(paragraph.text, _letters(style))
        elif style.row:
            name, _, value = paragraph.text.partition("\t")
            cursor.insertText(f"{name}\t", _letters(SMALL_PRINT))
            cursor.insertText(value, _letters(style))
        else:
            cursor.insertText(paragraph.text, _letters(style))

    def _block(self, style: Style) -> QTextBlockFormat:
        block = QTextBlockFormat()
        block.setTopMargin(style.above)
        block.setBottomMargin(style.below)
        if style.row:
            edge = self.viewport().width() - 2 * self.document().documentMargin() - 1
            block.setTabPositions([QTextOption.Tab(max(edge, 60), QTextOption.TabType.RightTab)])
        return block


def _letters(style: Style, *, bold: bool = False) -> QTextCharFormat:
    letters = QTextCharFormat()
    face = QFont(font(style.size, bold=bold or style.bold, tabular=style.row))
    letters.setFont(face)
    letters.setForeground(theme().colour(style.colour))
    return letters
