"""What people expect of any window: menus, keys, files, undo, the clipboard, and to find it as they left it."""

from __future__ import annotations

import json

import pytest
from PySide6.QtCore import QEvent, QMimeData, QPoint, QPointF, Qt, QUrl
from PySide6.QtGui import QDropEvent, QGuiApplication, QKeyEvent, QKeySequence
from PySide6.QtTest import QTest
from PySide6.QtWidgets import QApplication, QFileDialog

from gui.actions import Act
from gui.app import make_window
from gui.documents import KEPT
from gui.examples import EXAMPLES
from gui.export import ChartMenu, TableMenu
from gui.form.manners import LeaveUndo
from gui.settings import PINS, RECENT_FILES, SESSION, ZOOM_PERCENT, Settings
from gui.tabs import TABS
from gui.units import units
from planner.link import link_of
from planner.scenario import ModelPath, parse_scenario

CTRL = Qt.KeyboardModifier.ControlModifier


@pytest.fixture
def settings(home):
    return Settings(home / "settings.ini")


@pytest.fixture
def restart(settings):
    """Opens a window on the same settings each time, as a start without arguments does."""
    windows = []

    def start():
        for window in windows:
            window.close()
        windows.append(make_window(None, settings))
        windows[-1].show()
        return windows[-1]

    yield start
    for window in windows:
        window.close()
        window.deleteLater()


def clipboard():
    return QGuiApplication.clipboard().text()


def status(window):
    return window.statusBar().currentMessage()


def answer(monkeypatch, path, kind=""):
    for name in ("getSaveFileName", "getOpenFileName"):
        monkeypatch.setattr(QFileDialog, name, lambda *_: (str(path), kind))


def test_no_two_commands_share_a_key(window):
    keys = [action.shortcut().toString() for _, action in window.guide._actions() if not action.shortcut().isEmpty()]
    assert len(keys) == len(set(keys))
    assert QKeySequence(QKeySequence.StandardKey.Open).toString() in keys


def test_every_command_is_in_a_menu(window):
    listed = {action for _, action in window.guide._actions()}
    assert not [act for act in Act if window.action(act) not in listed]


def test_the_session_goes_on_where_it_ended(restart, settings):
    window = restart()
    window.context.state.edit("inference.batch", 7)
    window.form._fold.click()
    window = restart()
    assert window.context.state.scenario.inference.batch == 7
    assert window.form.advanced
    assert window.context.state.undo_stack.count() == 0


def test_a_session_that_cannot_be_read_begins_anew(restart, settings):
    settings.set(SESSION, '{"version": 9}')
    window = restart()
    assert window.context.state.plan is not None


def test_what_was_opened_is_listed_and_opens_again(window, tmp_path, monkeypatch, qtbot):
    path = tmp_path / "mine.json"
    answer(monkeypatch, path)
    window.context.state.edit("inference.batch", 3)
    window.action(Act.SAVE_SCENARIO).trigger()
    assert json.loads(path.read_text())["inference"]["batch"] == 3
    window.context.state.edit("inference.batch", 5)
    monkeypatch.setattr(QFileDialog, "getSaveFileName", lambda *_: pytest.fail("asked again"))
    window.action(Act.SAVE_SCENARIO).trigger()
    assert json.loads(path.read_text())["inference"]["batch"] == 5
    window.context.state.edit("inference.batch", 1)
    window.documents.recent.actions()[0].trigger()
    qtbot.waitUntil(lambda: window.context.state.scenario.inference.batch == 5)
    path.unlink()
    window.documents.recent.actions()[0].trigger()
    qtbot.waitUntil(lambda: "cannot be read" in status(window))
    assert window.documents.recent.actions() == []


def test_only_so_many_recent_files_are_kept(window, tmp_path):
    for number in range(KEPT + 3):
        window.open_file(tmp_path / f"r{number}.gguf")
    assert len(window.context.settings.get(RECENT_FILES)) == KEPT
    assert window.documents.recent.actions()[0].text() == f"r{KEPT + 2}.gguf"


