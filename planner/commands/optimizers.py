"""The plan's optimizers by the names of ``TrainingArguments.optim``, with what they need to be told."""

from __future__ import annotations

from typing import TYPE_CHECKING

from planner.components.optimizers import DEFAULT_RANK
from planner.engine_options import whole

if TYPE_CHECKING:
    from planner.scenario import Training

OPTIMIZERS = {
    "adamw_fused": "adamw_torch_fused", "adamw_foreach": "adamw_torch", "adamw": "adamw_torch", "adamw_8bit": "adamw_bnb_8bit",
    "paged_adamw_8bit": "paged_adamw_8bit", "adafactor": "adafactor", "lion": "lion_32bit", "sgd": "sgd",
    "sgd_momentum": "sgd", "galore": "galore_adamw", "apollo": "apollo_adamw", "paged_adamw_32bit": "paged_adamw_32bit",
    "lion_8bit": "lion_8bit", "paged_lion_8bit": "paged_lion_8bit",
}  # fmt: skip
"""Muon, SOAP and Shampoo are built by hand."""
PROJECTING = ("galore", "apollo")
INSIDE_LAYERS = r".*\.\d+\..*"
"""Linears of numbered layers, as ``optim_target_modules`` matches whole paths: those whose gradients are projected."""


def optimizer_arguments(ask: Training, notes: list[str]) -> dict[str, object]:
    """``optim`` and what goes with it; a note for an optimizer that the Trainer has no name for."""
    if ask.optimizer not in OPTIMIZERS:
        notes.append(f"training.optimizer: build {ask.optimizer} by hand and hand it to Trainer(optimizers=…)")
        return {}
    found: dict[str, object] = {"optim": OPTIMIZERS[ask.optimizer]}
    if ask.optimizer == "sgd_momentum":
        found["optim_args"] = "momentum=0.9"
    if ask.optimizer in PROJECTING:
        found["optim_args"] = f"rank={whole(ask.engine_options, 'projection_rank', DEFAULT_RANK)}"
        found["optim_target_modules"] = INSIDE_LAYERS
    return found
