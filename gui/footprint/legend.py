"""The legend of the bars: every component they show, with its swatch."""

from __future__ import annotations

from PySide6.QtCore import QPointF, QRectF, QSize, Slot
from PySide6.QtGui import QPainter, QPaintEvent
from PySide6.QtWidgets import QSizePolicy, QWidget

from gui.painting import paint_component
from gui.text import width_of, write
from gui.theme import SMALL, px, theme
from gui.translate import tr
from gui.words import word
from planner.words import COMPONENTS

_SWATCH, _LINE, _SPACE = 10, 20, 16


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
        """List these components."""
        if components != self._components:
            before = self.heightForWidth(self.width())
            self._components = components
            self._flows.clear()
            self.setAccessibleDescription(", ".join(word(COMPONENTS, name).label for name in components))
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
        """Component, its name and its place; kept, since a layout asks many times."""
        if width not in self._flows:
            placed, x, y = [], 0.0, 0.0
            for name in self._components:
                label = word(COMPONENTS, name).label
                needed = px(_SWATCH) + 6 + width_of(label, SMALL)
                if x and x + needed > width:
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
            paint_component(painter, QRectF(at.x(), at.y() + (line - swatch) / 2, swatch, swatch), name)
            write(painter, QRectF(at.x() + swatch + 6, at.y(), 200, line), label, ink, SMALL)
        painter.end()
