"""Texts that people read can be translated: each goes through the one gate."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from PySide6.QtCore import QCoreApplication, QTranslator
from PySide6.QtWidgets import QAbstractButton, QLabel, QTableView

from gui.actions import Act
from gui.tabs import TABS

GUI = Path(__file__).resolve().parents[2] / "gui"
SHOW = frozenset({
    "setText", "setToolTip", "setAccessibleName", "setAccessibleDescription", "setWindowTitle", "setPlaceholderText",
    "setStatusTip", "addItem", "say", "complain", "QLabel", "QPushButton", "QToolButton",
    "QAction", "QMenu", "write", "addAction", "setTitle",
    "getOpenFileName", "getSaveFileName", "getExistingDirectory", "tell",
})  # fmt: skip
NAMED = frozenset({"text", "toolTip", "placeholderText", "windowTitle", "statusTip"})
SAID_AS_IT_IS = {"Highwater", " – Highwater", "cuda:  ", "SIM", "CPU"}
"""Names, and what the driver calls its devices."""


def literal(node):
    if isinstance(node, ast.JoinedStr):
        return "".join(part.value for part in node.values if isinstance(part, ast.Constant))
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


def bare_texts(tree):
    """The texts that a call shows without asking for a translation."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            given = [*(node.args if name in SHOW else ()), *(word.value for word in node.keywords if word.arg in NAMED)]
            for text in map(literal, given):
                words = sum(letter.isalpha() for letter in text) > 2 and (" " in text or text[:1].isupper())
                if words and "*." not in text and text not in SAID_AS_IT_IS:
                    yield text


def test_no_text_is_shown_without_asking_for_its_translation():
    assert list(bare_texts(ast.parse("label.setText('Bare text')"))) == ["Bare text"]
    assert list(bare_texts(ast.parse("QPushButton(tr('Wrapped'), toolTip=tr('also'))"))) == []
    found = {file.name: texts for file in sorted(GUI.rglob("*.py")) if (texts := list(bare_texts(ast.parse(file.read_text()))))}
    assert not found


class Marks(QTranslator):
    """A language in which every text has a mark."""

    def translate(self, _context, text, *_):
        return f"¤{text}"

    def isEmpty(self):
        return False


@pytest.fixture
def marked(qapp):
    translator = Marks(qapp)
    QCoreApplication.installTranslator(translator)
    yield
    QCoreApplication.removeTranslator(translator)


def test_a_translation_reaches_every_part_of_the_window(marked, open_window):
    window = open_window()
    for tab in TABS:
        window.show_tab(tab.name)
    assert all(window.tabs.tabText(index).startswith("¤") for index in range(len(TABS)))
    assert all(window.action(act).text().startswith("¤") for act in Act)
    assert all(field.label.text().startswith("¤") for field in window.form.fields.values())
    headings = [table.model().headerData(0, table.horizontalHeader().orientation()) for table in window.findChildren(QTableView)]
    assert headings
    assert all(not heading or heading.startswith("¤") for heading in headings)
    buttons = [one for one in window.findChildren(QAbstractButton) if one.text()]
    assert len(buttons) > 20
    bare = [one.text() for one in buttons if "¤" not in one.text() and not one.text().startswith("0x")]
    assert not bare
    sections = [one.text() for one in window.findChildren(QLabel) if one.property("role") == "section"]
    assert all(text.startswith("¤") for text in sections)
    assert window.why.text().startswith("¤")
