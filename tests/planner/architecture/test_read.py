"""Reading a config: names, defaults, classes, notes, and what is refused."""

from __future__ import annotations

import math
import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.architecture import (
    UnknownArchitecture,
    active_parameter_count,
    embedding_parameter_count,
    iter_weights,
    layer_groups,
    layer_indices,
    parameter_count,
    read_config,
)
from planner.architecture.families import FAMILIES
from planner.architecture.layers import Attention, LatentAttention, MixtureOfExperts
from planner.components.cache import cache_bytes
from planner.faults import Faults
from resources.catalog import catalog_model, model_ids

LLAMA = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 64,
    "intermediate_size": 176,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "vocab_size": 100,
    "tie_word_embeddings": False,
}


def names(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    return {prefix + weight.name: weight.shape for prefix, weight, _ in iter_weights(read_config(config))}


def test_names_and_shapes_are_the_framework_s() -> None:
    found = names(LLAMA)
    assert found["model.layers.*.self_attn.k_proj.weight"] == (16, 64)
    assert found["model.layers.*.mlp.down_proj.weight"] == (64, 176)
    assert found["lm_head.weight"] == (100, 64)


def test_a_bare_class_has_no_head_and_no_prefix() -> None:
    found = names({**LLAMA, "architectures": ["LlamaModel"]})
    assert "layers.*.self_attn.q_proj.weight" in found
    assert "lm_head.weight" not in found


def test_a_classifier_has_a_score_for_each_label() -> None:
    found = names({**LLAMA, "architectures": ["LlamaForSequenceClassification"], "id2label": {"0": "a", "1": "b", "2": "c"}})
    assert found["score.weight"] == (3, 64)


def test_a_tied_head_is_counted_once() -> None:
    apart, tied = read_config(LLAMA), read_config({**LLAMA, "tie_word_embeddings": True})
    assert parameter_count(apart) - parameter_count(tied) == 100 * 64
    assert embedding_parameter_count(tied) == 100 * 64


def test_an_absent_key_takes_the_class_s_default_and_says_so() -> None:
    found = read_config({key: value for key, value in LLAMA.items() if key != "vocab_size"})
    assert found.vocab_size == 32000
    assert found.sources["vocab_size"] == "default: vocab_size = 32000"
    assert found.sources["num_key_value_heads"] == "config.json: num_key_value_heads = 2"


def test_null_is_not_absent() -> None:
    """DeepSeek-V2: q_lora_rank is 1536 by default, null means no compression (V2-Lite)."""
    config = dict(catalog_model("deepseek-ai/DeepSeek-V2-Lite").config)
    assert config["q_lora_rank"] is None
    mixers = [
        read_config(given).decoder.layers[0].sequence[0]
        for given in (config, {k: v for k, v in config.items() if k != "q_lora_rank"})
    ]
    assert [mixer.q_lora_rank for mixer in mixers if isinstance(mixer, LatentAttention)] == [None, 1536]


def test_equal_layers_are_folded_and_keep_their_places() -> None:
    found = read_config(catalog_model("google/gemma-3-1b-it").config)
    groups = layer_groups(found.decoder)
    assert [count for _, count in groups] == [22, 4]
    places = [index for _, indices in layer_indices(found.decoder) for index in indices]
    assert sorted(places) == list(range(26))


def test_a_token_passes_only_its_experts() -> None:
    found = read_config(catalog_model("Qwen/Qwen3-30B-A3B").config)
    assert active_parameter_count(found) == 3_353_032_704
    dense = read_config(LLAMA)
    assert active_parameter_count(dense) == parameter_count(dense)


def test_all_faults_are_named_at_once() -> None:
    with pytest.raises(Faults) as caught:
        read_config({**LLAMA, "num_hidden_layers": -3, "hidden_size": math.nan, "vocab_size": 10**30, "num_key_value_heads": "8"})
    paths = {fault.path for fault in caught.value.faults}
    assert paths == {"num_hidden_layers", "hidden_size", "vocab_size", "num_key_value_heads"}
    assert "num_hidden_layers: must be at least 1, got -3" in str(caught.value)


def test_a_fault_inside_a_part_has_the_part_s_path() -> None:
    config = dict(catalog_model("google/gemma-3-4b-it").config)
    with pytest.raises(Faults, match=r"^text_config\.num_hidden_layers: must be at least 1, got 0$"):
        read_config({**config, "text_config": {**config["text_config"], "num_hidden_layers": 0}})  # type: ignore[dict-item]


@pytest.mark.parametrize(
    "config", [{}, {"model_type": None}, {"model_type": "no_such_type"}, {"model_type": "bigbird_of_prey", "hidden_size": 8}]
)
def test_what_cannot_be_read_is_unknown_with_the_reason(config: dict[str, Any]) -> None:
    with pytest.raises(UnknownArchitecture, match="missing"):
        read_config(config)


def test_a_type_the_framework_has_and_we_do_not_is_unknown() -> None:
    with pytest.raises(UnknownArchitecture, match="transformers has a class for it"):
        read_config({**LLAMA, "model_type": "reformer"})


def test_an_unknown_type_with_known_keys_is_read_and_marked() -> None:
    found = read_config(
        {**LLAMA, "model_type": "newcomer", "architectures": ["NewcomerForCausalLM"], "rms_norm_eps": 1e-6, "hidden_act": "silu"}
    )
    assert parameter_count(found) == parameter_count(read_config(LLAMA))
    assert not found.verified
    assert any("newcomer" in note for note in found.notes)


def test_an_unknown_type_of_a_known_class_is_read_as_that_class() -> None:
    config = {**catalog_model("deepseek-ai/DeepSeek-V3").config, "model_type": "newcomer"}
    found = read_config(config)
    assert parameter_count(found) == 671_026_404_352
    assert not found.verified


@pytest.mark.parametrize("key", ["ssm_state_size", "mamba_d_state", "vision_config", "num_kv_shared_layers", "hc_mult"])
def test_keys_that_speak_of_unknown_parts_make_an_unknown_type_unknown(key: str) -> None:
    with pytest.raises(UnknownArchitecture, match=key):
        read_config({**LLAMA, "model_type": "newcomer", "architectures": [], "rms_norm_eps": 1e-6, "hidden_act": "silu", key: 4})


def test_a_key_that_could_change_sizes_is_noted() -> None:
    found = read_config({**LLAMA, "extra_heads": 3, "rope_theta": 1e6, "bos_token_id": 1})
    assert any("extra_heads" in note for note in found.notes)
    assert not any("rope_theta" in note or "bos_token_id" in note for note in found.notes)


def test_a_window_is_used_only_where_the_config_says() -> None:
    qwen = catalog_model("Qwen/Qwen2.5-7B").config
    assert qwen["use_sliding_window"] is False
    mixers = [layer.sequence[0] for layer in read_config(qwen).decoder.layers]
    assert all(isinstance(mixer, Attention) and mixer.window_tokens is None for mixer in mixers)
    mistral = read_config(catalog_model("mistralai/Mistral-7B-v0.1").config)
    assert {
        mixer.window_tokens for layer in mistral.decoder.layers for mixer in layer.sequence if isinstance(mixer, Attention)
    } == {4096}


def test_experts_of_a_checkpoint_keep_their_place_in_names() -> None:
    found = read_config(catalog_model("mistralai/Mixtral-8x7B-v0.1").config)
    expert = next(weight for _, weight, _ in iter_weights(found) if weight.role == "expert")
    assert expert.name == "mlp.experts.*.gate_proj.weight"
    assert expert.count == 8
    assert isinstance(found.decoder.layers[0].channel[0], MixtureOfExperts)


def test_modules_that_are_not_built_are_kept_apart() -> None:
    found = read_config(catalog_model("zai-org/GLM-4.6").config)
    assert [stack.kind for stack in found.unbuilt] == ["mtp"]
    assert parameter_count(found) == 352_797_814_784


def test_cache_bytes_take_grids() -> None:
    """One implementation for a point and for a grid."""
    found = read_config(catalog_model("google/gemma-3-1b-it").config)
    batch, tokens = np.array([[1], [4]]), np.array([100, 512, 513, 6000])
    grid = cache_bytes(found, batch, tokens)
    for row, batch_size in enumerate((1, 4)):
        for column, length in enumerate((100, 512, 513, 6000)):
            point = cache_bytes(found, batch_size, length)
            assert grid.logical_bytes[row, column] == point.logical_bytes
            assert grid.held_bytes[row, column] == point.held_bytes
            assert grid.per_token_bytes[column] == point.per_token_bytes


@given(st.integers(1, 20000))
@settings(max_examples=50)
def test_growth_is_the_difference_of_one_more_token(tokens: int) -> None:
    """per_token_bytes = cache(tokens + 1) − cache(tokens), for one sequence."""
    for name in ("google/gemma-3-1b-it", "Qwen/Qwen3.5-9B", "deepseek-ai/DeepSeek-V3.2", "mistralai/Mistral-7B-v0.1"):
        found = read_config(catalog_model(name).config)
        now, then = (cache_bytes(found, 1, length) for length in (tokens, tokens + 1))
        assert then.logical_bytes - now.logical_bytes == now.per_token_bytes


HOSTILE = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(allow_nan=True, allow_infinity=True),
    st.text(max_size=8),
    st.sampled_from(["full_attention", "sliding_attention", "linear_attention", "auto", "llama", "9" * 500]),
    st.lists(st.integers(-2, 2**40), max_size=4),
    st.lists(st.sampled_from(["full_attention", "mamba", ""]), max_size=4),
    st.dictionaries(st.sampled_from(["hidden_size", "model_type", "head_dim", "0"]), st.integers(-1, 2**40), max_size=3),
)
SIZES = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "intermediate_size",
    "vocab_size",
    "head_dim",
    "layer_types",
    "num_experts",
    "n_routed_experts",
    "num_local_experts",
    "num_experts_per_tok",
    "moe_intermediate_size",
    "mlp_layer_types",
    "kv_lora_rank",
    "q_lora_rank",
    "sliding_window",
    "max_window_layers",
    "text_config",
    "vision_config",
    "architectures",
    "tie_word_embeddings",
    "mamba_d_state",
    "mamba_d_head",
    "rope_parameters",
    "block_configs",
    "id2label",
    "hybrid_override_pattern",
    "per_layer_config",
    "num_kv_shared_layers",
    "compress_ratios",
    "linear_attn_config",
)


