"""Scaled probes: measure a model with few layers at two sizes, and say what the whole would take, with a band.

A model's memory is a sum over its layers, so that with the same kinds of layers in both sizes

    whole = small + factor · (large − small),    factor = (whole_k − small_k) / (large_k − small_k) for every kind k of layer.

Where no one factor holds for every kind, or the peak would move to another place in the whole model, this is refused.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any

from planner.architecture import read_config
from planner.architecture.layers import Layer
from planner.describe import layer_kind
from planner.footprint import METERS, Footprint, GpuFootprint, Phase, judge
from planner.units import MIB, format_bytes
from probes.measurement import Measurement, StepPhase
from probes.worker.layers import keep_layers

SEGMENT_BYTES = 20 * MIB
"""The allocator takes segments of this size for tensors from 1 to 10 MiB (CUDACachingAllocator.cpp, kLargeBuffer): by so much
what is reserved may differ from a straight line at each size."""
BEND_REFUSED = 0.02
"""Share of a phase's closed form by which the straight line may miss it. Beyond, the peak lies elsewhere in the whole model."""
BEND_PREFERRED = 0.001
SEARCHED_LAYERS = 16

Predict = Callable[[int | None], Footprint]
"""The closed form of the run with so many layers, or of the whole."""


class NotLinear(ValueError):
    """The whole can't be told from these sizes; the text says why and what could be."""


@dataclass(frozen=True, slots=True)
class Scale:
    """Two sizes of one model, from which the whole follows. ``bends`` by phase: bytes by which closed form and line differ."""

    small: int
    large: int
    whole: int
    factor: Fraction
    bends: Mapping[str, int] = field(default_factory=dict)

    def line(self, small: int, large: int) -> int:
        """What the whole takes, when the sizes take so much."""
        return round(small + self.factor * (large - small))


def scale_of(config: Mapping[str, Any], small: int, large: int, predict: Predict | None = None) -> Scale:
    """The scale of two sizes of the model of ``config``; ``predict`` to see whether the peak stays where it is.

    Raises :class:`NotLinear`, and what :func:`planner.architecture.read_config` raises.
    """
    if not 1 <= small < large:
        raise NotLinear(f"layers: must be two numbers, the smaller first and at least 1, got {small},{large}")
    scale = _Sizes(config).scale(small, large)
    if predict is None:
        return scale
    bends, worst = _bends(scale, predict)
    if worst > BEND_REFUSED:
        raise NotLinear(
            f"layers: with {small} and {large} layers the peak lies elsewhere than in the whole model "
            f"(a straight line would miss its closed form by {100 * worst:.1f} %); use more layers"
        )
    return replace(scale, bends=bends)


def find_scale(config: Mapping[str, Any], predict: Predict | None = None) -> Scale:
    """The smallest two sizes from which the whole follows, with next to no bend if there are such. Raises :class:`NotLinear`."""
    sizes = _Sizes(config)
    found: tuple[float, Scale] | None = None
    reason = NotLinear(f"layers: a model of {sizes.whole} layers is measured whole")
    for large in range(2, min(sizes.whole, SEARCHED_LAYERS) + 1):
        for small in range(1, large):
            try:
                scale = sizes.scale(small, large)
            except NotLinear as error:
                reason = error
                continue
            bends, worst = ({}, 0.0) if predict is None else _bends(scale, predict)
            if worst <= BEND_PREFERRED:
                return replace(scale, bends=bends)
            if worst <= BEND_REFUSED and (found is None or worst < found[0]):
                found = worst, replace(scale, bends=bends)
    if found is None:
        raise reason
    return found[1]


