from __future__ import annotations

import xml.etree.ElementTree as ET
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from planner.advise import Advice
from planner.footprint import Footprint, GpuFootprint, Host, Phase, Term
from planner.report.chart import footprint_chart
from planner.report.content import Table, report_of
from planner.report.write import html, markdown, markdown_table
from planner.scenario import Scenario, Training, to_json
from planner.units import GIB

SVG, LINE = "{http://www.w3.org/2000/svg}", "#b3261e"
PARTS = {"weights": 10 * GIB, "kv_cache": 2 * GIB, "allocator_slack": GIB}
PHASE = Phase("decode", 12 * GIB, 13 * GIB, 13 * GIB, PARTS)
TERM = Term("kv_cache", "2 · layers | x", {"layers": 32, "name": "<b>"}, 2 * GIB, "derived", "config.json: <layers>", "decode")


def footprint(gpus: int = 1, phases: tuple[Phase, ...] = (PHASE,)) -> Footprint:
    return Footprint(
        scenario={"model": "a/b", "task": "inference", "inference": {"batch": 4}, "parallel": {"tensor": 1}},
        level="predict", parameters=5, trainable_parameters=0, weight_bytes=10 * GIB,
        gpus=tuple(GpuFootprint(index, 24 * GIB, phases) for index in range(gpus)), host=Host(),
        verdict="fits" if phases else "unknown", headroom_bytes=11 * GIB if phases else None, uncertainty_bytes=GIB,
        limits={}, speed={}, terms=(TERM, TERM), notes=("a <note>",),
    )  # fmt: skip