def test_a_dropped_scenario_opens(window, tmp_path):
    path = tmp_path / "dropped.json"
    path.write_text(json.dumps({"version": 1, "model": "Qwen/Qwen3-8B", "task": "training"}))
    data = QMimeData()
    data.setUrls([QUrl.fromLocalFile(str(path))])
    drop = QDropEvent(QPointF(50, 50), Qt.DropAction.CopyAction, data, Qt.MouseButton.LeftButton, Qt.KeyboardModifier.NoModifier)
    window.dropEvent(drop)
    assert window.context.state.scenario.model == "Qwen/Qwen3-8B"
    window.context.state.undo_stack.undo()
    assert window.context.state.scenario.model == "meta-llama/Llama-3.1-8B"


def test_an_example_is_one_click_away_and_can_be_undone(window):
    before = window.context.state.scenario
    for action, example in zip(window.documents.examples.actions(), EXAMPLES, strict=True):
        action.trigger()
        assert window.context.state.scenario == example.scenario
        assert window.context.state.current
    for _ in EXAMPLES:
        window.context.state.undo_stack.undo()
    assert window.context.state.scenario == before


def test_a_link_goes_around_through_the_clipboard(window):
    window.context.state.edit("inference.batch", 9)
    window.action(Act.COPY_LINK).trigger()
    window.context.state.edit("inference.batch", 1)
    window.action(Act.OPEN_LINK).trigger()
    assert window.context.state.scenario.inference.batch == 9
    QGuiApplication.clipboard().setText("something else")
    window.action(Act.OPEN_LINK).trigger()
    assert "holds no plan" in status(window)


def test_a_link_of_a_folder_carries_its_config_and_not_its_path(window, tmp_path, qtbot):
    config = window.context.state.plan.source.config
    (tmp_path / "config.json").write_text(json.dumps(dict(config)))
    window.open_file(tmp_path)
    qtbot.waitUntil(lambda: window.context.state.current, timeout=20_000)
    window.action(Act.COPY_LINK).trigger()
    assert clipboard() == link_of(window.context.state.scenario, config)
    window.context.state.edit("model", ModelPath(str(tmp_path / "gone")))
    window.action(Act.COPY_LINK).trigger()
    assert "can't be linked" in status(window)
    qtbot.waitUntil(lambda: not window.context.state.busy)


def test_the_plan_is_copied_as_json_and_markdown(window, qtbot):
    operations = window.context.operations
    window.action(Act.COPY_ANSWER).trigger()
    assert operations.running("copy answer"), "limits take long: they are worked out beside the window's thread"
    qtbot.waitUntil(lambda: operations.idle, timeout=20_000)
    assert json.loads(clipboard())["limits"]["max_batch"] > 1
    assert parse_scenario(json.loads(clipboard())["scenario"]).model == "meta-llama/Llama-3.1-8B"
    window.action(Act.COPY_MARKDOWN).trigger()
    qtbot.waitUntil(lambda: operations.idle, timeout=20_000)
    assert clipboard().startswith("# meta-llama/Llama-3.1-8B")


@pytest.mark.parametrize(
    ("name", "kind", "written"), [("r.html", "", "r.html"), ("r.md", "", "r.md"), ("r", "Markdown (*.md)", "r.md")]
)
def test_a_report_is_written(window, qtbot, tmp_path, monkeypatch, name, kind, written):
    answer(monkeypatch, tmp_path / name, kind)
    window.action(Act.EXPORT_REPORT).trigger()
    qtbot.waitUntil(lambda: window.context.operations.idle, timeout=20_000)
    assert "Llama-3.1-8B" in (tmp_path / written).read_text(encoding="utf-8")
    assert written in status(window)


