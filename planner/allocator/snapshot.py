"""A replay as the dictionary that ``torch.cuda.memory._snapshot`` returns, for PyTorch's memory viewer.

Source: torch/cuda/memory.py (``_snapshot``) and torch/cuda/_memory_viz.py of torch 2.13. Pickled to a file it opens at
pytorch.org/memory_viz.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypedDict

from planner.allocator.caching import CachingAllocator
from planner.allocator.events import Event, Mark
from planner.allocator.options import AllocatorOptions
from planner.allocator.records import Action, OutOfMemoryError
from planner.allocator.replay import apply
from planner.allocator.segments import BlockState, SegmentState, segment_map


class Frame(TypedDict):
    """A line of the stack shown for an allocation; ``name`` may as well be a module's path."""

    filename: str
    line: int
    name: str


_Frames = Mapping[int, Sequence[Frame]]


def memory_snapshot(
    events: Iterable[Event],
    options: AllocatorOptions | None = None,
    *,
    frames: _Frames | None = None,
    times_us: Sequence[int] | None = None,
) -> dict[str, Any]:
    """Replay a trace, up to its end or to the first request that can't be met, and describe it as PyTorch would.

    ``frames``: by storage id, innermost first. ``times_us``: when each event happened; their index by default. Plain data:
    ``segments`` as they are at the end, ``device_traces`` with everything the allocator did, each phase as an external
    annotation, and the settings. Raises Faults as :func:`planner.allocator.replay` does.
    """
    frames = frames or {}
    log: list[Action] = []
    allocator = CachingAllocator(options, log)
    trace: list[dict[str, Any]] = []
    marks: list[tuple[str, int]] = []
    time_us = 0
    for index, event in enumerate(events):
        time_us = index if times_us is None else times_us[index]
        if isinstance(event, Mark):
            marks.append((event.name, time_us))
        try:
            apply(allocator, event, index)
        except OutOfMemoryError:
            break
        finally:
            trace += [_entry(action, time_us, frames) for action in log]
            log.clear()
    return {
        "segments": [_segment(segment, frames) for segment in segment_map(allocator)],
        "device_traces": [trace],
        "external_annotations": _annotations(marks, time_us),
        "allocator_settings": _settings(allocator.options),
    }


def _entry(action: Action, time_us: int, frames: _Frames) -> dict[str, Any]:
    return {
        "action": action.name,
        ("device_free" if action.name == "oom" else "addr"): action.address,
        "size": action.size_bytes,
        "stream": action.stream,
        "time_us": time_us,
        "pool_id": (0, action.pool),
        "frames": _frames_of(action.id, frames),
    }


def _segment(segment: SegmentState, frames: _Frames) -> dict[str, Any]:
    return {
        "device": 0,
        "address": segment.address,
        "total_size": segment.total_bytes,
        "allocated_size": segment.allocated_bytes,
        "active_size": segment.active_bytes,
        "requested_size": sum(block.requested_bytes for block in segment.blocks),
        "stream": segment.stream,
        "segment_type": "small" if segment.is_small else "large",
        "segment_pool_id": (0, segment.pool),
        "is_expandable": segment.is_expandable,
        "frames": [],
        "blocks": [_block(block, frames) for block in segment.blocks],
    }


def _block(block: BlockState, frames: _Frames) -> dict[str, Any]:
    return {
        "address": block.address,
        "size": block.size_bytes,
        "requested_size": block.requested_bytes,
        "state": block.state,
        "frames": _frames_of(block.id, frames),
    }


def _frames_of(storage: int | None, frames: _Frames) -> list[dict[str, Any]]:
    return [dict(frame) for frame in frames.get(storage, ())] if storage is not None else []


def _annotations(marks: Sequence[tuple[str, int]], last_us: int) -> list[dict[str, Any]]:
    """The phases as pairs of START and END; each lasts until the next begins."""
    ends = [time_us for _, time_us in marks[1:]] + [last_us]
    return [
        {"name": name, "stage": stage, "device": 0, "time_us": time_us}
        for (name, start_us), end_us in zip(marks, ends, strict=False)
        for stage, time_us in (("START", start_us), ("END", end_us))
    ]


def _settings(options: AllocatorOptions) -> dict[str, Any]:
    return {
        "max_split_size": -1 if options.max_split_size_bytes is None else options.max_split_size_bytes,
        "garbage_collection_threshold": options.garbage_collection_threshold,
        "expandable_segments": options.expandable_segments,
        "roundup_power2_divisions": {str(2**index): count for index, count in enumerate(options.roundup_power2_divisions)},
    }
