"""What every block of a graph shares while it is drawn: the graph, the inputs, the caches, the device of the layer at hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from planner.architecture.layers import Architecture, Attention, LatentAttention, Layer, MixtureOfExperts, SequenceMixer
from planner.engines.llama_cpp.context import Context
from planner.engines.llama_cpp.families import Family
from planner.engines.llama_cpp.graph import F16, F32, INT64, Graph, Tensor, given, like, product, stored, values_in, view, weight
from planner.engines.llama_cpp.placement import Placement
from planner.formats import GGML_TYPES, GgmlType

ROTATED_HEADS = 64
"""Heads whose width is a multiple of this are rotated before they are quantised; also the width values are rotated by."""


CopiedWeights = Mapping[int, Mapping[str, int]]
"""Bytes of weights that are copied between devices: identity of the layer (of None for the head), then leaf."""


@dataclass(frozen=True, slots=True)
class Placed:
    """A layer to draw: its number in the model, the devices of its weights, of its routed experts and of its cache."""

    layer: Layer
    index: int
    device: int
    experts_device: int
    cache_device: int


def placed_layers(architecture: Architecture, placement: Placement, indices: Sequence[int]) -> list[Placed]:
    """Layers and their devices. A layer that reuses keys and values finds them with the last one that has such of its own."""
    layers = architecture.decoder.layers
    own: dict[int, int] = {}
    devices: list[int] = []
    for layer, device in zip(layers, placement.layers, strict=True):
        holder = device
        for mixer in layer.sequence:
            if isinstance(mixer, Attention) and mixer.kv == "shared":
                holder = own.get(window_of(mixer), device)
            else:
                own[window_of(mixer)] = device
        devices.append(placement.cache_device(holder))
    return [Placed(layers[index], index, placement.layers[index], placement.experts[index], devices[index]) for index in indices]


@dataclass(slots=True)
class Cache:
    """The inputs of one key-value cache: what masks it, where this batch's rows go, what rotates them."""

    cells: int
    streams: int
    device: int
    type_k: GgmlType
    type_v: GgmlType
    mask: Tensor
    key_rows: Tensor
    value_rows: Tensor
    rotation_k: Tensor | None
    rotation_v: Tensor | None

    def keys(self, mixer: Attention | LatentAttention) -> Tensor:
        """The layer's stored keys; strides are never asked for."""
        if isinstance(mixer, Attention):
            return self._stored(mixer.num_kv_heads * mixer.head_dim, self.type_k)
        return self._stored(mixer.kv_lora_rank + mixer.qk_rope_head_dim, self.type_k)

    def values(self, mixer: Attention) -> Tensor:
        """The layer's stored values."""
        return self._stored(mixer.num_kv_heads * mixer.value_head_dim, self.type_v)

    def _stored(self, width: int, kind: GgmlType) -> Tensor:
        size = self.cells * self.streams * kind.row_bytes(width)
        return stored((width, self.cells, self.streams, 1), self.device, kind.block_bytes, size)


