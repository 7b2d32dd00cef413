"""Linears whose products run in 8-bit floats: what they keep and hold, which are converted, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.commands import commands_of
from planner.faults import Faults
from planner.footprint import Footprint
from planner.scenario import parse_scenario
from resources.plan import make_plan

CONFIG = {
    "model_type": "llama", "hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 4, "num_attention_heads": 16,
    "num_key_value_heads": 4, "vocab_size": 32000, "max_position_embeddings": 8192, "torch_dtype": "bfloat16",
}  # fmt: skip


def document(training: dict[str, Any], **more: Any) -> dict[str, Any]:
    work = {"batch": 2, "sequence": 1024, "precision": "fp8"} | training
    return {
        "version": 1,
        "model": {"config": CONFIG},
        "task": "training",
        "training": work,
        "hardware": {"gpu": "H100 SXM5 80GB"},
    } | more


def footprint(training: dict[str, Any], **more: Any) -> Footprint:
    return make_plan(parse_scenario(document(training, **more)), network=False).footprint


def peaks(training: dict[str, Any], **more: Any) -> dict[str, int]:
    return {phase.name: phase.allocated for phase in footprint(training, **more).gpus[0].phases}


def test_casts_outlive_no_product_and_take_nine_bytes_a_value_at_most() -> None:
    """Scaled and clamped in fp32 (4 + 4), narrowed (1), of the gradient of the widest result; its operands' 8-bit copies beside.

    What is kept between the phases is as in 16 bit.
    """
    plain, narrow = peaks({"precision": "bf16"}), peaks({})
    assert [narrow[name] for name in ("load", "optimizer")] == [plain[name] for name in ("load", "optimizer")]
    tokens, widest, hidden = 2 * 1024, 2816, 1024
    assert 0 <= narrow["backward"] - plain["backward"] <= 9 * tokens * widest + 3 * tokens * (widest + hidden) + 2 * widest * hidden
    kept = [term for term in footprint({}).terms if term.component == "activations" and term.tells_of("forward", 0)]
    assert kept
    assert not any("fp8" in term.formula for term in kept)


def test_every_phase_opens_to_terms() -> None:
    for recipe in ("tensorwise", "rowwise", "rowwise_with_gw_hp"):
        found = footprint({"engine_options": {"fp8_recipe": recipe}})
        for phase in found.gpus[0].phases:
            assert sum(term.bytes for term in found.terms if term.tells_of(phase.name, 0)) == phase.device, phase.name


def test_masters_in_fp32_are_asked_for_by_the_weights() -> None:
    found = footprint({}, weights="fp32")
    assert found.scenario["weights"] == "fp32"
    assert "master_weights" in found.gpus[0].phases[0].components


@settings(max_examples=15)
@given(st.integers(1, 4), st.integers(64, 2000), st.sampled_from(["tensorwise", "rowwise"]), st.sampled_from(["none", "full"]))
def test_more_rows_and_tokens_never_take_less(batch: int, sequence: int, recipe: str, checkpointing: str) -> None:
    """Memory is monotone in batch and sequence, phase by phase."""
    work = {"checkpointing": checkpointing, "engine_options": {"fp8_recipe": recipe}}
    base = peaks(work | {"batch": batch, "sequence": sequence})
    for more in ({"batch": batch + 1, "sequence": sequence}, {"batch": batch, "sequence": sequence + 64}):
        for name, size in peaks(work | more).items():
            assert size >= base[name], name


@pytest.mark.parametrize(
    ("training", "more", "word"),
    [
        ({"method": "lora"}, {}, "training.method"),
        ({"objective": "dpo"}, {}, "training.objective"),
        ({"engine_options": {"compile": True}}, {}, "compile"),
        ({"engine_options": {"fused_kernels": "rms_norm"}}, {}, "fused_kernels"),
        ({"checkpointing": "selective", "engine_options": {"checkpoint_saves": "mm"}}, {}, "checkpoint_saves"),
        ({}, {"hardware": {"gpu": "H100 SXM5 80GB", "gpus": 2}, "parallel": {"sharding": "fsdp"}}, "gathers"),
        ({}, {"hardware": {"gpu": "H100 SXM5 80GB", "gpus": 2}, "parallel": {"sharding": "zero3"}}, "gathers"),
        ({}, {"hardware": {"gpu": "H100 SXM5 80GB", "gpus": 2}, "parallel": {"tensor": 2}}, "precision"),
        ({}, {"model": {"config": {"model_type": "gpt2", "n_embd": 128, "n_layer": 2, "n_head": 8}}}, "linears of its own"),
    ],
)
def test_what_nobody_derived_is_unknown_with_its_reason(training: dict[str, Any], more: dict[str, Any], word: str) -> None:
    found = footprint(training, **more)
    assert found.verdict == "unknown"
    assert any(note.startswith("unknown") and word in note for note in found.notes), found.notes


def test_a_recipe_is_one_of_torchaos() -> None:
    with pytest.raises(Faults, match=r"training\.engine_options\.fp8_recipe"):
        parse_scenario(document({"engine_options": {"fp8_recipe": "blockwise"}}))


def test_shards_are_kept_in_the_weights_dtype_and_computed_alike() -> None:
    """torchtitan's loop: the layers are gathered in 16 bit, whatever their shards are kept in."""
    spread = {"hardware": {"gpu": "H100 SXM5 80GB", "gpus": 4}, "parallel": {"sharding": "fsdp"}}
    narrow, wide = (footprint({"engine": "fsdp"}, weights=weights, **spread).gpus[0].phases[0] for weights in ("bf16", "fp32"))
    assert wide.components["master_weights" if "master_weights" in wide.components else "weights"] == pytest.approx(
        2 * narrow.components["weights"], rel=0.01
    )


def test_linears_are_faster_and_casts_take_time() -> None:
    """A kernel for each step of a cast moves 31 bytes a value: uncompiled, a step is bound by them."""
    plain, narrow = footprint({"precision": "bf16"}).speed, footprint({}).speed
    assert plain is not None
    assert narrow is not None
    assert narrow["bound_by"] == "bandwidth"
    assert plain["bound_by"] == "compute"


def test_the_script_converts_what_the_plan_does() -> None:
    (script, *_) = commands_of(parse_scenario(footprint({"engine_options": {"fp8_recipe": "rowwise"}}).scenario))
    assert 'from_recipe_name("rowwise")' in script.text
    compile(script.text, "train.py", "exec")
