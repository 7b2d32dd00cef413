"""From a plan to a rehearsal: the order for the worker, the card that is played, and the prediction it is compared with.

The order's ``card`` is this side's own (the worker passes over it) and stands in the order so that a recording can be
replayed: ``gpu`` (name), ``capacity_bytes``, ``outside_bytes`` (what the CUDA context holds), ``torch_version`` (whose
allocator is simulated), ``conf`` (PYTORCH_CUDA_ALLOC_CONF) and ``not_covered`` (what the rehearsal leaves out, in words).
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import metadata
from typing import Any, Literal

from planner.allocator import AllocatorOptions, parse_alloc_conf
from planner.gpu import Gpu
from planner.machine import overheads
from planner.scenario import Offload, Parallel, Scenario, to_json
from probes.orders import VERSION
from probes.request import Request, predict_run, stored_as
from resources.plan import Plan

Personality = Literal["cuda", "cpu"]
DEFAULT_CAPABILITY = (8, 0)
"""Played for cards that have no CUDA compute capability."""


def rehearse_request(plan: Plan, layers: int | None = None, *, conf: str = "", personality: Personality = "cuda") -> Request:
    """Ask for a rehearsal of ``plan`` on its GPU, with fewer layers if given.

    ``conf``: settings of the allocator as in PYTORCH_CUDA_ALLOC_CONF. ``personality`` ``cpu`` plays the CPU's own operators
    instead of CUDA's, and no allocator. Raises ValueError for a number out of range, Faults for a setting that torch would
    refuse, and what :func:`resources.plan.make_plan` raises.
    """
    if layers is not None and layers < 1:
        message = f"layers: must be at least 1, got {layers}"
        raise ValueError(message)
    scenario = plan.settled
    card = _card(scenario, plan.gpu, conf, personality)
    allocator_options(card)
    order = {
        "version": VERSION,
        "mode": "rehearse",
        "scenario": to_json(scenario),
        "config": dict(plan.source.config),
        "personality": personality,
        "compute_capability": list(plan.gpu.compute_capability or DEFAULT_CAPABILITY),
        "layers": layers,
        "card": card,
        **({"stored_as": name} if (name := stored_as(plan)) else {}),
    }
    return Request(order, predict_run(plan, "cpu" if personality == "cpu" else "cuda:0", layers))


def allocator_options(card: Mapping[str, Any]) -> AllocatorOptions:
    """The simulator's options from an order's ``card``. Raises Faults."""
    base = AllocatorOptions(
        torch_version=str(card.get("torch_version") or AllocatorOptions().torch_version),
        capacity_bytes=card.get("capacity_bytes"),
        outside_bytes=card.get("outside_bytes") or 0,
    )
    return parse_alloc_conf(str(card.get("conf") or ""), base)


def _card(scenario: Scenario, gpu: Gpu, conf: str, personality: Personality) -> dict[str, object]:
    on_gpu = personality == "cuda"
    return {
        "gpu": gpu.name,
        "capacity_bytes": (scenario.hardware.capacity_bytes or gpu.capacity_bytes) if on_gpu else None,
        "outside_bytes": overheads(gpu).context_bytes if on_gpu else 0,
        "torch_version": metadata.version("torch"),
        "conf": conf,
        "not_covered": _not_covered(scenario, gpu),
    }


def _not_covered(scenario: Scenario, gpu: Gpu) -> list[str]:
    notes = []
    if scenario.engine != "transformers":
        notes.append(f"Rehearsed as transformers runs the model; {scenario.engine} arranges its memory otherwise.")
    if (scenario.parallel, scenario.hardware.gpus, scenario.hardware.nodes) != (Parallel(), 1, 1):
        notes.append("Rehearsed on one GPU: neither sharding nor communication is in the figures.")
    if scenario.task == "training" and scenario.training.engine_options.get("fused_kernels"):
        notes.append("Rehearsed with transformers' own code in place of fused kernels, which run on a GPU alone.")
    if scenario.task == "training" and scenario.training.engine_options.get("compile"):
        notes.append("Rehearsed without torch.compile.")
    if scenario.task == "training" and "repeat_keys" in scenario.training.engine_options:
        notes.append("Rehearsed with the keys and values that transformers gives attention.")
    if scenario.offload != Offload():
        notes.append("Rehearsed without offloading.")
    if gpu.compute_capability is None:
        major, minor = DEFAULT_CAPABILITY
        notes.append(f"{gpu.name} is rehearsed as a CUDA card of compute capability {major}.{minor} with its capacity.")
    return notes
