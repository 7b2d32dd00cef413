"""Room for the stacked bars: thicker in a high window, nearer to each other where they are many, scrolled where they are more."""

from __future__ import annotations

from PySide6.QtCore import QSize, Qt, Slot
from PySide6.QtWidgets import QFrame, QScrollArea, QSizePolicy

from gui.footprint.bars import PITCH, Bars
from gui.state import Selection
from gui.theme import px, theme

_SHARE = 0.42
"""Part of the tab's height that the bars take at most: the table below them keeps the rest."""
_USUAL_HEIGHT, _THICKEST = 860, 2.0


def room_in(height: int) -> tuple[int, float]:
    """How high all bars may be in a tab of this height, and how far apart at most."""
    return round(height * _SHARE), min(max(height / px(_USUAL_HEIGHT), 1.0), _THICKEST) * px(PITCH)


class AllBars(QScrollArea):
    """As high as the bars are, up to their share of the tab. Their height follows from the window and their number alone."""

    def __init__(self, bars: Bars) -> None:
        super().__init__(widgetResizable=True, frameShape=QFrame.Shape.NoFrame)
        self._bars = bars
        self._most = self._fitted = 0
        self.setWidget(bars)
        for part in (bars, self.viewport()):
            part.setAutoFillBackground(False)
        self.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
        self.setFocusPolicy(Qt.FocusPolicy.NoFocus)
        theme().changed.connect(self.fit)
        bars.picked.connect(self._reveal)

    def share(self, height: int) -> None:
        """Take a part of a tab of this height."""
        self._most, pitch = room_in(height)
        self._bars.set_room(self._most, pitch)
        self.fit()

    @Slot()
    def fit(self) -> None:
        """Bars may have come or gone."""
        if self._fitted != self.sizeHint().height():
            self._fitted = self.sizeHint().height()
            self.updateGeometry()

    @Slot(object)
    def _reveal(self, selection: Selection) -> None:
        """What the keys have come to is in sight."""
        place = self._bars.row_rectangle(selection.gpu, selection.phase)
        self.ensureVisible(0, round(place.center().y()), 0, round(place.height()))

    def sizeHint(self) -> QSize:
        """The bars whole, if they may be."""
        wanted = self._bars.sizeHint()
        return QSize(wanted.width(), min(wanted.height(), self._most or wanted.height()))

    def minimumSizeHint(self) -> QSize:
        """The width gives way."""
        return QSize(self._bars.minimumSizeHint().width(), self.sizeHint().height())