class _Sizes:
    """What kinds of layers a model has, whole and with fewer layers."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._config = config
        self._numbers: dict[Layer, int] = {}
        self._counts: dict[int, Counter[int]] = {}
        self.whole = len(read_config(config).decoder.layers)
        self._all = self._count(config)

    def scale(self, small: int, large: int) -> Scale:
        """Raises :class:`NotLinear` when the whole does not follow from these."""
        if large > self.whole:
            raise NotLinear(f"layers: the model has {self.whole}, got {small},{large}")
        kinds = list(self._numbers)
        return Scale(small, large, self.whole, _factor(kinds, self._all, self._of(small), self._of(large)))

    def _of(self, layers: int) -> Counter[int]:
        if layers not in self._counts:
            self._counts[layers] = self._count(keep_layers(self._config, layers))
        return self._counts[layers]

    def _count(self, config: Mapping[str, Any]) -> Counter[int]:
        architecture = read_config(config)
        layers = [layer for stack in (architecture.decoder, *architecture.towers) for layer in stack.layers]
        return Counter(self._numbers.setdefault(layer, len(self._numbers)) for layer in layers)


def _factor(kinds: Sequence[Layer], whole: Counter[int], small: Counter[int], large: Counter[int]) -> Fraction:
    missing = [kind for kind in whole if not small[kind]]
    if missing:
        raise NotLinear(f"layers: {small.total()} layers hold none of this kind: {layer_kind(kinds[missing[0]])}; begin with more")
    factors = {
        kind: Fraction(count - small[kind], large[kind] - small[kind]) if large[kind] != small[kind] else None
        for kind, count in whole.items()
    }
    for kind, factor in factors.items():
        if factor is None and whole[kind] != small[kind]:
            raise NotLinear(f"layers: both sizes hold as many of this kind, the whole model more: {layer_kind(kinds[kind])}")
    found = {factor for factor in factors.values() if factor is not None}
    if len(found) != 1:
        told = "; ".join(f"{layer_kind(kinds[kind])} {small[kind]}, {large[kind]}, {count}" for kind, count in whole.items())
        raise NotLinear(f"layers: the kinds of layers do not grow alike (of each kind in the sizes and in the whole: {told})")
    return found.pop()


def _bends(scale: Scale, predict: Predict) -> tuple[dict[str, int], float]:
    """By phase how far the closed form of the whole lies from the line, and the largest share."""
    phases = [
        {phase.name: phase for gpu in predict(size).gpus for phase in gpu.phases} for size in (None, scale.small, scale.large)
    ]
    whole, small, large = phases
    bends = {
        name: abs(phase.allocated - scale.line(small[name].allocated, large[name].allocated))
        for name, phase in whole.items()
        if name in small and name in large
    }
    return bends, max((bend / whole[name].allocated for name, bend in bends.items() if whole[name].allocated), default=0.0)


@dataclass(frozen=True, slots=True)
class ScaledPhase:
    """One phase of the whole as the two sizes tell it; ``bands`` are half-widths by meter."""

    phase: Phase
    bands: Mapping[str, int]
    per_layer: Mapping[str, int]
    duration_s: float | None

    def to_json(self) -> dict[str, object]:
        """A footprint's phase with its bands."""
        return {**self.phase.to_json(), "bands": dict(self.bands), "per_layer": dict(self.per_layer), "duration_s": self.duration_s}


def extrapolate(scale: Scale, small: Measurement, large: Measurement, prediction: Footprint) -> Footprint:
    """The footprint of the whole model. ``prediction`` is the plan's, whose card decides the verdict.

    Raises :class:`NotLinear` when the parameters of the two sizes do not lie on the line to those of the whole.
    """
    sizes = [run.footprint() for run in (small, large)]
    counts = [size.parameters for size in sizes]
    if counts[0] is not None and counts[1] is not None and prediction.parameters is not None:
        found = scale.line(counts[0], counts[1])
        if found != prediction.parameters:
            raise NotLinear(f"the parameters of both sizes lead to {found:,}, the whole model has {prediction.parameters:,}")
    phases = _phases(scale, small, large)
    peak = max((scaled for scaled in phases), key=lambda scaled: scaled.phase.device, default=None)
    capacity = prediction.gpus[0].capacity_bytes if prediction.gpus else None
    device = peak.phase.device if peak else 0
    band = peak.bands["device"] if peak else 0
    return Footprint(
        scenario=prediction.scenario,
        level="measure",
        parameters=prediction.parameters,
        trainable_parameters=prediction.trainable_parameters,
        weight_bytes=prediction.weight_bytes,
        gpus=(GpuFootprint(0, capacity, tuple(scaled.phase for scaled in phases)),) if phases else (),
        verdict=judge(device, capacity, band) if phases else "unknown",
        headroom_bytes=None if capacity is None or not phases else capacity - device,
        uncertainty_bytes=band,
        notes=_notes(scale, small, phases),
        extra={
            "extrapolated": {
                "layers": [scale.small, scale.large], "whole_layers": scale.whole, "factor": float(scale.factor),
                "phases": [scaled.to_json() for scaled in phases],
            },
            "environment": large.environment,
            "error": _error(phases, prediction, small.on_cpu),
        },
    )  # fmt: skip


