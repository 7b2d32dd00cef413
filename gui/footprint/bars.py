"""The stacked bars: one row per phase (one GPU) or per GPU, against the capacity line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from PySide6.QtCore import QEvent, QPointF, QRectF, QSize, Qt, Signal, Slot
from PySide6.QtGui import QColor, QHelpEvent, QKeyEvent, QMouseEvent, QPainter, QPaintEvent, QPen
from PySide6.QtWidgets import QSizePolicy, QToolTip, QWidget

from gui.footprint.rows import Row
from gui.painting import paint_component, paint_hatch
from gui.scale import ticks
from gui.state import Selection
from gui.text import CENTRE, RIGHT, width_of, write
from gui.theme import SMALL, ink_on, px, theme
from gui.translate import tr
from gui.units import format_bytes, units
from gui.words import word
from planner.footprint import HOST, TIGHT_BELOW
from planner.palette import DIAGONAL, SOLID
from planner.words import COMPONENTS

_LABEL_WIDTH, _RIGHT, _TOP, _BOTTOM = 78, 92, 24, 24
PITCH, _LEAST_PITCH, _GAP_SHARE = 44, 20, 0.23
"""Pixels from bar to bar: as a rule, and at least where there are many; and which part of them is the gap."""
_LEAST_LABEL, _LEAST_WHISKER, _WHISKER = 30, 5, 4
_LABEL_HEIGHT, _CLEAR = 16, 6
_ROOM_FOR_ROWS = 4
"""Room that is kept even for fewer rows, so that a change of task moves nothing."""


@dataclass(frozen=True, slots=True)
class _Segment:
    row: int
    component: str
    size_bytes: int
    rectangle: QRectF
    label: str
    """As much of name and size as there is room for."""
    middle: float
    """Where the label has its middle."""


class Bars(QWidget):
    """Hover or arrow keys point at a segment; a click or Enter selects it."""

    picked = Signal(object)
    hovered = Signal(object)

    def __init__(self, label_width: int = _LABEL_WIDTH, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._plain_label_width = label_width
        self._room: tuple[float, float] | None = None
        self._rows: tuple[Row, ...] = ()
        self._by_row: list[list[_Segment]] = []
        self._pixels_per_byte = 0.0
        self._pitch = self._gap = self._bar = 0
        """Pixels from bar to bar: of the gap and of the bar itself."""
        self._hover: Selection | None = None
        self._chosen = Selection()
        self._dimmed = False
        self.setMouseTracking(True)
        self.setFocusPolicy(Qt.FocusPolicy.StrongFocus)
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
        self.setAccessibleName(tr("Memory by phase and component"))
        theme().changed.connect(self._relabel)
        units().changed.connect(self._relabel)
        self._share_room()

    @property
    def rows(self) -> tuple[Row, ...]:
        """What is shown."""
        return self._rows

    def show_rows(self, rows: tuple[Row, ...]) -> None:
        """Show these bars."""
        if rows == self._rows:
            return
        before = self._height()
        self._rows = rows
        self._hover = None
        self._place()
        self.setAccessibleDescription("; ".join(f"{row.label} {format_bytes(row.total_bytes)}" for row in rows))
        if self._height() != before:
            self.updateGeometry()
        self.update()

    def set_room(self, height: float, most_pitch: float) -> None:
        """Share ``height`` among the bars, unless they then are further apart than ``most_pitch`` or nearer than they may be."""
        if (height, most_pitch) != self._room:
            self._room = (height, most_pitch)
            self._relabel()

    def set_chosen(self, selection: Selection) -> None:
        """Outline what the why panel explains."""
        if selection != self._chosen:
            self._chosen = selection
            self.update()

    def set_dimmed(self, dimmed: bool) -> None:  # noqa: FBT001  a setter
        """Fade the bars while they answer an older scenario."""
        if dimmed != self._dimmed:
            self._dimmed = dimmed
            self.update()

    @Slot()
    def _relabel(self) -> None:
        self._place()
        self.updateGeometry()
        self.update()

    @Slot(object)
    def point_at(self, component: object) -> None:
        """Highlight a component in every bar; None for nothing."""
        self._hover = Selection(str(component)) if component else None
        self.update()

    def segment_rectangle(self, component: str, phase: str) -> QRectF:
        """Where a component of a phase is drawn; empty when it is not."""
        for segment in self._segments:
            if segment.component == component and self._rows[segment.row].phase == phase:
                return segment.rectangle
        return QRectF()

    def row_rectangle(self, gpu: int | None, phase: str | None) -> QRectF:
        """Where a bar is drawn, with its gaps; empty when it is not."""
        found = next((index for index, row in enumerate(self._rows) if (row.gpu, row.phase) == (gpu, phase)), None)
        return QRectF() if found is None else QRectF(0, self._row_top(found) - self._gap / 2, self.width(), self._pitch)

    def sizeHint(self) -> QSize:
        """As high as the rows need."""
        return QSize(420, self._height())

    def minimumSizeHint(self) -> QSize:
        """Rows keep their height, bars may shrink."""
        return QSize(260, self._height())

    @property
    def _label_width(self) -> int:
        return px(self._plain_label_width)

    def _height(self) -> int:
        return px(_TOP) + px(_BOTTOM) + max(_ROOM_FOR_ROWS, len(self._rows)) * self._pitch

    def _share_room(self) -> None:
        if self._room is None:
            self._pitch = px(PITCH)
        else:
            shared = (self._room[0] - px(_TOP) - px(_BOTTOM)) / max(_ROOM_FOR_ROWS, len(self._rows))
            self._pitch = int(max(px(_LEAST_PITCH), min(shared, self._room[1])))
        self._gap = round(self._pitch * _GAP_SHARE)
        self._bar = self._pitch - self._gap

    def _limit(self) -> float:
        """The right end of the axis: a little beyond the capacity and the largest bar."""
        capacities = [row.capacity_bytes or 0 for row in self._rows]
        totals = [row.total_bytes + row.error_bytes for row in self._rows]
        return max([*capacities, *totals, 1]) * 1.02

    def _x(self, size_bytes: float) -> float:
        return self._label_width + size_bytes * self._pixels_per_byte

    def _row_top(self, index: int) -> float:
        pitch = (self._height() - px(_TOP) - px(_BOTTOM)) / len(self._rows)
        return px(_TOP) + index * pitch + (pitch - self._bar) / 2

    @property
    def _segments(self) -> list[_Segment]:
        return [segment for row in self._by_row for segment in row]

    def _place(self) -> None:
        self._share_room()
        self._by_row = [[] for _ in self._rows]
        self._pixels_per_byte = max(1, self.width() - self._label_width - px(_RIGHT)) / self._limit()
        for index, row in enumerate(self._rows):
            begin, top, lines = 0, self._row_top(index), self._lines_of(row)
            for component, size_bytes in row.parts:
                left, right = self._x(begin), self._x(begin + size_bytes)
                rectangle = QRectF(left, top, right - left, self._bar)
                label, middle = _labelled(component, size_bytes, left, right, lines)
                self._by_row[index].append(_Segment(index, component, size_bytes, rectangle, label, middle))
                begin += size_bytes

    def _at(self, position: QPointF) -> Selection | None:
        for segment in self._segments:
            if segment.rectangle.adjusted(0, 0, 0.5, 0).contains(position):
                row = self._rows[segment.row]
                return Selection(segment.component, row.phase, row.gpu)
        return None

    def resizeEvent(self, _event: object) -> None:
        """Lay the segments out anew."""
        self._place()

    def mouseMoveEvent(self, event: QMouseEvent) -> None:
        """Point at what is under the mouse."""
        found = self._at(event.position())
        if found != self._hover:
            self._hover = found
            self.setCursor(Qt.CursorShape.PointingHandCursor if found else Qt.CursorShape.ArrowCursor)
            self.hovered.emit(found)
            self.update()

    def leaveEvent(self, _event: QEvent) -> None:
        """Point at nothing."""
        self._hover = None
        self.hovered.emit(None)
        self.update()

    def mousePressEvent(self, event: QMouseEvent) -> None:
        """Select the segment under the mouse."""
        found = self._at(event.position())
        if found and event.button() == Qt.MouseButton.LeftButton:
            self.picked.emit(found)

    def keyPressEvent(self, event: QKeyEvent) -> None:
        """Left and right move along a bar, up and down between bars."""
        steps = {Qt.Key.Key_Left: (0, -1), Qt.Key.Key_Right: (0, 1), Qt.Key.Key_Up: (-1, 0), Qt.Key.Key_Down: (1, 0)}
        step = steps.get(Qt.Key(event.key()))
        if step is None or not self._rows:
            super().keyPressEvent(event)
            return
        self.picked.emit(self._neighbour(*step))

    def event(self, event: QEvent) -> bool:
        """Tool tips belong to segments."""
        if event.type() == QEvent.Type.ToolTip and isinstance(event, QHelpEvent):
            found = self._at(QPointF(event.pos()))
            QToolTip.showText(event.globalPos(), self._tip(found) if found else "", self)
            return True
        return super().event(event)

    def _neighbour(self, rows: int, parts: int) -> Selection:
        here = next((i for i, row in enumerate(self._rows) if (row.phase, row.gpu) == (self._chosen.phase, self._chosen.gpu)), None)
        start = here if here is not None else next((i for i, row in enumerate(self._rows) if row.peak), 0)
        row = self._rows[min(max(start + rows, 0), len(self._rows) - 1)]
        names = [name for name, _ in row.parts]
        now = names.index(self._chosen.component) if self._chosen.component in names else 0
        return Selection(names[min(max(now + parts, 0), len(names) - 1)], row.phase, row.gpu)

    def _tip(self, selection: Selection) -> str:
        named = word(COMPONENTS, selection.component or "")
        size = next(
            segment.size_bytes for segment in self._segments
            if segment.component == selection.component and _is_of(self._rows[segment.row], selection)
        )  # fmt: skip
        row = next(row for row in self._rows if _is_of(row, selection))
        error = f" ± {format_bytes(row.error_bytes)}" if row.error_bytes else ""
        whole = tr("of {} in all").format(f"{format_bytes(row.total_bytes)}{error}")
        return f"<b>{named.label}</b> {format_bytes(size)} {whole}<br>{named.meaning}"

    def paintEvent(self, _event: QPaintEvent) -> None:
        """Axis, bars, capacity, in this order."""
        if not self._rows:
            return
        painter = QPainter(self)
        if self._dimmed:
            painter.setOpacity(0.4)
        self._paint_axis(painter)
        for index, row in enumerate(self._rows):
            self._paint_row(painter, index, row)
        self._paint_capacity(painter)
        self._paint_free(painter)
        painter.end()

    def _paint_axis(self, painter: QPainter) -> None:
        bottom = self.height() - px(_BOTTOM)
        for position, label in ticks(self._limit(), max(3, min(8, self.width() // px(70)))):
            x = round(self._x(position)) + 0.5
            painter.setPen(theme().colour("grid"))
            painter.drawLine(QPointF(x, px(_TOP)), QPointF(x, bottom))
            write(
                painter, QRectF(x - 50, bottom + 4, 100, px(18)), label, theme().colour("muted"), SMALL, tabular=True, align=CENTRE
            )

    def _paint_row(self, painter: QPainter, index: int, row: Row) -> None:
        top, ink = self._row_top(index), theme().colour("text" if row.peak else "muted")
        name = theme().colour("accent") if self._is_explained(row) else ink
        write(painter, QRectF(0, top, self._label_width - 12, self._bar), row.label, name, bold=row.peak, align=RIGHT)
        for segment in self._by_row[index]:
            self._paint_segment(painter, segment, row)
        self._paint_error(painter, row, top)
        end, text = self._x(row.total_bytes + row.error_bytes) + 8, format_bytes(row.total_bytes)
        if row.capacity_bytes and self._crosses(end, width_of(text, bold=row.peak, tabular=True), row.capacity_bytes):
            end = self._x(row.capacity_bytes) + 8
        write(painter, QRectF(end, top, 140, self._bar), text, ink, bold=row.peak, tabular=True)

    def _paint_error(self, painter: QPainter, row: Row, top: float) -> None:
        """The error band as a whisker at the end of the bar, below the words."""
        left, right = (round(self._x(row.total_bytes + sign * row.error_bytes)) + 0.5 for sign in (-1, 1))
        if right - left < _LEAST_WHISKER:
            return
        middle = round(top + self._bar - _WHISKER - 1) + 0.5
        for colour, width in (("surface", 4), ("text", 1.5)):
            painter.setPen(QPen(theme().colour(colour), width))
            painter.drawLine(QPointF(left, middle), QPointF(right, middle))
            for x in (left, right):
                painter.drawLine(QPointF(x, middle - _WHISKER), QPointF(x, middle + _WHISKER))

    def _crosses(self, left: float, width: float, capacity_bytes: int) -> bool:
        return left - 4 < self._x(capacity_bytes) < left + width + 6

    def _paint_segment(self, painter: QPainter, segment: _Segment, row: Row) -> None:
        rectangle = _crisp(segment.rectangle)
        paint_component(painter, rectangle, segment.component)
        if self._hover and self._hover.component != segment.component:
            veil = QColor(theme().colour("surface"))
            veil.setAlphaF(0.55)
            painter.fillRect(rectangle, veil)
        self._paint_label(painter, segment)
        if self._is_chosen(segment, row):
            painter.setPen(QPen(theme().colour("text"), 2))
            painter.drawRect(rectangle.adjusted(1, 1, -1, -1))

    def _paint_label(self, painter: QPainter, segment: _Segment) -> None:
        if not segment.label:
            return
        fill, hatch = theme().fill(segment.component)
        box = QRectF(0, 0, width_of(segment.label, SMALL, tabular=True) + 8, _LABEL_HEIGHT)
        box.moveCenter(QPointF(segment.middle, segment.rectangle.center().y()))
        if hatch != SOLID:
            painter.fillRect(box, fill)
        write(painter, box, segment.label, ink_on(fill), SMALL, tabular=True, align=CENTRE)

    def _lines_of(self, row: Row) -> list[float]:
        return [self._x(size) for size in (row.capacity_bytes, row.free_bytes) if size]

    def _is_explained(self, row: Row) -> bool:
        """Whether the table and the why panel tell of this one of several GPUs."""
        several = len({one.gpu for one in self._rows}) > 1 and len({one.phase for one in self._rows if one.gpu != HOST}) == 1
        return several and row.gpu == self._chosen.gpu

    def _is_chosen(self, segment: _Segment, row: Row) -> bool:
        phase = self._chosen.phase or next((one.phase for one in self._rows if one.peak), None)
        return segment.component == self._chosen.component and row.phase == phase and row.gpu == self._chosen.gpu

    def _paint_capacity(self, painter: QPainter) -> None:
        capacities = [row.capacity_bytes for row in self._rows if row.capacity_bytes]
        if not capacities:
            return
        if len(set(capacities)) > 1:
            self._paint_own_capacities(painter)
            return
        capacity = max(capacities)
        x, bottom = round(self._x(capacity)) + 0.5, self._cards_bottom()
        edge = self._x(capacity * TIGHT_BELOW)
        faint = QColor(theme().colour("capacity"))
        faint.setAlphaF(0.35)
        paint_hatch(painter, QRectF(edge, px(_TOP), x - edge, bottom - px(_TOP)), DIAGONAL, faint)
        painter.setPen(QPen(theme().colour("capacity"), 1.5))
        painter.drawLine(QPointF(x, px(_TOP) - 4), QPointF(x, bottom))
        text, left = _capacity_words(capacity), self._capacity_text_left()
        room = QRectF(left, 0, self.width() - left, px(_TOP) - 5)
        write(painter, room, text, theme().colour("capacity"), SMALL, bold=True, tabular=True)

    def _cards_bottom(self) -> float:
        """Where the bars of the cards end: the host's memory below them has another capacity."""
        below = next((index for index, row in enumerate(self._rows) if row.gpu == HOST), None)
        return self._row_top(below) - self._gap / 2 if below is not None else float(self.height() - px(_BOTTOM))

    def _paint_free(self, painter: QPainter) -> None:
        """What other processes leave of each card: a dashed mark over its bars, told once."""
        known = [(index, row.free_bytes) for index, row in enumerate(self._rows) if row.free_bytes is not None]
        if not known:
            return
        for colour, style, width in (("surface", Qt.PenStyle.SolidLine, 4), ("accent", Qt.PenStyle.DashLine, 1.5)):
            painter.setPen(QPen(theme().colour(colour), width, style))
            for index, free in known:
                x, top = round(self._x(free)) + 0.5, self._row_top(index)
                painter.drawLine(QPointF(x, top - self._gap / 2), QPointF(x, top + self._bar + self._gap / 2))
        text = (
            tr("Free now {}").format(format_bytes(known[0][1])) if len({free for _, free in known}) == 1 else tr("Dashed: free now")
        )
        width = width_of(text, SMALL, bold=True, tabular=True) + 4
        beside = self._x(known[0][1]) + width / 2
        limit = self._capacity_text_left()
        left = min(beside, limit - self._gap) - width
        write(painter, QRectF(max(left, 0), 0, width, px(_TOP) - 5), text, theme().colour("accent"), SMALL, bold=True, tabular=True)

    def _capacity_text_left(self) -> float:
        """Where the words over the capacity line begin."""
        capacities = {row.capacity_bytes for row in self._rows if row.capacity_bytes}
        if len(capacities) != 1:
            return float(self.width())
        capacity = next(iter(capacities))
        width = width_of(_capacity_words(capacity), SMALL, bold=True, tabular=True) + 4
        return min(self._x(capacity) - width / 2, self.width() - width)

    def _paint_own_capacities(self, painter: QPainter) -> None:
        """Cards differ: each bar has a mark of its own."""
        for index, row in enumerate(self._rows):
            if row.capacity_bytes:
                x, top = round(self._x(row.capacity_bytes)) + 0.5, self._row_top(index)
                painter.setPen(QPen(theme().colour("capacity"), 1.5))
                painter.drawLine(QPointF(x, top - 4), QPointF(x, top + self._bar + 4))
        write(painter, QRectF(self._label_width, 0, 400, px(_TOP) - 5), tr("The line is each card's capacity"),
              theme().colour("capacity"), SMALL, bold=True)  # fmt: skip


