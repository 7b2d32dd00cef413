"""Text for painters: shaped once, kept, and drawn again without being shaped."""

from __future__ import annotations

from functools import lru_cache

from PySide6.QtCore import QPointF, QRect, QRectF, Qt
from PySide6.QtGui import QColor, QFontMetricsF, QPainter, QStaticText

from gui.theme import NORMAL, font, kept_until_zoomed

_KEPT = 4096
LEFT, RIGHT, CENTRE = 0.0, 1.0, 0.5


@kept_until_zoomed
@lru_cache(maxsize=_KEPT)
def width_of(text: str, size: int = NORMAL, *, bold: bool = False, tabular: bool = False) -> float:
    """How wide ``text`` is in pixels."""
    return QFontMetricsF(font(size, bold=bold, tabular=tabular)).horizontalAdvance(text)


def write(
    painter: QPainter,
    room: QRect | QRectF,
    text: str,
    colour: QColor,
    size: int = NORMAL,
    *,
    bold: bool = False,
    tabular: bool = False,
    align: float = LEFT,
) -> None:
    """One line of ``text`` in the middle of the height of ``room``; what is too long ends in an ellipsis."""
    static, width, height = _laid(text, size, bold, tabular)
    if width > room.width():
        static, width, height = _laid(_elided(text, int(room.width()), size, bold, tabular), size, bold, tabular)
    painter.setFont(font(size, bold=bold, tabular=tabular))
    painter.setPen(colour)
    left = room.left() + max(0.0, align * (room.width() - width))
    painter.drawStaticText(QPointF(left, room.top() + (room.height() - height) / 2), static)


@kept_until_zoomed
@lru_cache(maxsize=_KEPT)
def _laid(text: str, size: int, bold: bool, tabular: bool) -> tuple[QStaticText, float, float]:  # noqa: FBT001  a cache key
    static = QStaticText(text)
    static.setTextFormat(Qt.TextFormat.PlainText)
    static.prepare(font=font(size, bold=bold, tabular=tabular))
    return static, static.size().width(), static.size().height()


@kept_until_zoomed
@lru_cache(maxsize=_KEPT)
def _elided(text: str, width: int, size: int, bold: bool, tabular: bool) -> str:  # noqa: FBT001  a cache key
    metrics = QFontMetricsF(font(size, bold=bold, tabular=tabular))
    return metrics.elidedText(text, Qt.TextElideMode.ElideRight, width)


@kept_until_zoomed
@lru_cache(maxsize=256)
def wrapped(text: str, width: int, size: int = NORMAL, *, bold: bool = False, tabular: bool = False) -> tuple[str, ...]:
    """``text`` in lines of at most ``width`` pixels, broken between words."""
    lines: list[str] = []
    for part in text.split("\n"):
        line = ""
        for each in part.split(" "):
            longer = f"{line} {each}" if line else each
            if line and width_of(longer, size, bold=bold, tabular=tabular) > width:
                lines.append(line)
                longer = each
            line = longer
        lines.append(line)
    return tuple(lines)
