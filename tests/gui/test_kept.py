from __future__ import annotations

import pytest
from PySide6.QtWidgets import QAbstractSpinBox, QComboBox, QLabel, QToolButton, QVBoxLayout, QWidget

from gui.form.editors import ChoiceField, Segments
from gui.form.field import QuietLabel
from gui.form.numbers import NumberField
from gui.theme import set_role, theme


class PlainChoice(ChoiceField):
    def paintEvent(self, event):
        QComboBox.paintEvent(self, event)


class PlainNumber(NumberField):
    def paintEvent(self, event):
        QAbstractSpinBox.paintEvent(self, event)


def choice(kind):
    return kind([("auto", "auto"), ("bf16", "bf16")])


def number(kind):
    return kind()


def label(kind):
    made = kind("&Prompt tokens")
    made.setBuddy(made)
    return made


def heading(kind):
    made = kind("R&D")
    set_role(made, "section")
    return made


@pytest.fixture
def pictured(qtbot):
    """What a control looks like in a window."""

    windows = []

    def taken(control):
        window = QWidget()
        windows.append(window)
        QVBoxLayout(window).addWidget(control)
        qtbot.addWidget(window)
        window.resize(200, 60)
        window.show()
        qtbot.waitExposed(window)
        if window.focusWidget() is not None:
            window.focusWidget().clearFocus()
        return window.grab().toImage()

    return taken


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(
    ("make", "kept", "plain"),
    [
        (choice, ChoiceField, PlainChoice),
        (number, NumberField, PlainNumber),
        (label, QuietLabel, QLabel),
        (heading, QuietLabel, QLabel),
    ],
)
def test_the_picture_of_a_control_is_what_qt_would_draw(pictured, make, kept, plain, scheme):
    theme().choose(scheme)
    assert pictured(make(kept)) == pictured(make(plain))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_pictures_of_segments_are_what_qt_would_draw(pictured, scheme, monkeypatch):
    theme().choose(scheme)
    segments = Segments([("one", "One", ""), ("two", "Two", ""), ("three", "Three", "")])
    segments.set_value("two")
    kept = pictured(segments)
    kind = type(segments.findChild(QToolButton))
    monkeypatch.setattr(kind, "paintEvent", QToolButton.paintEvent)
    assert segments.window().grab().toImage() == kept


def test_a_picture_follows_the_text_the_role_and_the_size(pictured):
    field = choice(ChoiceField)
    looks = [pictured(field)]
    field.set_value("bf16")
    looks.append(field.window().grab().toImage())
    set_role(field, "bad")
    looks.append(field.window().grab().toImage())
    field.window().resize(240, 60)
    looks.append(field.window().grab().toImage())
    assert all(one != other for at, one in enumerate(looks) for other in looks[:at])
