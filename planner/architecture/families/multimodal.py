"""Models of several parts: a text decoder, towers for images and sound, and what joins them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from planner.architecture.blocks import (
    attention,
    block,
    decoder,
    embedding,
    layer_norm,
    linear,
    mlp,
    moe,
    num_layers,
    scale,
    with_head,
)
from planner.architecture.config import MAX_VOCABULARY, Config, UnknownArchitecture, dtype_of
from planner.architecture.families.llama_like import PRE, dense, qwen_windows
from planner.architecture.families.moe import qwen_sparse, routed, sparse_decoder
from planner.architecture.families.registry import FAMILIES, defaults_of, family, parts_of
from planner.architecture.families.towers import TOWERS
from planner.architecture.layers import Architecture, MixtureOfExperts, Stack, Weight
from planner.faults import describe

PROJECTOR = "multi_modal_projector"


COMPLETES_PARTS = ("voxtral",)
"""Types whose class gives a part what it leaves unsaid too; others give it to an absent part only."""


def part(config: Config, key: str, base: str, *, head: str = "") -> Config:
    """One part's config with the defaults of its type: what the outer class gives it, and its own class's.

    An outer class of a fixed part ignores the part's own ``model_type``; others follow it.
    """
    usual, follows, given = parts_of(config.text("model_type")).get(key, ("", True, {}))
    value = config.mapping(key)
    named = value.get("model_type")
    model_type = named if follows and isinstance(named, str) and named else usual
    if not model_type:
        raise UnknownArchitecture(f"{key}.model_type is missing and {config.text('model_type')} has no usual one")
    defaults = defaults_of(model_type)
    if given and (not value or config.text("model_type") in COMPLETES_PARTS):
        defaults = replace(defaults, values={**defaults.values, **given})
    found = config.child(key, replace(defaults, values={**defaults.values, "model_type": model_type}), base=base, head=head)
    return found if found.values.get("model_type") == model_type else with_head(found, model_type=model_type)


def text_of(
    config: Config, *, base: str | None = None, head: str | None = None, key: str = "text_config", tied_by: str = "outer"
) -> Architecture:
    """The text decoder, its head tied as the ``outer`` config says, as the ``text``'s own says, when ``either`` does, or never."""
    if not config.mapping(key) and config.says("hidden_size") and config.says("num_hidden_layers"):
        raise UnknownArchitecture(f"{key} is missing, and the keys of a text model stand in its place: another class's config")
    head = (config.head if head is None else head) if config.head else ""
    text = part(config, key, f"{config.base}language_model." if base is None else base, head=head)
    deciding = {"outer": (config,), "text": (text,), "either": (config, text), "": ()}[tied_by]
    flags = [own.flag("tie_word_embeddings") for own in deciding]
    text = with_head(text, tie_word_embeddings=any(flags))
    if head in ("score", "qa_outputs"):  # the outer class's, over the labels its own config names
        text = with_head(text, id2label=config.mapping("id2label"), num_labels=config.get("num_labels"))
        text.defaults = replace(text.defaults, model_class=config.defaults.model_class)
    model_type = text.text("model_type")
    read = FAMILIES.get(model_type)
    if read is None:
        raise UnknownArchitecture(f"{key}.model_type {describe(model_type)} is not known")
    return read(text)


def towers_of(config: Config, key: str, base: str) -> tuple[Stack, ...]:
    """The stacks of a vision or audio part."""
    own = part(config, key, base)
    model_type = own.text("model_type")
    read = TOWERS.get(model_type)
    if read is None:
        raise UnknownArchitecture(f"{key}.model_type {describe(model_type)} is not known")
    return read(own)


def combine(config: Config, text: Architecture, towers: tuple[Stack, ...], joints: tuple[Weight, ...] = ()) -> Architecture:
    """The text decoder with its towers; ``joints`` are the weights that project one into the other."""
    parts = towers
    if joints:
        parts += (Stack(f"{config.base}{PROJECTOR}", "projector", text.hidden_size, (), joints),)
    return replace(
        text,
        model_type=config.text("model_type"),
        decoder_type=text.model_type,
        model_class=config.defaults.model_class,
        towers=text.towers + parts,
        dtype=dtype_of(config) if config.says("dtype", "torch_dtype") else text.dtype,
    )


def tower_width(towers: tuple[Stack, ...]) -> int:
    """Hidden size of the last tower."""
    return towers[-1].hidden_size if towers else 1


def feature_layers(config: Config) -> int:
    """How many layers of the tower are concatenated for the projector."""
    layers = config.get("vision_feature_layer")
    return len(layers) if isinstance(layers, list | tuple) and layers else 1


