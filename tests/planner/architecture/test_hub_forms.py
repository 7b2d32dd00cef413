"""Configs in the forms published checkpoints have them: former names, keys of other code, lists said for each layer."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from planner.architecture import UnknownArchitecture, active_parameter_count, parameter_count, read_config
from planner.architecture.families.registry import defaults_of
from planner.architecture.layers import Attention
from tests.planner.architecture.framework import build, differences
from tests.planner.architecture.variations import vary

SIZES: dict[str, Any] = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4, "num_attention_heads": 8, "num_key_value_heads": 2,
    "vocab_size": 100, "rms_norm_eps": 1e-6, "hidden_act": "silu", "tie_word_embeddings": False,
}  # fmt: skip
PUBLISHED: dict[str, dict[str, Any]] = {
    "BLOOM by n_embed": {"model_type": "bloom", "n_embed": 128, "n_layer": 3, "num_attention_heads": 4, "vocab_size": 200},
    "EXAONE 4 by letters": SIZES | {"model_type": "exaone4", "sliding_window": 16, "sliding_window_pattern": "LLLG",
        "layer_types": ["sliding_attention"] * 3 + ["full_attention"]},
    "Hunyuan by layer": SIZES | {"model_type": "hunyuan_v1_moe", "moe_topk": [2] * 4, "num_experts": 4, "head_dim": 16,
        "pad_token_id": 0},
    "Command-R+": SIZES | {"model_type": "cohere", "use_qk_norm": True},
    "blocks and layers (xLSTM)": {"model_type": "xlstm", "hidden_size": 64, "num_blocks": 3, "num_heads": 4, "vocab_size": 100},
    "OPT-350M": SIZES | {"model_type": "opt", "ffn_dim": 96, "do_layer_norm_before": False, "word_embed_proj_dim": 32},
    "a reward model of two parts": {"model_type": "gemma3", "architectures": ["Gemma3ForSequenceClassification"],
        "id2label": {"0": "a", "1": "b", "2": "c"}},
    "an extractive reader": SIZES | {"model_type": "mixtral", "architectures": ["MixtralForQuestionAnswering"]},
}  # fmt: skip


@pytest.fixture(autouse=True)
def quiet(recwarn: pytest.WarningsRecorder) -> None:
    logging.getLogger("transformers").setLevel(logging.CRITICAL)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_form_is_read_as_transformers_reads_it(name: str) -> None:
    config = PUBLISHED[name]
    if config["model_type"] == "gemma3":
        config = vary("gemma3", 0, small=True) | config
    found = read_config(config)
    assert differences(found, build(config, found.model_class)) == []


@pytest.mark.parametrize("model_type", ["deepseek_v4", "ernie4_5_moe", "hy_v3", "nemotron_h", "mistral4", "granitemoehybrid"])
def test_every_name_a_class_takes_a_key_under_is_read(model_type: str) -> None:
    """transformers' ``attribute_map`` works both ways: a config may say ``num_experts`` where the class stores another name."""
    config = vary(model_type, 110, small=True)
    common = {stored: name for name, stored in defaults_of(model_type).aliases.items()}
    renamed = {common.get(key, key): value for key, value in config.items()}
    assert renamed.keys() != config.keys()
    found = read_config(renamed)
    assert differences(found, build(renamed, found.model_class)) == []


def test_a_part_its_class_completes_is_read_with_what_it_leaves_unsaid() -> None:
    config = vary("voxtral", 0, small=True)
    config["text_config"] = {key: value for key, value in config["text_config"].items() if key != "vocab_size"}
    found = read_config(config)
    assert differences(found, build(config, found.model_class)) == []


@pytest.mark.parametrize("used", [False, True])
def test_a_window_that_smollm3_does_not_use_is_no_window(used: bool) -> None:
    found = read_config(SIZES | {"model_type": "smollm3", "sliding_window": 16, "use_sliding_window": used})
    mixers = [layer.sequence[0] for layer in found.decoder.layers]
    assert [isinstance(mixer, Attention) and mixer.window_tokens for mixer in mixers] == [None, None, None, 16 if used else None]


def test_phi_moe_takes_two_experts_whatever_is_said() -> None:
    config = SIZES | {"model_type": "phimoe", "num_local_experts": 8, "num_experts_per_tok": 1}
    assert active_parameter_count(read_config(config)) == active_parameter_count(read_config(config | {"num_experts_per_tok": 2}))


