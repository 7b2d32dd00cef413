"""Models whose type is not known: read by the keys they share with known ones, if those say enough."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace

from planner.architecture.blocks import attention, block, decoder, layer_norm, mlp, moe, num_layers, rms_norm
from planner.architecture.config import MAX_LAYERS, Config, Defaults, UnknownArchitecture
from planner.architecture.families.latent import latent_attention
from planner.architecture.families.llama_like import FULL, SLIDING
from planner.architecture.families.registry import FAMILIES, defaults_of, type_of_class
from planner.architecture.layers import Architecture, ChannelMixer, Layer, SequenceMixer
from planner.faults import describe

_SAME = {
    "hidden_size": ("n_embd", "d_model", "dim", "model_dim"),
    "num_hidden_layers": ("n_layer", "n_layers", "num_layers"),
    "num_attention_heads": ("n_head", "n_heads", "num_heads"),
    "num_key_value_heads": ("num_kv_heads", "n_kv_heads", "multi_query_group_num", "num_query_groups"),
    "intermediate_size": ("ffn_hidden_size", "ffn_dim", "inner_hidden_size", "d_ff", "n_inner"),
    "vocab_size": ("padded_vocab_size", "n_vocab"),
    "max_position_embeddings": ("seq_length", "max_seq_len", "n_positions", "max_sequence_length", "model_max_length"),
    "head_dim": ("kv_channels", "d_head", "attention_head_dim"),
    "num_experts": ("n_routed_experts", "num_local_experts", "moe_num_experts", "n_experts"),
    "num_experts_per_tok": ("moe_topk", "moe_top_k", "moe_k", "num_experts_per_token", "num_selected_experts"),
    "moe_intermediate_size": ("moe_ffn_hidden_size", "expert_ffn_hidden_size", "moe_inter_dim"),
    "num_shared_experts": ("n_shared_experts", "moe_num_shared_experts"),
}
"""Common name of a key → what else it is called."""

_ELSEWHERE: dict[str, dict[str, object]] = {
    "chatglm": {"hidden_act": "silu", "rms_norm_eps": 1e-5},
    "qwen": {"hidden_act": "silu", "rms_norm_eps": 1e-6, "qkv_bias": True},
    "minicpm": {"tie_word_embeddings": True, "scale_depth": None},
    "exaone": {"rms_norm_eps": 1e-5, "layer_norm_epsilon": None},
    "orion": {"layer_norm_eps": 1e-5, "rms_norm_eps": None},
    "mimo": {"attention_bias": True, "attention_out_bias": False},
    "Dream": {"attention_bias": True, "attention_out_bias": False},
}
"""What the modelling code published with the checkpoints of a type writes down and its config leaves unsaid."""

_NEEDED = ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
_GATED = ("silu", "swish", "swiglu", "geglu", "swigluoai")
_GATED_WITH_RMS_NORM = "gelu_pytorch_tanh"
"""Gemma's kind; beside a LayerNorm it is as often GPT-2's, without a gate."""
_PARTS = re.compile(
    r"mamba|ssm|conv|recurren|linear_(attn|attention|key|value|num)|lightning|rwkv|delta|state_size|vision|audio|image|encoder|decoder"
    r"|text_config|thinker|talker|altup|laurel|per_layer|block_config|pattern|layer_group|compress|cross_attention|index_|indexer|ngram"
    r"|hyper|hc_|num_streams|kv_shared|yoco|global_head|attn_layer|hybrid|sink|gate_proj|output_gate|attention_gate|position_embedding"
    r"|interleave|interval|frequency|layers_per|_every_|per_block|shared_head|attention_groups|mlp_res|use_residual|zero_expert|latent_size|adapter|lora|depth|rel_|d_rel|num_loops|recursion"
    r"|visual|img_|_img|embd_layer|processor|shar(e|ed|ing)(_|$)|use_cla|cla_|position_encoding|mixed_mlp"
)
_COUNT = re.compile(r"^(num|n|total)_|_(size|dim|rank|layers|heads|experts|steps|width|channels|blocks|groups|bits?)$")
"""Names of sizes: one that is said and not understood makes other numbers wrong."""


def by_keys(values: Mapping[str, object], named_class: str) -> Architecture:
    """The architecture a config describes by common keys, marked as not verified.

    Raises :class:`UnknownArchitecture` naming what is missing, or the keys that speak of parts it does not know.
    """
    known = type_of_class(named_class) if named_class else None
    if known is not None and values.get("model_type") not in FAMILIES:
        return read_as(values, known, named_class)
    config = renamed(completed(values))
    if "block_configs" in values:
        return finish(nemotron_nas(config), config)
    missing = [name for name in _NEEDED if not config.says(name)]
    if missing:
        raise UnknownArchitecture(
            f"model_type {describe(values.get('model_type'))} is not known and {', '.join(missing)} is missing"
        )
    found = decoder_by_keys(config)
    strange = sorted(path for path in config.unread() if _PARTS.search(path) or is_strange_size(config, path))
    if strange:
        raise UnknownArchitecture(
            f"model_type {describe(values.get('model_type'))} is not known and these keys speak of parts "
            f"this reader does not know: {', '.join(strange[:10])}"
        )
    return finish(found, config)


def is_strange_size(config: Config, key: str) -> bool:
    """Whether a key says a size that nothing was read from: not another name of one that was, not zero or one."""
    value = config.values.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or value < 2 or not _COUNT.search(key):
        return False
    common = next((name for name, others in _SAME.items() if key == name or key in others), None)
    return common is None or (key != "intermediate_size" and config.get(common) not in (None, value))


def completed(values: Mapping[str, object]) -> Mapping[str, object]:
    """The config with what its type's own code takes for granted."""
    model_type = values.get("model_type")
    known = _ELSEWHERE.get(model_type) if isinstance(model_type, str) else None
    if known is None:
        return values
    found: dict[str, object] = {**known, **{key: value for key, value in values.items() if known.get(key, "") is not None}}
    width = found.get("intermediate_size")
    if model_type == "qwen" and isinstance(width, int):
        found["intermediate_size"] = width // 2  # of w1 and w2 together
    return found