def two_linears(path: str, out: int, inputs: int, *, bias: bool) -> tuple[Weight, ...]:
    """LLaVA's projector: two linears with an activation between."""
    return (*linear(f"{path}.linear_1", out, inputs, bias=bias), *linear(f"{path}.linear_2", out, out, bias=bias))


@family("llava", "llava_next", "llava_onevision", "vipllava")
def llava(config: Config) -> Architecture:
    """LLaVA and its kin."""
    kind, at = config.text("model_type"), config.base
    text = text_of(config, tied_by="either" if kind in ("llava", "llava_onevision") else "outer")
    towers = towers_of(config, "vision_config", f"{at}vision_tower.")
    width, bias = tower_width(towers), config.flag("multimodal_projector_bias", default=True)
    joints: tuple[Weight, ...] = ()
    if kind == "vipllava":
        layers = config.integers("vision_feature_layers") if config.says("vision_feature_layers") else (0,) * 5
        width *= len(layers or ()) or 1
        joints = layer_norm(f"{at}{PROJECTOR}.projector_layernorm", width).weights
        bias = True
    else:
        width *= feature_layers(config)
    joints += two_linears(f"{at}{PROJECTOR}", text.hidden_size, width, bias=bias)
    if kind in ("llava_next", "llava_onevision"):
        joints += (Weight(f"{at}image_newline", (text.hidden_size,), "other"),)
    return combine(config, text, towers, joints)


@family("mistral3", "lighton_ocr")
def mistral3(config: Config) -> Architecture:
    """Mistral Small 3.1, Ministral 3: Pixtral's tower with a merger of patches."""
    at = config.base
    text = text_of(config)
    towers = towers_of(
        config, "vision_config", f"{at}vision_tower." if config.text("model_type") == "mistral3" else f"{at}vision_encoder."
    )
    width, merge = tower_width(towers), config.size("spatial_merge_size")
    path = f"{at}{PROJECTOR}" if config.text("model_type") == "mistral3" else f"{at}vision_projection"
    joints = (
        *scale(f"{path}.norm", width),
        *linear(f"{path}.patch_merger.merging_layer", width, width * merge**2),
        *two_linears(path, text.hidden_size, width * feature_layers(config), bias=config.flag("multimodal_projector_bias")),
    )
    return combine(config, text, towers, joints)


@family("gemma3")
def gemma3(config: Config) -> Architecture:
    """Gemma 3: SigLIP's tower, one projection after a norm."""
    at = config.base
    text = text_of(config)
    towers = towers_of(config, "vision_config", f"{at}vision_tower.")
    width = tower_width(towers)
    joints = (
        Weight(f"{at}{PROJECTOR}.mm_input_projection_weight", (width, text.hidden_size), "other"),
        *scale(f"{at}{PROJECTOR}.mm_soft_emb_norm", width),
    )
    return combine(config, text, towers, joints)


@family("paligemma")
def paligemma(config: Config) -> Architecture:
    """PaliGemma: SigLIP's tower and one projection."""
    at = config.base
    text = text_of(config)
    towers = towers_of(config, "vision_config", f"{at}vision_tower.")
    joints = linear(f"{at}{PROJECTOR}.linear", config.size("projection_dim"), tower_width(towers), bias=True)
    return combine(config, text, towers, joints)


@family("gemma3n")
def gemma3n(config: Config) -> Architecture:
    """Gemma 3n: towers for images and sound, each with an embedder of hard and soft tokens."""
    at = config.base
    text = text_of(config)
    vision = towers_of(config, "vision_config", f"{at}vision_tower.")
    audio = towers_of(config, "audio_config", f"{at}audio_tower.")
    joints: tuple[Weight, ...] = ()
    for key, path in (("vision_config", f"{at}embed_vision"), ("audio_config", f"{at}embed_audio")):
        own = part(config, key, "")
        width = own.size("hidden_size")
        joints += (
            embedding(f"{path}.embedding", own.size("vocab_size", maximum=MAX_VOCABULARY), width),
            *scale(f"{path}.hard_embedding_norm", width),
            *scale(f"{path}.soft_embedding_norm", width),
            *linear(f"{path}.embedding_projection", text.hidden_size, width),
        )
    return combine(config, text, (*vision, *audio), joints)


@family("gemma4")
def gemma4(config: Config) -> Architecture:
    """Gemma 4: optional towers for images and sound, a projection each."""
    at = config.base
    text = text_of(config)
    towers: tuple[Stack, ...] = ()
    joints: tuple[Weight, ...] = ()
    for side in ("vision", "audio"):
        if not config.says(f"{side}_config"):
            continue
        stacks = towers_of(config, f"{side}_config", f"{at}{side}_tower.")
        own = part(config, f"{side}_config", "")
        width = own.optional("output_proj_dims") or own.size("hidden_size")
        joints += linear(f"{at}embed_{side}.embedding_projection", text.hidden_size, width)
        towers += stacks
    return combine(config, text, towers, joints)


