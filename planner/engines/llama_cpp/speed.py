"""How fast llama.cpp runs a plan: every device reads its own weights and cache, one after the other; the host reads the rest.

A roofline like :mod:`planner.speed`'s, of llama.cpp's own layout: weights by the tensors of the file, each at the bandwidth of
the device that holds it, prompts in physical batches. What stays on the host is computed there a token at a time, and copied to
the first GPU for batches of 32 and more (``op_offload``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from planner.architecture.layers import MixtureOfExperts
from planner.engines.llama_cpp.buffers import EXPERTS, caches, holders_of
from planner.engines.llama_cpp.footprint import plan_of
from planner.engines.llama_cpp.laid import Laid
from planner.engines.llama_cpp.scheduler import OFFLOADED_BATCH
from planner.faults import Faults
from planner.formats import parse_format
from planner.memo import remember_by_identity
from planner.modelled import NotModelled
from planner.speed import (
    BANDWIDTH_FRACTION,
    PREFILL_FLOPS_FRACTION,
    Rates,
    decoding,
    distinct_experts,
    parts_of,
    prefilling,
    rates_of,
)

if TYPE_CHECKING:
    from planner.architecture.layers import Architecture
    from planner.engines.llama_cpp.placement import Checkpoint, Placement
    from planner.formats import Format
    from planner.gpu import Gpu
    from planner.scenario import Scenario

HOST_BYTES_PER_S = 89.6e9 * BANDWIDTH_FRACTION
"""Host memory: two channels of DDR5-5600 (JESD79-5: 8 bytes · 5.6 GT/s each), at the share decoding achieves on a GPU."""


@dataclass(frozen=True, slots=True)
class Reading:
    """Of the matrices of a holder: bytes that every token reads, bytes of routed experts, and their values."""

    always: float
    routed: float
    always_values: float
    routed_values: float


def llama_cpp_speed(scenario: Scenario, architecture: Architecture, fmt: Format, gpu: Gpu) -> dict[str, float | str | None]:
    """``prefill_s``, ``time_per_token_s``, ``tokens_per_s`` and what binds them, of a settled scenario.

    Empty for a card whose rates are not known, a plan that llama.cpp refuses and a graph that is not derived. A draft model's
    own time is left out: what it saves depends on how many of its proposals are taken.
    """
    rates = rates_of(gpu, "fp16", PREFILL_FLOPS_FRACTION)
    if rates is None:
        return {}
    try:
        laid = plan_of(architecture, scenario, fmt).models[0]
    except (Faults, NotModelled):
        return {}
    slots = laid.context.sequences
    _, tokens, _ = prefilling(scenario.inference)
    step = _seconds(laid, rates, slots, 1, decoding(scenario.inference)[1])
    prefill, prefill_by = _prefill(laid, rates, slots, tokens)
    seconds = sum(step.values())
    return {
        "prefill_s": prefill,
        "time_per_token_s": seconds,
        "tokens_per_s": slots / seconds,
        "step_s": None,
        "bound_by": _largest(step),
        "prefill_bound_by": prefill_by,
        "compute_bound_from_batch": None,
    }


def _prefill(laid: Laid, rates: Rates, slots: int, prompt: int) -> tuple[float, str]:
    """Prompts of all slots in physical batches; devices in a pipeline work on several at a time."""
    batch = max(1, min(laid.context.ubatch_tokens, slots * prompt))
    batches = -(-slots * prompt // batch)
    by = _seconds(laid, rates, 1, batch, prompt // 2)
    one = sum(by.values())
    if laid.placement.pipelined:
        return one + (batches - 1) * one / laid.placement.device_count, _largest(by)
    return batches * one, _largest(by)


def _seconds(laid: Laid, rates: Rates, sequences: int, tokens: int, past: int) -> dict[str, float]:
    """One pass of ``sequences`` times ``tokens`` tokens behind ``past`` cached ones: seconds by what binds them."""
    count = sequences * tokens
    by = {"compute": 0.0, "bandwidth": 0.0, "host": 0.0}
    host = laid.placement.host
    awake, share = _experts(laid.architecture, count)
    for device, reading in enumerate(_readings(laid.file, laid.placement)):
        size = reading.always + reading.routed * awake
        compute = 2 * count * (reading.always_values + reading.routed_values * share) / rates.flops
        if device < host:
            _add(by, compute, size / rates.bytes)
        elif host and count >= OFFLOADED_BATCH and rates.host_bytes and laid.placement.kind.offloads:
            by["host"] += size / rates.host_bytes
            by["compute"] += compute
        else:
            by["host"] += size / HOST_BYTES_PER_S
    _add_attention(by, laid, rates, sequences, tokens, past)
    return by


def _add_attention(by: dict[str, float], laid: Laid, rates: Rates, sequences: int, tokens: int, past: int) -> None:
    """Scores and values over what is cached, where the cache is: a share of the layers on the host is read there."""
    parts = parts_of(laid.architecture, parse_format("bf16"), sequences, tokens, past)
    flops = sum(part.flops for part in parts if part.name in ("attention", "state"))
    kept = caches(laid.architecture, laid.family, laid.context, laid.placement)
    cells = past + tokens
    sizes = {True: 0.0, False: 0.0}
    for cache in kept:
        seen = min(cells, cache.cells) * (sequences if tokens == 1 else 1)
        sizes[cache.device == laid.placement.host] += cache.layers * seen * (cache.key_bytes + cache.value_bytes)
    total = sum(sizes.values()) or 1.0
    on_host = sizes[True] / total
    _add(by, flops * (1 - on_host) / rates.flops, sizes[False] / rates.bytes)
    by["host"] += sizes[True] / HOST_BYTES_PER_S


def _add(by: dict[str, float], compute: float, reading: float) -> None:
    by["compute" if compute > reading else "bandwidth"] += max(compute, reading)


def _largest(by: dict[str, float]) -> str:
    return max(by, key=lambda name: by[name])


def _experts(architecture: Architecture, tokens: int) -> tuple[float, float]:
    """Shares of the routed experts that are read for ``tokens`` tokens, and that work for one."""
    for layer in architecture.decoder.layers:
        for channel in layer.channel:
            if isinstance(channel, MixtureOfExperts):
                experts, chosen = channel.num_experts, channel.experts_per_token
                return distinct_experts(experts, chosen, tokens) / experts, chosen / experts
    return 1.0, 1.0


@remember_by_identity(64)
def _readings(file: Checkpoint, placement: Placement) -> list[Reading]:
    """What each holder, the host last, reads of its matrices. Rows of embedding tables are looked up, a tied head is read."""
    sums = [[0.0] * 4 for _ in range(placement.host + 1)]
    is_tied = all(tensor.name != "output.weight" for tensor in file.tensors)
    for tensor in file.tensors:
        if len(tensor.shape) < 2:
            continue
        devices: tuple[int, ...] = holders_of(tensor, placement)
        if tensor.name.endswith(("token_embd.weight", "position_embd.weight", "token_types.weight")):
            devices = (placement.output,) if is_tied and tensor.name == "token_embd.weight" else ()
        values = 1
        for extent in tensor.shape:
            values *= extent
        for device in devices:
            routed = EXPERTS in tensor.name
            sums[device][routed] += tensor.size_bytes
            sums[device][2 + routed] += values
    return [Reading(*row) for row in sums]
