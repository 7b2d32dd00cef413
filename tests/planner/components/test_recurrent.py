"""Mixers with a constant state: what they leave, and how they grow."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.architecture.layers import Recurrent, Weight
from planner.components.graph import Graph
from planner.components.recurrent import FORWARDS, recurrent_forward, unmodelled_recurrent
from planner.components.recurrent.states import state_tensors
from planner.components.run import Run
from planner.components.tape import Held, Span

HEADS = {"num_heads": 4, "head_dim": 32, "state_dim": 16, "num_groups": 2, "inner_dim": 128}
IN_PROJECTION = Weight("linear_attn.in_proj_qkvz.weight", (320, 64), "linear")
OF_KIMI = tuple(
    Weight(f"self_attn.{name}.weight", shape, "linear")
    for name, shape in {
        "q_proj": (128, 64), "k_proj": (128, 64), "v_proj": (128, 64), "forget_gate.f_a_proj": (32, 64),
        "forget_gate.f_b_proj": (128, 32), "b_proj": (4, 64), "g_a_proj": (32, 64), "g_b_proj": (128, 32), "o_norm": (32,),
        "o_proj": (64, 128),
    }.items()
)  # fmt: skip
KIMI_HEADS = HEADS | {"num_groups": 4, "state_dim": 32}
MIXERS = {
    "mamba": Recurrent("mamba", (), 128, 4, 128 * 16, state_dim=16, inner_dim=128, step_rank=8),
    "mamba2": Recurrent("mamba2", (), 192, 4, 4 * 32 * 16, chunk_tokens=64, **HEADS),
    "gated_delta_net": Recurrent("gated_delta_net", (IN_PROJECTION,), 192, 4, 4 * 32 * 16, fused_gate=True, **HEADS),
    "kimi_delta": Recurrent("kimi_delta", OF_KIMI, 384, 4, 4 * 32 * 32, **KIMI_HEADS),
    "lightning": Recurrent("lightning", (), 0, 0, 4 * 32 * 32, state_dtype=None, chunk_tokens=64, **HEADS),
    "short_conv": Recurrent("short_conv", (), 64, 3, inner_dim=64),
}
KINDS = st.sampled_from(sorted(set(MIXERS) & set(FORWARDS)))


def lay(mixer: Recurrent, batch: int, sequence: int, past: int = 0, dtype_bytes: int = 2) -> Span:
    """One forward with a cache, from the mixer's input to its output."""
    run = Run(batch, sequence, 64, dtype_bytes, cached=True, past_tokens=past)
    start = {"input": Held(run.hidden(), "workspace")}
    if past:
        start |= {name: Held(size, "recurrent_state") for name, size in state_tensors(mixer, run).items()}
    g = Graph(run, start=start)
    recurrent_forward(g, mixer, "input", "output")
    return g.span()


def test_every_modelled_kind_is_tested() -> None:
    assert set(FORWARDS) <= set(MIXERS)


@given(kind=KINDS, batch=st.integers(1, 5), sequence=st.integers(2, 400), dtype_bytes=st.sampled_from([2, 4]))
@settings(max_examples=60)
def test_a_prefill_leaves_the_output_and_the_states(kind: str, batch: int, sequence: int, dtype_bytes: int) -> None:
    """What a forward made is gone when it returns, but for its output and the states it keeps."""
    mixer, run = MIXERS[kind], Run(batch, sequence, 64, dtype_bytes, cached=True)
    span = lay(mixer, batch, sequence, dtype_bytes=dtype_bytes)
    assert set(span.live) == {"input", "output", *state_tensors(mixer, run)}
    states = {name: held for name, held in span.live.items() if held.component == "recurrent_state"}
    assert {name: held.size.bytes for name, held in states.items()} == {
        name: size.bytes for name, size in state_tensors(mixer, run).items()
    }
    assert span.end == sum(held.size.bytes for name, held in span.live.items() if name != "input")


@given(kind=KINDS, batch=st.integers(1, 4), past=st.integers(1, 100_000))
@settings(max_examples=40)
def test_a_decode_step_costs_the_same_however_long_the_past(kind: str, batch: int, past: int) -> None:
    """The state is constant: so is the step; it leaves the states as large as they were."""
    span = lay(MIXERS[kind], batch, 1, past)
    assert (span.peak, span.end) == (lay(MIXERS[kind], batch, 1, 1).peak, span.live["output"].size.bytes)


@given(kind=KINDS, batch=st.integers(1, 4), sequence=st.integers(2, 300))
@settings(max_examples=60)
def test_the_peak_grows_with_batch_and_sequence(kind: str, batch: int, sequence: int) -> None:
    """Monotone in both."""
    peak = lay(MIXERS[kind], batch, sequence).peak
    assert lay(MIXERS[kind], batch + 1, sequence).peak > peak
    assert lay(MIXERS[kind], batch, sequence + 64).peak > peak


@pytest.mark.parametrize("kind", sorted(set(MIXERS) & set(FORWARDS)))
def test_training_is_said_to_be_unknown(kind: str) -> None:
    assert unmodelled_recurrent(MIXERS[kind]) == ""


def test_delta_nets_with_other_projections_are_unknown() -> None:
    assert unmodelled_recurrent(replace(MIXERS["gated_delta_net"], weights=()))


def test_an_unknown_kind_is_named() -> None:
    assert "mlstm" in unmodelled_recurrent(replace(MIXERS["mamba"], kind="mlstm"))
