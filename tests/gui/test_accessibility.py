"""Everyone can use every tab: named, reachable by keyboard, readable."""

from __future__ import annotations

import numpy as np
import pytest
from PySide6.QtCore import QPoint, Qt
from PySide6.QtGui import QImage
from PySide6.QtWidgets import (
    QAbstractButton,
    QAbstractItemView,
    QAbstractScrollArea,
    QAbstractSpinBox,
    QComboBox,
    QLabel,
    QLineEdit,
    QScrollBar,
    QSplitterHandle,
    QTabBar,
    QWidget,
)

from gui.actions import Act
from gui.tabs import TABS
from gui.theme import _PAIRS
from tests.gui.test_parts import luminance_ratio

TAB_NAMES = [tab.name for tab in TABS]
OPERABLE = (QAbstractButton, QLineEdit, QComboBox, QAbstractSpinBox, QAbstractItemView, QTabBar)
PARTS = (QScrollBar, QSplitterHandle)
"""Helpers of other widgets: what they do, keys do in the widget itself."""


@pytest.fixture
def whole(open_window, qtbot):
    """A window with a tab in front, its fields unfolded and something pinned; waits for what is worked out."""

    def opened(name, scheme="light"):
        window = open_window(scheme=scheme)
        window.form._fold.click()
        window.action(Act.PIN).trigger()
        window.context.state.edit("inference.batch", 2)
        window.statusBar().clearMessage()
        window.show_tab(name)
        qtbot.wait(30)
        qtbot.waitUntil(lambda: window.context.operations.idle, timeout=20_000)
        return window

    return opened


def visible(window, *kinds):
    return [widget for widget in window.findChildren(QWidget) if widget.isVisible() and isinstance(widget, kinds or QWidget)]


def told(widget):
    return f"{type(widget).__name__} {widget.objectName()!r} in {type(widget.parent()).__name__}"


def named(widget):
    if widget.accessibleName() or isinstance(widget, QLabel) or (isinstance(widget, QAbstractButton) and widget.text()):
        return True
    inner = isinstance(widget, QLineEdit) or isinstance(widget.parentWidget(), QAbstractScrollArea)
    return inner and bool(widget.parentWidget().accessibleName())


@pytest.mark.parametrize("name", TAB_NAMES)
def test_every_widget_of_a_tab(whole, name):
    window = whole(name)
    what_takes_the_focus_has_a_name(window)
    what_can_be_clicked_is_reached_with_the_tab_key(window)
    the_tab_key_goes_round_in_reading_order(window)
    text_has_a_contrast_of_at_least_four_and_a_half(window)


@pytest.mark.parametrize("name", TAB_NAMES)
def test_text_in_the_dark(whole, name):
    text_has_a_contrast_of_at_least_four_and_a_half(whole(name, "dark"))


def what_takes_the_focus_has_a_name(window):
    focusable = [
        widget for widget in visible(window) if widget.focusPolicy() != Qt.FocusPolicy.NoFocus and not isinstance(widget, PARTS)
    ]
    assert len(focusable) > 20
    assert not [told(widget) for widget in focusable if not named(widget)]


def what_can_be_clicked_is_reached_with_the_tab_key(window):
    out_of_reach = [
        widget for widget in visible(window, *OPERABLE)
        if widget.isEnabled() and not widget.focusPolicy() & Qt.FocusPolicy.TabFocus and not reached_otherwise(widget)
    ]  # fmt: skip
    assert not [told(widget) for widget in out_of_reach]


def reached_otherwise(widget):
    """A field inside another (a spin box's line), the chevron of a search field, or text that can't be edited."""
    parent = widget.parentWidget()
    inner = isinstance(parent, QAbstractSpinBox | QComboBox | QLineEdit | QAbstractItemView | QTabBar)
    return inner or (isinstance(widget, QLineEdit) and widget.isReadOnly())


def the_tab_key_goes_round_in_reading_order(window):
    """The focus chain comes back to where it began, with every field on it."""
    chain, widget = [], window.nextInFocusChain()
    while widget is not window and len(chain) < 5000:
        chain.append(widget)
        widget = widget.nextInFocusChain()
    assert widget is window
    fields = [chain.index(field.editor) for field in window.form.fields.values() if field.isVisible() and field.editor in chain]
    assert len(fields) > 5
    assert set(visible(window, QLineEdit)) <= set(chain)


def text_has_a_contrast_of_at_least_four_and_a_half(window):
    """WCAG 2.2, 1.4.3, seen on the screen: the ink that stands out most against the ground that is most frequent."""
    texts = [widget for widget in visible(window, QLabel, QAbstractButton, QLineEdit) if widget.text() and widget.isEnabled()]
    texts += [line for line in visible(window, QLineEdit) if line.placeholderText() and not line.text() and line.isEnabled()]
    texts = [widget for widget in texts if widget.width() > 8 and widget.visibleRegion().boundingRect() == widget.rect()]
    assert len(texts) > 20
    screen = pixels(window)
    found = ((told(widget), widget.text(), contrast(screen, window, widget)) for widget in texts)
    assert not [one for one in found if one[-1] < 4.5]


def pixels(window):
    image = window.grab().toImage().convertToFormat(QImage.Format.Format_RGB32)
    return np.frombuffer(image.constBits(), np.uint32).reshape(image.height(), image.width()) & 0xFFFFFF


def contrast(screen, window, widget):
    corner = widget.mapTo(window, QPoint(0, 0))
    area = screen[corner.y() : corner.y() + widget.height(), corner.x() : corner.x() + widget.width()]
    colours, counts = np.unique(area, return_counts=True)
    ground = f"#{colours[counts.argmax()]:06x}"
    return max(luminance_ratio(ground, f"#{colour:06x}") for colour in colours)


@pytest.mark.parametrize("half", [0, 1])
@pytest.mark.parametrize(
    ("ink", "paper"),
    [
        ("text", "sunken"),
        ("text", "accent_soft"),
        ("muted", "sunken"),
        ("accent_text", "accent"),
        ("muted", "window"),
        ("accent", "accent_soft"),
    ],
)
def test_inks_stand_out_on_the_grounds_they_are_written_on(ink, paper, half):
    assert luminance_ratio(_PAIRS[ink][half], _PAIRS[paper][half]) >= 4.5


def test_a_long_page_scrolls_with_the_keyboard(whole):
    window = whole("footprint")
    pages = [widget for widget in visible(window, QAbstractScrollArea) if widget.verticalScrollBar().maximum() > 0]
    stuck = [told(page) for page in pages if page.focusPolicy() == Qt.FocusPolicy.NoFocus and page is not window.form]
    assert not stuck
