"""Zooming the plot: the wheel or plus and minus zoom, dragging or the arrow keys move, a double click or 0 shows all again."""

from __future__ import annotations

from collections.abc import Callable

import pyqtgraph as pg
from PySide6.QtCore import QEvent, QObject, Qt, Signal, Slot
from PySide6.QtGui import QKeyEvent, QMouseEvent
from PySide6.QtWidgets import QToolButton

from gui.theme import set_role
from gui.translate import tr

_STEP, _MOVE = 0.8, 0.1
_MARGIN = 8
Range = tuple[float, float]


class Zoom(QObject):
    """Knows whether the user looks at a part; until then the plot shows all. ``changed`` when that part is another one."""

    changed = Signal()

    def __init__(self, plot: pg.PlotWidget) -> None:
        super().__init__(plot)
        self._plot, self._view = plot, plot.getViewBox()
        self.zoomed = False
        self._all: tuple[Range, Range] = ((0.0, 1.0), (0.0, 1.0))
        self.button = QToolButton(plot, text=tr("Show all"), visible=False, toolTip=tr("Show the whole run again (0)"))
        set_role(self.button, "link")
        self.button.setAutoRaise(True)
        self.button.clicked.connect(self.reset)
        self._view.setMouseEnabled(x=True, y=True)
        self._view.sigRangeChangedManually.connect(self._moved)
        plot.setFocusPolicy(Qt.FocusPolicy.StrongFocus)
        plot.installEventFilter(self)
        plot.viewport().installEventFilter(self)

    @property
    def x_range(self) -> Range:
        """What is seen of the axis of time."""
        low, high = self._view.viewRange()[0]
        return low, high

    def show_all(self, x: Range, y: Range) -> None:
        """Show ``x`` and ``y``, unless the user looks at a part of it; nothing beyond can be reached."""
        self._all = (x, y)
        self._view.setLimits(xMin=x[0], xMax=x[1], yMin=y[0], yMax=y[1])
        if not self.zoomed:
            self._plot.setRange(xRange=x, yRange=y, padding=0)

    @Slot()
    def reset(self) -> None:
        """Show all again."""
        self.zoomed = False
        self.button.hide()
        self._plot.setRange(xRange=self._all[0], yRange=self._all[1], padding=0)
        self.changed.emit()

    def eventFilter(self, watched: QObject, event: QEvent) -> bool:
        """Keys of the plot, and the double click."""
        if watched is self._plot and isinstance(event, QKeyEvent) and event.type() == QEvent.Type.KeyPress:
            return self._key(Qt.Key(event.key()))
        if event.type() == QEvent.Type.MouseButtonDblClick and isinstance(event, QMouseEvent):
            self.reset()
            return True
        if event.type() == QEvent.Type.Resize:
            self._place()
        return False

    def _key(self, key: Qt.Key) -> bool:
        action = self._keys().get(key)
        if action is None:
            return False
        action()
        if key != Qt.Key.Key_0:
            self._moved()
        return True

    def _keys(self) -> dict[Qt.Key, Callable[[], None]]:
        return {
            Qt.Key.Key_Plus: lambda: self._view.scaleBy(x=_STEP, y=_STEP),
            Qt.Key.Key_Equal: lambda: self._view.scaleBy(x=_STEP, y=_STEP),
            Qt.Key.Key_Minus: lambda: self._view.scaleBy(x=1 / _STEP, y=1 / _STEP),
            Qt.Key.Key_Left: lambda: self._move(-_MOVE, 0.0),
            Qt.Key.Key_Right: lambda: self._move(_MOVE, 0.0),
            Qt.Key.Key_Up: lambda: self._move(0.0, _MOVE),
            Qt.Key.Key_Down: lambda: self._move(0.0, -_MOVE),
            Qt.Key.Key_0: self.reset,
        }

    def _move(self, x: float, y: float) -> None:
        (left, right), (low, high) = self._view.viewRange()
        self._view.translateBy(x=x * (right - left), y=y * (high - low))

    @Slot()
    def _moved(self) -> None:
        if not self.zoomed:
            self.zoomed = True
            self._place()
            self.button.show()
        self.changed.emit()

    def _place(self) -> None:
        size = self.button.sizeHint()
        self.button.setGeometry(self._plot.width() - size.width() - _MARGIN, _MARGIN + 18, size.width(), size.height())
