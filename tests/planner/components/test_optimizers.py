"""States and steps of optimizers, by the sizes their sources state."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.components.optimizers import OPTIMIZERS, host_states, in_module_order, optimizer_states, step_transient
from planner.components.trainable import Trainable
from planner.scenario import OPTIMIZERS as NAMES

MATRIX = Trainable((1024, 512), 2, 3, "model.layers.*.mlp.up_proj.weight")
VECTOR = Trainable((512,), 2, 1, "model.norm.weight")
HEAD = Trainable((4096, 512), 2, 1, "lm_head.weight")
MODEL = (HEAD, VECTOR, MATRIX)


def held(name: str, *tensors: Trainable, rank: int = 128) -> int:
    return optimizer_states(tensors, name, rank).total


def transient(name: str, *tensors: Trainable, **more: bool) -> int:
    return sum(size.bytes for _, size in step_transient(tensors, name, **more))


def test_every_optimizer_of_a_scenario_has_its_states() -> None:
    assert set(NAMES) == set(OPTIMIZERS)


@pytest.mark.parametrize(
    ("name", "each"),
    [
        ("adamw_foreach", 4 * 2**19), ("lion", 2 * 2**19), ("sgd_momentum", 2 * 2**19), ("sgd", 0), ("muon", 2 * 2**19),
        ("adamw_8bit", 2 * (2**19 + 4 * 2**11)), ("lion_8bit", 2**19 + 4 * 2**11), ("paged_adamw_8bit", 2 * 4 * 2**11),
        ("adafactor", 4 * 1024 + 4 * 512 + 512), ("galore", 2 * 128 * (512 + 2 * 1024)), ("paged_adamw_32bit", 0),
        ("adamw_fused", 4 * 2**19 + 512),
    ],
)  # fmt: skip
def test_states_of_a_matrix(name: str, each: int) -> None:
    """Bytes kept for one bf16 matrix of 1024 by 512."""
    maps = {"adamw": 2048, "lion": 1024}[name.split("_")[-2]] if name.endswith("8bit") else 0
    assert held(name, MATRIX) == 3 * each + maps


def test_small_parameters_keep_fp32_states_and_vectors_are_not_factored() -> None:
    assert held("adamw_8bit", VECTOR) == 2 * 4 * 512
    assert held("adafactor", VECTOR) == 4 * 512 + 512
    assert held("muon", VECTOR) == 2 * 2 * 512
    assert held("galore", VECTOR) == 2 * 2 * 512


def test_paged_states_are_in_host_memory() -> None:
    assert host_states(MODEL, "paged_adamw_8bit") == 2 * (3 * 2**19 + 2**21)
    assert host_states(MODEL, "paged_adamw_32bit") == 8 * (3 * 2**19 + 2**21)
    assert host_states(MODEL, "adamw_8bit") == 0


def test_an_fp32_projector_is_part_of_all_singular_vectors() -> None:
    matrix = Trainable((1024, 512), 4, 1, MATRIX.name)
    assert held("galore", matrix) == 4 * (512 * 512 + 2 * 1024 * 128)


def test_foreach_takes_all_roots_at_once_and_the_loop_those_of_one_parameter() -> None:
    assert transient("adamw_foreach", *MODEL) == 2 * (3 * 2**19 + 512 + 2**21)
    assert transient("adamw", *MODEL) == 2 * 2 * 2**21
    assert transient("adamw_fused", *MODEL) == 0


def test_a_loop_still_holds_tensors_of_the_parameter_before() -> None:
    assert transient("lion", MATRIX, HEAD) == 2 * (2**21 + 2**19)
    assert transient("adafactor", MATRIX, HEAD) == 16 * 2**21 + 4 * 2**19
    assert transient("adafactor", HEAD) == 16 * 2**21 + 4 * (4096 + 512)


def test_muon_multiplies_in_bf16() -> None:
    assert transient("muon", HEAD) == 3 * 2 * 2**21 + 2 * 2 * 512 * 512


def test_norm_and_head_come_last() -> None:
    assert in_module_order(MODEL, ("model.norm.weight", "lm_head.weight")) == (MATRIX, VECTOR, HEAD)


@given(st.sampled_from(sorted(OPTIMIZERS)), st.booleans())
def test_clipping_never_lowers_a_step(name: str, cuda: bool) -> None:
    """Clipping comes before the update, the higher of both counts; its norms of chunks: 5 tensors, 32 chunks, 4 bytes."""
    plain, clipped = (transient(name, *MODEL, clips=clips, cuda=cuda) for clips in (False, True))
    assert clipped >= max(plain, 5 * 512)
    assert transient("sgd", *MODEL, clips=True) == 5 * 512 + 1024


shapes = st.one_of(st.tuples(st.integers(1, 3000)), st.tuples(st.integers(1, 300), st.integers(1, 300)))


@given(st.sampled_from(sorted(OPTIMIZERS)), st.lists(shapes, min_size=1, max_size=6), shapes, st.sampled_from([2, 4]))
def test_one_parameter_more_never_takes_less(name: str, found: list[tuple[int, ...]], more: tuple[int, ...], width: int) -> None:
    """States and step grow with every parameter that trains."""
    few = tuple(Trainable(shape, width, 1, f"layers.{index}.weight") for index, shape in enumerate(found))
    many = (*few, Trainable(more, width, 1, "layers.99.weight"))
    assert held(name, *many, rank=8) >= held(name, *few, rank=8)
    assert transient(name, *many) >= transient(name, *few)
    assert host_states(many, name) >= host_states(few, name)