def test_letters_without_types_say_which_layers_are_windowed() -> None:
    config = SIZES | {"model_type": "exaone4", "sliding_window": 16, "sliding_window_pattern": "LG"}
    mixers = [layer.sequence[0] for layer in read_config(config).decoder.layers]
    assert [isinstance(mixer, Attention) and mixer.window_tokens for mixer in mixers] == [16, None, 16, None]


ELSEWHERE: dict[str, tuple[int, dict[str, Any]]] = {
    "Qwen/Qwen-7B": (7_721_324_544, {
        "model_type": "qwen", "architectures": ["QWenLMHeadModel"], "hidden_size": 4096, "intermediate_size": 22016,
        "num_hidden_layers": 32, "num_attention_heads": 32, "kv_channels": 128, "vocab_size": 151936, "no_bias": True,
        "layer_norm_epsilon": 1e-6, "seq_length": 8192, "tie_word_embeddings": False,
    }),
    "THUDM/chatglm2-6b": (6_243_584_000, {
        "model_type": "chatglm", "architectures": ["ChatGLMModel"], "add_bias_linear": False, "add_qkv_bias": True,
        "ffn_hidden_size": 13696, "hidden_size": 4096, "kv_channels": 128, "layernorm_epsilon": 1e-5,
        "multi_query_attention": True, "multi_query_group_num": 2, "num_attention_heads": 32, "num_layers": 28,
        "padded_vocab_size": 65024, "rmsnorm": True, "seq_length": 32768, "tie_word_embeddings": False,
    }),
    "openbmb/MiniCPM-2B-sft-bf16": (2_724_880_896, {
        "model_type": "minicpm", "architectures": ["MiniCPMForCausalLM"], "hidden_act": "silu", "hidden_size": 2304,
        "intermediate_size": 5760, "num_attention_heads": 36, "num_hidden_layers": 40, "num_key_value_heads": 36,
        "rms_norm_eps": 1e-5, "vocab_size": 122753, "dim_model_base": 256, "scale_depth": 1.4, "scale_emb": 12,
    }),
    "baichuan-inc/Baichuan2-7B-Base": (7_505_973_248, {
        "model_type": "baichuan", "architectures": ["BaichuanForCausalLM"], "hidden_act": "silu", "hidden_size": 4096,
        "intermediate_size": 11008, "num_attention_heads": 32, "num_hidden_layers": 32, "rms_norm_eps": 1e-6,
        "vocab_size": 125696, "tie_word_embeddings": False,
    }),
    "LGAI-EXAONE/EXAONE-3.5-7.8B-Instruct": (7_818_448_896, {
        "model_type": "exaone", "architectures": ["ExaoneForCausalLM"], "activation_function": "silu", "head_dim": 128,
        "hidden_size": 4096, "intermediate_size": 14336, "layer_norm_epsilon": 1e-5, "num_attention_heads": 32,
        "num_key_value_heads": 8, "num_layers": 32, "tie_word_embeddings": False, "vocab_size": 102400,
    }),
    "Dream-org/Dream-v0-Instruct-7B": (7_615_616_512, {
        "model_type": "Dream", "architectures": ["DreamModel"], "hidden_act": "silu", "hidden_size": 3584,
        "intermediate_size": 18944, "max_window_layers": 28, "num_attention_heads": 28, "num_hidden_layers": 28,
        "num_key_value_heads": 4, "rms_norm_eps": 1e-6, "sliding_window": None, "tie_word_embeddings": False,
        "use_sliding_window": False, "vocab_size": 152064,
    }),
    "deepseek-ai/deepseek-moe-16b-base": (16_375_728_128, {
        "model_type": "deepseek", "architectures": ["DeepseekForCausalLM"], "attention_bias": False,
        "first_k_dense_replace": 1, "hidden_act": "silu", "hidden_size": 2048, "intermediate_size": 10944,
        "moe_intermediate_size": 1408, "moe_layer_freq": 1, "n_routed_experts": 64, "n_shared_experts": 2,
        "num_attention_heads": 16, "num_experts_per_tok": 6, "num_hidden_layers": 28, "num_key_value_heads": 16,
        "rms_norm_eps": 1e-6, "tie_word_embeddings": False, "vocab_size": 102400,
    }),
    "inclusionAI/Ling-lite": (16_801_974_272, {
        "model_type": "bailing_moe", "architectures": ["BailingMoeForCausalLM"], "first_k_dense_replace": 0, "head_dim": 128,
        "hidden_act": "silu", "hidden_size": 2048, "intermediate_size": 5632, "max_window_layers": 28,
        "moe_intermediate_size": 1408, "norm_head": True, "num_attention_heads": 16, "num_experts": 64,
        "num_experts_per_tok": 6, "num_hidden_layers": 28, "num_key_value_heads": 4, "num_shared_experts": 2,
        "rms_norm_eps": 1e-6, "tie_word_embeddings": False, "use_bias": False, "use_qkv_bias": False, "vocab_size": 126464,
    }),
}  # fmt: skip
"""Parameters as the checkpoints' headers count them."""