def read_as(values: Mapping[str, object], model_type: str, named_class: str) -> Architecture:
    """A config of an unknown type whose class is a known one (Kimi K2 names DeepSeek-V3's)."""
    defaults = defaults_of(model_type)
    config = Config(
        {**values, "model_type": model_type}, defaults, base=f"{defaults.base}." if defaults.base else "", head="lm_head"
    )
    unsaid = [name for name in (*_NEEDED, "intermediate_size") if defaults.knows(name) and not config.says(name)]
    if unsaid:
        raise UnknownArchitecture(
            f"model_type {describe(values.get('model_type'))} is not known; its class {named_class} is that of {model_type}, "
            f"whose {', '.join(unsaid)} it does not say"
        )
    found = FAMILIES[model_type](config)
    config.notes.insert(
        0, f"model_type {describe(values.get('model_type'))} is not known; read as {model_type} by its class {named_class}"
    )
    named = str(values.get("model_type", model_type))[:256]
    return finish(replace(found, model_type=named, decoder_type=found.decoder_type or found.model_type), config)


def finish(found: Architecture, config: Config) -> Architecture:
    """Raise what was wrong, else mark the reading as not verified and say what was left."""
    config.reader.raise_faults()
    notes = [*found.notes, *config.notes]
    if unread := config.unread():
        notes.append(f"not understood, could change sizes: {', '.join(unread[:40])}")
    return replace(found, verified=False, notes=tuple(notes), sources=config.sources)


def renamed(values: Mapping[str, object]) -> Config:
    """The config with the common names of its keys as aliases."""
    aliases = {
        common: next(name for name in others if name in values)
        for common, others in _SAME.items()
        if common not in values and any(name in values for name in others)
    }
    return Config(values, Defaults(aliases=aliases, model_class=""), base="model.", head="lm_head")


