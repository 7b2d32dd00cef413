"""What each GPU holds of a model's weights under tensor, pipeline and expert parallelism.

As Megatron-style layers split them (vLLM 0.19 ``model_executor/layers/linear.py``, ``vocab_parallel_embedding.py``,
``fused_moe/layer.py``): matrices that widen are cut by output, matrices that narrow by input, the vocabulary by rows,
experts by width or, with expert parallelism, by number. Keys and values of fewer heads than ranks are copied. Norms,
routers and the down projections of latent attention are copied to every rank.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Literal

from planner.architecture.counts import layer_indices
from planner.architecture.layers import (
    Architecture,
    Attention,
    ChannelMixer,
    LatentAttention,
    Layer,
    MixtureOfExperts,
    Recurrent,
    SequenceMixer,
    Stack,
    Weight,
)
from planner.faults import Fault
from planner.formats import BytesUnknown, Format, weight_bytes
from planner.formats.checkpoint import resolve_format
from planner.memo import remember_by_identity
from planner.record import record

Owner = SequenceMixer | ChannelMixer | None
Cut = Literal["whole", "rows", "columns", "kv", "qkv", "experts"]
VOCABULARY_PADDING = 64
"""Rows of the embedding and the head are padded to multiples of it (vLLM ``DEFAULT_VOCAB_PADDING_SIZE``, SGLang alike)."""
ROW_PARALLEL = frozenset(
    ("o_proj", "out_proj", "dense", "dense_4h_to_h", "c_proj", "down_proj", "fc2", "w2", "wo", "fc_out", "proj", "x_proj")
)
"""Last names of matrices that narrow: cut by input, their bias whole on every rank."""
FUSED_QKV = frozenset(("qkv_proj", "query_key_value", "c_attn", "Wqkv", "qkv", "W_pack"))
KEYS_AND_VALUES = frozenset(("k_proj", "v_proj", "k_lin", "v_lin", "key", "value"))
REPLICATED_LATENT = ("q_a_proj", "kv_a_proj_with_mqa", "indexer")
FUSED_NAMES = {
    "q_proj": "qkv_proj",
    "k_proj": "qkv_proj",
    "v_proj": "qkv_proj",
    "gate_proj": "gate_up_proj",
    "up_proj": "gate_up_proj",
}
"""Matrices that serving engines keep as one tensor (``QKVParallelLinear``, ``MergedColumnParallelLinear``)."""


@record
class Split:
    """How a model is spread: ``expert`` True lays whole experts on the tensor-parallel ranks instead of cutting each."""

    tensor: int = 1
    pipeline: int = 1
    experts: int = 1
    """Ranks that share the experts by number; 1 cuts every expert over the tensor-parallel ranks instead."""
    vocabulary_padding: int = 1


@record
class Part:
    """One weight on one rank. ``rank_bytes`` · ranks − ``copied_bytes`` · (ranks − 1) = ``whole_bytes`` up to padding."""

    name: str
    tensor: str
    """The tensor an engine keeps it in: several weights of one layer may share one."""
    rank_bytes: int
    whole_bytes: int
    copied: bool
    times: int


@record
class StageWeights:
    """The weights of one pipeline stage on each of its ranks."""

    stage: int
    layers: range
    parts: tuple[Part, ...]

    @property
    def rank_bytes(self) -> int:
        """Bytes on one GPU."""
        return sum(part.rank_bytes * part.times for part in self.parts)

    @property
    def copied_bytes(self) -> int:
        """Bytes of it that every rank of the stage holds alike."""
        return sum(part.rank_bytes * part.times for part in self.parts if part.copied)

    @property
    def whole_bytes(self) -> int:
        """Bytes of the stage's weights on a single GPU."""
        return sum(part.whole_bytes * part.times for part in self.parts)

    def tensor_bytes(self) -> list[tuple[int, int]]:
        """(bytes, how many) of each tensor a rank keeps, weights of one fused tensor added up."""
        sizes: dict[tuple[str, int], int] = {}
        for part in self.parts:
            key = (part.tensor, part.times)
            sizes[key] = sizes.get(key, 0) + part.rank_bytes
        return [(size, times) for (_, times), size in sizes.items()]


