"""The style sheet: what Fusion's palette alone does not give (flat inputs, quiet tabs, roles of labels)."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

_ICONS = Path(__file__).parent / "icons"
_SHEET = """
QToolTip { color: @text; background: @surface; border: 1px solid @border; padding: 4px 6px; }
QMainWindow, QDialog { background: @window; }
QDialog[role="popup"] { border: 1px solid @muted; }
QMenuBar { background: @window; padding: 2px 6px; }
QMenuBar::item { padding: 4px 8px; border-radius: 4px; background: transparent; }
QMenuBar::item:selected { background: @accent_soft; }
QMenu { background: @surface; border: 1px solid @border; padding: 4px; }
QMenu::item { padding: 5px 28px 5px 24px; border-radius: 4px; }
QMenu::item:selected { background: @accent_soft; color: @text; }
QMenu::item:disabled { color: @muted; }
QMenu::separator { height: 1px; background: @border; margin: 4px 6px; }
QStatusBar { background: @window; }
QSplitter::handle:horizontal { background: @border; }
QSplitter::handle:vertical { background: transparent; }
QScrollArea { border: none; background: transparent; }
QScrollBar:vertical { background: transparent; width: 10px; margin: 0; }
QScrollBar::handle:vertical { background: @border; border-radius: 4px; min-height: 28px; margin: 1px; }
QScrollBar:horizontal { background: transparent; height: 10px; margin: 0; }
QScrollBar::handle:horizontal { background: @border; border-radius: 4px; min-width: 28px; margin: 1px; }
QScrollBar::handle:hover { background: @muted; }
QScrollBar::add-line, QScrollBar::sub-line { width: 0; height: 0; }
QScrollBar::add-page, QScrollBar::sub-page { background: transparent; }

QLineEdit, QComboBox, QAbstractSpinBox {
  background: @surface; color: @text; border: 1px solid @border; border-radius: 5px;
  padding: 3px 7px; min-height: 20px; selection-background-color: @accent; selection-color: @accent_text;
  placeholder-text-color: @muted;
}
QLineEdit:hover, QComboBox:hover, QAbstractSpinBox:hover { border-color: @muted; }
QLineEdit:focus, QComboBox:focus, QAbstractSpinBox:focus { border: 1px solid @accent; }
QLineEdit[role="bad"], QComboBox[role="bad"], QAbstractSpinBox[role="bad"] { border: 1px solid @over; }
QLineEdit[role="plain"] { background: transparent; border: 1px solid transparent; font-weight: 600; padding: 1px 0;
  margin-left: -3px; }
QLineEdit[role="plain"]:hover, QLineEdit[role="plain"]:focus { border-color: @border; background: @surface; }
QLineEdit[role="plain"]:read-only { border-color: transparent; background: transparent; }
QComboBox { padding-right: 22px; }
QComboBox::drop-down { border: none; width: 22px; }
QComboBox::down-arrow { image: url("@icons/chevron-down-@tone.svg"); width: 12px; height: 12px; }
QComboBox QLineEdit { border: none; padding: 0; background: transparent; min-height: 18px; }
QComboBox QAbstractItemView { background: @surface; border: 1px solid @border; outline: 0; padding: 2px;
  selection-background-color: @accent_soft; selection-color: @text; }
QAbstractSpinBox { padding-right: 20px; }
QAbstractSpinBox::up-button { subcontrol-position: top right; width: 18px; border: none; background: transparent; }
QAbstractSpinBox::down-button { subcontrol-position: bottom right; width: 18px; border: none; background: transparent; }
QAbstractSpinBox::up-arrow { image: url("@icons/chevron-up-@tone.svg"); width: 10px; height: 10px; }
QAbstractSpinBox::down-arrow { image: url("@icons/chevron-down-@tone.svg"); width: 10px; height: 10px; }

QPushButton {
  background: @surface; color: @text; border: 1px solid @border; border-radius: 5px; padding: 4px 12px; min-height: 20px;
}
QPushButton:hover { border-color: @muted; }
QPushButton:pressed { background: @sunken; }
QPushButton:focus { border-color: @accent; }
QPushButton:disabled { color: @muted; background: @window; }
QPushButton[role="primary"] { background: @accent; color: @accent_text; border-color: @accent; font-weight: 600; }
QPushButton[role="primary"]:hover { border-color: @text; }
QPushButton[role="primary"]:focus { border: 2px solid @text; padding: 3px 11px; }
QPushButton[role="primary"]:disabled { background: @sunken; color: @muted; border-color: @border; }
QPushButton[role="compact"] { padding: 1px 8px; min-height: 18px; font-size: 11px; }
QToolButton[role^="segment"] { background: @surface; color: @muted; border: 1px solid @border; border-left: none;
  padding: 3px 2px; min-height: 20px; }
