"""What every block of a graph shares while it is drawn: the graph, the inputs, the caches, the device of the layer at hand."""

from __future__ import annotations

from dataclasses import dataclass

from planner.architecture.layers import Architecture, Attention, LatentAttention, Recurrent, SequenceMixer
from planner.engines.llama_cpp.context import Context
from planner.engines.llama_cpp.families import Family
from planner.engines.llama_cpp.graph import F16, F32, INT64, Graph, Tensor, given, like, product, stored, view, weight
from planner.formats import GGML_TYPES

ROTATED_HEADS = 64
"""Heads whose width is a multiple of this are rotated before they are quantised; also the width values are rotated by."""


@dataclass(slots=True)
class Cache:
    """The inputs of one key-value cache: what masks it, where this batch's rows go, what rotates them."""

    cells: int
    streams: int
    device: int
    key_bytes: int
    """Of one key, where keys are plain: latent values are read, and copied, as part of the keys."""
    mask: Tensor
    key_rows: Tensor
    value_rows: Tensor
    rotation_k: Tensor | None
    rotation_v: Tensor | None

    def keys(self, mixer: Attention | LatentAttention) -> Tensor:
        """The layer's stored keys; strides are never asked for."""
        width = mixer.num_kv_heads * mixer.head_dim if isinstance(mixer, Attention) else mixer.kv_lora_rank + mixer.qk_rope_head_dim
        return stored((width, self.cells, self.streams, 1), self.device, self.key_bytes)

    def values(self, mixer: Attention) -> Tensor:
        """The layer's stored values."""
        return stored((mixer.num_kv_heads * mixer.value_head_dim, self.cells, self.streams, 1), self.device)


class Sketch:
    """A graph being drawn."""

    def __init__(self, architecture: Architecture, family: Family, context: Context) -> None:
        self.graph = Graph()
        self.family, self.context = family, context
        self.device = 0
        tokens = context.tokens
        self.token_ids = given(tokens)
        self.given_embeddings = given(architecture.hidden_size, tokens, element_bytes=F32)
        self.positions = given(tokens)
        self.output_ids = given(context.outputs)
        mixers = [mixer for layer in architecture.decoder.layers for mixer in layer.sequence]
        self.has_windows = family.windows and any(_window(mixer) for mixer in mixers)
        self._widest_values = max((_values_width(mixer) for mixer in mixers), default=0)
        self._caches: dict[int, Cache] = {}
        self._rotations = _rotation_widths(mixers, context)
        self._state_ids = given(context.sequences)
        self.state_rows = view(self._state_ids, (context.sequences,)), view(self._state_ids, (0,))

    def parameter(self, rows: int = 1) -> Tensor:
        """A weight on the device of the layer at hand."""
        return weight(rows, self.device)

    def linear(self, rows: int, x: Tensor) -> Tensor:
        """A matrix product with a weight of ``rows`` rows."""
        return product(weight(rows, self.device), x)

    def rms_norm(self, x: Tensor) -> Tensor:
        """A root-mean-square norm and its weight."""
        return like("mul", like("rms_norm", x), weight(1, self.device))

    def cache_of(self, mixer: Attention | LatentAttention) -> Cache:
        """The cache that a mixer's layer is in: one for full attention, one for each window."""
        window = _window(mixer) if self.has_windows else 0
        found = self._caches.get(window)
        if found is None:
            found = self._caches[window] = self._new_cache(mixer, window)
        found.device = self.device
        return found

    def _new_cache(self, mixer: Attention | LatentAttention, window: int) -> Cache:
        context = self.context
        cells = context.window_cells(window) if window else context.cells
        transposed = not context.flash and isinstance(mixer, Attention)
        rotate_k, rotate_v = self._rotations if isinstance(mixer, Attention) else (0, 0)
        return Cache(
            cells=cells,
            streams=context.streams,
            device=self.device,
            key_bytes=GGML_TYPES[context.type_k].block_bytes,
            mask=given(cells, context.tokens // context.streams, 1, context.streams, element_bytes=F16 if context.flash else F32),
            key_rows=given(context.tokens, element_bytes=INT64),
            value_rows=given(context.tokens * (self._widest_values if transposed else 1), element_bytes=INT64),
            rotation_k=given(rotate_k, rotate_k, element_bytes=F32) if rotate_k else None,
            rotation_v=given(rotate_v, rotate_v, element_bytes=F32) if rotate_v else None,
        )


def _window(mixer: SequenceMixer) -> int:
    if not isinstance(mixer, Attention):
        return 0
    return mixer.window_tokens or mixer.chunk_tokens or 0


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


__all__ = ["Cache", "Recurrent", "Sketch"]
