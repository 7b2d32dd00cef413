from __future__ import annotations

from math import nan

import pytest
from PySide6.QtCore import Qt
from PySide6.QtTest import QTest

from probes.monitor import Holder, Snapshot
from probes.readings import DriverState, GpuReading, MemoryReading

GIB = 2**30


@pytest.fixture
def tab(window, qtbot):
    """The tab, fed by the test alone."""
    found = window.show_tab("monitor")
    found._reader.stop()
    found._reader.read.disconnect(found.show_snapshot)
    return found


def reading(index, used=40 * GIB, **values):
    return GpuReading(index, f"u{index}", "NVIDIA H100", MemoryReading(80 * GIB, used), **values)


def test_without_a_driver_it_says_so(window, qtbot):
    tab = window.show_tab("monitor")
    qtbot.waitUntil(lambda: "driver" in tab.words.text() or bool(tab.cards), timeout=10_000)


def test_it_reads_only_while_it_can_be_seen(window, qtbot):
    tab = window.show_tab("monitor")
    qtbot.waitUntil(lambda: tab._reader._sampler is not None)
    window.show_tab("footprint")
    assert tab._reader._sampler is None
    window.show_tab("monitor")
    assert tab._reader._sampler is not None


def test_every_gpu_has_a_card_with_its_latest_values(tab):
    gpus = (reading(0, utilization_percent=50.0, power_watts=300.0, temperature_celsius=61.0), reading(1, None))
    for second in range(3):
        tab.show_snapshot(Snapshot(float(second), DriverState(), gpus))
    charts = tab.cards["0"].charts
    assert [charts[name].text for name in ("memory", "load", "power", "heat")] == [
        "40.00 GiB / 80.00 GiB",
        "50 %",
        "300 W",
        "61 °C",
    ]
    assert tab.cards["1"].charts["memory"].text == "N/A / 80.00 GiB"
    assert tab.cards["1"].charts["power"].text == "N/A"
    tab.show_snapshot(Snapshot(4.0, DriverState(), gpus[:1]))
    assert list(tab.cards) == ["0"]


def test_a_missing_reading_is_a_gap(tab):
    for second, load in enumerate((10.0, nan, 20.0, 30.0)):
        tab.show_snapshot(Snapshot(float(second), DriverState(), (reading(0, utilization_percent=load),)))
    chart = tab.cards["0"].charts["load"]
    tab.cards["0"].grab()
    assert [len(run) for run in chart._runs(chart.rect().toRectF())] == [1, 2]


def test_who_holds_memory_is_listed(tab):
    holders = (Holder("0", 4711, 5 * GIB, "python", "ada", GIB), Holder("0", 12, None))
    tab.show_snapshot(Snapshot(0.0, DriverState(), (reading(0),), holders))
    assert tab.holders.index(0, 4).data() == "5.00 GiB"
    assert tab.holders.index(1, 2).data() == "N/A"
    assert not tab.words.text()


def test_a_card_that_fell_off_the_bus_is_said(tab):
    tab.show_snapshot(Snapshot(0.0, DriverState(), (reading(0, trouble="GPU is lost"),)))
    assert "GPU is lost" in tab.cards["0"].title.text()


def test_it_can_stand_in_a_window_of_its_own(window, tab, qtbot):
    """There it goes on while another tab is in front; closing it brings it back."""
    QTest.mouseClick(tab.float, Qt.MouseButton.LeftButton)
    frame = tab.dock.window_of_its_own
    assert tab.panel.window() is frame
    window.show_tab("footprint")
    assert tab._reader._sampler is not None
    assert tab.panel.isVisible()
    frame.close()
    assert tab.panel.window() is window
    assert tab._reader._sampler is None
    window.show_tab("monitor")
    assert tab.panel.isVisible()


def test_the_host_is_there_without_any_gpu(tab):
    for second in range(3):
        tab.show_snapshot(Snapshot(float(second), DriverState(), ()))
    assert tab.host.isVisible()
    assert tab.host.memory.text.endswith("GiB")
    assert tab.host.load.text.endswith("%")
    tab.show_snapshot(Snapshot(4.0, DriverState(), (reading(0),)))
    assert tab._column.indexOf(tab.cards["0"]) < tab._column.indexOf(tab.host)


def test_charts_share_the_height_of_the_window(open_window, qtbot):
    heights = []
    for size in ((1000, 700), (3840, 2160)):
        tab = open_window(size=size).show_tab("monitor")
        tab._reader.read.disconnect(tab.show_snapshot)
        tab.show_snapshot(Snapshot(0.0, DriverState(), tuple(map(reading, range(4)))))
        wanted = tab.cards["3"].charts["memory"]
        qtbot.waitUntil(lambda chart=wanted: chart.height() == chart.sizeHint().height())
        heights.append(wanted.height())
    assert heights[0] < heights[1]
