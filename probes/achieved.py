"""What share of a card's peak bandwidth and arithmetic its own runs achieved, by the time that their passes took.

A share is tried like every figure of a calibration: fitted on all timed runs but one and asked of that one, it must bring the
predicted times closer than the published share does. The card's own figures (a copy, a matrix product) are tried beside the
runs' own: a model's pass seldom achieves them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, median

from planner.architecture import Architecture
from planner.calibration import Calibration
from planner.formats import Format
from planner.gpu import Gpu
from planner.predict import settled_of
from planner.scenario import Scenario
from planner.speed import BANDWIDTH_FRACTION, COMPUTES_IN, FALLBACKS, PREFILL_FLOPS_FRACTION, TRAINING_FLOPS_FRACTION, speed
from probes.figures import BAND_FLOOR, NEEDED_RUNS, Figure
from probes.measurement import Measurement

LEAST_SHARE, MOST_SHARE = 0.05, 1.05
"""Outside of these something else than the card was timed: the processor that launches kernels, or a first call."""
LEAST_TOKENS = 4
"""Decoded tokens below which the first, which loads kernels, is most of the time."""


@dataclass(frozen=True, slots=True)
class Timing:
    """A decode step or a training step of one run.

    ``share`` is what it achieved of the peak of ``figure``, which binds it; ``predict`` says how long it takes by a calibration.
    """

    figure: str
    share: float
    measured_s: float
    predict: Callable[[Calibration | None], float]

    def error(self, calibration: Calibration | None) -> float:
        """How far off the prediction is, as the absolute logarithm: half and double weigh the same."""
        return abs(math.log(self.predict(calibration) / self.measured_s))


def timing_of(run: Measurement, scenario: Scenario, architecture: Architecture, native: Format, card: Gpu) -> Timing | None:
    """The timed pass of a run on ``card``, None where none says anything of the card."""
    settled, fmt = settled_of(scenario, architecture, native)
    measured_s = _measured_s(run, settled)
    name = "step_s" if settled.task == "training" else "time_per_token_s"

    def predict(calibration: Calibration | None) -> float:
        return _number(speed(settled, architecture, fmt, replace(card, calibration=calibration)).get(name))

    plain = speed(settled, architecture, fmt, replace(card, calibration=None))
    predicted_s = _number(plain.get(name))
    if not measured_s or not predicted_s or plain.get("bound_by") not in ("bandwidth", "compute"):
        return None
    if plain["bound_by"] == "bandwidth":
        figure, fraction = "bandwidth", BANDWIDTH_FRACTION
    else:
        figure = f"{_unit(settled, fmt, card)} FLOP/s"
        fraction = TRAINING_FLOPS_FRACTION if settled.task == "training" else PREFILL_FLOPS_FRACTION
    share = fraction * predicted_s / measured_s
    return Timing(figure, share, measured_s, predict) if LEAST_SHARE < share <= MOST_SHARE else None


def speed_figures(
    card: Gpu, timings: Sequence[Timing], copied: Sequence[float], products: Mapping[str, Sequence[float]]
) -> list[Figure]:
    """A figure for bandwidth and for each dtype: shares of the peak, from the runs' times or from the card's own figures.

    ``copied``: bytes a second of copies; ``products``: operations a second of matrix products by dtype.
    """
    peaks = {"bandwidth": card.bandwidth_bytes_per_s} | {f"{name} FLOP/s": card.flops_for(name) for name in products}
    rates: dict[str, Sequence[float]] = {"bandwidth": copied} | {f"{name} FLOP/s": found for name, found in products.items()}
    own = {name: [rate / peak for rate in rates[name]] for name, peak in peaks.items() if peak and rates[name]}
    figures: list[Figure] = []
    kept: list[Figure] = []
    for name in dict.fromkeys([*own, *(timing.figure for timing in timings)]):
        figure = _best(name, own.get(name, ()), timings, kept)
        figures.append(figure)
        kept += [figure] if figure.accepted else []
    return figures


def with_speeds(calibration: Calibration, figures: Sequence[Figure]) -> Calibration:
    """The calibration with what was accepted of the figures."""
    accepted = {figure.name: figure for figure in figures if figure.accepted}
    bandwidth = accepted.get("bandwidth")
    flops = tuple((name.split()[0], figure.value) for name, figure in sorted(accepted.items()) if name.endswith("FLOP/s"))
    if bandwidth is None:
        return replace(calibration, flops_fractions=flops)
    return replace(calibration, bandwidth_fraction=bandwidth.value, bandwidth_band=bandwidth.band, flops_fractions=flops)


def _best(name: str, own: Sequence[float], timings: Sequence[Timing], kept: Sequence[Figure]) -> Figure:
    """The runs' share or the card's own, whichever brings held-out times closer; declined where neither does."""
    told = [timing.share for timing in timings if timing.figure == name]
    if len(told) < NEEDED_RUNS:
        return _unchecked(name, own, len(told))
    before = fmean(timing.error(_with(kept)) for timing in timings)
    tried = [(_held_out(name, timings, kept), _figure(name, told), "share that its runs achieved")]
    if own:
        figure = _figure(name, own)
        tried.append(
            (fmean(timing.error(_with([*kept, figure])) for timing in timings), figure, "share that the card itself achieves")
        )
    after, figure, why = min(tried, key=lambda each: each[0])
    accepted = after < before and LEAST_SHARE < figure.value <= MOST_SHARE
    why = (
        f"{why}: closer to times that it was not fitted on"
        if accepted
        else "declined: not closer to times that it was not fitted on"
    )
    return replace(figure, accepted=accepted, why=why, error_before=before, error_after=after)


def _unchecked(name: str, own: Sequence[float], runs: int) -> Figure:
    """Too few runs to check on: the card's own figure stands if it makes sense."""
    if not own:
        return Figure(name, 0.0, 0.0, runs, accepted=False, why=f"needs {NEEDED_RUNS} timed runs, there are {runs}")
    figure = _figure(name, own)
    sane = LEAST_SHARE < figure.value <= MOST_SHARE
    return replace(
        figure, accepted=sane, why="share of the catalog's peak" if sane else "declined: no share of the catalog's peak that can be"
    )


