"""GGUF metadata as llama.cpp's converter writes it, read as the config of the model it was converted from."""

from __future__ import annotations

import pytest

from planner.faults import Faults
from resources.catalog import catalog_model
from resources.gguf_config import config_of
from resources.gguf_header import GgufHeader
from resources.tensors import StoredTensor


def header(arch: str, keys: dict[str, object], tensors: dict[str, tuple[int, ...]]) -> GgufHeader:
    metadata = {"general.architecture": arch} | {f"{arch}.{key}": value for key, value in keys.items()}
    return GgufHeader(3, metadata, {}, tuple(StoredTensor(name, "F16", shape, 2) for name, shape in tensors.items()), 0)


def converted(model: str, arch: str, keys: dict[str, object], tensors: dict[str, tuple[int, ...]], names: tuple[str, ...]) -> None:
    """The named keys of the config come back from the GGUF."""
    config = catalog_model(model).config
    found = config_of(header(arch, keys, tensors))
    assert {name: found.get(name) for name in names} == {name: config.get(name) for name in names}


SIZES = (
    "model_type",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "intermediate_size",
    "vocab_size",
)


def test_llama() -> None:
    keys = {"block_count": 32, "embedding_length": 4096, "feed_forward_length": 14336, "attention.head_count": 32,
            "attention.head_count_kv": 8, "context_length": 131072, "rope.freq_base": 500000.0}  # fmt: skip
    tensors = {"token_embd.weight": (128256, 4096), "output.weight": (128256, 4096)}
    converted("meta-llama/Llama-3.1-8B", "llama", keys, tensors, (*SIZES, "tie_word_embeddings", "attention_bias"))


def test_mixtral_is_llama_with_experts() -> None:
    keys = {"block_count": 32, "embedding_length": 4096, "feed_forward_length": 14336, "attention.head_count": 32,
            "attention.head_count_kv": 8, "expert_count": 8, "expert_used_count": 2}  # fmt: skip
    tensors = {"token_embd.weight": (32000, 4096), "output.weight": (32000, 4096)}
    converted("mistralai/Mixtral-8x7B-v0.1", "llama", keys, tensors, (*SIZES, "num_local_experts", "num_experts_per_tok"))


def test_biases_and_tying_are_read_off_the_tensors() -> None:
    keys = {
        "block_count": 24,
        "embedding_length": 896,
        "feed_forward_length": 4864,
        "attention.head_count": 14,
        "attention.head_count_kv": 2,
    }
    found = config_of(header("qwen2", keys, {"token_embd.weight": (151936, 896), "blk.0.attn_q.bias": (896,)}))
    assert (found["tie_word_embeddings"], found["attention_bias"], found["vocab_size"]) == (True, True, 151936)


def test_deepseek_v3_head_widths() -> None:
    keys = {"block_count": 61, "embedding_length": 7168, "feed_forward_length": 18432, "attention.head_count": 128,
            "attention.head_count_kv": 1, "attention.q_lora_rank": 1536, "attention.kv_lora_rank": 512,
            "attention.key_length": 576, "attention.value_length": 512, "attention.key_length_mla": 192,
            "attention.value_length_mla": 128, "rope.dimension_count": 64, "expert_count": 256, "expert_used_count": 8,
            "expert_shared_count": 1, "expert_feed_forward_length": 2048, "leading_dense_block_count": 3,
            "expert_gating_func": 2}  # fmt: skip
    tensors = {"token_embd.weight": (129280, 7168), "output.weight": (129280, 7168)}
    names = ("q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim", "n_routed_experts",
             "n_shared_experts", "moe_intermediate_size", "first_k_dense_replace", "num_experts_per_tok")  # fmt: skip
    converted("deepseek-ai/DeepSeek-V3", "deepseek2", keys, tensors, (*SIZES, *names))


def test_an_older_deepseek_without_a_query_rank_is_v2() -> None:
    keys = {"block_count": 27, "embedding_length": 2048, "feed_forward_length": 10944, "attention.head_count": 16,
            "attention.head_count_kv": 16, "attention.kv_lora_rank": 512, "attention.key_length": 192,
            "attention.value_length": 128, "rope.dimension_count": 64, "expert_count": 64, "expert_shared_count": 2}  # fmt: skip
    tensors = {"token_embd.weight": (102400, 2048), "output.weight": (102400, 2048)}
    names = ("q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim", "n_shared_experts")
    converted("deepseek-ai/DeepSeek-V2-Lite", "deepseek2", keys, tensors, (*SIZES, *names))
    assert config_of(header("deepseek2", keys, tensors))["q_lora_rank"] is None


def test_glm_loses_its_predicting_layer() -> None:
    found = config_of(header("glm4moe", {"block_count": 93, "nextn_predict_layers": 1}, {"blk.0.attn_q_norm.weight": (128,)}))
    assert (found["num_hidden_layers"], found["num_nextn_predict_layers"], found["use_qk_norm"]) == (92, 1, True)


def test_nemotron_h_pattern_is_spelled_from_the_layers() -> None:
    config = catalog_model("nvidia/Nemotron-H-56B-Base-8K").config
    pattern = str(config["hybrid_override_pattern"])
    keys = {"attention.head_count_kv": [8 if layer == "*" else 0 for layer in pattern],
            "feed_forward_length": [32768 if layer == "-" else 0 for layer in pattern], "ssm.inner_size": 16384,
            "ssm.time_step_rank": 256, "ssm.state_size": 256, "ssm.conv_kernel": 4, "ssm.group_count": 8}  # fmt: skip
    names = ("hybrid_override_pattern", "num_key_value_heads", "mamba_num_heads", "mamba_head_dim", "ssm_state_size", "n_groups")
    converted("nvidia/Nemotron-H-56B-Base-8K", "nemotron_h", keys, {}, names)


def test_windows_by_layer() -> None:
    keys = {"attention.sliding_window": 1024, "attention.sliding_window_pattern": [True, True, False]}
    found = config_of(header("gemma3", keys, {}))
    assert found["layer_types"] == ["sliding_attention", "sliding_attention", "full_attention"]


def test_an_unlisted_architecture_keeps_its_name_and_keys() -> None:
    found = config_of(header("newmodel", {"block_count": 3, "embedding_length": 8}, {}))
    assert (found["model_type"], found["num_hidden_layers"], found["hidden_size"]) == ("newmodel", 3, 8)


@pytest.mark.parametrize("arch", [None, 5, "", "x" * 99, "../x"])
def test_a_file_that_names_no_architecture_is_refused(arch: object) -> None:
    with pytest.raises(Faults, match=r"general\.architecture: must name an architecture"):
        config_of(GgufHeader(3, {"general.architecture": arch}, {}, (), 0))
