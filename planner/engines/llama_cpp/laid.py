"""One model laid out on devices and host: what each holds, over any number of cells, with the terms that make it up."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from planner.architecture.layers import Architecture
from planner.engines.llama_cpp.buffers import CacheBytes, StateBytes, caches, output_bytes, states, weights_by_device
from planner.engines.llama_cpp.compute import bends, compute_buffers, course_of
from planner.engines.llama_cpp.context import CELL_BLOCK, Context
from planner.engines.llama_cpp.families import Family
from planner.engines.llama_cpp.placement import Checkpoint, Placement
from planner.footprint import HOST, Term
from planner.memo import remember_by_identity

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Integers = NDArray[np.int64]

VERSION = "llama.cpp 0.5.0-dev (0c1e57098), ggml 0.25.3"
"""The release whose graphs and allocator are replayed."""
COMPONENTS = ("weights", "kv_cache", "recurrent_state", "workspace", "logits")
LOADED = ("weights",)
PHASES = {"load": LOADED, "decode": COMPONENTS}
"""llama.cpp reserves every buffer before the first token: after loading nothing grows."""


@dataclass(frozen=True, slots=True)
class Buffers:
    """What one device, or the host, holds. Model buffers are ``weights``, compute buffers ``workspace``, outputs ``logits``."""

    weights: int = 0
    kv_cache: int = 0
    recurrent_state: int = 0
    workspace: int = 0
    logits: int = 0

    def components(self, phase: str = "decode") -> dict[str, int]:
        """Bytes by component in a phase: ``load`` or ``decode``."""
        return {name: size for name in PHASES[phase] if (size := int(getattr(self, name)))}

    @property
    def total_bytes(self) -> int:
        """All buffers together."""
        return self.weights + self.kv_cache + self.recurrent_state + self.workspace + self.logits

    def __add__(self, other: Buffers) -> Buffers:
        return Buffers(*(getattr(self, name) + getattr(other, name) for name in COMPONENTS))


@dataclass(frozen=True, slots=True)
class Laid:
    """A model, the context it is given, and where its parts are. ``role``: empty, or "draft" for the model that proposes."""

    architecture: Architecture
    family: Family
    context: Context
    placement: Placement
    file: Checkpoint
    role: str = ""

    def buffers(self) -> tuple[Buffers, ...]:
        """What each device and, last, the host holds."""
        architecture, context, placement = self.architecture, self.context, self.placement
        weights, kept = weights_by_device(self.file, placement), caches(architecture, self.family, context, placement)
        kept_states = states(architecture, context, placement)
        compute = compute_buffers(architecture, self.family, context, placement, self.copied)
        logits = output_bytes(architecture, context)
        return tuple(
            Buffers(
                weights=weights[device],
                kv_cache=sum(cache.total_bytes for cache in kept if cache.device == device),
                recurrent_state=sum(state.total_bytes for state in kept_states if state.device == device),
                workspace=compute[device],
                logits=logits if device == placement.host else 0,
            )
            for device in range(placement.host + 1)
        )

    @property
    def copied(self) -> Checkpoint | None:
        """The file whose weights are copied between devices, None where none are."""
        return self.file if self.placement.offloads else None

    def totals_over(self, blocks: Integers) -> Integers:
        """All that each device holds, of shape (devices, cells): the cells are ``blocks`` of 256 instead of the context's."""
        import numpy as np  # noqa: PLC0415  a point does without

        lines = _totals(self.architecture, self.family, replace(self.context, cells=0), self.placement, self.file)
        found = np.empty((self.placement.device_count, blocks.size), dtype=np.int64)
        left = np.arange(blocks.size)
        while left.size:
            low, high, at, sizes, rises = lines(int(blocks[left[0]]))
            here = blocks[left]
            inside = (here >= low) & (here <= high)
            found[:, left[inside]] = sizes[:, None] + rises[:, None] * (here[inside] - at)
            left = left[~inside]
        return found

    def terms(self) -> list[Term]:
        """What makes up every buffer."""
        architecture, context, placement = self.architecture, self.context, self.placement
        weights = weights_by_device(self.file, placement)
        compute = compute_buffers(architecture, self.family, context, placement, self.copied)
        found = [
            *((device, self._weight_term(size, device)) for device, size in enumerate(weights) if size),
            *((cache.device, self._cache_term(cache)) for cache in caches(architecture, self.family, context, placement)),
            *((state.device, self._state_term(state)) for state in states(architecture, context, placement)),
            *((device, self._compute_term(size, device)) for device, size in enumerate(compute) if size),
            (placement.host, self._logits_term()),
        ]
        return [replace(term, gpu=HOST if device == placement.host else device) for device, term in found]

    def _values(self, device: int, **values: int | float | str) -> dict[str, int | float | str]:
        holder = "host" if device == self.placement.host else f"device {device}"
        return {"holder": holder} | ({"model": self.role} if self.role else {}) | values

    def _weight_term(self, size: int, device: int) -> Term:
        because = f"{VERSION}: -ngl counts the output layer; embeddings stay on the host, a tied head is copied to its device"
        formula = "Σ tensors: bytes, rounded up to the buffer's alignment"
        return Term("weights", formula, self._values(device, tensors=len(self.file.tensors)), size, "exact", because)

    def _cache_term(self, cache: CacheBytes) -> Term:
        values = self._values(
            cache.device, layers=cache.layers, streams=cache.streams, cells=cache.cells, key_bytes=cache.key_bytes,
            value_bytes=cache.value_bytes, type_k=self.context.type_k, type_v=self.context.type_v,
        )  # fmt: skip
        formula = "layers · streams · cells · (key_bytes + value_bytes)"
        because = f"{VERSION} llama-kv-cache.cpp: contexts are padded to 256 cells"
        return Term("kv_cache", formula, values, cache.total_bytes, "derived", because, "decode")

    def _state_term(self, state: StateBytes) -> Term:
        values = self._values(
            state.device, layers=state.layers, sequences=state.sequences, fp32_bytes=4,
            conv_values=state.conv_values, state_values=state.state_values,
        )  # fmt: skip
        formula = "layers · sequences · fp32_bytes · (conv_values + state_values)"
        because = f"{VERSION} llama-memory-recurrent.cpp"
        return Term("recurrent_state", formula, values, state.total_bytes, "derived", because, "decode")

    def _compute_term(self, size: int, device: int) -> Term:
        context = self.context
        values = self._values(
            device, tokens=context.tokens, outputs=context.outputs, cells=context.cells, streams=context.streams,
            flash_attn=str(context.flash).lower(),
        )  # fmt: skip
        formula = "highest address of the graph reserved for tokens against full cells"
        because = f"{VERSION} src/models/{self.family.file}, ggml-alloc.c: a best-fit free list replayed in node order"
        return Term("workspace", formula, values, size, "derived", because, "decode")

    def _logits_term(self) -> Term:
        vocabulary, sequences = self.architecture.vocab_size, self.context.sequences
        values = self._values(self.placement.host, vocab_size=vocabulary, sequences=sequences, fp32_bytes=4)
        size = output_bytes(self.architecture, self.context)
        formula = "vocab_size · sequences · fp32_bytes"
        return Term("logits", formula, values, size, "derived", f"{VERSION} output_reserve", "decode")