def _is_of(row: Row, selection: Selection) -> bool:
    return (row.phase, row.gpu) == (selection.phase, selection.gpu)


def _capacity_words(capacity_bytes: int) -> str:
    return tr("Capacity {}").format(format_bytes(capacity_bytes))


def _fitting(component: str, size_bytes: int, room: float) -> str:
    """Name and size, one of them, or nothing. A pixel is lost on each side to the neighbours."""
    if room < _LEAST_LABEL:
        return ""
    name, size = word(COMPONENTS, component).label, format_bytes(size_bytes)
    texts = (f"{name}  {size}", name, size)
    return next((text for text in texts if width_of(text, SMALL, tabular=True) + 16 <= room), "")


def _labelled(component: str, size_bytes: int, left: float, right: float, lines: Sequence[float]) -> tuple[str, float]:
    """What a segment says, and about which place: its middle, or that of its widest part beside the ``lines`` across it."""
    label, middle = _fitting(component, size_bytes, right - left), (left + right) / 2
    reach = width_of(label, SMALL, tabular=True) / 2 + _CLEAR
    if not any(abs(x - middle) < reach for x in lines):
        return label, middle
    edges = [left, *sorted(x for x in lines if left < x < right), right]
    start, end = max(pairwise(edges), key=lambda part: part[1] - part[0])
    return _fitting(component, size_bytes, end - start), (start + end) / 2


def _crisp(rectangle: QRectF) -> QRectF:
    """On whole pixels, with one pixel of the background between neighbours, and never thinner than a pixel."""
    left, right = round(rectangle.left()), round(rectangle.right())
    return QRectF(left, rectangle.top(), max(1, right - left - 1), rectangle.height())
