"""The Commands tab as a person uses it: read, copy, save; and it follows the form."""

from __future__ import annotations

from dataclasses import replace

import pytest
from PySide6.QtCore import Qt
from PySide6.QtGui import QGuiApplication
from PySide6.QtWidgets import QApplication, QFileDialog

from planner.scenario import Training


@pytest.fixture
def commands(open_window, small):
    window = open_window(small)
    return window, window.show_tab("commands")


def shown(tab):
    return [card for card in tab.cards if card.isVisible()]


def test_the_command_follows_the_engine(commands) -> None:
    window, tab = commands
    assert shown(tab)[0].text.toPlainText().startswith("import torch")
    window.context.state.edit("inference.engine", "llama.cpp")
    window.context.state.edit("weights", "gguf:Q4_K_M")
    (card,) = shown(tab)
    assert "llama-server" in card.text.toPlainText()
    assert card.notes.isVisible()


def test_a_training_has_a_card_for_each_file(commands) -> None:
    window, tab = commands
    window.context.state.open(replace(window.context.state.scenario, task="training", training=Training()), "train it")
    assert [card.title.text() for card in shown(tab)][:2] == ["Train with transformers", "Launch"]


def test_copy_and_save(commands, qtbot, tmp_path, monkeypatch) -> None:
    _, tab = commands
    card = shown(tab)[0]
    qtbot.mouseClick(card.copy, Qt.MouseButton.LeftButton)
    assert QGuiApplication.clipboard().text().startswith("import torch")
    target = tmp_path / "generate.py"
    monkeypatch.setattr(QFileDialog, "getSaveFileName", lambda *_: (str(target), ""))
    qtbot.mouseClick(card.save, Qt.MouseButton.LeftButton)
    assert target.read_text() == QGuiApplication.clipboard().text()


def test_an_unsound_form_keeps_the_last_commands_and_says_so(commands) -> None:
    window, tab = commands
    assert not tab.stale.isVisible()
    window.context.state.edit("inference.batch", 0)
    assert tab.stale.isVisible()
    assert shown(tab)


def test_a_short_command_has_no_room_for_lines_that_are_not_there(commands) -> None:
    window, tab = commands
    window.context.state.edit("inference.engine", "vllm")
    (card,) = shown(tab)
    line = card.text.fontMetrics().lineSpacing()
    assert card.text.blockCount() == 1
    assert card.text.height() < 2.5 * line


def test_copy_and_version_are_in_sight_in_the_smallest_window(open_window, small) -> None:
    window = open_window(replace(small, task="training", training=Training("deepspeed")), size=(1000, 700))
    tab = window.show_tab("commands")
    QApplication.processEvents()
    card = shown(tab)[0]
    assert card.copy.visibleRegion().boundingRect() == card.copy.rect()
    assert card.save.visibleRegion().boundingRect() == card.save.rect()
    assert "transformers 5" in card.version.shown
