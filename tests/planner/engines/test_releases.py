"""What older releases of transformers copied to compute their loss."""

from __future__ import annotations

import pytest

from planner.engines.releases import is_reentrant, release_of, wraps_units
from planner.faults import Faults
from planner.scenario import parse_scenario
from resources.plan import make_plan

GPT_BIGCODE = {"config": {"model_type": "gpt_bigcode", "n_embd": 256, "n_layer": 2, "n_head": 8, "vocab_size": 49152}}


def forward(version: str | None, model: object = "HuggingFaceTB/SmolLM2-135M", checkpointing: str = "full") -> dict[str, int]:
    options = {"version": version} if version else {}
    scenario = {
        "version": 1, "model": model, "task": "training", "weights": "bf16",
        "training": {"batch": 2, "sequence": 512, "checkpointing": checkpointing, "engine_options": options},
        "hardware": {"gpu": "A100 SXM4 80GB"},
    }  # fmt: skip
    phases = make_plan(parse_scenario(scenario), network=False, calibrated=False).footprint.gpus[0].phases
    return next(phase.components for phase in phases if phase.name == "forward")


def forward_bytes(version: str | None, model: object = "HuggingFaceTB/SmolLM2-135M") -> int:
    return forward(version, model)["logits"]


def test_a_release_takes_the_newest_entry_that_is_not_newer():
    copies = [release_of(version).copies for version in ("4.45.2", "4.46", "v4.49.1", "4.50.0", "5.23.0", None)]
    assert copies == ["widened_logits", "logits", "logits", "labels", "labels", "labels"]


def test_a_family_with_a_loss_of_its_own_had_it_until_it_called_the_others():
    copies = [release_of(version, "gpt_bigcode").copies for version in ("4.45.2", "4.48.3", "4.49", "4.50", None)]
    assert copies == ["narrow_logits", "narrow_logits", "logits", "labels", "labels"]
    assert release_of("4.48.3", "gpt2").copies == "logits"


def test_what_is_no_release_is_refused_by_its_field():
    with pytest.raises(Faults, match="engine_options"):
        release_of("newest")


def test_shifted_logits_are_one_fp32_copy_more():
    every, predicted, vocabulary = 2 * 512, 2 * 511, 49152
    own, upcast = every * vocabulary * 2, every * vocabulary * 4
    shifted = log_probabilities = predicted * vocabulary * 4
    assert forward_bytes(None) == own + upcast + every * vocabulary * 4
    assert forward_bytes("4.48.1") == own + upcast + shifted + log_probabilities
    assert forward_bytes("4.45.2") == upcast + shifted + log_probabilities


def test_a_loss_of_its_own_stays_in_16_bit():
    """Logits, all but the last of each sequence again, and their log-softmax, all in the model's dtype."""
    every, predicted, vocabulary = 2 * 512, 2 * 511, 49152
    assert forward_bytes("4.48.1", GPT_BIGCODE) == (every + 2 * predicted) * vocabulary * 2
    assert forward_bytes(None, GPT_BIGCODE) == every * vocabulary * (2 + 4 + 4)


@pytest.mark.parametrize(("multi_query", "kv_heads"), [(True, 1), (False, 8)])
@pytest.mark.parametrize("version", ["4.48.1", "4.52.4"])
def test_checkpointed_layers_of_gpt_bigcode_handed_out_keys_and_values_of_their_fused_projection(version, multi_query, kv_heads):
    """Views of ``c_attn``'s output, one a layer, until the model's outputs go."""
    model = {"config": {**GPT_BIGCODE["config"], "multi_query": multi_query}}
    projected = 2 * 512 * (256 + 2 * kv_heads * 32) * 2
    older, newer = (forward(release, model)["workspace"] for release in (version, "4.53.0"))
    assert older - newer == 2 * projected


@pytest.mark.parametrize("version", ["4.48.1", "4.52.4"])
def test_without_checkpoints_autograd_keeps_the_projections_anyway(version):
    older, newer = (forward(release, GPT_BIGCODE, "none") for release in (version, "4.53.0"))
    assert older["workspace"] == newer["workspace"] and older["activations"] == newer["activations"]


def test_other_families_hand_out_nothing_under_checkpoints():
    assert not release_of("4.48.1", "llama").hands_out_keys and not release_of("4.48.1", "gpt2").hands_out_keys


def test_releases_before_5_checkpoint_by_the_reentrant_implementation_unless_told_otherwise():
    assert [is_reentrant(version) for version in ("4.48.1", "4.57", "5.0.0", None)] == [True, True, False, False]
    assert [wraps_units(version) for version in ("4.51.3", "4.52.0", None)] == [True, False, False]


SMALL_VOCABULARY = {"config": {
    "model_type": "llama", "hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 3, "num_attention_heads": 8,
    "num_key_value_heads": 2, "vocab_size": 400, "torch_dtype": "bfloat16", "tie_word_embeddings": False,
}}  # fmt: skip


def backward_bytes(**options: object) -> int:
    scenario = {
        "version": 1, "model": SMALL_VOCABULARY, "task": "training", "weights": "bf16",
        "training": {"batch": 2, "sequence": 700, "checkpointing": "full", "engine_options": options},
        "hardware": {"gpu": "A100 SXM4 80GB"},
    }  # fmt: skip
    phases = make_plan(parse_scenario(scenario), network=False, calibrated=False).footprint.gpus[0].phases
    return next(phase.allocated for phase in phases if phase.name == "backward")


def test_a_release_decides_how_layers_run_again_where_the_scenario_does_not():
    assert backward_bytes(version="4.57") == backward_bytes(use_reentrant=True) > backward_bytes()
    assert backward_bytes(version="4.57", use_reentrant=False) == backward_bytes()


def qlora_activations(version: str, checkpointing: str = "none") -> int:
    options = {"bitsandbytes_version": version} if version else {}
    scenario = {
        "version": 1, "model": SMALL_VOCABULARY, "task": "training", "weights": "nf4", "hardware": {"gpu": "A100 SXM4 80GB"},
        "training": {
            "batch": 2, "sequence": 700, "method": "qlora", "lora": {"rank": 8, "targets": ["q_proj"]},
            "checkpointing": checkpointing, "engine_options": options,
        },
    }  # fmt: skip
    phases = make_plan(parse_scenario(scenario), network=False, calibrated=False).footprint.gpus[0].phases
    return next(phase.components["activations"] for phase in phases if phase.name == "forward")


def test_4_bit_products_of_older_bitsandbytes_kept_their_inputs():
    """What both norms made and what the last linear reads; attention's result is kept by its kernel.

    Before the first adapter nothing requires a gradient: the first layer's products of its first norm keep nothing.
    """
    tokens, layers, hidden, intermediate = 2 * 700, 3, 256, 1024
    kept = (layers - 1) * hidden + layers * (hidden + intermediate)
    assert qlora_activations("0.43.2") == qlora_activations("")
    assert qlora_activations("0.43.1") - qlora_activations("") == 2 * tokens * kept


def test_checkpoints_keep_inputs_of_products_no_longer_than_their_layer():
    assert qlora_activations("0.41.1", "full") == qlora_activations("", "full")


def test_what_is_no_release_of_bitsandbytes_is_refused_by_its_field():
    with pytest.raises(Faults, match="bitsandbytes_version"):
        qlora_activations("newest")
