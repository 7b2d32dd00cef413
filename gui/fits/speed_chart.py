"""Speed against concurrency: tokens a second of all as a line, the wait of each as another, up to where it stops fitting."""

from __future__ import annotations

import math
from collections.abc import Callable

from PySide6.QtCore import QEvent, QPointF, QRectF, QSize, Qt, Signal
from PySide6.QtGui import QHelpEvent, QKeyEvent, QMouseEvent, QPainter, QPaintEvent, QPen, QPolygonF
from PySide6.QtWidgets import QSizePolicy, QToolTip, QWidget

from gui.fits.answers import GOOD
from gui.fits.speeds import Pace
from gui.painting import mixed, paint_hatch
from gui.text import CENTRE, LEFT, RIGHT, write
from gui.theme import SMALL, px, theme
from gui.translate import tr
from gui.words import word
from planner.palette import DIAGONAL
from planner.words import VERDICTS

_LEFT, _TOP, _BOTTOM, _RIGHT = 62, 30, 40, 66
_DOT, _REACH = 4.0, 18.0
_STEPS = {Qt.Key.Key_Left: -1, Qt.Key.Key_Right: 1, Qt.Key.Key_Space: 0}
_ADOPTS = (Qt.Key.Key_Return, Qt.Key.Key_Enter)
_UNKNOWN = "The speed of this plan is not known: the card's rates or the engine's way of running it are missing."
_NONE_FITS = "Not one sequence of this context fits, so there is no speed to show."


