"""Says a GGUF file's metadata in the keys of a transformers ``config.json``, so that one reader knows every model.

Keys on the left are llama.cpp's (``gguf-py/gguf/constants.py``), without the architecture's prefix; those on the right
are transformers' configuration attributes. Sizes that llama.cpp leaves out are taken from the tensors' shapes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from planner.faults import Fault, Faults, describe
from planner.formats import FILE_TYPES
from resources.gguf_header import GgufHeader

Config = dict[str, object]
COMMON = {
    "block_count": "num_hidden_layers",
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.sliding_window": "sliding_window",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "attention.layer_norm_epsilon": "layer_norm_eps",
    "rope.freq_base": "rope_theta",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
}
EXPERTS = {"expert_used_count": "num_experts_per_tok"}
MIXTRAL = {**EXPERTS, "expert_count": "num_local_experts"}
SLIM_EXPERTS = {**EXPERTS, "expert_feed_forward_length": "moe_intermediate_size"}
QWEN_MOE = {
    **SLIM_EXPERTS,
    "expert_count": "num_experts",
    "expert_shared_feed_forward_length": "shared_expert_intermediate_size",
}
DEEPSEEK = {
    **SLIM_EXPERTS,
    "expert_count": "n_routed_experts",
    "expert_shared_count": "n_shared_experts",
    "leading_dense_block_count": "first_k_dense_replace",
    "expert_group_count": "n_group",
    "expert_group_used_count": "topk_group",
}
GATED_DELTA = {
    "ssm.conv_kernel": "linear_conv_kernel_dim",
    "ssm.state_size": "linear_key_head_dim",
    "ssm.group_count": "linear_num_key_heads",
    "ssm.time_step_rank": "linear_num_value_heads",
    "full_attention_interval": "full_attention_interval",
}
GPT2_NAMES = {"block_count": "n_layer", "embedding_length": "n_embd", "attention.head_count": "n_head",
              "context_length": "n_positions", "feed_forward_length": "n_inner"}  # fmt: skip
GRANITE_MAMBA = {
    "ssm.conv_kernel": "mamba_d_conv",
    "ssm.state_size": "mamba_d_state",
    "ssm.group_count": "mamba_n_groups",
    "ssm.time_step_rank": "mamba_n_heads",
}


@dataclass(frozen=True, slots=True)
class _File:
    """One header, asked by key without the architecture's prefix."""

    arch: str
    header: GgufHeader
    shapes: Mapping[str, tuple[int, ...]]

    def get(self, key: str) -> object:
        return self.header.metadata.get(f"{self.arch}.{key}")

    def integer(self, key: str, default: int = 0) -> int:
        value = self.get(key)
        return value if isinstance(value, int) and not isinstance(value, bool) else default

    def has_tensor(self, name: str) -> bool:
        return name in self.shapes

    def any_block(self, name: str) -> bool:
        return any(re.fullmatch(rf"blk\.\d+\.{re.escape(name)}", tensor) for tensor in self.shapes)


@dataclass(frozen=True, slots=True)
class _Family:
    """How one llama.cpp architecture reads as a transformers ``model_type``."""

    model_type: str
    keys: Mapping[str, str] = field(default_factory=dict)
    fixed: Mapping[str, object] = field(default_factory=dict)
    finish: Callable[[_File, Config], None] | None = None


def config_of(header: GgufHeader) -> Config:
    """A transformers-style config from a GGUF header. Raises :class:`Faults` when the architecture is not named.

    An architecture not in the table keeps its llama.cpp name as ``model_type``: its reader decides whether the keys do.
    """
    arch = header.metadata.get("general.architecture")
    if not isinstance(arch, str) or not re.fullmatch(r"[a-z0-9_.\-]{1,64}", arch):
        raise Faults([Fault("general.architecture", f"must name an architecture, got {describe(arch)}")])
    file = _File(arch, header, {tensor.name: tensor.shape for tensor in header.tensors})
    family = FAMILIES.get(arch, _Family(arch))
    config: Config = {"model_type": family.model_type}
    for key, name in {**COMMON, **family.keys}.items():
        value = file.get(key)
        if value is not None and isinstance(value, int | float | list):
            config[name] = value
    config |= {"torch_dtype": "bfloat16", "vocab_size": _vocabulary(file), **family.fixed}
    _read_off_tensors(file, config)
    _drop_predicted_layers(file, config)
    config["quantization_config"] = {"quant_method": "gguf", "file_type": _file_type(header)}
    if family.finish is not None:
        family.finish(file, config)
    return {key: value for key, value in config.items() if value is not None or key in NULLABLE}