@family("llama4")
def llama4(config: Config) -> Architecture:
    """Llama 4: the text model is a whole language model inside."""
    text = text_of(config, base="language_model.model.", head="language_model.lm_head", tied_by="text")
    towers = towers_of(config, "vision_config", "vision_model.")
    own = part(config, "vision_config", "")
    joints = linear(f"{PROJECTOR}.linear_1", text.hidden_size, own.size("vision_output_dim"))
    return combine(config, text, towers, joints)


@family("mllama")
def mllama(config: Config) -> Architecture:
    """Llama 3.2 Vision: some layers of the text read the image instead of the text."""
    if config.defaults.model_class.endswith("ForCausalLM"):
        raise UnknownArchitecture(f"{config.defaults.model_class} is not read; the model with its vision tower is")
    at = config.base
    text = text_of(config, tied_by="")
    towers = towers_of(config, "vision_config", f"{at}vision_model.")
    own = part(config, "vision_config", "")
    joints = linear(f"{at}{PROJECTOR}", text.hidden_size, own.size("vision_output_dim"), bias=True)
    return combine(config, text, towers, joints)


@family("mllama_text_model")
def mllama_text(config: Config) -> Architecture:
    """Llama 3's layers, and cross-attention layers with gates and head norms where ``cross_attention_layers`` says."""
    crossing = config.integers("cross_attention_layers")
    crossed = {3, 8, 13, 18, 23, 28, 33, 38} if crossing is None else set(crossing)
    plain = block(config, attention(config), mlp(config))
    gates = tuple(Weight(name, (1,), "other") for name in ("cross_attn_attn_gate", "cross_attn_mlp_gate"))
    cross = block(
        config,
        attention(config, path="cross_attn", kv="cross", qk_norm="per_head", rotary=False),
        mlp(config),
        norms=PRE,
        weights=gates,
    )
    layers = [cross if index in crossed else plain for index in range(num_layers(config))]
    return decoder(config, layers, rows=config.size("vocab_size", maximum=MAX_VOCABULARY) + 8)


@family("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe", "glm4v", "glm4v_moe", "glm46v")
def qwen_vl(config: Config) -> Architecture:
    """Qwen's and GLM's vision models: the tower holds its own merger. Early Qwen configs are flat."""
    kind = config.text("model_type")
    if kind in ("qwen2_vl", "qwen2_5_vl") and not config.says("text_config"):
        config = flattened(config)
    text = text_of(config, tied_by="either" if kind in ("qwen2_vl", "qwen2_5_vl", "glm4v", "glm4v_moe") else "outer")
    return combine(config, text, towers_of(config, "vision_config", f"{config.base}visual."))


def flattened(config: Config) -> Config:
    """The same config with its text keys, which stand at the top, as ``text_config``."""
    known = defaults_of(f"{config.text('model_type')}_text").values
    text = {key: value for key, value in config.values.items() if key in known and key != "model_type"}
    values: Mapping[str, object] = {**config.values, "text_config": text}
    reader = type(config.reader)(values, faults=config.reader.faults)
    found = Config(values, config.defaults, reader=reader, base=config.base, head=config.head)
    config.read.update(text)
    found.sources, found.notes, found.children, found.read = config.sources, config.notes, config.children, config.read
    return found


@family("qwen2_vl_text", "qwen2_5_vl_text")
def qwen2_vl_text(config: Config) -> Architecture:
    """Qwen2's layers."""
    return decoder(config, dense(config, mlp(config), rule=qwen_windows(config), qkv_bias=True))


@family("qwen3_vl_text")
def qwen3_vl_text(config: Config) -> Architecture:
    """Qwen3's layers without windows."""
    bias = config.flag("attention_bias")
    return decoder(config, dense(config, mlp(config), qkv_bias=bias, output_bias=bias, qk_norm="per_head"))


@family("qwen3_vl_moe_text")
def qwen3_vl_moe_text(config: Config) -> Architecture:
    """Qwen3-MoE's layers, experts stored as one tensor of all."""
    bias = config.flag("attention_bias")

    def experts() -> MixtureOfExperts:
        return moe(config, *routed(config, "num_experts"), config.size("moe_intermediate_size"), fused=True)

    return sparse_decoder(config, experts, mlp_types=qwen_sparse(config), qkv_bias=bias, output_bias=bias, qk_norm="per_head")


