"""A simulator of PyTorch's CUDA caching allocator: pure, deterministic, and as strict as the real one.

``replay`` runs a trace of events and returns its timeline; ``memory_snapshot`` gives the same run to PyTorch's memory viewer.
``blocks`` holds the data, ``caching`` the rules, ``expandable`` those of expandable segments, ``options`` what can be set.
"""

from planner.allocator.caching import CachingAllocator
from planner.allocator.events import (
    Alloc,
    BeginPool,
    EmptyCache,
    EndPool,
    Event,
    Free,
    Mark,
    RecordStream,
    ReleasePool,
    Synchronize,
)
from planner.allocator.options import CONSTANTS, AllocatorConstants, AllocatorOptions, constants_for, parse_alloc_conf
from planner.allocator.records import Action, OutOfMemory, OutOfMemoryError
from planner.allocator.replay import PhasePeak, Timeline, replay
from planner.allocator.segments import BlockState, SegmentState, segment_map
from planner.allocator.snapshot import Frame, memory_snapshot

__all__ = [
    "CONSTANTS",
    "Action",
    "Alloc",
    "AllocatorConstants",
    "AllocatorOptions",
    "BeginPool",
    "BlockState",
    "CachingAllocator",
    "EmptyCache",
    "EndPool",
    "Event",
    "Frame",
    "Free",
    "Mark",
    "OutOfMemory",
    "OutOfMemoryError",
    "PhasePeak",
    "RecordStream",
    "ReleasePool",
    "SegmentState",
    "Synchronize",
    "Timeline",
    "constants_for",
    "memory_snapshot",
    "parse_alloc_conf",
    "replay",
    "segment_map",
]