@given(model_type=st.sampled_from(sorted(FAMILIES)), values=st.dictionaries(st.sampled_from(SIZES), HOSTILE, max_size=6))
@settings(max_examples=400, deadline=2000)
def test_hostile_configs_of_any_family_end_in_an_answer_or_a_typed_error(model_type: str, values: dict[str, Any]) -> None:
    """Nonsense gives Faults or UnknownArchitecture, within two seconds; an answer is a positive count."""
    started = time.process_time()
    try:
        found = read_config({"model_type": model_type, **values})
        assert parameter_count(found) >= 0
        assert cache_bytes(found, 1, 100).logical_bytes >= 0
    except (Faults, UnknownArchitecture) as error:
        assert len(str(error)) < 20_000
    assert time.process_time() - started < 2


def test_reading_changes_nothing_in_the_config() -> None:
    for name in model_ids()[:20]:
        config = catalog_model(name).config
        before = repr(config)
        read_config(config)
        assert repr(config) == before


def test_of_a_key_under_two_names_the_other_name_holds() -> None:
    """As the configuration class sets it: what is no field of its own is set last."""
    both = read_config({"model_type": "deepseek_v3", "n_routed_experts": 64, "num_local_experts": 32})
    one = read_config({"model_type": "deepseek_v3", "n_routed_experts": 32})
    assert parameter_count(both) == parameter_count(one)