@pytest.mark.parametrize("tab", ["footprint", "probe"])
@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_charts_and_tables_leave_in_each_format(window, tmp_path, monkeypatch, tab, suffix):
    window.show_tab(tab)
    QApplication.processEvents()
    answer(monkeypatch, tmp_path / f"chart.{suffix}")
    window.action(Act.EXPORT_CHART).trigger()
    assert (tmp_path / f"chart.{suffix}").stat().st_size > 2000
    window.action(Act.COPY_CHART).trigger()
    assert QGuiApplication.clipboard().image().width() > 500
    answer(monkeypatch, tmp_path / "table.csv")
    window.action(Act.EXPORT_TABLE).trigger()
    lines = (tmp_path / "table.csv").read_text(encoding="utf-8").splitlines()
    assert lines[0].startswith(("Component,Size", "Phase,Meter"))
    assert any(part.isdigit() and int(part) > 2**31 for part in lines[1].replace(".0", "").split(","))
    window.action(Act.COPY_TABLE).trigger()
    assert clipboard().startswith("| ")
    tab_widget = window.current_tab()
    assert tab_widget.findChildren(ChartMenu)
    assert tab_widget.findChildren(TableMenu)


def test_units_change_every_size_and_not_the_bytes(window):
    tab = window.show_tab("footprint")
    before = tab.verdict.text
    try:
        window.action(Act.UNITS_GB).trigger()
        assert " GB" in tab.verdict.text
        assert " GB" in tab.table.components.index(0, 1).data()
        assert " GB" in window.why.text()
        window.action(Act.UNITS_MIB).trigger()
        assert " MiB" in tab.verdict.text
    finally:
        units().choose("GiB")
    assert tab.verdict.text == before


def test_zoom_makes_texts_and_their_room_larger_at_once(window):
    tab, field = window.show_tab("footprint"), window.form.fields["inference.batch"]

    def sizes():
        heads = tab.table.horizontalHeader().font().pixelSize(), field.label.font().pixelSize(), field.editor.font().pixelSize()
        return (*heads, field.label.width(), tab.bars.sizeHint().height(), tab.table.verticalHeader().defaultSectionSize())

    before = sizes()
    try:
        for _ in range(3):
            window.action(Act.ZOOM_IN).trigger()
        assert window.context.settings.get(ZOOM_PERCENT) == 130
        assert all(now > then for now, then in zip(sizes(), before, strict=True))
    finally:
        window.action(Act.ZOOM_RESET).trigger()
    assert window.context.settings.get(ZOOM_PERCENT) == 100
    assert sizes() == before


def test_the_palette_finds_and_runs_with_the_keyboard_alone(window, qtbot):
    window.activateWindow()
    qtbot.waitActive(window)
    palette = window.guide.open_palette()
    QTest.keyClicks(palette.field, "full fine")
    assert palette.shown == ["Full fine-tune on 8 GPUs"]
    QTest.keyClick(palette.field, Qt.Key.Key_Return)
    assert window.context.state.scenario == EXAMPLES[-1].scenario
    palette = window.guide.open_palette()
    QTest.keyClicks(palette.field, "batch")
    QTest.keyClick(palette.field, Qt.Key.Key_Return)
    assert window.focusWidget() in (
        window.form.fields["training.batch"].editor,
        window.form.fields["training.batch"].editor.lineEdit(),
    )
    palette = window.guide.open_palette()
    QTest.keyClick(palette.field, Qt.Key.Key_Down)
    assert palette.list.currentRow() == 1
    QTest.keyClick(palette.field, Qt.Key.Key_Escape)


def test_the_palette_goes_to_folded_fields_by_the_names_of_the_file_too_and_says_when_there_is_none(window, qtbot):
    window.activateWindow()
    qtbot.waitActive(window)
    palette = window.guide.open_palette()
    QTest.keyClicks(palette.field, "kv_cache")
    assert palette.shown[0] == "KV cache"
    QTest.keyClick(palette.field, Qt.Key.Key_Return)
    assert window.focusWidget() is window.form.fields["inference.kv_cache"].editor
    assert not window.focusWidget().visibleRegion().isEmpty()
    palette = window.guide.open_palette()
    QTest.keyClicks(palette.field, "no such thing")
    assert palette.shown == []
    assert palette.list.item(0).text().startswith("Nothing")
    QTest.keyClick(palette.field, Qt.Key.Key_Return)
    QTest.keyClick(palette.field, Qt.Key.Key_Escape)


