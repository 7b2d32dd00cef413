"""A training scenario laid out in phases: which step its choices make, and what none of the derivations covers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from planner.architecture.layers import Architecture
from planner.components.states import STATE_TENSORS, optimizer_states, optimizer_transient
from planner.components.tape import Level
from planner.engines.transformers import Step
from planner.engines.transformers_training import TrainingStep, training_phases
from planner.modelled import NotModelled
from planner.scenario import Scenario


def training_steps(scenario: Scenario, architecture: Architecture, weights: Level, dtype_bytes: int, *, cuda: bool) -> list[Step]:
    """The phases of a training step. ``weights``: what stays from loading; ``dtype_bytes``: of a parameter."""
    ask = scenario.training
    states = optimizer_states(architecture, ask.optimizer, dtype_bytes, cuda=cuda)
    work = TrainingStep(
        ask.batch, ask.sequence or 1, dtype_bytes, ask.checkpointing == "full", ask.gradient_accumulation, cuda=cuda,
        eager=ask.attention == "eager",
    )  # fmt: skip
    transient = optimizer_transient(architecture, ask.optimizer, dtype_bytes)
    return training_phases(architecture, weights, states, work, transient)


def require_modelled_training(scenario: Scenario) -> None:
    """Raise :class:`NotModelled` for what no derivation covers yet."""
    training = scenario.training
    require_choices({
        "engine": (scenario.engine, ("transformers",)),
        "training.method": (training.method, ("full",)),
        "training.precision": (training.precision, ("bf16", "fp32")),
        "training.optimizer": (training.optimizer, tuple(STATE_TENSORS)),
        "training.checkpointing": (training.checkpointing, ("none", "full")),
        "training.loss": (training.loss, ("default",)),
        "training.attention": (training.attention, ("sdpa", "flash", "eager")),
    })  # fmt: skip
    require_one_gpu(scenario)


def require_choices(asked: Mapping[str, tuple[str, Sequence[str]]]) -> None:
    """Raise :class:`NotModelled` where a field's value is not among those that are derived."""
    for field, (value, modelled) in asked.items():
        if value not in modelled:
            raise NotModelled(f"{field}: {value} has no closed form yet")


def require_one_gpu(scenario: Scenario) -> None:
    """Raise :class:`NotModelled` for several GPUs and for offloading."""
    spread = scenario.parallel, scenario.offload, scenario.hardware.gpus, scenario.hardware.nodes
    if spread != (type(scenario.parallel)(), type(scenario.offload)(), 1, 1):
        raise NotModelled("several GPUs and offloading have no closed form yet")