def decoder_by_keys(config: Config) -> Architecture:
    """A decoder of norm, rotary or latent attention, norm, and a gated block or experts."""
    layers = num_layers(config)
    model_type = describe(config.get("model_type"))
    config.notes.insert(0, f"model_type {model_type} is not known: read by its keys as a decoder of Llama's build, not verified")
    activation = config.text("hidden_act", "hidden_activation", "activation_function", default="").lower()
    normed = config.says("rms_norm_eps", "rms_norm_epsilon")
    if activation not in _GATED and not (normed and activation == _GATED_WITH_RMS_NORM):
        raise UnknownArchitecture(
            f"model_type {model_type} is not known and hidden_act {describe(activation)} does not say a gated block"
        )
    if normed:
        make = rms_norm
    elif config.says("layer_norm_eps", "layer_norm_epsilon"):
        make = layer_norm
    else:
        raise UnknownArchitecture(
            f"model_type {model_type} is not known and no key says which norm it has (rms_norm_eps, layer_norm_eps)"
        )
    types = windows(config, layers)
    sparse = sparse_layers(config, layers)
    kinds = list(zip(types, sparse, strict=True))
    mixers = {name: mixer_by_keys(config, name) for name in dict.fromkeys(types)}
    channels = {kind: channel_by_keys(config, sparse=kind) for kind in dict.fromkeys(sparse)}
    made: dict[tuple[str, bool], Layer] = {
        kind: block(config, mixers[kind[0]], channels[kind[1]], norm=make) for kind in dict.fromkeys(kinds)
    }
    if not config.says("tie_word_embeddings"):
        config.notes.append("tie_word_embeddings is missing: read as a head of its own (vocab_size · hidden_size parameters)")
    return decoder(config, [made[kind] for kind in kinds], norm=make)


def windows(config: Config, layers: int) -> tuple[str, ...]:
    """Full or windowed for each layer: as its type says, else as Qwen's keys do, else all that have a window."""
    used = config.flag("use_sliding_window", default=True) and config.optional("sliding_window", minimum=0)
    first = config.optional("max_window_layers", minimum=0) or 0
    if used and first and not config.says("use_sliding_window", "layer_types"):
        raise UnknownArchitecture("an unknown model type that does not say which layers are windowed (use_sliding_window)")
    return config.layer_types(layers, lambda index: SLIDING if used and index >= first else FULL, (FULL, SLIDING))


def sparse_layers(config: Config, layers: int) -> tuple[bool, ...]:
    """Whether each layer has experts."""
    count = config.optional("num_experts", minimum=0, maximum=2**20) or 0
    first = config.optional("first_k_dense_replace", "num_dense_layers", "first_dense_layers", minimum=0) or 0
    step = config.optional("decoder_sparse_step", "moe_layer_freq") or 1
    if count > 1 and step != 1:
        raise UnknownArchitecture("an unknown model type with experts in some layers only (decoder_sparse_step, moe_layer_freq)")
    return tuple(count > 1 and index >= first for index in range(layers))


def mixer_by_keys(config: Config, kind: str) -> SequenceMixer:
    """Latent attention when its ranks are given, else grouped-query attention."""
    if config.says("kv_lora_rank"):
        return latent_attention(config)
    every = config.flag("use_bias", "bias")
    query = config.flag("attention_bias", "qkv_bias", "add_qkv_bias", "use_qkv_bias", default=every)
    output = config.flag("attention_out_bias", "o_bias", default=every)
    if config.flag("attention_bias") and not config.says("attention_out_bias", "o_bias"):
        raise UnknownArchitecture(
            "an unknown model type whose attention_bias does not say whether the output projection has one (attention_out_bias)"
        )
    normed = config.flag("use_qk_norm", "qk_norm", "qk_layernorm", "use_qk_layernorm")
    return attention(
        config,
        qkv_bias=query,
        output_bias=output,
        qk_norm="per_head" if normed else "none",
        window_tokens=config.size("sliding_window") if kind == SLIDING else None,
    )