def _file_type(header: GgufHeader) -> str:
    """The mix's name; of a file that doesn't say it, the type most of its bytes have."""
    named = header.metadata.get("general.file_type")
    found = next((kind.name for kind in FILE_TYPES.values() if kind.file_type_id == named), "")
    if found:
        return found
    sizes: dict[str, int] = {}
    for tensor in header.tensors:
        sizes[tensor.dtype] = sizes.get(tensor.dtype, 0) + tensor.size_bytes
    return max(sizes, key=lambda name: sizes[name], default="")


NULLABLE = frozenset({"q_lora_rank", "sliding_window"})


def _vocabulary(file: _File) -> int | None:
    """Rows of the embedding table: padding included, as it is stored."""
    if table := file.shapes.get("token_embd.weight"):
        return table[0]
    return file.integer("vocab_size") or file.header.array_lengths.get("tokenizer.ggml.tokens")


def _read_off_tensors(file: _File, config: Config) -> None:
    """What only the presence of a tensor tells. A missing table (a bare header) tells nothing."""
    if not file.shapes:
        return
    config["tie_word_embeddings"] = not file.has_tensor("output.weight")
    config["attention_bias"] = file.any_block("attn_q.bias") or file.any_block("attn_qkv.bias")
    config["mlp_bias"] = file.any_block("ffn_up.bias")


def _drop_predicted_layers(file: _File, config: Config) -> None:
    """llama.cpp counts multi-token-prediction layers as blocks, transformers doesn't build them."""
    predicted, layers = file.integer("nextn_predict_layers"), config.get("num_hidden_layers")
    if predicted and isinstance(layers, int):
        config |= {"num_hidden_layers": layers - predicted, "num_nextn_predict_layers": predicted}


def _layer_types(file: _File, config: Config, local: str = "sliding_attention") -> None:
    pattern = file.get("attention.sliding_window_pattern")
    if isinstance(pattern, list):
        config["layer_types"] = [local if windowed else "full_attention" for windowed in pattern]


def _llama(file: _File, config: Config) -> None:
    if file.integer("expert_count"):
        config |= {"model_type": "mixtral", "num_local_experts": file.integer("expert_count")}


def _llama4(file: _File, config: Config) -> None:
    config["intermediate_size_mlp"] = config.get("intermediate_size")
    config["intermediate_size"] = file.get("expert_feed_forward_length")


def _gemma3n(file: _File, config: Config) -> None:
    _layer_types(file, config)
    config["vocab_size_per_layer_input"] = (file.shapes.get("per_layer_token_embd.weight") or (None,))[0]


def _gemma4(file: _File, config: Config) -> None:
    _layer_types(file, config)
    config["global_head_dim"] = config.get("head_dim")
    config["head_dim"] = file.get("attention.key_length_swa")
    per_layer = config.get("num_key_value_heads")
    types = config.get("layer_types")
    if isinstance(per_layer, list) and isinstance(types, list):
        heads = dict(zip(types, per_layer, strict=False))
        config["num_key_value_heads"] = heads.get("sliding_attention")
        config["num_global_key_value_heads"] = heads.get("full_attention")


def _olmo2(file: _File, config: Config) -> None:
    """OLMo 3 is OLMo 2 with windows, also to llama.cpp."""
    if config.get("sliding_window"):
        config["model_type"] = "olmo3"
        _layer_types(file, config)


def _gated_delta(file: _File, config: Config) -> None:
    heads, inner = file.integer("ssm.time_step_rank"), file.integer("ssm.inner_size")
    if heads:
        config["linear_value_head_dim"] = inner // heads


def _deepseek(file: _File, config: Config) -> None:
    """Head widths are given for the compressed cache (``key_length``) and, since 2025, for the heads (``*_mla``)."""
    rope = file.integer("rope.dimension_count")
    key = file.integer("attention.key_length_mla") or file.integer("attention.key_length")
    config.pop("head_dim", None)
    config |= {
        "q_lora_rank": file.get("attention.q_lora_rank"),
        "kv_lora_rank": file.get("attention.kv_lora_rank"),
        "qk_rope_head_dim": rope,
        "qk_nope_head_dim": key - rope,
        "v_head_dim": file.integer("attention.value_length_mla") or file.integer("attention.value_length"),
        "num_key_value_heads": config.get("num_attention_heads"),
    }
    if file.integer("expert_gating_func") == SIGMOID:
        config["model_type"] = "deepseek_v3"


