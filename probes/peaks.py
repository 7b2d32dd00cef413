"""A phase's peak opened: which tensors were alive, of which component, made where by what."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from probes.replay import PhaseRun, Replay
from probes.trace import Trace

GROUPS_TOLD = 100
"""The most groups of one peak in JSON; the smaller ones are added up in ``rest``."""
MODEL_SIZED = ("weights", "adapters", "quantization_state", "gradients", "optimizer_state", "master_weights")
"""Components whose parts are the model's own list of parameters."""
_NUMBER = re.compile(r"(?<![^.])\d+(?![^.])")
"""A part of a module path that is an index."""


@dataclass(frozen=True, slots=True)
class TensorGroup:
    """``count`` tensors of one component, made by one operator in one place; the layers of a stack are one place.

    ``module`` is a path with ranges for indices (``model.layers.0-31.mlp``), empty for the model itself.
    """

    component: str
    module: str
    operator: str
    bytes: int
    count: int

    def to_json(self) -> dict[str, object]:
        """JSON-ready data."""
        return {
            "component": self.component, "module": self.module, "op": self.operator, "bytes": self.bytes, "count": self.count,
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class OpenedPeak:
    """The highest moment of a phase: the module and operator that reached it (empty: held from before), and all that lived then.

    ``groups`` add up to ``allocated_bytes``, largest first.
    """

    phase: str
    step: int
    event: int
    module: str
    operator: str
    allocated_bytes: int
    groups: tuple[TensorGroup, ...]

    def condensed(self) -> list[TensorGroup]:
        """The groups, largest first, with each component that is as large as the model in one: its parts are the model's own."""
        whole = {name: [group for group in self.groups if group.component == name] for name in MODEL_SIZED}
        added = [
            TensorGroup(name, "", "", sum(group.bytes for group in found), sum(group.count for group in found))
            for name, found in whole.items()
            if found
        ]
        rest = [group for group in self.groups if group.component not in MODEL_SIZED]
        return sorted([*added, *rest], key=lambda group: -group.bytes)

    def to_json(self) -> dict[str, object]:
        """JSON-ready data, the smallest groups added up."""
        rest = self.groups[GROUPS_TOLD:]
        return {
            "phase": self.phase,
            "step": self.step,
            "event": self.event,
            "module": self.module,
            "op": self.operator,
            "allocated": self.allocated_bytes,
            "tensors": [group.to_json() for group in self.groups[:GROUPS_TOLD]],
            "rest": {"bytes": sum(group.bytes for group in rest), "count": sum(group.count for group in rest)},
        }


def open_peak(trace: Trace, replay: Replay, run: PhaseRun) -> OpenedPeak:
    """Open the peak of one pass through a phase."""
    row = trace.events[run.allocated_event] if run.allocated_event >= run.first_event else -1
    module, operator = (trace.text(trace.module[row]), trace.text(trace.operator[row])) if row >= 0 else ("", "")
    groups = _groups(trace, replay, run.allocated_event)
    return OpenedPeak(run.name, run.step, run.allocated_event, module, operator, run.allocated_bytes, groups)


def fold_paths(paths: Iterable[str]) -> str:
    """One path for many that differ in their indices only: ``layers.0.mlp`` and ``layers.1.mlp`` are ``layers.0-1.mlp``."""
    found = list(paths)
    indices = [[int(number) for number in _NUMBER.findall(path)] for path in found]
    columns = iter([_ranges(set(column)) for column in zip(*indices, strict=True)])
    return _NUMBER.sub(lambda _: next(columns), found[0])


def _groups(trace: Trace, replay: Replay, event: int) -> tuple[TensorGroup, ...]:
    rows = replay.alive_at(event)
    keys = np.stack([np.array(column)[rows] for column in (trace.component, trace.operator, trace.module)])
    kinds, which = np.unique(keys, axis=1, return_inverse=True)
    sizes = np.zeros(kinds.shape[1], np.int64)
    np.add.at(sizes, which.ravel(), np.array(replay.block_bytes)[rows])
    counts = np.bincount(which.ravel(), minlength=kinds.shape[1])
    folded: dict[tuple[int, int, str], list[int]] = defaultdict(list)
    for index, (component, operator, module) in enumerate(kinds.T):
        folded[int(component), int(operator), _NUMBER.sub("*", trace.text(int(module)))].append(index)
    groups = [
        TensorGroup(
            component=trace.text(component),
            module=fold_paths(trace.text(int(kinds[2, index])) for index in indices),
            operator=trace.text(operator),
            bytes=int(sizes[indices].sum()),
            count=int(counts[indices].sum()),
        )
        for (component, operator, _), indices in folded.items()
    ]
    return tuple(sorted(groups, key=lambda group: (-group.bytes, group.component, group.module)))


def _ranges(numbers: set[int]) -> str:
    """``{0, 1, 2, 5}`` is ``0-2,5``."""
    ordered = sorted(numbers)
    starts = [number for number in ordered if number - 1 not in numbers]
    ends = [number for number in ordered if number + 1 not in numbers]
    return ",".join(str(start) if start == end else f"{start}-{end}" for start, end in zip(starts, ends, strict=True))