@pytest.mark.parametrize("name", [tab.name for tab in TABS])
def test_every_tab_has_a_page_of_help(window, name):
    window.show_tab(name)
    page = window.guide.open_help()
    assert len(page.text) > 120
    page.close()


def test_the_shortcuts_are_listed(window):
    page = window.guide.open_shortcuts()
    assert "Ctrl+K" in page.text
    page.close()


def test_f6_walks_the_panes(window, qtbot):
    window.activateWindow()
    qtbot.waitActive(window)
    window.form.fields["model"].editor.setFocus()
    seen = []
    for _ in range(3):
        window.action(Act.NEXT_PANE).trigger()
        seen.append(next(pane for pane in (window.form, window.tabs, window.why) if pane.isAncestorOf(QApplication.focusWidget())))
    assert seen == [window.tabs, window.why, window.form]


def test_pins_are_there_at_the_next_start(restart, settings, qtbot):
    window = restart()
    window.action(Act.PIN).trigger()
    window.context.state.edit("inference.batch", 16)
    window.action(Act.PIN).trigger()
    window.action(Act.PIN).trigger()
    assert "already" in status(window)
    assert [pin.name for pin in window.context.pins.pins] == ["Llama-3.1-8B", "Llama-3.1-8B (2)"]
    window.context.pins.rename(1, "busy")
    window = restart()
    window.context.pins.load()
    qtbot.waitUntil(lambda: len(window.context.pins.pins) == 2)
    assert [pin.name for pin in window.context.pins.pins] == ["Llama-3.1-8B", "busy"]
    window.context.pins.remove(0)
    assert len(settings.get(PINS)) == 1


def test_the_tabs_names_can_be_read_at_every_width(open_window, qtbot):
    """Also after the window has been narrow."""
    window = open_window(size=(1000, 700))
    bar = window.tabs.tabBar()
    window.resize(1500, 800)
    qtbot.wait(20)
    widths = [bar.fontMetrics().horizontalAdvance(bar.tabText(index)) for index in range(bar.count())]
    assert all(bar.tabRect(index).width() > width + 10 for index, width in enumerate(widths))


def test_a_command_is_reached_from_a_field_that_is_being_edited(window):
    """On X11, Ctrl+E is also a text field's own key for the end of the line: it would say so, and the window never hear of it."""
    keeper, field = window.form.findChild(LeaveUndo), window.form.fields["inference.batch"].editor
    for keys in (window.action(Act.REHEARSE).shortcut(), QKeySequence(QKeySequence.StandardKey.Undo)):
        event = QKeyEvent(QEvent.Type.ShortcutOverride, keys[0].key(), keys[0].keyboardModifiers())
        event.accept()
        assert keeper.eventFilter(field, event), keys.toString()
        assert not event.isAccepted(), keys.toString()


def test_the_session_is_kept_while_one_works(window, qtbot):
    """A window that is killed tells nobody that it ends."""
    window.context.state.edit("inference.batch", 7)
    settings = window.context.settings
    qtbot.waitUntil(lambda: '"batch": 7' in settings.get(SESSION), timeout=10_000)


def test_the_why_panel_gets_its_width_back_unless_it_was_chosen(open_window, qtbot):
    window = open_window(size=(1150, 700))
    narrow = window.why.width()
    window.resize(1500, 800)
    qtbot.waitUntil(lambda: window.why.width() > narrow)
    window.resize(1150, 700)
    qtbot.waitUntil(lambda: window.why.width() == narrow)
    handle = window._splitter.handle(2)
    QTest.mousePress(handle, Qt.MouseButton.LeftButton, pos=QPoint(0, 200))
    QTest.mouseMove(handle, QPoint(-40, 200))
    QTest.mouseRelease(handle, Qt.MouseButton.LeftButton, pos=QPoint(-40, 200))
    chosen = window.why.width()
    assert chosen > narrow
    window.resize(1500, 800)
    qtbot.wait(20)
    assert window.why.width() == chosen
