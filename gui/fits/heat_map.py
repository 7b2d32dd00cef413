"""Context × batch as a map: how full the fullest GPU is, a line where it stops fitting, and a way to adopt any cell."""

from __future__ import annotations

from PySide6.QtCore import QEvent, QLineF, QPointF, QRectF, QSize, Qt, Signal
from PySide6.QtGui import QColor, QHelpEvent, QKeyEvent, QMouseEvent, QPainter, QPaintEvent, QPen
from PySide6.QtWidgets import QSizePolicy, QToolTip, QWidget

from gui.fits.answers import GOOD, Answer, Map
from gui.form.summary import token_words
from gui.painting import mixed, paint_hatch
from gui.text import CENTRE, RIGHT, width_of, write
from gui.theme import SMALL, ink_on, px, theme
from gui.translate import tr
from gui.words import word
from planner.palette import DIAGONAL
from planner.words import VERDICTS

_LEFT, _TOP, _BOTTOM, _RIGHT = 62, 8, 40, 8
_LEAST_CELL = 22
_MOST_SHARE = 10
_STEPS = {Qt.Key.Key_Left: (0, -1), Qt.Key.Key_Right: (0, 1), Qt.Key.Key_Up: (1, 0), Qt.Key.Key_Down: (-1, 0)}