QToolButton[role="segment-first"] { border-left: 1px solid @border; border-top-left-radius: 5px; border-bottom-left-radius: 5px; }
QToolButton[role="segment-last"] { border-top-right-radius: 5px; border-bottom-right-radius: 5px; }
QToolButton[role^="segment"]:hover { color: @text; }
QToolButton[role^="segment"]:focus { color: @accent; text-decoration: underline; }
QToolButton[role^="segment"]:checked { background: @accent_soft; color: @text; font-weight: 600; }
QToolButton[role="fold-small"] { border: none; background: transparent; color: @muted; padding: 0; font-size: 11px; }
QToolButton[role="fold-small"]:hover, QToolButton[role="fold-small"]:focus { color: @accent; }
QToolButton[role="fold"] { border: none; background: transparent; color: @muted; padding: 4px 0; text-align: left; }
QToolButton[role="fold"]:hover, QToolButton[role="fold"]:focus { color: @accent; }
QToolButton[role="link"] { border: 1px solid transparent; background: transparent; border-radius: 5px; padding: 3px; }
QToolButton[role="link"]::menu-indicator { image: none; }
QToolButton[role="link"]:hover, QToolButton[role="link"]:focus { border-color: @border; background: @surface; }

QTabWidget::pane { border: none; border-top: 1px solid @border; }
QTabWidget::tab-bar { left: 10px; }
QTabBar::tab { background: transparent; color: @muted; padding: 8px 14px 7px; border-bottom: 2px solid transparent; }
QTabBar[role="narrow"]::tab { padding: 8px 5px 7px; font-size: 11px; }
QTabBar::tab:hover { color: @text; }
QTabBar::tab:selected { color: @text; border-bottom: 2px solid @accent; font-weight: 600; }
QTabBar::tab:focus { color: @accent; }

QTableView { background: @surface; border: 1px solid @border; border-radius: 6px; gridline-color: transparent;
  selection-background-color: @accent_soft; selection-color: @text; outline: 0; }
QTableView:focus { border: 1px solid @accent; }
QListWidget { background: @surface; border: none; outline: 0; }
QListWidget::item { padding: 3px 2px; border-radius: 4px; }
QListWidget::item:selected { background: @accent_soft; color: @text; }
QHeaderView { background: transparent; }
QHeaderView::section { background: @surface; color: @muted; border: none; border-bottom: 1px solid @border; padding: 5px 8px; }
QHeaderView::section:hover { color: @text; }
QHeaderView::up-arrow { image: url("@icons/chevron-up-@tone.svg"); width: 10px; height: 10px; }
QHeaderView::down-arrow { image: url("@icons/chevron-down-@tone.svg"); width: 10px; height: 10px; }
QPlainTextEdit { background: @window; color: @text; border: 1px solid @border; border-radius: 5px; padding: 2px;
  selection-background-color: @accent; selection-color: @accent_text; }
QPlainTextEdit:focus { border: 1px solid @accent; }
QTextBrowser { background: transparent; border: none; }
QProgressBar { border: none; border-radius: 3px; background: @sunken; max-height: 6px; }
QProgressBar::chunk { border-radius: 3px; background: @accent; }

QFrame[role="card"] { background: @surface; border: 1px solid @border; border-radius: 8px; }
QWidget[role="side"] { background: @window; }
QWidget[role="strip"] { background: @surface; border-top: 1px solid @border; }
QLabel[role="section"] { color: @muted; font-weight: 600; letter-spacing: 0.6px; font-size: 11px; }
QLabel[role="muted"] { color: @muted; }
QLabel[role="small"] { color: @muted; font-size: 11px; }
QLabel[role="fault"] { color: @over; font-size: 11px; }
QLabel[role="good"] { color: @fits; }
QLabel[role="warning"] { color: @tight; }
QLabel[role="bad"] { color: @over; }
QLabel[role="head"] { font-weight: 600; }
QLabel[role="title"] { font-size: 15px; font-weight: 600; }
QLabel[role="fault-title"] { color: @over; font-size: 13px; font-weight: 600; }
QLabel[role="badge"] { color: @tight; border: 1px solid @tight; border-radius: 4px; padding: 1px 6px;
  font-size: 11px; font-weight: 600; }
"""


def style_sheet(colour: Callable[[str], str], pixels: Callable[[int], int], *, dark: bool) -> str:
    """The sheet with every ``@name`` replaced by its colour, and sizes of texts by what ``pixels`` makes of them."""
    sheet = _SHEET.replace("@icons", _ICONS.as_posix()).replace("@tone", "dark" if dark else "light")
    names = sorted({part.split()[0].strip(";,") for part in sheet.split("@")[1:]}, key=len, reverse=True)
    for name in names:
        sheet = sheet.replace(f"@{name}", colour(name))
    return re.sub(r"(font-size|min-height): (\d+)px", lambda found: f"{found[1]}: {pixels(int(found[2]))}px", sheet)
