"""Icons: our own SVG files, drawn in a colour of the theme."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from PySide6.QtCore import QByteArray, QRectF, Qt
from PySide6.QtGui import QIcon, QPainter, QPixmap
from PySide6.QtSvg import QSvgRenderer

from gui.theme import theme

FOLDER = Path(__file__).parent / "icons"
_SIZES = (16, 20, 24, 32, 48, 64)


def icon(name: str, colour: str = "text") -> QIcon:
    """The icon ``name`` in a colour role of the theme as it is now; ask again when the theme changes."""
    return _tinted(name, theme().colour(colour).name())


def window_icon() -> QIcon:
    """The program's own mark, in its own colours."""
    return _tinted("highwater", "#000000")


@lru_cache(maxsize=256)
def _tinted(name: str, colour: str) -> QIcon:
    text = (FOLDER / f"{name}.svg").read_text(encoding="utf-8").replace("currentColor", colour)
    renderer = QSvgRenderer(QByteArray(text.encode()))
    made = QIcon()
    for size in _SIZES:
        pixmap = QPixmap(size, size)
        pixmap.fill(Qt.GlobalColor.transparent)
        painter = QPainter(pixmap)
        renderer.render(painter, QRectF(0, 0, size, size))
        painter.end()
        made.addPixmap(pixmap)
    return made