def channel_by_keys(config: Config, *, sparse: bool) -> ChannelMixer:
    """A gated block, or experts with shared ones beside them."""
    if not sparse:
        return mlp(config, bias=config.flag("mlp_bias", default=config.flag("use_bias")))
    width = config.optional("moe_intermediate_size") or config.size("intermediate_size")
    shared = config.optional("shared_expert_intermediate_size", "moe_shared_expert_intermediate_size", minimum=0)
    count = config.optional("num_shared_experts", minimum=0)
    if shared is None:
        shared = width * (count or 0)
    elif count is not None and count > 1 and shared != count * width:
        raise UnknownArchitecture("an unknown model type whose shared experts have two widths, of one or of all of them")
    balanced = config.text("topk_method") == "noaux_tc"
    return moe(
        config,
        config.size("num_experts", maximum=2**20),
        config.size("num_experts_per_tok"),
        width,
        shared_width=shared,
        correction="gate.e_score_correction_bias" if balanced else "",
    )


def nemotron_nas(config: Config) -> Architecture:
    """Models found by Puzzle (Llama-Nemotron): each layer's attention and feed-forward are given, or left out."""
    blocks = config.get("block_configs")
    layers = config.size("num_hidden_layers", maximum=MAX_LAYERS)
    config.notes.append("block_configs: read layer by layer; transformers has no class for this type")
    if not isinstance(blocks, list | tuple) or len(blocks) != layers:
        config.reader.fault("block_configs", f"must have one entry for each of the {layers} layers")
        blocks = ()
    read: dict[tuple[object, ...], tuple[int, int | None, int]] = {}
    kinds = []
    for index, value in enumerate(blocks):
        same = nas_scalars(value)
        kind = read[same] if same in read else nas_kind(config, value, index)
        read.setdefault(same, kind)
        kinds.append(kind)
    made = {kind: nas_layer(config, *kind) for kind in dict.fromkeys(kinds)}
    return decoder(config, [made[kind] for kind in kinds])


def nas_scalars(value: object) -> tuple[object, ...]:
    """The plain values of a layer's entry in order: equal ones need reading once."""
    parts = value.values() if isinstance(value, Mapping) else (value,)
    return tuple(item if isinstance(item, str | int | float | None) else id(item) for part in parts for item in plain(part))


def plain(part: object) -> Iterable[object]:
    """The values of an object, or the value itself."""
    return part.values() if isinstance(part, Mapping) else (part,)


def nas_kind(config: Config, value: object, index: int) -> tuple[int, int | None, int]:
    """Of one layer: key-value heads (0 without attention), window, width of the feed-forward (0 without)."""
    reader = type(config.reader)(value, f"block_configs.{index}", config.reader.faults)
    entry = Config(value if isinstance(value, Mapping) else {}, Defaults(), reader=reader)
    mixing, feeding = entry.child("attention", Defaults()), entry.child("ffn", Defaults())
    for part in (mixing, feeding):
        for name in ("replace_with_linear", "sparsify"):
            if part.get(name):
                raise UnknownArchitecture(f"block_configs.{index}: {name} is not read")
    hidden, heads = config.size("hidden_size"), config.size("num_attention_heads")
    kv_heads = 0 if mixing.flag("no_op") else max(heads // mixing.size("n_heads_in_group"), 1)
    width = 0
    if not feeding.flag("no_op"):
        width = int(2 * feeding.number("ffn_mult", default=0.0) * hidden / 3)
        if not 0 < width < 2**24:
            config.reader.fault(f"block_configs.{index}.ffn.ffn_mult", "must give a width above zero")
            width = 1
    return kv_heads, mixing.optional("window_length"), -(-width // 256) * 256


def nas_layer(config: Config, kv_heads: int, window: int | None, width: int) -> Layer:
    """One layer: attention in groups, a feed-forward whose width is a multiple of 256, either left out."""
    bias = config.flag("attention_bias")
    mixer = channel = None
    norms = []
    if kv_heads:
        mixer = attention(config, kv_heads=kv_heads, qkv_bias=bias, output_bias=bias, window_tokens=window)
        norms.append("input_layernorm")
    if width:
        channel = mlp(config, width, bias=config.flag("mlp_bias"))
        norms.append("post_attention_layernorm")
    return block(config, mixer, channel, norms=norms)
