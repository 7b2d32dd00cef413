"""What happens to an allocator: the events a trace is made of."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Alloc:
    """A storage of ``size_bytes`` is born on ``stream``; ``id`` names it until it is freed. 0 bytes take no block.

    ``pool`` 0 is the device's own pool; a private one must have been begun (:class:`BeginPool`).
    """

    id: int
    size_bytes: int
    stream: int = 0
    pool: int = 0


@dataclass(frozen=True, slots=True)
class Free:
    """The storage ``id`` dies."""

    id: int


@dataclass(frozen=True, slots=True)
class RecordStream:
    """``tensor.record_stream``: another stream uses the storage, so its free waits for that stream."""

    id: int
    stream: int


@dataclass(frozen=True, slots=True)
class Synchronize:
    """The host waits for ``stream``, or for the whole device: frees that waited for it may complete."""

    stream: int | None = None


@dataclass(frozen=True, slots=True)
class EmptyCache:
    """``torch.cuda.empty_cache``."""


@dataclass(frozen=True, slots=True)
class BeginPool:
    """A CUDA graph capture (or ``torch.cuda.use_mem_pool``) begins to allocate from the private ``pool``.

    While any is under way no cached memory is given back on a miss.
    """

    pool: int


@dataclass(frozen=True, slots=True)
class EndPool:
    """The capture ends; the pool keeps its memory for the graph."""

    pool: int


@dataclass(frozen=True, slots=True)
class ReleasePool:
    """A graph that used ``pool`` is destroyed; after the last one its unused memory may be given back."""

    pool: int


@dataclass(frozen=True, slots=True)
class Mark:
    """A phase begins: peaks start anew, as with ``torch.cuda.reset_peak_memory_stats``."""

    name: str


Event = Alloc | Free | RecordStream | Synchronize | EmptyCache | BeginPool | EndPool | ReleasePool | Mark
