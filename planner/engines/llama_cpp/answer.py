"""llama.cpp's buffers as a footprint: each GPU with the CUDA context on top, the host beside them."""

from __future__ import annotations

from planner.architecture.counts import parameter_count
from planner.architecture.layers import Architecture
from planner.engines.llama_cpp.footprint import PHASES, VERSION, Buffers, LlamaCppFootprint, llama_cpp_footprint
from planner.faults import Fault, Faults
from planner.footprint import Footprint, GpuFootprint, Host, Phase, Term, judge
from planner.formats import Format
from planner.later import LaterSequence
from planner.machine import Overheads
from planner.memo import remember_by_identity
from planner.scenario import Scenario, to_json


def llama_cpp_answer(
    scenario: Scenario, architecture: Architecture, fmt: Format, machine: Overheads, capacity: int, notes: tuple[str, ...]
) -> Footprint:
    """The footprint of an inference scenario under llama.cpp.

    Nothing is reserved beyond what is allocated: llama.cpp takes each buffer from the driver as it is. Raises what
    :func:`~planner.engines.llama_cpp.footprint.llama_cpp_footprint` raises.
    """
    found = llama_cpp_footprint(architecture, scenario, fmt)
    _refuse_longer(found, scenario)
    gpus = tuple(
        GpuFootprint(index, capacity, tuple(_phase(name, device, machine) for name in PHASES))
        for index, device in enumerate(found.devices)
    )
    worst = max((phase.device for gpu in gpus for phase in gpu.phases), default=0)
    verdict = judge(worst, capacity, machine.context_band_bytes) if gpus else "unknown"
    slots, waiting = _slots(scenario)
    return Footprint(
        scenario=to_json(scenario),
        level="predict",
        parameters=_parameters(architecture),
        trainable_parameters=0,
        weight_bytes=found.host.weights + sum(device.weights for device in found.devices),
        gpus=gpus,
        host=Host(found.host.total_bytes, found.host.components(), _load_bytes(found, scenario)),
        verdict=verdict,
        headroom_bytes=capacity - worst if gpus else None,
        uncertainty_bytes=machine.context_band_bytes,
        limits={} if slots is None else {"max_batch": 0 if verdict == "does_not_fit" else slots},
        terms=LaterSequence(lambda: (*found.terms, *_context_terms(found, machine))),
        notes=(*notes, *found.notes, *waiting, f"as {VERSION} reserves its buffers"),
    )


@remember_by_identity(64)
def _parameters(architecture: Architecture) -> int:
    return parameter_count(architecture)


def _refuse_longer(found: LlamaCppFootprint, scenario: Scenario) -> None:
    """A request that outgrows its slot ("exceeds the available context size", ``tools/server/server-context.cpp``)."""
    tokens, cells = scenario.inference.context_tokens, found.context.cells
    if tokens > cells:
        message = f"{tokens} tokens a request exceed the {cells} cells of a slot, which llama-server refuses; raise it"
        raise Faults([Fault("inference.engine_options.n_ctx", message)])


def _slots(scenario: Scenario) -> tuple[int | None, list[str]]:
    """Requests that the slots hold at once where their number is set, and in words how many more wait."""
    ask = scenario.inference
    given = ask.engine_options.get("n_seq_max")
    if not isinstance(given, int):
        return None, []
    slots = given // ask.samples
    if ask.batch <= slots:
        return slots, []
    return slots, [f"{ask.batch} requests: the server has slots for {slots} at once, the rest wait"]


STAGING_BYTES = 4 * 2**20
"""Pinned buffers that a file which is not mapped is uploaded through (``llama_model_loader::load_all_data``)."""


def _load_bytes(found: LlamaCppFootprint, scenario: Scenario) -> int:
    """A mapped file passes through the page cache whole, from which the GPUs' part can go again; one that is read does not."""
    on_devices = sum(device.weights for device in found.devices)
    if scenario.inference.engine_options.get("use_mmap", True):
        return found.host.total_bytes + on_devices
    return found.host.total_bytes + (STAGING_BYTES if on_devices else 0)


def _phase(name: str, device: Buffers, machine: Overheads) -> Phase:
    components = device.components(name)
    allocated = sum(components.values())
    components["cuda_context"] = machine.context_bytes
    return Phase(name, allocated, allocated, allocated + machine.context_bytes, components)


def _context_terms(found: LlamaCppFootprint, machine: Overheads) -> list[Term]:
    return [
        Term(
            "cuda_context", "CUDA context", {"holder": f"device {index}", "context_bytes": machine.context_bytes},
            machine.context_bytes, machine.certainty, machine.source, gpu=index,
        )
        for index in range(len(found.devices))
    ]  # fmt: skip
