"""The tensors of a GGUF file that llama.cpp's converter makes of an architecture.

Source: llama.cpp ``convert_hf_to_gguf.py`` and gguf-py ``tensor_mapping.py``. Only what decides sizes is modelled:
names are those the quantiser's rules look at, shapes are (…, rows, columns), permutations don't matter. Vision and
audio towers go to a file of their own (mmproj) and are left out, as are multi-token-prediction modules.
"""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

from planner.architecture.counts import layer_indices
from planner.architecture.layers import Attention, LatentAttention, MixtureOfExperts, Recurrent
from planner.formats.gguf_mix import GgufModel, block_of, tensor_types
from planner.memo import remember_by_identity
from planner.record import record

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from planner.architecture.layers import Architecture, ChannelMixer, Layer, SequenceMixer, Weight
    from planner.formats.gguf_types import GgmlType

Shaped = tuple[str, tuple[int, ...]]

_ATTENTION = {
    **dict.fromkeys(("q_proj", "query", "q", "wq", "q_lin"), "attn_q"),
    **dict.fromkeys(("k_proj", "key", "k", "wk", "k_lin"), "attn_k"),
    **dict.fromkeys(("v_proj", "value", "v", "wv", "v_lin"), "attn_v"),
    **dict.fromkeys(("o_proj", "out_proj", "dense", "wo", "c_proj", "o", "out_lin"), "attn_output"),
    **dict.fromkeys(("qkv_proj", "query_key_value", "c_attn", "Wqkv", "qkv"), "attn_qkv"),
}
_FEED_FORWARD = {
    **dict.fromkeys(("gate_proj", "w1", "wi_0", "gate"), "gate"),
    **dict.fromkeys(("up_proj", "w3", "v1", "wi_1", "wi", "c_fc", "fc1", "fc_in", "dense_h_to_4h", "up"), "up"),
    **dict.fromkeys(("down_proj", "w2", "wo", "c_proj", "fc2", "fc_out", "dense_4h_to_h", "down", "output_linear"), "down"),
    **dict.fromkeys(("gate_up_proj", "input_linear", "Wi"), "gate_up"),
}
_RECURRENT = {
    "in_proj": "ssm_in",
    "x_proj": "ssm_x",
    "dt_proj": "ssm_dt",
    "out_proj": "ssm_out",
    "conv1d": "ssm_conv1d",
    "norm": "ssm_norm",
    "in_proj_ba": "ssm_ba",
    "in_proj_qkv": "attn_qkv",
    "in_proj_z": "attn_gate",
    "in_proj_a": "ssm_alpha",
    "in_proj_b": "ssm_beta",
}
_LINEAR_ATTENTION = {
    **_ATTENTION,
    "output_gate": "attn_gate",
    "b_proj": "ssm_beta",
    "o_norm": "ssm_norm",
    "norm": "attn_norm_2",
    **{f"{name}_proj": f"ssm_{name}" for name in ("f_a", "f_b", "g_a", "g_b")},
}
"""Projections of Kimi delta and of lightning attention."""
_LAYER = {
    "laurel.linear_left": "laurel_l",
    "laurel.linear_right": "laurel_r",
    "altup.correction_coefs": "altup_correct_coef",
    "altup.prediction_coefs": "altup_predict_coef",
    "altup.modality_router": "altup_router",
    "per_layer_input_gate": "inp_gate",
    "per_layer_projection": "proj",
}
_OUTSIDE = {
    **dict.fromkeys(("wpe", "position_embeddings", "embed_positions"), "position_embd"),
    "token_type_embeddings": "token_types",
    "embed_tokens_per_layer": "per_layer_token_embd",
    "per_layer_model_projection": "per_layer_model_proj",
    "altup_projections": "altup_proj",
    "altup_unembed_projections": "altup_unembd_proj",
}

_ARCHITECTURES = {"mistral": "llama", "mixtral": "llama", "qwen2_5_vl": "qwen2", "qwen2_vl": "qwen2", "yi": "llama"}
"""``general.architecture`` where it differs from ``model_type`` in a way the rules ask about."""

_SCALAR_KV_HEADS = ("qwen3_next", "qwen3_5", "qwen3_5_moe")
"""Hybrids whose file holds one ``head_count_kv`` for all layers; others list 0 for layers without attention."""


@record
class GgufTensor:
    """One tensor of a file; ``layer`` is -1 outside the blocks."""

    name: str
    shape: tuple[int, ...]
    kind: GgmlType

    @property
    def layer(self) -> int:
        """The block it belongs to, -1 for none."""
        return block_of(self.name)

    @property
    def size_bytes(self) -> int:
        """Rows times bytes of a row."""
        return prod(self.shape[:-1]) * self.kind.row_bytes(self.shape[-1])


