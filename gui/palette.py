"""The command palette: every command, field and example by its name, run with the keyboard alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from PySide6.QtCore import QEvent, QObject, QRect, QSize, Qt, Slot
from PySide6.QtGui import QKeyEvent, QPainter
from PySide6.QtWidgets import (
    QDialog,
    QLineEdit,
    QListWidget,
    QListWidgetItem,
    QStyle,
    QStyledItemDelegate,
    QStyleOptionViewItem,
    QVBoxLayout,
    QWidget,
)

from gui.cells import Index
from gui.text import RIGHT, width_of, write
from gui.theme import SMALL, set_role, theme
from gui.translate import tr

_SIZE, _ROW, _PADDING = QSize(560, 380), 28, 10
_NOTE = Qt.ItemDataRole.UserRole
_RUN = Qt.ItemDataRole.UserRole + 1
_MOVES = (Qt.Key.Key_Up, Qt.Key.Key_Down, Qt.Key.Key_PageUp, Qt.Key.Key_PageDown)


@dataclass(frozen=True, slots=True)
class Command:
    """What can be run: its name, a note at the right (menu, shortcut), and what it does. ``words``: what else it is found by."""

    name: str
    note: str
    run: Callable[[], object]
    words: str = ""


def matching(commands: Sequence[Command], typed: str) -> list[Command]:
    """Commands that have every word typed: first those whose name begins with what is typed, then those whose name has it."""
    words, whole = typed.lower().split(), typed.lower().strip()
    found = [one for one in commands if all(word in f"{one.name} {one.note} {one.words}".lower() for word in words)]
    return sorted(found, key=lambda one: (not one.name.lower().startswith(whole), whole not in one.name.lower()))


class Palette(QDialog):
    """Type to narrow, arrows to move, Return to run, Escape to leave."""

    def __init__(self, commands: Sequence[Command], parent: QWidget) -> None:
        super().__init__(parent, Qt.WindowType.Popup | Qt.WindowType.FramelessWindowHint)
        self._commands = tuple(commands)
        self.field = QLineEdit(placeholderText=tr("Command, field or example"))
        self.list = QListWidget()
        self.setAccessibleName(tr("Command palette"))
        set_role(self, "popup")
        self.field.setAccessibleName(tr("Find a command"))
        self.list.setAccessibleName(tr("Commands found"))
        self.list.setFocusPolicy(Qt.FocusPolicy.NoFocus)
        self.list.setItemDelegate(_Delegate(self.list))
        self.list.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        column = QVBoxLayout(self)
        column.setContentsMargins(10, 10, 10, 10)
        column.addWidget(self.field)
        column.addWidget(self.list, 1)
        self.resize(_SIZE)
        self.field.textChanged.connect(self._narrow)
        self.field.returnPressed.connect(self._run)
        self.field.installEventFilter(self)
        self.list.itemClicked.connect(self._run)
        self._narrow("")

    def eventFilter(self, _watched: QObject, event: QEvent) -> bool:
        """The arrows move in the list while the field keeps the focus."""
        if isinstance(event, QKeyEvent) and event.type() == QEvent.Type.KeyPress and event.key() in _MOVES:
            self.list.keyPressEvent(event)
            return True
        return False

    @property
    def shown(self) -> list[str]:
        """The names that are listed."""
        rows = (self.list.item(row) for row in range(self.list.count()))
        return [item.text() for item in rows if item.data(_RUN) is not None]

    @Slot(str)
    def _narrow(self, typed: str) -> None:
        self.list.clear()
        for command in matching(self._commands, typed):
            item = QListWidgetItem(command.name, self.list)
            item.setData(_NOTE, command.note)
            item.setData(_RUN, command)
        if not self.list.count():
            item = QListWidgetItem(tr("Nothing here is called that"), self.list)
            item.setFlags(Qt.ItemFlag.NoItemFlags)
        self.list.setCurrentRow(0)

    @Slot()
    def _run(self) -> None:
        item = self.list.currentItem()
        if item is None or item.data(_RUN) is None:
            return
        self.close()
        item.data(_RUN).run()


class _Delegate(QStyledItemDelegate):
    """The name at the left, the note small at the right."""

    def sizeHint(self, _option: QStyleOptionViewItem, _index: Index) -> QSize:
        """One line."""
        return QSize(0, _ROW)

    def paint(self, painter: QPainter, option: QStyleOptionViewItem, index: Index) -> None:
        """One command."""
        area: QRect = option.rect
        if option.state & QStyle.StateFlag.State_Selected:
            painter.fillRect(area, theme().colour("accent_soft"))
        room = area.adjusted(_PADDING, 0, -_PADDING, 0)
        note = str(index.data(_NOTE) or "")
        write(painter, room, note, theme().colour("muted"), SMALL, align=RIGHT)
        taken = int(width_of(note, SMALL)) + _PADDING
        ink = theme().colour("text" if index.data(_RUN) is not None else "muted")
        write(painter, room.adjusted(0, 0, -taken, 0), str(index.data()), ink)