def pipeline_layers(layers: int, stages: int) -> tuple[range, ...]:
    """Which layers each stage holds: equal runs, what is left over to the stages before the last (vLLM ``get_pp_indices``)."""
    counts = [layers // stages] * stages
    for index in range(2, layers % stages + 2):
        counts[-index] += 1
    starts = [sum(counts[:stage]) for stage in range(stages)]
    return tuple(range(start, start + count) for start, count in zip(starts, counts, strict=True))


def rank_kv_heads(kv_heads: int, tensor: int) -> int:
    """Key-value heads of one rank: divided while there are enough, else one, copied."""
    return max(1, kv_heads // tensor)


@remember_by_identity(256)
def split_faults(architecture: Architecture, split: Split) -> tuple[Fault, ...]:
    """What the engines refuse in a split: heads that ``tensor`` doesn't divide, more stages than layers.

    vLLM ``ModelConfig.verify_with_parallel_config`` and ``QKVParallelLinear``; SGLang and TensorRT-LLM assert the same.
    """
    faults: dict[str, Fault] = {}
    mixers = [mixer for layer, _ in layer_indices(architecture.decoder) for mixer in layer.sequence]
    for mixer in mixers:
        heads = mixer.num_heads
        if heads and heads % split.tensor:
            message = f"{split.tensor} does not divide the {heads} attention heads; use {_nearest_divisor(heads, split.tensor)}"
            faults["heads"] = Fault("parallel.tensor", message)
        kv_heads = mixer.num_kv_heads if isinstance(mixer, Attention) else 0
        if kv_heads and kv_heads % split.tensor and split.tensor % kv_heads:
            message = f"{split.tensor} and the {kv_heads} key-value heads don't divide each other; use {kv_heads}"
            faults["kv_heads"] = Fault("parallel.tensor", message)
    if split.pipeline > len(architecture.decoder.layers):
        message = f"{split.pipeline} stages for {len(architecture.decoder.layers)} layers; use at most as many"
        faults["stages"] = Fault("parallel.pipeline", message)
    return tuple(faults.values())


def _nearest_divisor(heads: int, ways: int) -> int:
    return max(number for number in range(1, ways) if heads % number == 0)


@remember_by_identity(64)
def stage_weights(architecture: Architecture, fmt: Format, split: Split) -> tuple[StageWeights, ...]:
    """The weights of every pipeline stage on each of its ranks.

    Embeddings (and towers) lie on the first stage, final norm and head on the last; a tied head is held by both ends.
    Raises :class:`planner.formats.BytesUnknown` for a format whose bytes need the file's header, or GGUF.
    """
    if fmt.unknown or fmt.file_type:
        raise BytesUnknown(f"{fmt.name}: {fmt.unknown or 'a GGUF mix decides by the whole file'}")
    resolved = resolve_format(fmt, architecture)
    stages = pipeline_layers(len(architecture.decoder.layers), split.pipeline)
    found: list[StageWeights] = []
    for number, layers in enumerate(stages):
        parts = list(_layer_parts(architecture, resolved, split, layers))
        if number == 0:
            parts += _first_stage(architecture, resolved, split)
        if number == len(stages) - 1:
            parts += _last_stage(architecture, resolved, split, alone=len(stages) == 1)
        found.append(StageWeights(number, layers, tuple(parts)))
    return tuple(found)


def _layer_parts(architecture: Architecture, fmt: Format, split: Split, layers: range) -> Iterator[Part]:
    stack = architecture.decoder
    for layer, indices in layer_indices(stack):
        held = [index for index in indices if index in layers]
        if held:
            yield from _parts_of_layer(layer, stack, fmt, split, len(held), held[0])


def _parts_of_layer(layer: Layer, stack: Stack, fmt: Format, split: Split, times: int, index: int) -> Iterator[Part]:
    owned: list[tuple[Owner, Weight]] = []
    for mixer in (*layer.sequence, *layer.channel):
        owned += [(mixer, weight) for weight in mixer.weights]
    owned += [(None, weight) for norm in layer.norms for weight in norm.weights]
    owned += [(None, weight) for weight in layer.weights]
    path = f"{stack.name}.{index}."
    in_decoder = stack.kind == "decoder"
    for owner, weight in owned:
        yield _part(weight, owner, fmt, split, path, times, in_decoder=in_decoder)


def _first_stage(architecture: Architecture, fmt: Format, split: Split) -> list[Part]:
    found = [_vocabulary(weight, architecture, fmt, split) for weight in architecture.embeddings]
    for stack in architecture.towers:
        sharded = split if _divides_heads(stack, split.tensor) else replace(split, tensor=1)
        for layer, indices in layer_indices(stack):
            found += _parts_of_layer(layer, stack, fmt, sharded, len(indices), indices[0])
        found += [_part(weight, None, fmt, split, "", 1, in_decoder=False, cut="whole") for weight in stack.weights]
    return found


def _last_stage(architecture: Architecture, fmt: Format, split: Split, *, alone: bool) -> list[Part]:
    found = [_vocabulary(weight, architecture, fmt, split) for weight in architecture.head]
    if architecture.tied_head and not alone:
        found.append(_vocabulary(architecture.embeddings[0], architecture, fmt, split))
    if architecture.final_norm is not None:
        found += [_part(weight, None, fmt, split, "", 1, in_decoder=False) for weight in architecture.final_norm.weights]
    found += [_part(weight, None, fmt, split, "", 1, in_decoder=False) for weight in architecture.decoder.weights]
    return found


def _vocabulary(weight: Weight, architecture: Architecture, fmt: Format, split: Split) -> Part:
    if weight.shape[0] != architecture.vocab_size:
        return _part(weight, None, fmt, split, "", 1, in_decoder=False, cut="whole")
    padding = split.vocabulary_padding
    rows = -(-weight.shape[0] // padding) * padding
    padded = replace(weight, shape=(rows, *weight.shape[1:]))
    return _part(padded, None, fmt, split, "", 1, in_decoder=False, cut="rows")


def _divides_heads(stack: Stack, tensor: int) -> bool:
    return all(mixer.num_heads % tensor == 0 for layer in stack.layers for mixer in layer.sequence)


def _part(
    weight: Weight, owner: Owner, fmt: Format, split: Split, path: str, times: int, *, in_decoder: bool, cut: Cut | None = None
) -> Part:
    cut = cut or _cut(weight, owner, split)
    held = _held(weight, owner, split, cut)
    whole = weight_bytes(fmt, weight, path, in_decoder=in_decoder).total_bytes
    bytes_here = whole if held == weight else weight_bytes(fmt, held, path, in_decoder=in_decoder).total_bytes
    return Part(weight.name, _tensor_name(path, weight, owner), bytes_here, whole, cut == "whole", times)


def rank_weight(weight: Weight, owner: Owner, split: Split) -> Weight:
    """A mixer's weight as one rank holds it."""
    return _held(weight, owner, split, _cut(weight, owner, split))


def _last_name(weight: Weight) -> str:
    return weight.name.removesuffix(".weight").removesuffix(".bias").rsplit(".", 1)[-1]


def _tensor_name(path: str, weight: Weight, owner: Owner) -> str:
    """The engine's own tensor: fused projections together, the experts of a layer as two."""
    name = _last_name(weight)
    module = weight.name[: weight.name.rfind(name)]
    kind = "bias" if weight.role == "bias" else "weight"
    if isinstance(owner, MixtureOfExperts) and weight.role == "expert":
        return f"{path}{module}{'w2' if 'down' in name or name == 'w2' else 'w13'}.{kind}"
    return f"{path}{module}{FUSED_NAMES.get(name, name)}.{kind}"


def _cut(weight: Weight, owner: Owner, split: Split) -> Cut:  # noqa: PLR0911  one line for each kind of layer
    """How one weight is spread over the tensor-parallel ranks."""
    name = _last_name(weight)
    if weight.role == "expert" or (isinstance(owner, MixtureOfExperts) and weight.role == "bias" and weight.count > 1):
        return "experts" if split.experts > 1 else _narrows(weight, name)
    if weight.role in ("norm", "router") or owner is None:
        return "whole"
    if isinstance(owner, LatentAttention):
        return "whole" if any(part in weight.name for part in REPLICATED_LATENT) else _narrows(weight, name)
    if isinstance(owner, Attention):
        return _attention_cut(weight, name)
    if isinstance(owner, MixtureOfExperts) and weight.role == "bias":
        return "whole"
    if isinstance(owner, Recurrent) and name in ("x_proj", "in_proj_qkv"):
        return "columns" if name == "x_proj" else "rows"
    return _narrows(weight, name)


def _attention_cut(weight: Weight, name: str) -> Cut:
    if name in FUSED_QKV:
        return "qkv"
    return "kv" if name in KEYS_AND_VALUES else _narrows(weight, name)


def _narrows(weight: Weight, name: str) -> Cut:
    if name not in ROW_PARALLEL and not name.startswith("down_proj"):
        return "rows"
    return "whole" if len(weight.shape) < 2 else "columns"


def _held(weight: Weight, owner: Owner, split: Split, cut: Cut) -> Weight:  # noqa: PLR0911  one for each cut
    """The weight as one rank holds it."""
    tensor = split.tensor
    match cut:
        case "whole":
            return weight
        case "experts":
            return replace(weight, count=-(-weight.count // split.experts))
        case "columns":
            return replace(weight, shape=(*weight.shape[:-1], -(-weight.shape[-1] // tensor)))
        case "rows":
            return _rows(weight, -(-weight.shape[0] // tensor))
        case "kv":
            assert isinstance(owner, Attention)  # noqa: S101  only attention is cut so
            return _rows(weight, weight.shape[0] * rank_kv_heads(owner.num_kv_heads, tensor) // owner.num_kv_heads)
        case "qkv":
            assert isinstance(owner, Attention)  # noqa: S101  only attention is cut so
            kv_rows = owner.num_kv_heads * (owner.head_dim + owner.value_head_dim)
            if kv_rows >= weight.shape[0]:
                return _rows(weight, -(-weight.shape[0] // tensor))
            kept = kv_rows * rank_kv_heads(owner.num_kv_heads, tensor) // owner.num_kv_heads
            return _rows(weight, (weight.shape[0] - kv_rows) // tensor + kept)


def _rows(weight: Weight, rows: int) -> Weight:
    return replace(weight, shape=(rows, *weight.shape[1:]))
