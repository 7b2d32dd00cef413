"""The legend of the bars: every component they show, with its swatch, and the signs beside them."""

from __future__ import annotations

from collections.abc import Callable

from PySide6.QtCore import QPointF, QRectF, QSize, Slot
from PySide6.QtGui import QColor, QPainter, QPaintEvent, QPen
from PySide6.QtWidgets import QSizePolicy, QWidget

from gui.painting import paint_component, paint_hatch
from gui.text import width_of, write
from gui.theme import SMALL, px, theme
from gui.translate import tr
from gui.words import word
from planner.footprint import TIGHT_BELOW
from planner.palette import DIAGONAL
from planner.words import COMPONENTS

_SWATCH, _LINE, _SPACE = 10, 20, 16
ERROR_BAND, OVER = "error_band", "over"
"""Signs: the bracket at the end of the highest bar, and the part of a card that no plan may reach into."""


class Legend(QWidget):
    """Names flow over as many lines as the width needs."""

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._components: tuple[str, ...] = ()
        self._flows: dict[int, list[tuple[str, str, QPointF]]] = {}
        policy = QSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Minimum)
        policy.setHeightForWidth(True)
        self.setSizePolicy(policy)
        self.setAccessibleName(tr("Legend"))
        theme().changed.connect(self._restyle)

    def show_components(self, components: tuple[str, ...]) -> None:
        """List these components, and signs after them."""
        if components != self._components:
            before = self.heightForWidth(self.width())
            self._components = components
            self._flows.clear()
            self.setAccessibleDescription(", ".join(map(_label, components)))
            if self.heightForWidth(self.width()) != before:
                self.updateGeometry()
            self.update()

    @Slot()
    def _restyle(self) -> None:
        self._flows.clear()
        self.updateGeometry()
        self.update()

    def hasHeightForWidth(self) -> bool:
        """The text flows."""
        return True

    def heightForWidth(self, width: int) -> int:
        """Lines needed at ``width``."""
        return (max((int(at.y()) for _, _, at in self._flow(width)), default=0) // px(_LINE) + 1) * px(_LINE)

    def sizeHint(self) -> QSize:
        """One or two lines."""
        return QSize(300, self.heightForWidth(max(self.width(), 300)))

    def _flow(self, width: int) -> list[tuple[str, str, QPointF]]:
        """Component, its name and its place; kept, since a layout asks many times. No sign is worth a line of its own."""
        if width not in self._flows:
            placed, x, y = [], 0.0, 0.0
            for name in self._components:
                label = _label(name)
                needed = px(_SWATCH) + 6 + width_of(label, SMALL)
                if x and x + needed > width:
                    if name in _SIGNS:
                        break
                    x, y = 0.0, y + px(_LINE)
                placed.append((name, label, QPointF(x, y)))
                x += needed + px(_SPACE)
            self._flows[width] = placed
        return self._flows[width]

    def paintEvent(self, _event: QPaintEvent) -> None:
        """Swatch and name, one after the other."""
        painter = QPainter(self)
        swatch, line, ink = px(_SWATCH), px(_LINE), theme().colour("muted")
        for name, label, at in self._flow(self.width()):
            room = QRectF(at.x(), at.y() + (line - swatch) / 2, swatch, swatch)
            if name in _SIGNS:
                _SIGNS[name](painter, room)
            else:
                paint_component(painter, room, name)
            write(painter, QRectF(at.x() + swatch + 6, at.y(), 200, line), label, ink, SMALL)
        painter.end()


def _label(name: str) -> str:
    if name == OVER:
        return tr("Over {}").format(f"{TIGHT_BELOW:.0%}".replace("%", " %"))
    return tr("Error band") if name == ERROR_BAND else word(COMPONENTS, name).label


def _paint_whisker(painter: QPainter, room: QRectF) -> None:
    painter.setPen(QPen(theme().colour("text"), 1.5))
    middle, left, right = round(room.center().y()) + 0.5, round(room.left()) + 0.5, round(room.right()) - 0.5
    painter.drawLine(QPointF(left, middle), QPointF(right, middle))
    for x in (left, right):
        painter.drawLine(QPointF(x, middle - 3), QPointF(x, middle + 3))


def _paint_over(painter: QPainter, room: QRectF) -> None:
    faint = QColor(theme().colour("capacity"))
    faint.setAlphaF(0.35)
    paint_hatch(painter, room, DIAGONAL, faint)
    painter.setPen(QPen(theme().colour("capacity"), 1.5))
    painter.drawLine(room.topRight(), room.bottomRight())


_SIGNS: dict[str, Callable[[QPainter, QRectF], None]] = {ERROR_BAND: _paint_whisker, OVER: _paint_over}