def _phases(scale: Scale, small: Measurement, large: Measurement) -> tuple[ScaledPhase, ...]:
    ended = {step.name: step for step in large.phases if step.ended}
    return tuple(_phase(scale, step, ended[step.name]) for step in small.phases if step.ended and step.name in ended)


def _phase(scale: Scale, small: StepPhase, large: StepPhase) -> ScaledPhase:
    meters = {meter: max(0, scale.line(small.meters[meter], large.meters[meter])) for meter in METERS}
    parts = small.components.keys() | large.components.keys()
    line = {part: scale.line(small.components.get(part, 0), large.components.get(part, 0)) for part in parts}
    per_layer = {meter: round((large.meters[meter] - small.meters[meter]) / (scale.large - scale.small)) for meter in METERS}
    times = [step.ended_s - step.begun_s for step in (small, large)]
    duration_s = round(max(0.0, times[0] + float(scale.factor) * (times[1] - times[0])), 6)
    components = {part: size for part, size in sorted(line.items()) if size > 0}
    return ScaledPhase(Phase(small.name, **meters, components=components), _bands(scale, small, large), per_layer, duration_s)


def _bands(scale: Scale, small: StepPhase, large: StepPhase) -> dict[str, int]:
    """``allocated`` is exact but for the bend; a segment more or less at a size counts once for the small, ``factor`` for both."""
    amplified = 1 + 2 * float(scale.factor)
    allocated = scale.bends.get(small.name, 0)
    on_line = small.meters["reserved"] == small.meters["allocated"] and large.meters["reserved"] == large.meters["allocated"]
    reserved = allocated if on_line else allocated + round(amplified * SEGMENT_BYTES)
    outside = [step.meters["device"] - step.meters["reserved"] for step in (small, large)]
    return {
        "allocated": allocated,
        "reserved": reserved,
        "device": reserved + round((1 + float(scale.factor)) * abs(outside[1] - outside[0])),
    }


def _notes(scale: Scale, small: Measurement, phases: tuple[ScaledPhase, ...]) -> tuple[str, ...]:
    sizes = f"{scale.small} and {scale.large} of {scale.whole} layers"
    notes = [f"Extrapolated from runs with {sizes}: {float(scale.factor):g} times their difference on top of the smaller."]
    if not scale.bends:
        notes.append("There is no closed form to see whether the peak stays in the same place in the whole model.")
    if small.on_cpu:
        notes.append("Measured on the CPU: only allocated compares with a GPU, so the verdict is not one of that card.")
    widest = max((scaled.bands["device"] for scaled in phases), default=0)
    if widest:
        notes.append(f"The device figure is known to ± {format_bytes(widest)}.")
    return tuple(notes)


def _error(phases: tuple[ScaledPhase, ...], prediction: Footprint, on_cpu: bool) -> dict[str, dict[str, float | None]]:  # noqa: FBT001
    predicted = {phase.name: phase for gpu in prediction.gpus for phase in gpu.phases}
    compared = METERS[:1] if on_cpu else METERS
    return {
        scaled.phase.name: {
            meter: scaled.phase.meter(meter) / predicted[scaled.phase.name].meter(meter) - 1
            if meter in compared and predicted[scaled.phase.name].meter(meter)
            else None
            for meter in METERS
        }
        for scaled in phases
        if scaled.phase.name in predicted
    }