def _held_out(name: str, timings: Sequence[Timing], kept: Sequence[Figure]) -> float:
    """The mean error, each run asked of the share that all others achieved."""
    errors = []
    for index, timing in enumerate(timings):
        others = [other.share for at, other in enumerate(timings) if at != index and other.figure == name]
        errors.append(timing.error(_with([*kept, _figure(name, others)])))
    return fmean(errors)


def _figure(name: str, shares: Sequence[float]) -> Figure:
    middle = median(shares)
    band = max(BAND_FLOOR * middle, *(abs(share - middle) for share in shares))
    return Figure(name, middle, band, len(shares), accepted=True, why="")


def _with(figures: Sequence[Figure]) -> Calibration:
    return with_speeds(Calibration(), figures)


def _measured_s(run: Measurement, settled: Scenario) -> float:
    """Seconds of a decode step, or of the steady training step without what comes before its forward."""
    seconds = {step.name: step.ended_s - step.begun_s for step in run.phases if step.ended}
    if settled.task == "training":
        names = ("forward", "backward", "optimizer")
        once = settled.training.gradient_accumulation == 1 and all(name in seconds for name in names)
        return sum(seconds[name] for name in names) if once else 0.0
    tokens = settled.inference.new_tokens or 0
    return seconds.get("decode", 0.0) / tokens if tokens >= LEAST_TOKENS else 0.0


def _unit(settled: Scenario, fmt: Format, card: Gpu) -> str:
    """The dtype whose units do the arithmetic."""
    if settled.task == "training":
        dtype = "fp32" if settled.training.precision == "fp32" else "bf16"
    else:
        dtype = COMPUTES_IN.get(fmt.name, "bf16")
    return next((name for name in (dtype, *FALLBACKS.get(dtype, ())) if card.flops_for(name)), dtype)


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else 0.0