class Sketch:
    """A graph being drawn."""

    def __init__(
        self,
        architecture: Architecture,
        family: Family,
        context: Context,
        placement: Placement,
        copied_weights: CopiedWeights | None = None,
    ) -> None:
        self.graph = Graph()
        self.family, self.context = family, context
        self.device = self.experts_device = self.cache_device = 0
        self._placement, self._copied_weights = placement, copied_weights
        self._leaves: Mapping[str, int] = {}
        self._weights: dict[tuple[int, int], Tensor] = {}
        tokens = context.tokens
        self.architecture = architecture
        self.deepstack_layers = deepstack_layers(architecture, family)
        self.token_ids = given(tokens)
        width = architecture.hidden_size * (1 + self.deepstack_layers)
        self.given_embeddings = given(width, tokens, element_bytes=F32)
        self.scorer: object = None
        """The inputs of sparse attention's scorers."""
        self.per_layer: Tensor | None = None
        """What each layer of Gemma 3n and 4 takes in beside its input."""
        self.positions = given(tokens * family.positions_per_token)
        self.position_scale = given(1, 1, tokens, element_bytes=F32)
        self.output_ids = given(context.outputs)
        mixers = [mixer for layer in architecture.decoder.layers for mixer in layer.sequence]
        self.norms_rotated = family.norms_rotated and _most_experts(architecture) != MAVERICK_EXPERTS
        self.has_windows = family.windows and any(window_of(mixer) for mixer in mixers)
        self._widest_values = max((_values_width(mixer) for mixer in mixers), default=0)
        self._caches: dict[int, Cache] = {}
        self._decays: tuple[Tensor, ...] = ()
        self._mixers = mixers
        self._state_ids = given(context.sequences)
        self.state_rows = view(self._state_ids, (context.sequences,)), view(self._state_ids, (0,))

    def enter(self, placed: Placed) -> None:
        """Go on to a layer."""
        self.device, self.experts_device, self.cache_device = placed.device, placed.experts_device, placed.cache_device
        if self._copied_weights is not None:
            self._leaves = self._copied_weights.get(id(placed.layer), {})

    def enter_head(self) -> None:
        """Go on to the final norm and the head."""
        self.device = self.experts_device = self.cache_device = self._placement.output
        if self._copied_weights is not None:
            self._leaves = self._copied_weights.get(id(None), {})

    def parameter(self, rows: int = 1, leaf: str = "", values: int = 1) -> Tensor:
        """A weight of the layer at hand: ``leaf`` is its name in a GGUF file, which tells its size where that matters.

        ``values``: how many fp32 values it has where it has no such name (norms).
        """
        device = self.experts_device if leaf.endswith("_exps") else self.device
        if self._copied_weights is not None:
            return weight(rows, device, self._leaves.get(leaf, F32 * values))
        found = self._weights.get((rows, device))
        if found is None:
            found = self._weights[rows, device] = weight(rows, device)
        return found

    def linear(self, leaf: str, rows: int, x: Tensor) -> Tensor:
        """A matrix product with a weight of ``rows`` rows."""
        return product(self.parameter(rows, leaf), x)

    def flash_copy_bytes(self, k: Tensor, v: Tensor) -> int:
        """What fused attention takes beside its result: an f16 copy of keys and values of other types, on CUDA."""
        if not self._placement.kind.copies_cache or self.device == self._placement.host:
            return 0
        kinds = ((k, self.context.type_k), (v, self.context.type_v))
        held = {id(tensor.root or tensor): values_in(tensor) for tensor, kind in kinds if kind != "F16"}
        return sum(F16 * values for values in held.values())

    def beside_cache(self, attended: Tensor) -> Tensor:
        """Where caches stay on the host, attention that is not fused is computed there (``offload_kqv``)."""
        if self._placement.caches_on_host:
            attended.device = self._placement.host
        return attended

    def decays(self, heads: int) -> tuple[Tensor, ...]:
        """Lightning attention's inputs: heads' slopes, and how queries, keys and pairs of tokens decay."""
        if not self._decays:
            sequences = self.context.sequences
            tokens = self.context.tokens // sequences
            shapes = ((heads,), *((1, heads, tokens, sequences),) * 2, (tokens, tokens, heads, sequences))
            self._decays = tuple(given(*shape, element_bytes=F32) for shape in shapes)
        return self._decays

    def rms_norm(self, x: Tensor) -> Tensor:
        """A root-mean-square norm and its weight."""
        return like("mul", like("rms_norm", x), self.parameter(values=x.ne[0]))

    def rotates(self, mixer: Attention) -> bool:
        """Whether a mixer's queries and keys are rotated by their positions."""
        return rotates(mixer, self.family, has_windows=self.has_windows)

    def cache_of(self, mixer: Attention | LatentAttention) -> Cache:
        """The cache that a mixer's layer is in: one for full attention, one for each window."""
        window = window_of(mixer) if self.has_windows else 0
        found = self._caches.get(window)
        if found is None:
            found = self._caches[window] = self._new_cache(mixer, window)
        found.device = self.cache_device
        return found

    def _new_cache(self, mixer: Attention | LatentAttention, window: int) -> Cache:
        context = self.context
        cells = context.window_cells(window) if window else context.cells
        transposed = not context.flash and isinstance(mixer, Attention)
        beside = [other for other in self._mixers if not self.has_windows or window_of(other) == window]
        rotate_k, rotate_v = _rotation_widths(beside, context) if isinstance(mixer, Attention) else (0, 0)
        return Cache(
            cells=cells,
            streams=context.streams,
            device=self.cache_device,
            type_k=GGML_TYPES[context.type_k],
            type_v=GGML_TYPES[context.type_v],
            mask=given(cells, context.tokens // context.streams, 1, context.streams, element_bytes=F16 if context.flash else F32),
            key_rows=given(context.tokens, element_bytes=INT64),
            value_rows=given(context.tokens * (self._widest_values if transposed else 1), element_bytes=INT64),
            rotation_k=given(rotate_k, rotate_k, element_bytes=F32) if rotate_k else None,
            rotation_v=given(rotate_v, rotate_v, element_bytes=F32) if rotate_v else None,
        )


def deepstack_layers(architecture: Architecture, family: Family) -> int:
    """How many first layers add a layer of the vision tower."""
    if not family.deepstacked:
        return 0
    names = (found.name for tower in architecture.towers for found in tower.weights)
    return len({name.split("deepstack_merger_list.")[1].split(".")[0] for name in names if "deepstack_merger_list." in name})


def rotates(mixer: Attention, family: Family, *, has_windows: bool) -> bool:
    """Whether a graph rotates a mixer's queries and keys; ``has_windows``: whether any layer keeps a sliding window."""
    return mixer.rotary_dim > 0 and (window_of(mixer) > 0 or not (has_windows and family.rotates_windows_only))


def window_of(mixer: SequenceMixer) -> int:
    """Tokens of the sliding window or chunk a mixer attends to, 0 for all."""
    if not isinstance(mixer, Attention):
        return 0
    return mixer.window_tokens or mixer.chunk_tokens or 0


MAVERICK_EXPERTS = 128
"""So many experts mark the Llama 4 whose queries and keys are not normed (``use_kq_norm``)."""


def _most_experts(architecture: Architecture) -> int:
    channels = (channel for layer in architecture.decoder.layers for channel in layer.channel)
    return max((channel.num_experts for channel in channels if isinstance(channel, MixtureOfExperts)), default=0)


def _values_width(mixer: SequenceMixer) -> int:
    return mixer.num_kv_heads * mixer.value_head_dim if isinstance(mixer, Attention) else 0


def _rotation_widths(mixers: list[SequenceMixer], context: Context) -> tuple[int, int]:
    """Widths of the rotations of keys and values, 0 for none: quantised caches of heads that are all equally wide."""
    attentions = [mixer for mixer in mixers if isinstance(mixer, Attention)]
    key_widths = {mixer.head_dim for mixer in attentions}
    value_widths = {mixer.value_head_dim for mixer in attentions}
    keys = values = 0
    if len(key_widths) == 1 and GGML_TYPES[context.type_k].is_quantized:
        width = key_widths.pop()
        keys = width & -width if width % ROTATED_HEADS == 0 else 0
    if len(value_widths) == 1 and GGML_TYPES[context.type_v].is_quantized:
        values = ROTATED_HEADS if value_widths.pop() % ROTATED_HEADS == 0 else 0
    return keys, values