Totals = tuple[int, int, int, Any, Any]
"""From a number of blocks to another: what each device holds at a third, and how it rises with each block."""


@remember_by_identity(2048)
def _totals(
    architecture: Architecture, family: Family, context: Context, placement: Placement, file: Checkpoint
) -> Callable[[int], Totals]:
    known: list[Totals] = []

    def lines(blocks: int) -> Totals:
        for found in known:
            if found[0] <= blocks <= found[1]:
                return found
        known.append(_line(Laid(architecture, family, context, placement, file), blocks))
        return known[-1]

    return lines


def _line(laid: Laid, blocks: int) -> Totals:
    import numpy as np  # noqa: PLC0415

    course = course_of(laid.architecture, laid.family, laid.context, laid.placement, laid.copied)
    piece, turns = course.piece(blocks), bends(laid.architecture.decoder.layers, laid.context)
    low = max(piece.low, *(turn + 1 for turn in turns if turn < blocks), piece.low)
    high = min(piece.high, *(turn for turn in turns if turn >= blocks), piece.high)
    ends = (low, min(low + 1, high))
    held = [
        np.array([part.total_bytes for part in replace(laid, context=replace(laid.context, cells=end * CELL_BLOCK)).buffers()[:-1]])
        for end in ends
    ]
    return low, high, low, held[0], held[1] - held[0]