@pytest.mark.parametrize("name", ELSEWHERE)
def test_types_of_code_published_with_checkpoints_are_read_and_not_verified(name: str) -> None:
    parameters, config = ELSEWHERE[name]
    found = read_config(config)
    assert parameter_count(found) == parameters
    assert not found.verified


STRANGERS: dict[str, tuple[str, dict[str, Any]]] = {
    "shared heads": ("n_shared_head", SIZES | {"model_type": "newcomer", "n_shared_head": 8}),
    "dense beside experts": ("parallel_attn_mlp_res", SIZES | {"model_type": "newcomer", "parallel_attn_mlp_res": True}),
    "a norm of either kind": ("which norm", {**SIZES, "model_type": "newcomer", "rms_norm_eps": None, "norm_eps": 1e-5}),
    "a known class with keys of its own": ("hidden_size", {
        "model_type": "phi-msft", "architectures": ["PhiForCausalLM"], "n_embd": 2560, "n_head": 32, "n_layer": 32,
        "vocab_size": 51200,
    }),
    "positions in two dimensions (ChatGLM)": ("position_encoding_2d", {
        "model_type": "chatglm", "hidden_size": 4096, "inner_hidden_size": 16384, "layernorm_epsilon": 1e-5,
        "num_attention_heads": 32, "num_layers": 28, "position_encoding_2d": True, "vocab_size": 130528,
    }),
    "a tower under a name of its own": ("visual", SIZES | {"model_type": "qwen", "visual": {"layers": 48}}),
    "keys shared between layers (Hunyuan-Large)": ("use_cla", SIZES | {
        "model_type": "hunyuan", "num_experts": 16, "moe_topk": 1, "num_shared_expert": 1, "use_cla": True,
    }),
    "layers that run several times (Ouro)": ("total_ut_steps", SIZES | {"model_type": "ouro", "total_ut_steps": 4}),
    "a LayerNorm beside a GELU": ("gated", {**SIZES, "model_type": "newcomer", "rms_norm_eps": None, "hidden_act":
        "gelu_pytorch_tanh", "layer_norm_epsilon": 1e-5}),
    "which linears have a bias": ("attention_out_bias", SIZES | {"model_type": "newcomer", "attention_bias": True}),
    "a text model's keys in a composite": ("text_config is missing", SIZES | {
        "model_type": "llava", "architectures": ["LlavaLlamaForCausalLM"], "mm_vision_tower": "openai/clip-vit-large-patch14-336",
    }),
}  # fmt: skip


@pytest.mark.parametrize("name", STRANGERS)
def test_what_a_config_does_not_say_is_not_guessed(name: str) -> None:
    reason, config = STRANGERS[name]
    with pytest.raises(UnknownArchitecture, match=reason):
        read_config(config)


def test_a_checkpoint_s_own_class_is_not_verified() -> None:
    """``auto_map`` may bring any class under a known type; one of the type's own names is transformers' too."""
    code = {"auto_map": {"AutoModelForCausalLM": "modeling.TheirsForCausalLM"}}
    given = SIZES | {"model_type": "llama"}
    assert read_config(given | code | {"architectures": ["LlamaForCausalLM"]}).verified
    theirs = read_config(given | code | {"architectures": ["TheirsForCausalLM"]})
    assert not theirs.verified
    assert any("TheirsForCausalLM" in note for note in theirs.notes)