@remember_by_identity(32)
def gguf_tensors(architecture: Architecture, file_type: str) -> tuple[GgufTensor, ...]:
    """Every tensor of ``architecture`` as ``file_type`` (a key of ``FILE_TYPES``) stores it.

    Raises ValueError for encoder–decoder models, whose mixes are not modelled.
    """
    if architecture.kind == "encoder-decoder":
        raise ValueError("GGUF of an encoder–decoder model: its bytes are known from the file's header only")
    shaped = list(tensor_shapes(architecture))
    if architecture.rope_factor_values:
        shaped.append(("rope_freqs.weight", (architecture.rope_factor_values,)))
    kinds = tensor_types(shaped, gguf_model(architecture), file_type)
    return tuple(GgufTensor(name, shape, kind) for (name, shape), kind in zip(shaped, kinds, strict=True))


def gguf_model(architecture: Architecture) -> GgufModel:
    """What the quantiser's rules ask of a model."""
    layers = architecture.decoder.layers
    attentions = [mixer for layer in layers for mixer in layer.sequence if isinstance(mixer, Attention | LatentAttention)]
    moes = (mixer for layer in layers for mixer in layer.channel if isinstance(mixer, MixtureOfExperts))
    experts = next((moe.num_experts for moe in moes), 0)
    first = [mixer for mixer in layers[0].sequence if isinstance(mixer, Attention | LatentAttention)] if layers else []
    counted = attentions if architecture.model_type.removesuffix("_text") in _SCALAR_KV_HEADS else first
    heads = attentions[0].num_heads if attentions else 0
    kv_heads = 0 if not counted else counted[0].num_kv_heads if isinstance(counted[0], Attention) else 1
    kind = architecture.model_type.removesuffix("_text")
    return GgufModel(_ARCHITECTURES.get(kind, kind), len(layers), heads, kv_heads, experts)


def tensor_shapes(architecture: Architecture) -> Iterator[Shaped]:
    """Names and shapes of the file's tensors: embeddings, head, norms, then each layer's."""
    yield from _embeddings(architecture.embeddings)
    for weight in architecture.head:
        yield f"output{_suffix(weight)}", weight.shape
    if architecture.final_norm is not None:
        yield from (("output_norm" + _suffix(weight), weight.shape) for weight in architecture.final_norm.weights)
    for weight in architecture.decoder.weights:
        name = _last(weight.name)
        yield _OUTSIDE.get(name, name) + _suffix(weight), _stacked(weight)
    for layer, indices in layer_indices(architecture.decoder):
        block = list(_layer(layer, architecture.hidden_size))
        for index in indices:
            yield from ((f"blk.{index}.{name}", shape) for name, shape in block)


def _embeddings(weights: Iterable[Weight]) -> Iterator[Shaped]:
    for position, weight in enumerate(weights):
        name = _last(weight.name)
        yield ("token_embd" if position == 0 else _OUTSIDE.get(name, name)) + _suffix(weight), _stacked(weight)


def _layer(layer: Layer, hidden_size: int) -> Iterator[Shaped]:
    for mixer in layer.sequence:
        for weight in mixer.weights:
            yield from _sequence_tensors(mixer, weight)
        if isinstance(mixer, Attention) and mixer.kv == "shared":
            yield from _unused_keys_values(mixer, hidden_size)
    for channel in layer.channel:
        for weight in channel.weights:
            yield from _channel_tensors(channel, weight, hidden_size)
    for norm in layer.norms:
        yield from ((f"{weight.name.replace('.', '_')}_norm.weight", weight.shape) for weight in norm.weights)
    for weight in layer.weights:
        module = weight.name.removesuffix(".weight")
        yield _LAYER.get(module, module) + _suffix(weight), _stacked(weight)


def _unused_keys_values(mixer: Attention, hidden_size: int) -> Iterator[Shaped]:
    """Projections of layers that reuse another's cache: Gemma 3n and 4 ship them, and the converter keeps them."""
    yield "attn_k.weight", (mixer.num_kv_heads * mixer.head_dim, hidden_size)
    yield "attn_v.weight", (mixer.num_kv_heads * mixer.value_head_dim, hidden_size)
    if mixer.qk_norm == "per_head":
        yield "k_norm_norm.weight", (mixer.head_dim,)