@family("internvl")
def internvl(config: Config) -> Architecture:
    """InternVL 3: pixels shuffled into channels, a norm and two linears."""
    at = config.base
    text = text_of(config)
    towers = towers_of(config, "vision_config", f"{at}vision_tower.")
    ratio = config.number("downsample_ratio", default=0.5)
    width = int(tower_width(towers) * int(1 / ratio) ** 2) if ratio > 1e-3 else 1
    path = f"{at}{PROJECTOR}"
    joints = (*layer_norm(f"{path}.layer_norm", width).weights, *two_linears(path, text.hidden_size, width, bias=True))
    return combine(config, text, towers, joints)


@family("idefics3", "smolvlm")
def idefics3(config: Config) -> Architecture:
    """Idefics 3, SmolVLM: pixels shuffled into channels, one linear."""
    at = config.base
    text = text_of(config, base=f"{at}text_model.")
    towers = towers_of(config, "vision_config", f"{at}vision_model.")
    width = tower_width(towers) * config.size("scale_factor") ** 2
    joints = linear(f"{at}connector.modality_projection.proj", text.hidden_size, width)
    return combine(config, text, towers, joints)


@family("lfm2_vl")
def lfm2_vl(config: Config) -> Architecture:
    """LFM2-VL: SigLIP 2's tower, patches merged into channels."""
    at = config.base
    if "tie_embedding" in config.values:
        config = with_head(config, tie_word_embeddings=config.flag("tie_embedding", default=True))
    text = text_of(config)
    towers = towers_of(config, "vision_config", f"{at}vision_tower.")
    width = tower_width(towers) * config.size("downsample_factor") ** 2
    inner, bias, path = config.size("projector_hidden_size"), config.flag("projector_bias"), f"{at}{PROJECTOR}"
    joints = layer_norm(f"{path}.layer_norm", width).weights if config.flag("projector_use_layernorm") else ()
    joints += linear(f"{path}.linear_1", inner, width, bias=bias)
    joints += linear(f"{path}.linear_2", text.hidden_size, inner, bias=bias)
    return combine(config, text, towers, joints)


@family("cohere2_vision")
def cohere2_vision(config: Config) -> Architecture:
    """Command A Vision: patches merged into channels, a gated projector."""
    at = config.base
    text = text_of(config)
    towers = towers_of(config, "vision_config", f"{at}vision_tower.")
    width = tower_width(towers) * config.size("downsample_factor") ** 2
    inner, path = config.size("alignment_intermediate_size"), f"{at}{PROJECTOR}"
    joints = (
        *linear(f"{path}.linear_1", inner, width, bias=True),
        *linear(f"{path}.linear_2", text.hidden_size, inner // 2, bias=True),
    )
    return combine(config, text, towers, joints)


@family("aya_vision")
def aya_vision(config: Config) -> Architecture:
    """Aya Vision: SigLIP's tower, patches merged into channels, a norm and a gated projector."""
    at = config.base
    text = text_of(config)
    towers = towers_of(config, "vision_config", f"{at}vision_tower.")
    width = tower_width(towers) * config.size("downsample_factor") ** 2
    inner = config.optional("alignment_intermediate_size") or text.hidden_size
    path = f"{at}{PROJECTOR}"
    joints = (
        *layer_norm(f"{path}.layernorm", width).weights,
        *linear(f"{path}.linear_1", inner, width, bias=True),
        *linear(f"{path}.linear_2", text.hidden_size, inner // 2, bias=True),
    )
    return combine(config, text, towers, joints)


@family("qwen2_audio", "voxtral")
def audio(config: Config) -> Architecture:
    """Qwen2-Audio and Voxtral: Whisper's encoder and a projector."""
    at = config.base
    text = text_of(config, tied_by="")
    towers = towers_of(config, "audio_config", f"{at}audio_tower.")
    width = tower_width(towers)
    if config.text("model_type") == "qwen2_audio":
        joints = linear(f"{at}{PROJECTOR}.linear", text.hidden_size, width, bias=True)
    else:
        own = part(config, "audio_config", "")
        joints = two_linears(f"{at}{PROJECTOR}", text.hidden_size, own.size("intermediate_size"), bias=False)
    return combine(config, text, towers, joints)


@family("fuyu")
def fuyu(config: Config) -> Architecture:
    """Fuyu: patches enter the text decoder through one linear."""
    text = text_of(config)
    patch = config.size("patch_size")
    joints = linear(f"{config.base}vision_embed_tokens", text.hidden_size, patch * patch * config.size("num_channels"), bias=True)
    return combine(config, text, (), joints)
