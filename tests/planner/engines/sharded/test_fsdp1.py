"""What FSDP1 is derived for, how its ranks share a model, and what hooks of frozen layers keep."""

from __future__ import annotations

import pytest

from planner.engines.sharded.fsdp import Policy
from planner.engines.sharded.fsdp1 import FlatSharded
from planner.footprint import Footprint
from planner.scenario import Training, parse_scenario
from resources.plan import make_plan

LLAMA = {
    "model_type": "llama", "hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 6, "num_attention_heads": 8,
    "num_key_value_heads": 2, "vocab_size": 400, "torch_dtype": "bfloat16", "tie_word_embeddings": False,
}  # fmt: skip
LORA = {"method": "lora", "lora": {"rank": 64, "targets": ["q_proj", "v_proj"]}}
QLORA = LORA | {"method": "qlora", "precision": "amp-bf16"}


def footprint(gpus: int = 2, weights: str = "bf16", options: dict[str, object] | None = None, **training: object) -> Footprint:
    asked = {"fsdp_version": 1, "version": "4.48.1"} if options is None else options
    work = {"batch": 2, "sequence": 1024, "checkpointing": "full", "engine_options": asked} | training
    document = {
        "version": 1, "model": {"config": LLAMA}, "task": "training", "weights": weights, "training": work,
        "hardware": {"gpu": "A100 SXM4 80GB", "gpus": gpus}, "parallel": {"data": gpus, "sharding": "fsdp"},
    }  # fmt: skip
    return make_plan(parse_scenario(document), network=False, calibrated=False).footprint


def phase(found: Footprint, name: str) -> dict[str, int]:
    return dict(next(phase.components for phase in found.gpus[0].phases if phase.name == name))


def test_frozen_layers_keep_their_inputs_and_gradients_until_the_end_of_the_backward():
    """The inputs of all layers behind the first, and the gradients that came to all but the last of them."""
    one = 2 * 1024 * 256 * 2
    alone = {"version": "4.48.1"}
    document = {
        "version": 1, "model": {"config": LLAMA}, "task": "training", "weights": "bf16", "hardware": {"gpu": "A100 SXM4 80GB"},
        "training": {"batch": 2, "sequence": 1024, "checkpointing": "full", "engine_options": alone} | LORA,
    }  # fmt: skip
    single = make_plan(parse_scenario(document), network=False, calibrated=False).footprint
    more = phase(footprint(**LORA), "backward")["activations"] - phase(single, "backward")["activations"]
    assert more == (LLAMA["num_hidden_layers"] - 2) * one


def test_trained_layers_keep_nothing_so_long():
    trained, frozen = (phase(footprint(**more), "backward")["activations"] for more in ({}, LORA))
    assert trained < frozen


@pytest.mark.parametrize("gpus", [2, 4, 8])
@pytest.mark.parametrize(("weights", "method"), [("bf16", {}), ("bf16", LORA), ("nf4", QLORA)])
def test_parts_of_all_ranks_add_up(gpus: int, weights: str, method: dict[str, object]):
    """Shards add up; what reads 4-bit values is whole on every rank."""
    two, many = (phase(footprint(count, weights, **method), "load") for count in (2, gpus))
    for name in {"weights", "adapters"} & set(two):
        assert gpus * many[name] == pytest.approx(2 * two[name], rel=0.01)
    assert many.get("quantization_state") == two.get("quantization_state")


def test_sharded_4_bit_adapters_are_computed_as_beside_plain_weights():
    """Under mixed precision in 16 bit: the same activations, whatever holds the frozen weights."""
    plain, quantised = (footprint(2, weights, **method) for weights, method in (
        ("bf16", LORA | {"precision": "amp-bf16"}), ("nf4", QLORA),
    ))  # fmt: skip
    assert phase(plain, "backward")["activations"] == phase(quantised, "backward")["activations"]


@pytest.mark.parametrize("more", [
    {"checkpointing": "none"},
    {"checkpointing": "selective"},
    {"gradient_accumulation": 2},
    {"options": {"fsdp_version": 1, "version": "4.48.1", "use_reentrant": False}},
    {"options": {"fsdp_version": 1, "version": "4.52.1"}},
    {"options": {"fsdp_version": 1}},
    {"options": {"fsdp_version": 1, "version": "4.48.1", "reshard_after_forward": False}},
])  # fmt: skip
def test_other_runs_of_fsdp1_are_unknown_with_a_reason(more: dict[str, object]):
    found = footprint(**more)
    assert not any(gpu.phases for gpu in found.gpus)
    assert any("fsdp_version" in note and "version 2" in note for note in found.notes)


def test_version_2_is_what_none_is():
    assert footprint(options={"fsdp_version": 2}).gpus == footprint(options={}).gpus


def test_4_bit_weights_under_version_2_stay_unknown():
    assert any("qlora with sharding fsdp" in note for note in footprint(2, "nf4", {}, **QLORA).notes)


SANTACODER = {
    "model_type": "gpt_bigcode", "architectures": ["GPTBigCodeForCausalLM"], "n_embd": 2048, "n_layer": 24, "n_head": 16,
    "n_inner": 8192, "n_positions": 2048, "vocab_size": 49280, "multi_query": True, "activation_function": "gelu_pytorch_tanh",
    "attn_pdrop": 0.1, "embd_pdrop": 0.1, "resid_pdrop": 0.1,
}  # fmt: skip


@pytest.mark.parametrize(("batch", "measured"), [(2, 4_788_195_328), (4, 8_957_644_800)])
def test_layer_norms_over_a_sharded_4_bit_base_widen_under_autocast(batch: int, measured: int):
    """fms-acceleration, a100_80gb.csv: rows 69 and 71, two A100, transformers 4.48.1; computed in 16 bit it would be 43 % less."""
    training = {
        "batch": batch, "sequence": 2048, "method": "qlora", "precision": "amp-bf16", "checkpointing": "full", "attention": "flash",
        "optimizer": "adamw_foreach", "lora": {"rank": 16, "alpha": 16, "dropout": 0.1, "targets": ["c_attn"]},
        "engine_options": {"fsdp_version": 1, "version": "4.48.1"},
    }  # fmt: skip
    document = {
        "version": 1, "model": {"config": SANTACODER}, "task": "training", "weights": "nf4-dq", "training": training,
        "hardware": {"gpu": "A100 SXM4 80GB", "gpus": 2}, "parallel": {"data": 2, "sharding": "fsdp"},
    }  # fmt: skip
    found = make_plan(parse_scenario(document), network=False, calibrated=False).footprint
    assert max(phase.allocated for phase in found.gpus[0].phases) == pytest.approx(measured, rel=0.01)


def test_a_unit_that_is_given_up_still_waits_for_the_card():
    """FSDP gathers a unit before the one before it has been computed with: the allocator takes both, of which one is live."""
    layer = 2 * 256 * 256 + 2 * 64 * 256 + 3 * 256 * 1024 + 2 * 256
    architecture = make_plan(parse_scenario({"model": {"config": LLAMA}, "task": "training"}), network=False).architecture
    assert FlatSharded(architecture, Policy(2, 2, 4, 4), Training()).waiting_bytes == 2 * layer
    assert FlatSharded(architecture, Policy(1, 2, 4, 4), Training()).waiting_bytes == 0
