"""Pictures of controls that rest: a style sheet takes ten times as long to draw a control as its picture takes to be laid down.

Only what rests is kept: a control that is pointed at, typed into, pressed or disabled is drawn as ever. So is all on a screen whose
pixels are no whole parts of the program's, where a picture would lie between them.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable

from PySide6.QtGui import QPainter, QPixmap
from PySide6.QtWidgets import QWidget

from gui.theme import theme

_MOST = 512
_pictures: dict[Hashable, QPixmap] = {}


def rests(widget: QWidget) -> bool:
    """Whether ``widget`` looks as it does most of the time."""
    return widget.isEnabled() and not widget.underMouse() and not widget.hasFocus() and widget.devicePixelRatioF().is_integer()


def lay_down(widget: QWidget, look: Hashable, draw: Callable[[QPainter], None]) -> None:
    """Paint ``widget`` with what ``draw`` drew when one of its kind and size had the same ``look``; behind it is the window."""
    ratio, scheme = widget.devicePixelRatioF(), theme()
    key = (type(widget), look, widget.width(), widget.height(), ratio, scheme.dark, scheme.percent, widget.isActiveWindow())
    picture = _pictures.get(key)
    if picture is None:
        if len(_pictures) == _MOST:
            _pictures.clear()
        picture = _pictures[key] = _drawn(widget, ratio, draw)
    painter = QPainter(widget)
    painter.drawPixmap(0, 0, picture)
    painter.end()


def _drawn(widget: QWidget, ratio: float, draw: Callable[[QPainter], None]) -> QPixmap:
    picture = QPixmap(widget.size() * ratio)
    picture.setDevicePixelRatio(ratio)
    picture.fill(theme().colour("window"))
    painter = QPainter(picture)
    painter.setFont(widget.font())
    draw(painter)
    painter.end()
    return picture
