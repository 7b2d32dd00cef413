"""Colours as pairs (light, dark) behind one lookup, the palette made of them, and the fonts."""

from __future__ import annotations

from functools import cache, lru_cache
from pathlib import Path
from typing import Any, TypeVar

from PySide6.QtCore import QObject, Qt, Signal, Slot
from PySide6.QtGui import QColor, QFont, QFontDatabase, QGuiApplication, QPalette
from PySide6.QtWidgets import QApplication, QWidget

from gui.style import style_sheet
from planner.palette import FALLBACK, FILLS

_PAIRS: dict[str, tuple[str, str]] = {
    "window": ("#f4f5f7", "#15171b"),
    "surface": ("#ffffff", "#1d2025"),
    "sunken": ("#e9ecf0", "#101215"),
    "border": ("#d5dae1", "#333943"),
    "grid": ("#e4e7ec", "#2a2f37"),
    "text": ("#161b22", "#e7eaef"),
    "muted": ("#555f6d", "#9da7b5"),
    "accent": ("#2558c7", "#82aaff"),
    "accent_text": ("#ffffff", "#0d1526"),
    "accent_soft": ("#dfe8fb", "#26344f"),
    "fits": ("#14713f", "#4fcb8d"),
    "tight": ("#8a5a00", "#e8b64c"),
    "over": ("#b3261e", "#ff8a80"),
    "unknown": ("#555f6d", "#9da7b5"),
    "capacity": ("#b3261e", "#ff8a80"),
    "allocated": ("#0072b2", "#56b4e9"),
    "reserved": ("#b35900", "#e69f00"),
    "device": ("#7d3c98", "#d79be6"),
}

SCHEMES = {
    "system": Qt.ColorScheme.Unknown, "light": Qt.ColorScheme.Light, "dark": Qt.ColorScheme.Dark,
}  # fmt: skip
FONT_FILES = tuple((Path(__file__).parent / "fonts").glob("*.otf"))
SMALL, NORMAL, LARGE, DISPLAY = 11, 12, 15, 21
Kept = TypeVar("Kept")


class Theme(QObject):
    """Which of each pair is shown now. ``changed`` asks every painter to look its colours up again."""

    changed = Signal()

    def __init__(self, application: QApplication) -> None:
        super().__init__(application)
        self._application = application
        self._choice = "system"
        self._dark = False
        self._applied: tuple[bool, int] | None = None
        self._family = _load_family()
        self.percent = 100
        """How large texts are, and what holds them."""
        application.setStyle("Fusion")
        application.setFont(_plain_font(self._family, NORMAL))
        application.styleHints().colorSchemeChanged.connect(self._follow)

    @property
    def dark(self) -> bool:
        """Whether the dark half of the pairs is in use."""
        return self._dark

    def choose(self, name: str) -> None:
        """``light``, ``dark`` or ``system``."""
        self._choice = name
        self._application.styleHints().setColorScheme(SCHEMES[name])
        self._apply()

    def zoom(self, percent: int) -> None:
        """Write everything so large, from now on."""
        if percent != self.percent:
            self.percent = percent
            for kept in _OF_SIZES:
                kept.cache_clear()
            self._application.setFont(_plain_font(self._family, px(NORMAL)))
            self._apply()

    def colour(self, name: str) -> QColor:
        """The colour of a role, as it is now; whoever changes it takes a copy."""
        return _colours(self._dark)[name]

    def fill(self, component: str) -> tuple[QColor, str]:
        """Colour and hatch of a component."""
        return _fill(component, self._dark)

    @Slot()
    def _follow(self) -> None:
        if self._choice == "system":
            self._apply()

    def _apply(self) -> None:
        system_dark = self._application.styleHints().colorScheme() == Qt.ColorScheme.Dark
        self._dark = self._choice == "dark" or (self._choice == "system" and system_dark)
        if self._applied == (self._dark, self.percent):
            return
        self._applied = (self._dark, self.percent)
        self._application.setPalette(self._palette())
        self._application.setStyleSheet(style_sheet(lambda name: self.colour(name).name(), px, dark=self._dark))
        self.changed.emit()

    def _palette(self) -> QPalette:
        role = QPalette.ColorRole
        names = {
            role.Window: "window", role.WindowText: "text", role.Base: "surface", role.AlternateBase: "window",
            role.Text: "text", role.Button: "surface", role.ButtonText: "text", role.BrightText: "over",
            role.ToolTipBase: "surface", role.ToolTipText: "text", role.Highlight: "accent", role.Accent: "accent",
            role.HighlightedText: "accent_text", role.Link: "accent", role.LinkVisited: "accent",
            role.PlaceholderText: "muted", role.Light: "surface", role.Midlight: "border", role.Mid: "border",
            role.Dark: "border", role.Shadow: "sunken",
        }  # fmt: skip
        palette = QPalette()
        for key, name in names.items():
            palette.setColor(key, self.colour(name))
        for key in (role.WindowText, role.Text, role.ButtonText):
            palette.setColor(QPalette.ColorGroup.Disabled, key, self.colour("muted"))
        return palette