class HeatMap(QWidget):
    """``adopted`` with the answer of the cell that was clicked, or chosen with Return."""

    adopted = Signal(object)

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._map: Map | None = None
        self._cursor = (0, 0)
        self._dimmed = False
        self._instead = ""
        self.setMouseTracking(True)
        self.setFocusPolicy(Qt.FocusPolicy.StrongFocus)
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Expanding)
        self.setAccessibleName(tr("What fits, by context and batch"))
        theme().changed.connect(self.update)

    def show_map(self, found: Map | None, batch: int, context: int) -> None:
        """Show ``found``; the cell at or below ``batch`` and ``context`` is where the plan stands."""
        self._map, self._dimmed, self._instead = found, False, ""
        if found is not None:
            row = max((at for at, value in enumerate(found.batches) if value <= batch), default=0)
            column = max((at for at, value in enumerate(found.contexts) if value <= context), default=0)
            self._cursor = (row, column)
        self.update()

    def say(self, text: str) -> None:
        """Say this as long as there is no map."""
        self._instead = text
        self.update()

    def set_dimmed(self) -> None:
        """Fade until the next map comes."""
        if not self._dimmed:
            self._dimmed = True
            self.update()

    def cell_rectangle(self, row: int, column: int) -> QRectF:
        """Where a cell is drawn; row 0 is the lowest."""
        width, height = self._cell_size()
        count = len(self._map.batches) if self._map else 1
        return QRectF(px(_LEFT) + column * width, px(_TOP) + (count - 1 - row) * height, width, height)

    @property
    def current(self) -> Answer | None:
        """The answer under the keyboard's cursor."""
        return self._map.answers[self._cursor[0]][self._cursor[1]] if self._map else None

    def sizeHint(self) -> QSize:
        """Cells as high as text wants."""
        return QSize(460, px(_TOP) + px(_BOTTOM) + 9 * 28)

    def minimumSizeHint(self) -> QSize:
        """As low as text allows."""
        return QSize(300, px(_TOP) + px(_BOTTOM) + 9 * px(_LEAST_CELL))

    def _cell_size(self) -> tuple[float, float]:
        columns, rows = (len(self._map.contexts), len(self._map.batches)) if self._map else (1, 1)
        height = (self.height() - px(_TOP) - px(_BOTTOM)) / rows
        return (self.width() - px(_LEFT) - px(_RIGHT)) / columns, height

    def _at(self, position: QPointF) -> tuple[int, int] | None:
        if self._map is None:
            return None
        rows, columns = len(self._map.batches), len(self._map.contexts)
        cells = ((row, column) for row in range(rows) for column in range(columns))
        return next((cell for cell in cells if self.cell_rectangle(*cell).contains(position)), None)

    def mousePressEvent(self, event: QMouseEvent) -> None:
        """Adopt what was clicked."""
        found = self._at(event.position())
        if found and event.button() == Qt.MouseButton.LeftButton:
            self._cursor = found
            self._adopt()

    def keyPressEvent(self, event: QKeyEvent) -> None:
        """Arrows move, Return adopts."""
        step = _STEPS.get(Qt.Key(event.key()))
        if self._map is None or (step is None and event.key() not in (Qt.Key.Key_Return, Qt.Key.Key_Enter, Qt.Key.Key_Space)):
            super().keyPressEvent(event)
        elif step is None:
            self._adopt()
        else:
            row = min(max(self._cursor[0] + step[0], 0), len(self._map.batches) - 1)
            self._cursor = (row, min(max(self._cursor[1] + step[1], 0), len(self._map.contexts) - 1))
            self.setAccessibleDescription(self._tip(self._cursor))
            self.update()

    def event(self, event: QEvent) -> bool:
        """Tool tips belong to cells."""
        if event.type() == QEvent.Type.ToolTip and isinstance(event, QHelpEvent):
            found = self._at(QPointF(event.pos()))
            QToolTip.showText(event.globalPos(), self._tip(found) if found else "", self)
            return True
        return super().event(event)

    def _adopt(self) -> None:
        if self.current is not None and not self._dimmed:
            self.adopted.emit(self.current)

    def _tip(self, cell: tuple[int, int]) -> str:
        if self._map is None:
            return ""
        answer = self._map.answers[cell[0]][cell[1]]
        load = tr("{} × {} tokens").format(self._map.batches[cell[0]], f"{self._map.contexts[cell[1]]:,}")
        share = f", {answer.share:,.0%}".replace("%", " %") if answer.share is not None else ""
        refused = tr(". The engine refuses it: the notes in the panel at the right say why.") if answer.refused else ""
        return f"{load}: {word(VERDICTS, answer.verdict).label}{share}{refused}"

    def paintEvent(self, _event: QPaintEvent) -> None:
        """Cells, the line between what fits and what does not, axes, the cursor."""
        painter = QPainter(self)
        if self._map is None:
            write(painter, self.rect(), self._instead or tr("Working it out …"), theme().colour("muted"), align=CENTRE)
            painter.end()
            return
        painter.setOpacity(0.45 if self._dimmed else 1.0)
        for row, answers in enumerate(self._map.answers):
            for column, answer in enumerate(answers):
                self._paint_cell(painter, self.cell_rectangle(row, column), answer)
        self._paint_contour(painter, self._map)
        self._paint_axes(painter, self._map)
        painter.setPen(QPen(theme().colour("text"), 2 if self.hasFocus() else 1.5))
        painter.setBrush(Qt.BrushStyle.NoBrush)
        painter.drawRect(self.cell_rectangle(*self._cursor).adjusted(2, 2, -2, -2))
        painter.end()

    def _paint_cell(self, painter: QPainter, room: QRectF, answer: Answer) -> None:
        ground = _ground(answer)
        inner = room.adjusted(0.5, 0.5, -0.5, -0.5)
        painter.fillRect(inner, ground)
        if answer.verdict == "does_not_fit":
            paint_hatch(painter, inner, DIAGONAL, mixed(ground, theme().colour("over"), 0.3))
        text = said(answer)
        if answer.verdict == "does_not_fit":
            painter.fillRect(_centred(inner, width_of(text, SMALL, tabular=True) + 6), ground)
        write(painter, inner, text, ink_on(ground), SMALL, tabular=True, align=CENTRE)

    def _paint_contour(self, painter: QPainter, found: Map) -> None:
        """Along every edge between a cell that fits and one that does not."""
        good = [[answer.verdict in GOOD for answer in row] for row in found.answers]
        bad = [[answer.verdict == "does_not_fit" for answer in row] for row in found.answers]
        painter.setPen(QPen(theme().colour("over"), 2.5))
        for row, answers in enumerate(good):
            for column, fits in enumerate(answers):
                room = self.cell_rectangle(row, column)
                if fits and column + 1 < len(answers) and bad[row][column + 1]:
                    painter.drawLine(QLineF(room.topRight(), room.bottomRight()))
                if fits and row + 1 < len(good) and bad[row + 1][column]:
                    painter.drawLine(QLineF(room.topLeft(), room.topRight()))

    def _paint_axes(self, painter: QPainter, found: Map) -> None:
        ink = theme().colour("muted")
        for row, batch in enumerate(found.batches):
            room = self.cell_rectangle(row, 0)
            write(painter, QRectF(0, room.top(), px(_LEFT) - 8, room.height()), f"{batch}", ink, SMALL, tabular=True, align=RIGHT)
        for column, context in enumerate(found.contexts):
            room = self.cell_rectangle(0, column)
            write(painter, QRectF(room.left(), room.bottom() + 2, room.width(), 16), token_words(context), ink, SMALL, align=CENTRE)
        base = self.cell_rectangle(0, 0).bottom() + 18
        write(
            painter,
            QRectF(px(_LEFT), base, self.width() - px(_LEFT) - px(_RIGHT), 16),
            tr("Context, tokens"),
            ink,
            SMALL,
            align=CENTRE,
        )
        painter.save()
        painter.translate(12, (self.cell_rectangle(len(found.batches) - 1, 0).top() + self.cell_rectangle(0, 0).bottom()) / 2)
        painter.rotate(-90)
        write(painter, QRectF(-60, -8, 120, 16), tr("Batch"), ink, SMALL, align=CENTRE)
        painter.restore()


def said(answer: Answer) -> str:
    """How full; a mark where the engine refuses what there would be room for."""
    if answer.share is None:
        return "?"
    if answer.refused:
        return "✘"
    return f"{answer.share:.0%}".replace("%", " %") if answer.share < _MOST_SHARE else "≥10×"


def _ground(answer: Answer) -> QColor:
    surface = theme().colour("surface")
    if answer.share is None:
        return theme().colour("sunken")
    if answer.verdict == "fits":
        return mixed(surface, theme().colour("accent"), 0.06 + 0.5 * min(answer.share, 1.0))
    return mixed(
        surface, theme().colour("tight" if answer.verdict == "tight" else "over"), 0.45 if answer.verdict == "tight" else 0.16
    )


def _centred(room: QRectF, width: float) -> QRectF:
    box = QRectF(0, 0, width, 14)
    box.moveCenter(room.center())
    return box