class SpeedChart(QWidget):
    """``picked`` with the point that was clicked or reached with the arrow keys; ``adopted`` on a double click or Return."""

    picked = Signal(object)
    adopted = Signal(object)

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._paces: tuple[Pace, ...] | None = None
        self._cursor = 0
        self._dimmed = False
        self._fitting = True
        self.setMouseTracking(True)
        self.setFocusPolicy(Qt.FocusPolicy.StrongFocus)
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Expanding)
        self.setAccessibleName(tr("Speed by concurrency"))
        theme().changed.connect(self.update)

    def show_paces(self, paces: tuple[Pace, ...], batch: int, *, fitting: bool = True) -> None:
        """Show ``paces``; the point at or below ``batch`` is where the plan stands. ``fitting``: whether any load fits."""
        self._paces, self._dimmed, self._fitting = paces, False, fitting
        self._cursor = max((at for at, pace in enumerate(paces) if pace.batch <= batch), default=0)
        self._describe()
        self.update()

    def set_dimmed(self) -> None:
        """Fade until the next answer comes."""
        if not self._dimmed:
            self._dimmed = True
            self.update()

    @property
    def paces(self) -> tuple[Pace, ...]:
        """What is shown."""
        return self._paces or ()

    @property
    def current(self) -> Pace | None:
        """The point under the keyboard's cursor."""
        return self.paces[self._cursor] if self.paces else None

    def point_of(self, index: int) -> QPointF:
        """Where a point's rate is drawn."""
        return QPointF(self._x(index), self._y(self.paces[index].tokens_per_s, self._most_rate))

    def sizeHint(self) -> QSize:
        """As the map."""
        return QSize(460, 300)

    def minimumSizeHint(self) -> QSize:
        """Two lines can be told apart."""
        return QSize(300, 160)

    @property
    def _most_rate(self) -> float:
        return _round_up(max(pace.tokens_per_s for pace in self.paces))

    @property
    def _most_wait(self) -> float:
        return _round_up(max(pace.wait_s for pace in self.paces))

    def _x(self, index: float) -> float:
        return px(_LEFT) + (index + 0.5) * (self.width() - px(_LEFT) - px(_RIGHT)) / max(len(self.paces), 1)

    def _y(self, value: float, most: float) -> float:
        return self.height() - px(_BOTTOM) - value / most * (self.height() - px(_TOP) - px(_BOTTOM))

    def _at(self, position: QPointF) -> int | None:
        nearest = min(range(len(self.paces)), key=lambda index: abs(self._x(index) - position.x()), default=None)
        return nearest if nearest is not None and abs(self._x(nearest) - position.x()) <= max(_REACH, self._pitch / 2) else None

    @property
    def _pitch(self) -> float:
        return self._x(1) - self._x(0)

    def mousePressEvent(self, event: QMouseEvent) -> None:
        """Pick what was clicked."""
        found = self._at(event.position())
        if found is not None and event.button() == Qt.MouseButton.LeftButton:
            self._go_to(found)

    def mouseDoubleClickEvent(self, event: QMouseEvent) -> None:
        """Adopt it."""
        if self._at(event.position()) == self._cursor and event.button() == Qt.MouseButton.LeftButton:
            self._adopt()

    def keyPressEvent(self, event: QKeyEvent) -> None:
        """Left and right move, Space picks, Return adopts."""
        step = _STEPS.get(Qt.Key(event.key()))
        if step is not None and self.paces:
            self._go_to(min(max(self._cursor + step, 0), len(self.paces) - 1))
        elif event.key() in _ADOPTS:
            self._adopt()
        else:
            super().keyPressEvent(event)

    def _go_to(self, index: int) -> None:
        self._cursor = index
        self._describe()
        self.update()
        if not self._dimmed:
            self.picked.emit(self.paces[index])

    def event(self, event: QEvent) -> bool:
        """Tool tips belong to points."""
        if event.type() == QEvent.Type.ToolTip and isinstance(event, QHelpEvent):
            found = self._at(QPointF(event.pos()))
            QToolTip.showText(event.globalPos(), words_of(self.paces[found]) if found is not None else "", self)
            return True
        return super().event(event)

    def _adopt(self) -> None:
        if self.current is not None and not self._dimmed:
            self.adopted.emit(self.current)

    def _describe(self) -> None:
        self.setAccessibleDescription(words_of(self.current) if self.current else "")

    def paintEvent(self, _event: QPaintEvent) -> None:
        """What does not fit, the axes, the two lines, the cursor."""
        painter = QPainter(self)
        if not self.paces:
            words = tr("Working it out …") if self._paces is None else tr(_UNKNOWN if self._fitting else _NONE_FITS)
            write(painter, self.rect(), words, theme().colour("muted"), align=CENTRE)
            painter.end()
            return
        painter.setOpacity(0.45 if self._dimmed else 1.0)
        self._paint_limit(painter)
        self._paint_axes(painter)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        self._paint_line(painter, "device", self._most_wait, lambda pace: pace.wait_s, Qt.PenStyle.DashLine)
        self._paint_line(painter, "accent", self._most_rate, lambda pace: pace.tokens_per_s, Qt.PenStyle.SolidLine)
        self._paint_cursor(painter)
        painter.end()

    def _paint_limit(self, painter: QPainter) -> None:
        """The ground behind the concurrencies that do not fit."""
        training = self.paces[0].scenario.task == "training"
        first = next((index for index, pace in enumerate(self.paces) if pace.verdict == "does_not_fit"), None)
        if training and first is None:
            return
        bottom = self.height() - px(_BOTTOM)
        left = self._x(len(self.paces) - 0.5 if first is None else first - 0.5)
        room = QRectF(left, px(_TOP), self.width() - px(_RIGHT) - left, bottom - px(_TOP))
        ground = mixed(theme().colour("surface"), theme().colour("over"), 0.07)
        painter.fillRect(room, ground)
        paint_hatch(painter, room, DIAGONAL, mixed(ground, theme().colour("over"), 0.16))
        painter.setPen(QPen(theme().colour("over"), 2))
        painter.drawLine(room.topLeft(), room.bottomLeft())
        words = tr("More do not fit") if first is None else tr("Does not fit")
        place = QRectF(left - 206, bottom - 20, 200, 18) if first is None else QRectF(left + 6, px(_TOP) + 2, room.width() - 6, 18)
        write(painter, place, words, theme().colour("over"), SMALL, bold=True, align=RIGHT if first is None else LEFT)

    def _paint_axes(self, painter: QPainter) -> None:
        right, bottom = self.width() - px(_RIGHT), self.height() - px(_BOTTOM)
        rate_ink, wait_ink, ink = (theme().colour(name) for name in ("accent", "device", "muted"))
        for part in range(5):
            y = round(self._y(part / 4, 1.0)) + 0.5
            painter.setPen(theme().colour("grid"))
            painter.drawLine(QPointF(px(_LEFT), y), QPointF(right, y))
            rate, wait = f"{self._most_rate * part / 4:,.4g}", f"{1000 * self._most_wait * part / 4:,.4g}"
            write(painter, QRectF(0, y - 8, px(_LEFT) - 8, 16), rate, rate_ink, SMALL, tabular=True, align=RIGHT)
            write(painter, QRectF(right + 8, y - 8, px(_RIGHT) - 8, 16), wait, wait_ink, SMALL, tabular=True, align=LEFT)
        head = QRectF(6, 4, self.width() - 12, 18)
        write(painter, head, tr("— Throughput, tokens/s"), rate_ink, SMALL, bold=True)
        write(painter, head, self._wait_words, wait_ink, SMALL, bold=True, align=RIGHT)
        for index, pace in enumerate(self.paces):
            room = QRectF(self._x(index) - 30, bottom + 4, 60, 16)
            write(painter, room, f"{pace.batch}", ink, SMALL, tabular=True, align=CENTRE)
        write(painter, QRectF(px(_LEFT), bottom + 20, right - px(_LEFT), 16), tr("Sequences at once"), ink, SMALL, align=CENTRE)

    @property
    def _wait_words(self) -> str:
        training = bool(self.paces) and self.paces[0].scenario.task == "training"
        return tr("- - Time per step, ms") if training else tr("- - Time per output token, ms")

    def _paint_line(self, painter: QPainter, colour: str, most: float, value: Callable[[Pace], float], style: Qt.PenStyle) -> None:
        points = [QPointF(self._x(index), self._y(value(pace), most)) for index, pace in enumerate(self.paces)]
        painter.setPen(QPen(theme().colour(colour), 2, style))
        painter.setBrush(Qt.BrushStyle.NoBrush)
        painter.drawPolyline(QPolygonF(points))
        painter.setPen(QPen(theme().colour(colour), 1.5))
        for point, pace in zip(points, self.paces, strict=True):
            painter.setBrush(theme().colour(colour if pace.verdict in GOOD else "surface"))
            painter.drawEllipse(point, _DOT, _DOT)

    def _paint_cursor(self, painter: QPainter) -> None:
        painter.setPen(QPen(theme().colour("text"), 2 if self.hasFocus() else 1.5))
        painter.setBrush(Qt.BrushStyle.NoBrush)
        painter.drawEllipse(self.point_of(self._cursor), 2 * _DOT, 2 * _DOT)


def words_of(pace: Pace) -> str:
    """A point in words."""
    what = tr("a step") if pace.scenario.task == "training" else tr("to each one's next token")
    rate = tr("{} at once: {} tokens/s, {} ms {}").format(
        pace.batch, f"{pace.tokens_per_s:,.0f}", f"{1000 * pace.wait_s:,.3g}", what
    )
    return f"{rate}. {word(VERDICTS, pace.verdict).label}. {tr('Double-click to take it into the form.')}"


def _round_up(value: float) -> float:
    """To two of its digits, so that quarters of it are round."""
    power = 10.0 ** math.floor(math.log10(value))
    return next(power * step for step in (1, 1.2, 1.6, 2, 2.4, 3.2, 4, 6, 8, 10) if value <= power * step)