@cache
def theme() -> Theme:
    """The theme of the running application; made on first use."""
    application = QGuiApplication.instance()
    if not isinstance(application, QApplication):
        raise TypeError("a QApplication must exist before its theme")
    return Theme(application)


@cache
def _colours(dark: bool) -> dict[str, QColor]:  # noqa: FBT001  a cache key
    return {name: QColor(pair[dark]) for name, pair in _PAIRS.items()}


@cache
def _fill(component: str, dark: bool) -> tuple[QColor, str]:  # noqa: FBT001  a cache key
    fill = FILLS.get(component, FALLBACK)
    return QColor(fill.dark if dark else fill.light), fill.hatch


def kept_until_zoomed(function: Kept) -> Kept:
    """What a cache holds of texts is wrong once they have another size."""
    _OF_SIZES.append(function)
    return function


_OF_SIZES: list[Any] = []


@kept_until_zoomed
@cache
def px(size: int) -> int:
    """``size`` pixels of a text of normal size, or of what holds it, as large as texts are now."""
    return round(size * theme().percent / 100)


@kept_until_zoomed
@lru_cache(maxsize=32)
def font(size: int = NORMAL, *, bold: bool = False, tabular: bool = False) -> QFont:
    """The window's font in pixels; ``tabular`` gives every figure the same width."""
    made = QFont(QApplication.font())
    made.setPixelSize(px(size))
    made.setWeight(QFont.Weight.DemiBold if bold else QFont.Weight.Normal)
    if tabular:
        made.setFeature(QFont.Tag("tnum"), 1)
    return made


def ink_on(fill: QColor) -> QColor:
    """Near-black or white, whichever has more contrast to ``fill`` (WCAG 2.2, contrast ratio)."""
    return _ink_on(fill.rgb())


@lru_cache(maxsize=256)
def _ink_on(rgb: int) -> QColor:
    dark, light = QColor("#101215"), QColor("#ffffff")
    behind = _luminance(QColor.fromRgb(rgb)) + 0.05
    return dark if behind / (_luminance(dark) + 0.05) > (_luminance(light) + 0.05) / behind else light


def set_role(widget: QWidget, role: str) -> None:
    """Give a widget a role that the style sheet knows, and have it restyled."""
    widget.setProperty("role", role)
    widget.style().unpolish(widget)
    widget.style().polish(widget)


def _luminance(colour: QColor) -> float:
    def linear(channel: float) -> float:
        return channel / 12.92 if channel <= 0.04045 else ((channel + 0.055) / 1.055) ** 2.4

    red, green, blue, _ = colour.getRgbF()
    return 0.2126 * linear(red) + 0.7152 * linear(green) + 0.0722 * linear(blue)


def _load_family() -> str:
    """The bundled font: a bare machine may have none, and then Qt draws no text at all."""
    families: list[str] = []
    for file in FONT_FILES:
        families += QFontDatabase.applicationFontFamilies(QFontDatabase.addApplicationFont(str(file)))
    return families[0] if families else ""


def _plain_font(family: str, size: int) -> QFont:
    made = QFont([family]) if family else QFont()
    made.setPixelSize(size)
    return made