class Balance(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Closed by itself."""

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.mark.parametrize("gpus", [1, 8])
def test_the_page_is_whole_and_says_what_the_plan_says(gpus: int) -> None:
    page = html(report_of(footprint(gpus), "A <plan>"), "A <plan>")
    checker = Balance()
    checker.feed(page)
    assert not checker.open
    assert "13.00 GiB at the peak" in page
    assert "A &lt;plan&gt;" in page
    assert "a &lt;note&gt;" in page
    svg = page[page.index("<svg") : page.index("</svg>") + 6]
    ET.fromstring(svg)
    assert svg.count("<rect") >= 3 * gpus


def test_markdown_has_a_row_for_every_component_and_names_its_charts() -> None:
    text = markdown(report_of(footprint(), "Plan"), "plan-{}.svg")
    assert text.startswith("# Plan\n")
    assert "(plan-footprint.svg)" in text
    assert "| KV cache | 2.00 GiB |" in text
    assert "2 · layers \\| x" in text
    assert "inference.batch: 4" in text
    assert text.count("2 · layers") == 1


def test_what_is_not_sized_is_said() -> None:
    text = markdown(report_of(footprint(phases=()), "Plan"))
    assert "**Unknown.** No phase could be sized; the weights take 10.00 GiB." in text
    assert "svg" not in text


def test_a_measurement_stands_beside_with_its_signed_error() -> None:
    measured = {"decode": {"allocated": 11.4 * GIB, "device": None}, "other": {"allocated": GIB}}
    text = markdown(report_of(footprint(), "Plan", measured))
    assert "| Decode | Allocated | 12.00 GiB | 11.40 GiB | −5.0 % |" in text
    assert "| Other | Allocated | N/A | 1.00 GiB | N/A |" in text


def test_figures_stand_at_the_right() -> None:
    assert markdown_table(Table(("a", "b"), (("x", "1"),), frozenset({1}))) == "| a | b |\n| --- | ---: |\n| x | 1 |"


def test_what_lies_on_the_host_is_reported() -> None:
    host = Host(6 * GIB, {"weights": 5 * GIB, "kv_cache": GIB}, 9 * GIB)
    text = markdown(report_of(replace(footprint(), host=host), "A plan"))
    assert "13.00 GiB at the peak, in decode, against 24.00 GiB (headroom 11.00 GiB)" in text
    assert "### Host" in text
    for name, size in (("Weights", "5.00 GiB"), ("KV cache", "1.00 GiB"), ("In all", "6.00 GiB"), ("While loading", "9.00 GiB")):
        assert any(name in line and size in line for line in text.splitlines()), name
    assert ">Host</text>" in html(report_of(replace(footprint(), host=host), "A plan"), "A plan")
    assert "### Host" not in markdown(report_of(footprint(), "A plan"))


def test_what_hardly_counts_has_a_table_of_its_own_and_nothing_is_lost() -> None:
    small, none = replace(TERM, formula="a few bytes", bytes=1024), replace(TERM, formula="no bytes at all", bytes=0)
    text = markdown(report_of(replace(footprint(), terms=(TERM, small, none)), "Plan"))
    first, _, rest = text.partition("### Terms below 0.1 % of the peak")
    assert "2 · layers" in first
    assert "a few bytes" not in first
    assert "a few bytes" in rest
    assert "no bytes at all" not in text


def test_a_plan_without_room_lists_what_would_make_it_fit() -> None:
    change = Advice("KV cache in FP8", "slight loss", "a paper", Scenario("a/b", "inference"), GIB, GIB, 12 * GIB, "fits", 1)
    told = "| KV cache in FP8 | 1.00 GiB | 12.00 GiB | Fits | slight loss |"
    over = replace(footprint(), verdict="does_not_fit")
    assert told in markdown(report_of(over, "Plan", advice=(change,)))
    assert "What would make it fit" not in markdown(report_of(over, "Plan"))
    assert told not in markdown(report_of(footprint(), "Plan", advice=(change,))), "a plan that fits needs no change"


def test_the_scenario_lists_what_was_chosen() -> None:
    chosen = Scenario("a/b", "training", training=Training(method="lora", objective="dpo"))
    text = markdown(report_of(replace(footprint(), scenario=to_json(chosen)), "Plan"))
    for line in ("- training.method: lora", "- training.objective: dpo", "- training.lora.rank: 8"):
        assert line in text
    for name in ("version", "rollout", "virtual_tokens", "reference"):
        assert f"{name}:" not in text


def test_what_a_server_leaves_is_told_of_its_cache_and_what_a_card_lacks_of_the_card() -> None:
    asked = {"model": "a/b", "task": "inference", "inference": {"engine": "vllm"}}
    plan = replace(footprint(), scenario=asked, headroom_bytes=7 * GIB)
    assert "(7.00 GiB of its cache to spare)" in markdown(report_of(plan, "t"))
    assert "(its cache is short by 7.00 GiB)" in markdown(report_of(replace(plan, headroom_bytes=-7 * GIB), "t"))
    small = replace(plan, headroom_bytes=-7 * GIB, gpus=(GpuFootprint(0, 10 * GIB, (PHASE,)),))
    assert "(short by 3.00 GiB)" in markdown(report_of(small, "t"))


def test_no_size_is_written_over_the_line_of_the_capacity() -> None:
    near = replace(footprint(2), gpus=tuple(GpuFootprint(index, int(13.5 * GIB), (PHASE,)) for index in range(2)))
    svg = ET.fromstring(footprint_chart(near))
    line = next(float(path.get("d", "M0 ")[1:].split()[0]) for path in svg.iter(f"{SVG}path") if path.get("stroke") == LINE)
    sizes = [float(text.get("x", 0)) for text in svg.iter(f"{SVG}text") if text.text == "13.00 GiB"]
    assert len(sizes) == 2
    assert all(left > line for left in sizes)


def test_cards_that_differ_have_a_line_each() -> None:
    mixed = replace(footprint(), gpus=(GpuFootprint(0, 12 * GIB, (PHASE,)), GpuFootprint(1, 80 * GIB, (PHASE,))))
    chart = footprint_chart(mixed)
    lines = [path.get("d") for path in ET.fromstring(chart).iter(f"{SVG}path") if path.get("stroke") == LINE]
    assert len(set(lines)) == 2
    assert "Capacity" not in chart
    assert "each card's capacity" in chart