def _sequence_tensors(mixer: SequenceMixer, weight: Weight) -> Iterator[Shaped]:
    name, suffix = _last(weight.name), _suffix(weight)
    if isinstance(mixer, Recurrent) and mixer.kind == "lightning" and weight.is_buffer:
        return  # the program works decays out
    if weight.role in ("norm", "bias") or len(weight.shape) < 2:
        yield f"{name}{'_norm' if weight.role == 'norm' else ''}{suffix}", weight.shape
    elif isinstance(mixer, LatentAttention) and name == "kv_b_proj":
        heads, rank = mixer.num_heads, mixer.kv_lora_rank
        yield "attn_k_b.weight", (heads, rank, mixer.qk_nope_head_dim)
        yield "attn_v_b.weight", (heads, mixer.v_head_dim, rank)
    elif isinstance(mixer, Recurrent):
        yield from _recurrent_tensors(mixer, weight)
    else:
        yield _ATTENTION.get(name, name) + suffix, weight.shape


def _recurrent_tensors(mixer: Recurrent, weight: Weight) -> Iterator[Shaped]:
    name, suffix = _last(weight.name), _suffix(weight)
    if name == "in_proj_qkvz":
        rows, columns = weight.shape
        yield "attn_qkv.weight", (mixer.conv_channels, columns)
        yield "attn_gate.weight", (rows - mixer.conv_channels, columns)
    elif weight.role == "conv":
        yield ("shortconv.conv" if mixer.kind == "short_conv" else "ssm_conv1d") + suffix, weight.shape
    elif mixer.kind in ("kimi_delta", "lightning"):
        yield _LINEAR_ATTENTION.get(name, name) + suffix, weight.shape
    elif mixer.kind == "short_conv":
        yield f"shortconv.{name}{suffix}", weight.shape
    else:
        yield _RECURRENT.get(name, name) + suffix, weight.shape


def _channel_tensors(channel: ChannelMixer, weight: Weight, hidden_size: int) -> Iterator[Shaped]:
    suffix = _suffix(weight)
    if weight.role == "router" or (weight.role == "linear" and weight.shape[0] == 1):
        yield f"ffn_gate_inp{suffix}", weight.shape
        return
    if weight.role == "norm" or weight.is_buffer:
        yield f"{_last(weight.name)}_norm{suffix}", weight.shape
        return
    shared = "shared" in weight.name
    place = "_exps" if _is_routed(channel, weight) else "_shexp" if shared and isinstance(channel, MixtureOfExperts) else ""
    kind = _FEED_FORWARD.get(_last(weight.name), _last(weight.name))
    if kind != "gate_up":
        yield f"ffn_{kind}{place}{suffix}", _rows_first(weight, hidden_size, into_hidden=kind == "down")
    elif not place:
        yield f"ffn_up{suffix}", weight.shape
    else:
        yield from _split_gate_up(weight, place, suffix, hidden_size)


def _is_routed(channel: ChannelMixer, weight: Weight) -> bool:
    return isinstance(channel, MixtureOfExperts) and (weight.role == "expert" or ".experts." in f".{weight.name}")


def _split_gate_up(weight: Weight, place: str, suffix: str, hidden_size: int) -> Iterator[Shaped]:
    """Fused gate and up projections are two tensors in the file; a fused dense one stays whole."""
    shape = _rows_first(weight, hidden_size, into_hidden=False)
    axis = len(shape) - (2 if suffix == ".weight" else 1)
    half = (*shape[:axis], shape[axis] // 2, *shape[axis + 1 :])
    yield f"ffn_gate{place}{suffix}", half
    yield f"ffn_up{place}{suffix}", half


def _rows_first(weight: Weight, hidden_size: int, *, into_hidden: bool) -> tuple[int, ...]:
    """A shape as (experts, out, in), also where the checkpoint holds experts as (experts, in, out)."""
    shape = _stacked(weight)
    if weight.role != "expert" or len(shape) < 3:
        return shape
    *front, rows, columns = shape
    hidden_axis_is_right = (rows if into_hidden else columns) == hidden_size
    return shape if hidden_axis_is_right else (*front, columns, rows)


def _stacked(weight: Weight) -> tuple[int, ...]:
    return weight.shape if weight.count == 1 else (weight.count, *weight.shape)


def _suffix(weight: Weight) -> str:
    """``.weight`` and ``.bias`` stay; parameters without a suffix are written under one only when they are matrices to multiply."""
    if weight.name.endswith(".bias") or weight.role == "bias":
        return ".bias"
    return ".weight" if weight.name.endswith(".weight") or weight.role in ("linear", "expert", "router") else ""


def _last(name: str) -> str:
    """The last module of a weight's path: ``q_proj`` of ``self_attn.q_proj.weight``."""
    path = name.removesuffix(".weight").removesuffix(".bias").removesuffix("_bias")
    return path.rsplit(".", 1)[-1]
