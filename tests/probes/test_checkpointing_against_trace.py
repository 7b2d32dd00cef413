"""Every kind of checkpointing in closed form against the worker's, where layers make the peak."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import pytest

from planner.scenario import parse_scenario
from resources.plan import make_plan

LLAMA = {
    "model_type": "llama", "hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 3, "num_attention_heads": 8,
    "num_key_value_heads": 2, "vocab_size": 400, "torch_dtype": "bfloat16", "tie_word_embeddings": False,
}  # fmt: skip
GPT2 = {
    "model_type": "gpt2", "n_embd": 256, "n_layer": 3, "n_head": 8, "n_positions": 1024, "vocab_size": 400,
    "torch_dtype": "bfloat16",
}  # fmt: skip
KINDS = {
    "full": {"checkpointing": "full"},
    "reentrant": {"checkpointing": "full", "engine_options": {"use_reentrant": True}},
    "offloaded": {"checkpointing": "full", "engine_options": {"checkpoint_offload": True}},
    "offloaded, reentrant": {"checkpointing": "full", "engine_options": {"checkpoint_offload": True, "use_reentrant": True}},
    "every second layer": {"checkpointing": "selective"},
    "every third layer": {"checkpointing": "selective", "engine_options": {"checkpoint_every": 3}},
    "attention": {"checkpointing": "selective", "engine_options": {"checkpoint_modules": "attention"}},
    "feed-forward": {"checkpointing": "selective", "engine_options": {"checkpoint_modules": "mlp"}},
    "products kept": {"checkpointing": "selective", "engine_options": {"checkpoint_saves": "mm"}},
    "attention kept": {"checkpointing": "selective", "engine_options": {"checkpoint_saves": "attention"}},
    "both kept": {"checkpointing": "selective", "engine_options": {"checkpoint_saves": "mm, attention"}},
    "every second product kept": {"checkpointing": "selective", "engine_options": {"checkpoint_saves": "mm/2, attention"}},
}
LOOSE = ("attention", "feed-forward", "both kept")
"""GPT-2 drops out inside the parts that run again; a mask of one layer more or less is alive then."""
ADAPTED = {"lora": {"rank": 16, "targets": ["all-linear"]}}
GEMMA = LLAMA | {
    "model_type": "gemma2", "head_dim": 32, "sliding_window": 200, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0,
}  # fmt: skip
EXPERTS = LLAMA | {
    "model_type": "qwen3_moe", "moe_intermediate_size": 256, "num_experts": 8, "num_experts_per_tok": 2, "head_dim": 32,
}  # fmt: skip
COMBINED = {
    "products of adapters and magnitudes": (LLAMA, "products kept", ADAPTED | {"method": "dora"}),
    "products under autocast": (LLAMA, "products kept", {"precision": "amp-bf16"}),
    "products beside experts": (EXPERTS, "products kept", {}),
    "attention with masks of two kinds": (GEMMA, "attention", {}),
    "attention under dropouts of adapters": (
        LLAMA, "attention", {"method": "lora", "lora": {"rank": 16, "targets": ["all-linear"], "dropout": 0.1}},
    ),
    "whole layers under autocast, of an activation in both dtypes": (
        GPT2, "reentrant", ADAPTED | {"method": "lora", "precision": "amp-bf16"},
    ),
    "attention that trains nothing": (LLAMA, "attention", {"method": "freeze"}),
    "inputs on the host behind frozen embeddings": (LLAMA, "offloaded", ADAPTED | {"method": "lora"}),
}  # fmt: skip


def predicted(config: dict[str, object], training: dict[str, object]):
    document = {"version": 1, "model": {"config": config}, "task": "training", "hardware": {"gpu": "H200 SXM 141GB"}}
    return make_plan(parse_scenario(document | {"training": training}), network=False).footprint


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_equals_its_trace(trace, kind: str) -> None:
    assert_equal(trace, LLAMA, kind, 0.002)


@pytest.mark.parametrize("kind", ["full", "offloaded", "attention", "feed-forward", "both kept"])
def test_a_kind_equals_its_trace_with_dropout_and_biases(trace, kind: str) -> None:
    assert_equal(trace, GPT2, kind, 0.015 if kind in LOOSE else 0.005)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", COMBINED)
def test_a_kind_equals_its_trace_beside_other_choices(trace, case: str) -> None:
    config, kind, more = COMBINED[case]
    assert_equal(trace, config, kind, 0.003, more)


def assert_equal(
    trace, config: dict[str, object], kind: str, tolerance: float, more: Mapping[str, object] = MappingProxyType({})
) -> None:
    footprint = predicted(config, {"batch": 2, "sequence": 700} | KINDS[kind] | dict(more))
    traced = trace(footprint.scenario, config)
    for phase in footprint.gpus[0].phases:
        assert phase.allocated == pytest.approx(traced[phase.name]["allocated"], rel=tolerance), phase.name


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("model", ["Qwen/Qwen3-0.6B", "google/gemma-2-2b", "openai-community/gpt2"])
def test_checkpointing_never_raises_the_live_bytes_of_the_forward(model: str, kind: str) -> None:
    """Whatever is computed again is not kept."""
    document = {"version": 1, "model": model, "task": "training"}
    work = {"batch": 2, "sequence": 1024}
    without, with_ = (
        make_plan(parse_scenario(document | {"training": work | more}), network=False).footprint.gpus[0].phases[1]
        for more in ({}, KINDS[kind])
    )
    assert with_.name == "forward"
    assert with_.allocated < without.allocated


def test_inputs_of_offloaded_layers_are_in_host_memory() -> None:
    footprint = predicted(LLAMA, {"batch": 2, "sequence": 700} | KINDS["offloaded"])
    assert footprint.host.components == {"activations": 3 * 2 * 700 * 256 * 2}
    assert footprint.host.bytes == sum(footprint.host.components.values())
    assert predicted(LLAMA, {"batch": 2, "sequence": 700} | KINDS["full"]).host.bytes == 0


@pytest.mark.parametrize("options", [{"checkpoint_saves": "softmax"}, {"checkpoint_saves": "mm", "use_reentrant": True}])
def test_what_cannot_be_kept_is_unknown_with_the_field(options: dict[str, object]) -> None:
    footprint = predicted(LLAMA, {"batch": 1, "sequence": 8, "checkpointing": "selective", "engine_options": options})
    assert footprint.verdict == "unknown"
    assert any("checkpoint_saves" in note for note in footprint.notes)


def test_experts_that_run_again_are_unknown() -> None:
    document = {
        "version": 1,
        "model": "Qwen/Qwen3-30B-A3B",
        "task": "training",
        "training": {"batch": 1, "sequence": 8} | KINDS["feed-forward"],
    }
    footprint = make_plan(parse_scenario(document), network=False).footprint
    assert footprint.verdict in ("unknown", "does_not_fit")
    assert any("checkpoint_modules" in note for note in footprint.notes)
