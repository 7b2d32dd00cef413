from __future__ import annotations

import json
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PySide6.QtCore import QObject, Slot
from PySide6.QtWidgets import QAbstractButton, QLineEdit, QWidget

from gui.files import RecordingFile, Unreadable, read_any, save_scenario
from gui.operations import Operation, Operations
from gui.probe.pixels import _outline
from gui.probe.plot import ProbePlot
from gui.probe.series import Ring, Thinner
from gui.settings import ADVANCED, GEOMETRY, RECENT_FILES, THEME, Settings
from gui.theme import _PAIRS, ink_on, theme
from gui.units import signed_percent
from planner.footprint import COMPONENTS
from planner.palette import FILLS
from planner.scenario import ModelPath


@settings(max_examples=60)
@given(st.lists(st.floats(-1e12, 1e12), max_size=60), st.integers(1, 20))
def test_a_ring_holds_the_last_rows_in_order(values, capacity):
    """A ring of capacity n shows the last n values added, oldest first, as one contiguous slice."""
    ring = Ring(1, capacity)
    for number, value in enumerate(values):
        ring.add(float(number), (value,))
    np.testing.assert_array_equal(ring.column(0), np.array(values[-capacity:], dtype=float))
    assert len(ring) == len(ring.time_s) == min(len(values), capacity)
    assert ring.column(0).flags.contiguous


READINGS = st.lists(st.floats(0, 1e12) | st.just(float("nan")), min_size=1, max_size=400)


@settings(max_examples=60)
@given(READINGS, st.integers(4, 60))
def test_a_thinned_series_keeps_its_highest_and_its_lowest(values, most):
    """max(thinned) == max(series), min likewise, in the order of time, and with about as many points as were asked for."""
    assert_thinned(np.arange(len(values), dtype=float), np.array(values), Thinner(), most)


@settings(max_examples=60)
@given(READINGS, st.integers(4, 60), st.integers(1, 200), st.integers(1, 50))
def test_a_series_that_goes_on_is_thinned_as_one_that_is_new(values, most, capacity, frame):
    """The same holds in every frame of a series that grows at its end and is forgotten at its beginning."""
    ring, thinner = Ring(1, capacity), Thinner()
    for number, value in enumerate(values):
        ring.add(float(number), (value,))
        if number % frame == 0:
            assert ring.time_s[0] == ring.first
            assert_thinned(ring.time_s, ring.column(0), thinner, most, ring.first)


def assert_thinned(times, column, thinner, most, first=0):
    kept_times, kept = thinner.thinned(times, column, most, first)
    assert list(kept_times) == sorted(kept_times)
    np.testing.assert_array_equal(column[(kept_times - first).astype(int)], kept)
    if not np.isnan(column).all():
        assert (np.nanmax(kept), np.nanmin(kept)) == (np.nanmax(column), np.nanmin(column))
    assert len(kept) <= max(len(column) if len(column) <= most else 0, most + 4 * len(column) / most + 4)


class Receiver(QObject):
    def __init__(self):
        super().__init__()
        self.got = []
        self.threads = []

    @Slot(object)
    def take(self, result):
        self.got.append(result)
        self.threads.append(threading.current_thread())


def test_results_come_back_in_the_window_s_thread(qtbot):
    receiver, operations = Receiver(), Operations()
    operations.start(Operation("a", threading.current_thread, receiver.take, receiver.take))
    qtbot.waitUntil(lambda: bool(receiver.got))
    assert receiver.got[0] is not threading.main_thread()
    assert receiver.threads == [threading.main_thread()]
    operations.close()


def test_the_result_of_a_stale_operation_is_dropped(qtbot):
    receiver, operations, gate = Receiver(), Operations(), threading.Event()
    operations.start(Operation("a", gate.wait, receiver.take, receiver.take))
    operations.start(Operation("a", lambda: "second", receiver.take, receiver.take))
    qtbot.waitUntil(lambda: bool(receiver.got))
    gate.set()
    qtbot.waitUntil(lambda: not operations.running("a"))
    assert receiver.got == ["second"]
    operations.close()


