"""The answer: what each GPU holds in each phase, which terms make it up, and whether it fits.

The three meters of a phase are its highest values: ``allocated`` (live tensors), ``reserved`` (held by the caching
allocator) and ``device`` (what the driver shows for the process). The components of a phase add up to ``device``;
without ``cuda_context`` and ``allocator_slack`` they add up to ``allocated``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import field
from typing import Literal

from planner.record import record

COMPONENTS = (
    "weights",
    "other_models",
    "adapters",
    "quantization_state",
    "kv_cache",
    "recurrent_state",
    "activations",
    "logits",
    "workspace",
    "gradients",
    "optimizer_state",
    "master_weights",
    "communication",
    "cuda_graphs",
    "cuda_context",
    "allocator_slack",
)
HOST = -1
"""In place of a GPU's index: the machine's own memory."""
OUTSIDE_ALLOCATED = ("cuda_context", "allocator_slack")
TRAINING_PHASES = ("load", "forward", "backward", "optimizer")
OBJECTIVE_PHASES = ("generation", "reference")
"""What an objective with several models or answers of its own adds to a training's phases."""
METERS = ("allocated", "reserved", "device")

Certainty = Literal["exact", "derived", "modelled", "measured"]
Level = Literal["predict", "rehearse", "measure"]
Verdict = Literal["fits", "tight", "does_not_fit", "unknown"]
FITS_PERCENT = 85
"""Share of the usable memory up to which a plan fits comfortably."""
TIGHT_PERCENT = 97
"""Share up to which it is tight; above it does not fit."""
TIGHT_BELOW = TIGHT_PERCENT / 100


@record
class Term:
    """One summand: a formula, the numbers put in, and how sure they are.

    ``phase`` None means every phase, ``gpu`` None every GPU; else the index of one, or :data:`HOST`.
    """

    component: str
    formula: str
    values: Mapping[str, int | float | str]
    bytes: int
    certainty: Certainty
    because: str
    phase: str | None = None
    gpu: int | None = None

    def tells_of(self, phase: str, gpu: int) -> bool:
        """Whether the term is part of a phase on a GPU."""
        return self.phase in (None, phase) and self.gpu in (None, gpu)

    def to_json(self) -> dict[str, object]:
        """JSON-ready data."""
        return {
            "component": self.component, "phase": self.phase, "formula": self.formula, "values": dict(self.values),
            "bytes": self.bytes, "certainty": self.certainty, "because": self.because, "gpu": self.gpu,
        }  # fmt: skip


@record
class Phase:
    """The highest values of one phase; ``components`` as they stand at the moment of the peak."""

    name: str
    allocated: int
    reserved: int
    device: int
    components: Mapping[str, int] = field(default_factory=dict)

    def meter(self, name: str) -> int:
        """``allocated``, ``reserved`` or ``device`` by name."""
        return {"allocated": self.allocated, "reserved": self.reserved, "device": self.device}[name]

    def to_json(self) -> dict[str, object]:
        """JSON-ready data."""
        meters = {"name": self.name, "allocated": self.allocated, "reserved": self.reserved, "device": self.device}
        return meters | {"components": {name: size for name, size in self.components.items() if size}}


@record
class GpuFootprint:
    """One GPU's phases against its capacity (None when it is not known)."""

    index: int
    capacity_bytes: int | None
    phases: tuple[Phase, ...]

    @property
    def peak(self) -> Phase | None:
        """The phase that takes most of the device; None when no phase could be sized.

        What is reserved stays reserved, so later phases often show the same; of those the one with most allocated.
        """
        return max(self.phases, key=lambda phase: (phase.device, phase.allocated), default=None)

    def to_json(self) -> dict[str, object]:
        """JSON-ready data."""
        peak = self.peak
        shown = peak and {"phase": peak.name, "allocated": peak.allocated, "reserved": peak.reserved, "device": peak.device}
        return {
            "index": self.index, "capacity_bytes": self.capacity_bytes, "peak": shown,
            "phases": [phase.to_json() for phase in self.phases],
        }  # fmt: skip


@record
class Host:
    """System memory: what stays there, and the peak while loading."""

    bytes: int = 0
    components: Mapping[str, int] = field(default_factory=dict)
    load_bytes: int | None = None
    terms: tuple[Term, ...] = ()
    """Where ``load_bytes`` comes from: they add up to it."""

    @property
    def phase(self) -> Phase | None:
        """What stays there in the form of a phase, to stand beside those of the GPUs; None where nothing does."""
        return Phase("host", self.bytes, self.bytes, self.bytes, self.components) if self.bytes else None

    def to_json(self) -> dict[str, object]:
        """JSON-ready data; ``terms`` only where there are some."""
        found: dict[str, object] = {"bytes": self.bytes, "components": dict(self.components), "load_bytes": self.load_bytes}
        return found | {"terms": [term.to_json() for term in self.terms]} if self.terms else found


@record
class Footprint:
    """The whole answer, of any level."""

    scenario: Mapping[str, object]
    level: Level
    parameters: int | None
    trainable_parameters: int
    weight_bytes: int | None
    gpus: tuple[GpuFootprint, ...]
    verdict: Verdict
    host: Host = Host()
    headroom_bytes: int | None = None
    uncertainty_bytes: int | None = None
    limits: Mapping[str, int | None] = field(default_factory=dict)
    speed: Mapping[str, float | str | None] = field(default_factory=dict)
    terms: Sequence[Term] = ()
    notes: tuple[str, ...] = ()
    extra: Mapping[str, object] = field(default_factory=dict)
    """What a rehearsal or a measurement adds: timeline, samples, environment, error, outcome."""

    @property
    def fullest(self) -> GpuFootprint | None:
        """The GPU that holds most of its capacity at its peak (of bytes, where none is known); None where none could be sized."""
        sized = [gpu for gpu in self.gpus if gpu.peak is not None]
        return max(sized, key=lambda gpu: gpu.peak.device / (gpu.capacity_bytes or 1) if gpu.peak else 0, default=None)

    @property
    def cards(self) -> int:
        """GPUs of the plan: of many that hold the same, ``gpus`` tells one."""
        hardware = self.scenario.get("hardware")
        asked = hardware.get("gpus", 1) * hardware.get("nodes", 1) if isinstance(hardware, Mapping) else 1
        return max(len(self.gpus), int(asked))

    def to_json(self) -> dict[str, object]:
        """JSON-ready data, the contract of ``python main.py predict --json``."""
        return {
            "version": 1,
            "scenario": dict(self.scenario),
            "level": self.level,
            "parameters": self.parameters,
            "trainable_parameters": self.trainable_parameters,
            "weight_bytes": self.weight_bytes,
            "gpus": [gpu.to_json() for gpu in self.gpus],
            "host": self.host.to_json(),
            "verdict": self.verdict,
            "headroom_bytes": self.headroom_bytes,
            "uncertainty_bytes": self.uncertainty_bytes,
            "limits": dict(self.limits),
            "speed": dict(self.speed),
            "terms": [term.to_json() for term in self.terms],
            "notes": list(self.notes),
            **self.extra,
        }


def judge(device_bytes: int, capacity_bytes: int | None, uncertainty_bytes: int) -> Verdict:
    """How a device figure stands to a capacity: comfortable to 85 %, tight to 97 % or when its error band crosses."""
    if capacity_bytes is None:
        return "unknown"
    if 100 * device_bytes > TIGHT_PERCENT * capacity_bytes:
        return "does_not_fit"
    if 100 * device_bytes > FITS_PERCENT * capacity_bytes or device_bytes + uncertainty_bytes > capacity_bytes:
        return "tight"
    return "fits"