SIGMOID = 2
"""llama.cpp's ``LLAMA_EXPERT_GATING_FUNC_TYPE_SIGMOID``: what sets DeepSeek V3 apart from V2."""


def _glm4_moe(file: _File, config: Config) -> None:
    config["use_qk_norm"] = file.any_block("attn_q_norm.weight")


def _phi3(_file: _File, config: Config) -> None:
    config.pop("head_dim", None)


def _falcon(file: _File, config: Config) -> None:
    kv_heads = config.pop("num_key_value_heads", 1)
    config |= {
        "num_kv_heads": kv_heads,
        "multi_query": kv_heads == 1,
        "new_decoder_architecture": file.any_block("attn_norm_2.weight"),
        "ffn_hidden_size": config.pop("intermediate_size", None),
    }


def _gpt_neox(file: _File, config: Config) -> None:
    config["use_parallel_residual"] = file.get("use_parallel_residual")


def _starcoder2(file: _File, config: Config) -> None:
    config["use_bias"] = file.any_block("attn_q.bias")


def _mamba(file: _File, config: Config) -> None:
    hidden, inner = file.integer("embedding_length"), file.integer("ssm.inner_size")
    config |= {"expand": inner // hidden if hidden else None, "intermediate_size": inner}
    config.pop("num_attention_heads", None)


def _mamba2(file: _File, config: Config) -> None:
    _mamba(file, config)
    heads, inner = file.integer("ssm.time_step_rank"), file.integer("ssm.inner_size")
    config |= {"num_heads": heads, "head_dim": inner // heads if heads else None}


def _granite_hybrid(file: _File, config: Config) -> None:
    inner, heads = file.integer("ssm.inner_size"), file.integer("ssm.time_step_rank")
    hidden = file.integer("embedding_length")
    config["mamba_d_head"] = inner // heads if heads else None
    config["mamba_expand"] = inner // hidden if hidden else None
    per_layer = config.get("num_key_value_heads")
    if isinstance(per_layer, list):
        config["layer_types"] = ["attention" if count else "mamba" for count in per_layer]
        config["num_key_value_heads"] = max(per_layer, default=0)
    config["shared_intermediate_size"] = file.get("expert_shared_feed_forward_length") or config.get("intermediate_size")


def _nemotron_h(file: _File, config: Config) -> None:
    kv_heads, widths = config.get("num_key_value_heads"), config.get("intermediate_size")
    if isinstance(kv_heads, list) and isinstance(widths, list):
        pairs = zip(kv_heads, widths, strict=False)
        config["hybrid_override_pattern"] = "".join("*" if kv else "-" if width else "M" for kv, width in pairs)
        config |= {"num_key_value_heads": max(kv_heads), "intermediate_size": max(widths)}
    inner, heads = file.integer("ssm.inner_size"), file.integer("ssm.time_step_rank")
    config |= {"mamba_num_heads": heads, "mamba_head_dim": inner // heads if heads else None}
    config |= {"num_attention_heads": _largest(config.get("num_attention_heads"))}


def _lfm2(_file: _File, config: Config) -> None:
    per_layer = config.get("num_key_value_heads")
    if isinstance(per_layer, list):
        config["layer_types"] = ["full_attention" if count else "conv" for count in per_layer]
        config["num_key_value_heads"] = max(per_layer, default=0)
    config["block_auto_adjust_ff_dim"] = False


def _t5(file: _File, config: Config) -> None:
    config |= {
        "d_model": config.get("hidden_size"),
        "d_ff": config.get("intermediate_size"),
        "d_kv": config.get("head_dim"),
        "num_layers": config.get("num_hidden_layers"),
        "num_heads": config.get("num_attention_heads"),
        "num_decoder_layers": file.get("decoder_block_count") or config.get("num_hidden_layers"),
        "feed_forward_proj": "gated-gelu" if file.has_tensor("enc.blk.0.ffn_gate.weight") else "relu",
        "is_encoder_decoder": True,
    }


def _largest(value: object) -> object:
    return max(value, default=None) if isinstance(value, list) else value


TIED = {"tie_word_embeddings": True}
FAMILIES: Mapping[str, _Family] = {
    "llama": _Family("llama", MIXTRAL, finish=_llama),
    "llama4": _Family("llama4_text", {**MIXTRAL, "interleave_moe_layer_step": "interleave_moe_layer_step"}, finish=_llama4),
    "mistral3": _Family("mistral"),
    "smollm3": _Family("smollm3"),
    "seed_oss": _Family("seed_oss"),
    "qwen2": _Family("qwen2"),
    "qwen2vl": _Family("qwen2"),
    "qwen2moe": _Family("qwen2_moe", QWEN_MOE),
    "qwen3": _Family("qwen3"),
    "qwen3moe": _Family("qwen3_moe", QWEN_MOE),
    "qwen3next": _Family("qwen3_next", {**QWEN_MOE, **GATED_DELTA}, finish=_gated_delta),
    "qwen35": _Family("qwen3_5_text", GATED_DELTA, finish=_gated_delta),
    "qwen35moe": _Family("qwen3_5_moe_text", {**QWEN_MOE, **GATED_DELTA}, finish=_gated_delta),
    "gemma": _Family("gemma"),
    "gemma2": _Family("gemma2", finish=_layer_types),
    "gemma3": _Family("gemma3_text", finish=_layer_types),
    "gemma3n": _Family(
        "gemma3n_text",
        {
            "attention.shared_kv_layers": "num_kv_shared_layers",
            "embedding_length_per_layer_input": "hidden_size_per_layer_input",
            "altup.num_inputs": "altup_num_inputs",
        },
        finish=_gemma3n,
    ),
    "gemma4": _Family(
        "gemma4_text",
        {
            **SLIM_EXPERTS,
            "expert_count": "num_experts",
            "attention.shared_kv_layers": "num_kv_shared_layers",
            "embedding_length_per_layer_input": "hidden_size_per_layer_input",
        },
        finish=_gemma4,
    ),
    "phi2": _Family("phi"),
    "phi3": _Family("phi3", finish=_phi3),
    "phimoe": _Family("phimoe", MIXTRAL),
    "deepseek2": _Family("deepseek_v2", DEEPSEEK, finish=_deepseek),
    "chatglm": _Family("glm"),
    "glm4": _Family("glm4"),
    "glm4moe": _Family("glm4_moe", DEEPSEEK, finish=_glm4_moe),
    "dots1": _Family("dots1", DEEPSEEK),
    "gpt-oss": _Family("gpt_oss", {**MIXTRAL, "expert_feed_forward_length": "intermediate_size"}, finish=_layer_types),
    "minimax-m2": _Family("minimax_m2", {**MIXTRAL, "expert_feed_forward_length": "intermediate_size"}),
    "olmo": _Family("olmo"),
    "olmo2": _Family("olmo2", finish=_olmo2),
    "olmoe": _Family("olmoe", {**EXPERTS, "expert_count": "num_experts"}),
    "command-r": _Family("cohere", fixed=TIED),
    "cohere2": _Family("cohere2", fixed=TIED, finish=_layer_types),
    "granite": _Family("granite"),
    "granitemoe": _Family("granitemoe", MIXTRAL),
    "granitehybrid": _Family("granitemoehybrid", {**MIXTRAL, **GRANITE_MAMBA}, finish=_granite_hybrid),
    "nemotron": _Family("nemotron"),
    "nemotron_h": _Family(
        "nemotron_h",
        {"ssm.conv_kernel": "conv_kernel", "ssm.state_size": "ssm_state_size", "ssm.group_count": "n_groups"},
        finish=_nemotron_h,
    ),
    "lfm2": _Family("lfm2", {"shortconv.l_cache": "conv_L_cache"}, finish=_lfm2),
    "exaone4": _Family("exaone4", finish=_layer_types),
    "ernie4_5": _Family("ernie4_5"),
    "starcoder2": _Family("starcoder2", finish=_starcoder2),
    "stablelm": _Family("stablelm"),
    "falcon": _Family("falcon", finish=_falcon),
    "gpt2": _Family("gpt2", GPT2_NAMES),
    "gptj": _Family("gptj", {**GPT2_NAMES, "rope.dimension_count": "rotary_dim"}),
    "gptneox": _Family("gpt_neox", finish=_gpt_neox),
    "bloom": _Family("bloom", {"block_count": "n_layer", "attention.head_count": "n_head"}),
    "mpt": _Family("mpt", {"embedding_length": "d_model", "block_count": "n_layers", "attention.head_count": "n_heads"}),
    "mamba": _Family(
        "mamba",
        {"ssm.conv_kernel": "conv_kernel", "ssm.state_size": "state_size", "ssm.time_step_rank": "time_step_rank"},
        finish=_mamba,
    ),
    "mamba2": _Family(
        "mamba2",
        {"ssm.conv_kernel": "conv_kernel", "ssm.state_size": "state_size", "ssm.group_count": "n_groups"},
        finish=_mamba2,
    ),
    "t5": _Family("t5", {"attention.relative_buckets_count": "relative_attention_num_buckets"}, finish=_t5),
    "bert": _Family("bert"),
}