def test_a_failure_reaches_the_one_who_asked(qtbot):
    receiver, operations = Receiver(), Operations()
    operations.start(Operation("a", lambda: 1 // 0, lambda _: pytest.fail("succeeded"), receiver.take))
    qtbot.waitUntil(lambda: bool(receiver.got))
    assert isinstance(receiver.got[0], ZeroDivisionError)
    operations.close()


def test_settings_come_back_with_their_types(tmp_path):
    path = tmp_path / "s.ini"
    for setting, value in ((ADVANCED, False), (RECENT_FILES, ["one"]), (THEME, "dark"), (GEOMETRY, b"\x00\xff")):
        Settings(path).set(setting, value)
        assert Settings(path).get(setting) == value
        assert type(Settings(path).get(setting)) is type(setting.default)


@pytest.mark.parametrize("stored", ["not json", "17", '{"a":1}'])
def test_an_unreadable_setting_falls_back_and_says_so(tmp_path, caplog, stored):
    store = Settings(tmp_path / "s.ini")
    store._store.setValue(THEME.key, stored)
    assert store.get(THEME) == "system"
    assert "window/theme" in caplog.text
    caplog.clear()


@pytest.mark.parametrize("content", [b"\x00\xff\xfe" * 50, b"just some words", "[window]\ntheme=\xe9".encode("latin-1")])
def test_a_broken_settings_file_is_set_aside_said_and_replaced(tmp_path, open_window, content):
    path = tmp_path / "settings.ini"
    path.write_bytes(content)
    broken = Settings(path)
    assert "set aside as settings.broken1.ini" in broken.trouble
    assert (tmp_path / "settings.broken1.ini").read_bytes() == content
    broken.set(THEME, "dark")
    broken._store.sync()
    again = Settings(path)
    assert (again.trouble, again.get(THEME)) == ("", "dark")
    window = open_window(settings=broken)
    assert "set aside" in window.statusBar().currentMessage()


def test_files_are_told_apart(tmp_path, window):
    scenario = window.context.state.scenario
    assert save_scenario(scenario, tmp_path / "s.json").startswith("Saved")
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    assert read_any(tmp_path / "s.json").model == scenario.model
    assert read_any(tmp_path / "config.json") == ModelPath(str(tmp_path / "config.json"))
    assert read_any(tmp_path / "x.gguf") == ModelPath(str(tmp_path / "x.gguf"))
    assert read_any(tmp_path / "r.jsonl") == RecordingFile(tmp_path / "r.jsonl")


@pytest.mark.parametrize(
    ("content", "says"),
    [("{", "is not JSON"), ('{"model": 3}', "is not a scenario: "), ("[" * 100_000, "is not JSON"), (json.dumps({"a": 1}), "task")],
)
def test_a_bad_scenario_file_is_one_clear_message(tmp_path, window, content, says):
    path = tmp_path / "bad.json"
    path.write_text(content)
    with pytest.raises(Unreadable, match=says):
        read_any(path)
    before = window.context.state.scenario
    window.open_file(path)
    assert says in window.statusBar().currentMessage()
    assert window.context.state.scenario == before


def luminance_ratio(first, second):
    def luminance(colour):
        channels = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted((luminance(first), luminance(second)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("half", [0, 1])
@pytest.mark.parametrize("ink", ["text", "muted", "accent", "fits", "tight", "over", "unknown", "capacity"])
@pytest.mark.parametrize("paper", ["window", "surface"])
def test_text_stands_out(ink, paper, half):
    """WCAG 2.2, 1.4.3: text has a contrast of at least 4.5:1."""
    assert luminance_ratio(_PAIRS[ink][half], _PAIRS[paper][half]) >= 4.5


@pytest.mark.parametrize("half", [0, 1])
@pytest.mark.parametrize("meter", ["allocated", "reserved", "device"])
def test_lines_stand_out(meter, half):
    """WCAG 2.2, 1.4.11: graphics have a contrast of at least 3:1."""
    assert luminance_ratio(_PAIRS[meter][half], _PAIRS["surface"][half]) >= 3


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_component_has_a_fill_of_its_own_and_readable_labels(qapp, scheme):
    theme().choose(scheme)
    assert set(FILLS) == set(COMPONENTS)
    looks = {(theme().fill(name)[0].name(), theme().fill(name)[1]) for name in COMPONENTS}
    assert len(looks) == len(COMPONENTS)
    for name in COMPONENTS:
        fill = theme().fill(name)[0]
        assert luminance_ratio(ink_on(fill).name(), fill.name()) >= 4.5, name


def test_everything_that_takes_the_focus_has_a_name(window):
    window.show_tab("probe")
    unnamed = [
        (type(widget).__name__, widget.objectName())
        for widget in window.findChildren(QWidget)
        if widget.focusPolicy().value & 1 and widget.isVisible() and not named(widget)
    ]
    assert not unnamed


def named(widget):
    own = widget.accessibleName() or (isinstance(widget, QAbstractButton) and widget.text())
    inner = isinstance(widget, QLineEdit) and widget.parentWidget() is not None and widget.parentWidget().accessibleName()
    return bool(own or inner)


def test_what_rounds_to_nothing_has_no_sign():
    assert {signed_percent(share) for share in (0.0004, -0.0004, 0.0)} == {"0.0 %"}
    assert [signed_percent(share) for share in (0.012, -0.5)] == ["+1.2 %", "−50.0 %"]


def test_the_ground_of_steps_is_as_high_as_the_steps():
    """Wide ones stay steps, and of those within a pixel the highest is seen."""
    x = np.array([0.0, 10.0, 10.0, 20.0, 20.0, 20.2, 20.2, 20.4, 20.4, 30.0])
    y = np.array([9.0, 9.0, 5.0, 5.0, 1.0, 1.0, 7.0, 7.0, 6.0, 6.0])
    across, heights = _outline(x, y)
    assert list(np.interp([5, 15, 20, 25, 30], across, heights)) == [9, 5, 1, 6, 6]


def test_a_level_on_a_line_of_the_grid_is_seen(qtbot):
    """The grid lies over the bands and below everything that is measured or predicted."""
    plot = ProbePlot()
    qtbot.addWidget(plot)
    plot.resize(600, 400)
    plot.set_levels({"load": {"allocated": 16 * 2**30}}, None)
    plot.show()
    plot.draw()
    picture, ink = plot.grab().toImage(), theme().colour("allocated").rgb()
    rows = [y for y in range(picture.height()) if any(picture.pixel(x, y) == ink for x in range(100, 500))]
    assert rows
    plot.set_levels({}, None)
    plot.draw()
    empty = plot.grab().toImage()
    assert not any(empty.pixel(x, y) == ink for y in rows for x in range(100, 500))
