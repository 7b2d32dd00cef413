"""Examples of several lengths: padded, packed, flattened."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.faults import Faults
from planner.footprint import Footprint
from planner.scenario import parse_scenario
from resources.plan import make_plan

MODEL = "Qwen/Qwen3-0.6B"


def footprint(**training: object) -> Footprint:
    document = {"version": 1, "model": MODEL, "task": "training", "training": {"checkpointing": "full"} | training}
    return make_plan(parse_scenario(document), network=False).footprint


def test_padded_batches_are_as_long_as_their_longest_example() -> None:
    found = footprint(batch=4, lengths=[100, 900, 512])
    assert found.gpus == footprint(batch=4, sequence=900).gpus
    assert found.scenario["training"]["sequence"] == 900
    assert any("the mean is 504" in note for note in found.notes)


def test_a_limit_cuts_longer_examples() -> None:
    assert footprint(batch=2, sequence=512, lengths=[100, 900]).gpus == footprint(batch=2, sequence=512).gpus


def test_packed_rows_are_full_whatever_the_examples() -> None:
    assert footprint(batch=2, sequence=1024, data="packed", lengths=[10, 20]).gpus == footprint(batch=2, sequence=1024).gpus


def test_flattened_examples_are_one_row() -> None:
    flat = footprint(batch=4, sequence=256, data="flattened", attention="flash")
    assert flat.gpus == footprint(batch=1, sequence=1024, attention="flash").gpus


def test_flattened_examples_need_flash() -> None:
    found = footprint(batch=4, sequence=256, data="flattened")
    assert found.verdict == "unknown"
    assert any("training.data" in note for note in found.notes)


@pytest.mark.parametrize("lengths", [[], [0], ["long"], 12, [True]])
def test_lengths_are_whole_numbers(lengths: object) -> None:
    with pytest.raises(Faults, match=r"training\.lengths"):
        footprint(lengths=lengths)


@settings(max_examples=25)
@given(
    st.lists(st.integers(1, 3000), min_size=1, max_size=4), st.integers(1, 3000), st.sampled_from(["padded", "packed", "flattened"])
)
def test_one_longer_example_never_takes_less(lengths: list[int], more: int, data: str) -> None:
    """The peak is that of the longest examples."""
    few, many = (footprint(batch=2, data=data, attention="flash", lengths=found) for found in (lengths, [*lengths, more]))
    for less, rest in zip(few.gpus[0].phases, many.gpus[0].phases, strict=True):
        assert less.allocated <= rest.allocated
        assert less.reserved <= rest.reserved


@settings(max_examples=10)
@given(st.sampled_from(["padded", "packed", "flattened"]), st.lists(st.integers(1, 3000), max_size=3))
def test_the_settled_scenario_asks_the_same_again(data: str, lengths: list[int]) -> None:
    """Settling what is settled changes nothing."""
    first = footprint(batch=3, data=data, attention="flash", **({"lengths": lengths} if lengths else {}))
    again = make_plan(parse_scenario(json.loads(json.dumps(first.scenario))), network=False).footprint
    assert again.gpus == first.gpus


@settings(max_examples=20)
@given(st.integers(2, 16), st.sampled_from(["none", "full"]), st.sampled_from(["adamw_fused", "adafactor", "sgd"]))
def test_accumulation_changes_nothing_but_its_buffers(steps: int, checkpointing: str, optimizer: str) -> None:
    """Gradients that wait are the only difference, whatever the number of micro-batches; the update takes the same."""
    work = {"batch": 2, "sequence": 512, "checkpointing": checkpointing, "optimizer": optimizer}
    plain, two, many = (footprint(**work, gradient_accumulation=count).gpus[0].phases for count in (1, 2, steps))
    assert two == many
    assert [plain[0].allocated, plain[3].allocated] == [two[0].allocated, two[3].allocated]
    waiting = plain[3].components["gradients"]
    assert two[1].allocated - plain[1].allocated == waiting
    assert 0 <= two[2].allocated - plain[2].allocated <= waiting
