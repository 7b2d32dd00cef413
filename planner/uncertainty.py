"""How wide an answer's error band is: what nine in ten recorded runs stayed within, or a stated width where there are too few."""

from __future__ import annotations

from collections.abc import Sequence

from planner.calibration import PERMILLE, Task
from planner.error_bands import BANDS
from planner.footprint import Phase
from planner.machine import Overheads
from planner.symbolic.amount import largest

FEWEST_ROWS = 10
"""Of fewer recorded runs a percentile says nothing: the stated width holds, or theirs where it is wider."""
RESERVED_PERMILLE = 100
ENGINES = {"inference": "transformers generation", "training": "transformers training"}


def rows_of(engine: str) -> int:
    """Recorded runs of an engine, of the component with most."""
    return max((rows for (name, _), (rows, _) in BANDS.items() if name == engine), default=0)


def band_permille(engine: str, component: str, stated_permille: int) -> int:
    """Half-width of a component's error, in thousandths of it."""
    rows, measured = BANDS.get((engine, component), (0, 0))
    return measured if rows >= FEWEST_ROWS else max(measured, stated_permille)


def device_band(phases: Sequence[Phase], machine: Overheads, task: Task) -> int:
    """Half-width of the error of ``device``: the context's, and that of what is reserved beside the weights.

    A calibration of this machine says how far the allocator's slack was off in its own runs.
    """
    calibrated = machine.calibration
    known = calibrated is not None and machine.slack_permille(task) != PERMILLE
    if calibrated is not None and known:
        band = calibrated.training_slack_band_permille if task == "training" else calibrated.inference_slack_band_permille
        slack = largest(*(phase.components.get("allocator_slack", 0) for phase in phases))
        return machine.context_band_bytes + slack * band // max(1, machine.slack_permille(task))  # type: ignore[no-any-return]
    beside = largest(*(phase.reserved - phase.components.get("weights", 0) for phase in phases))
    permille = band_permille(ENGINES[task], "reserved", RESERVED_PERMILLE)
    return machine.context_band_bytes + beside * permille // PERMILLE  # type: ignore[no-any-return]
