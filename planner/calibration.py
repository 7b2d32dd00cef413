"""What was measured of one kind of card on this machine, in the place of the catalog's typical values."""

from __future__ import annotations

from typing import Literal

from planner.record import record

Task = Literal["inference", "training"]
PERMILLE = 1000


@record
class Calibration:
    """Figures of one card; None was not measured, or did not make predictions better. Bands are half-widths.

    ``graph_bytes``: what one captured graph of a model's step keeps beside the tensors.
    ``…_slack_permille``: what the allocator holds beside live tensors, in thousandths of what is modelled.
    ``bandwidth_fraction`` and ``flops_fractions`` (by dtype) are achieved shares of the card's peak.
    ``source`` says when and from what they were measured.
    """

    context_bytes: int | None = None
    context_band_bytes: int = 0
    cublas_workspace_bytes: int | None = None
    graph_bytes: int | None = None
    inference_slack_permille: int | None = None
    training_slack_permille: int | None = None
    inference_slack_band_permille: int = 0
    training_slack_band_permille: int = 0
    bandwidth_fraction: float | None = None
    bandwidth_band: float = 0.0
    flops_fractions: tuple[tuple[str, float], ...] = ()
    runs: int = 0
    source: str = ""

    def slack_permille(self, task: Task) -> int:
        """The factor on modelled slack, :data:`PERMILLE` where none was measured."""
        found = self.training_slack_permille if task == "training" else self.inference_slack_permille
        return PERMILLE if found is None else found
