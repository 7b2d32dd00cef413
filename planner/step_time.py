"""How long a training step takes: arithmetic, recomputation, the optimizer, what goes over links, the pipeline's bubble.

Arithmetic is counted as in a forward (planner/speed.py), attention included, at the share of the peak that training
achieves; a backward takes twice that (once where weights are frozen), full recomputation once more. Collectives are rings,
of which a rank sends (n − 1) / n of a gathered or scattered size and twice that of a reduced one. What frameworks run
beside the backward (reductions of DDP, FSDP and ZeRO, prefetched gathers) counts where it takes longer than the passes it
runs beside; tensor parallelism's reductions, experts' exchanges and DeepSpeed's gather after the step stand on their own.
"""

from __future__ import annotations

from planner.architecture.counts import parameter_count
from planner.architecture.layers import Architecture, MixtureOfExperts
from planner.components.float8 import CAST_BYTES, Float8, cast_values, products_in_8_bit
from planner.components.optimizers import OPTIMIZERS
from planner.components.trainable import trainable_parameters
from planner.engines.sharded.layout import ZERO_STAGES, Ways, ways_of
from planner.formats.format import Format
from planner.gpu import Gpu
from planner.record import record
from planner.scenario import Scenario
from planner.speed import BACKWARD, LINK_FRACTION, TRAINING_FLOPS_FRACTION, Pace, Part, Rates, pace_of, parts_of, rates_of

FP32_BYTES = 4
PACED = ("sft", "dpo")
"""Objectives whose steps are forwards and backwards alone; how long completions take to make depends on what makes them."""
NETWORK_BYTES_PER_S = 50e9
"""Between machines, for each GPU in one direction: 400 Gbit/s, as DGX H100 gives every GPU (NVIDIA DGX H100 user guide)."""
HOST_ADAM_BYTES_PER_S = 50e9
"""Memory traffic of an optimizer's step on the host, for each GPU: an assumption, an eighth of what a server of two sockets
reads and writes."""
NVME_BYTES_PER_S = 5e9
"""Reading or writing one PCIe 4.0 drive in sequence (data sheets say 5 to 7 GB/s): an assumption of one drive a GPU."""
OF_LINEARS = ("projections", "feed-forward", "shared experts and router")
"""Parts of a forward that are linears of the layers."""
SIDES = 4
"""Exchanges of a tensor-parallel layer: after attention and feed-forward, forward and backward (Shoeybi et al. 2019)."""


@record
class Volumes:
    """Bytes one rank sends in a step: ``beside`` the passes, ``alone``, and to and from the ``host``."""

    beside: float
    alone: float
    host: float


def training_speed(scenario: Scenario, architecture: Architecture, fmt: Format, gpu: Gpu) -> dict[str, float | str | None]:
    """``step_s``, ``tokens_per_s`` (of all ranks), ``bound_by``, and what they are made of; empty where rates are not known.

    ``bubble``: the pipeline's idle share of a step (Narayanan et al. 2021, section 2.2); ``communication_bytes``: what one
    rank sends; ``model_flops_fraction``: the model's own arithmetic, without recomputation, of the peak (Chowdhery et al.
    2022, appendix B); ``hours`` for the option ``total_tokens``.
    """
    ask, ways = scenario.training, ways_of(scenario)
    if ask.objective not in PACED:
        return {}
    dtype = "fp32" if ask.precision == "fp32" else "bf16"
    rates = rates_of(gpu, dtype, TRAINING_FLOPS_FRACTION)
    if rates is None:
        return {}
    forward, float8 = _forward(scenario, architecture, fmt, rates, ways), products_in_8_bit(ask)
    plain_s = forward.by["compute"]
    if float8 is not None:
        forward = _in_8_bit(scenario, architecture, fmt, gpu, rates, ways, float8)
    passes = 1 + _backward_passes(scenario) + (1 if ask.checkpointing == "full" else 0) + _reference_passes(scenario)
    work = {name: passes * ask.gradient_accumulation * seconds for name, seconds in forward.by.items()}
    chunks = int(str(ask.engine_options.get("virtual_pipeline", 1)))
    idle = (ways.pipeline - 1) / (ask.gradient_accumulation * chunks)
    by = {name: seconds * (1 + idle) for name, seconds in work.items()}
    by["bandwidth"] += _optimizer_s(scenario, architecture, rates, ways)
    volumes = _volumes(scenario, architecture, ways)
    by |= _links(scenario, architecture, rates, volumes, ways, sum(work.values()) * (passes - 1) / passes)
    pace = Pace(sum(by.values()), by)
    tokens = _rows(scenario) * (ask.sequence or 1) * ask.gradient_accumulation * ways.data
    total = ask.engine_options.get("total_tokens")
    arithmetic = 3 * ask.gradient_accumulation * plain_s * (rates.flops / (gpu.flops_for(dtype) or rates.flops))
    return {
        "prefill_s": None, "time_per_token_s": None, "tokens_per_s": tokens / pace.seconds, "step_s": pace.seconds,
        "bound_by": pace.bound_by, "bubble": idle / (1 + idle),
        "communication_bytes": volumes.beside + volumes.alone, "model_flops_fraction": arithmetic / pace.seconds,
        "hours": None if total is None else float(str(total)) / tokens * pace.seconds / 3600,
    }  # fmt: skip


def _forward(scenario: Scenario, architecture: Architecture, fmt: Format, rates: Rates, ways: Ways) -> Pace:
    """One micro-batch through one stage of one rank."""
    ask = scenario.training
    parts = parts_of(architecture, fmt, _rows(scenario), ask.sequence or 1, 0, all_logits=True)
    return pace_of((part for part in parts if part.name != "cache"), rates, ways.tensor * ways.pipeline * ways.context)


def _in_8_bit(
    scenario: Scenario, architecture: Architecture, fmt: Format, gpu: Gpu, rates: Rates, ways: Ways, float8: Float8
) -> Pace:
    """The same with the layers' linears at the card's rate of 8-bit floats, and all casts of their operands."""
    ask, faster = scenario.training, (gpu.flops_for("fp8") or gpu.flops_for("bf16") or 1) / (gpu.flops_for("bf16") or 1)
    parts = [
        Part(part.name, part.flops / faster, part.bytes) if part.name in OF_LINEARS else part
        for part in parts_of(architecture, fmt, _rows(scenario), ask.sequence or 1, 0, all_logits=True)
        if part.name != "cache"
    ]
    moved = CAST_BYTES * cast_values(architecture, float8, _rows(scenario) * (ask.sequence or 1))
    return pace_of(iter([*parts, Part("casts", 0.0, float(moved))]), rates, ways.tensor * ways.pipeline * ways.context)


def _rows(scenario: Scenario) -> int:
    """Sequences of one micro-batch: of pairs two each."""
    ask = scenario.training
    return 2 * ask.batch if ask.objective == "dpo" else ask.batch


def _reference_passes(scenario: Scenario) -> int:
    """DPO's reference goes once over the same rows, unless its scores are known."""
    ask = scenario.training
    return int(ask.objective == "dpo" and ask.reference != "precomputed")


def _backward_passes(scenario: Scenario) -> int:
    return BACKWARD if scenario.training.method == "full" else 1


def _trained(scenario: Scenario, architecture: Architecture, ways: Ways) -> float:
    """Trained parameters of one rank's model, before they are sharded over replicas."""
    return trainable_parameters(architecture, scenario.training) / (ways.tensor * ways.pipeline)


def _optimizer_s(scenario: Scenario, architecture: Architecture, rates: Rates, ways: Ways) -> float:
    """Gradient, parameter and states are read, parameter and states written: once a step, of the rank's share."""
    ask = scenario.training
    share = 1 if ways.sharding == "none" else ways.sharded_over
    width = FP32_BYTES if ask.precision not in ("bf16", "fp8") or ways.sharding in ZERO_STAGES else 2
    moved = width * (3 + 2 * OPTIMIZERS[ask.optimizer].moments) * _trained(scenario, architecture, ways) / share
    kept = 1 - scenario.offload.optimizer
    return moved * kept / rates.bytes


def _volumes(scenario: Scenario, architecture: Architecture, ways: Ways) -> Volumes:
    """What each scheme moves. Parameters and gradients in 16 bit, or in fp32 where that is computed."""
    ask, offload = scenario.training, scenario.offload
    width = FP32_BYTES if ask.precision == "fp32" else 2
    micro, ranks = ask.gradient_accumulation, ways.sharded_over
    trained = width * _trained(scenario, architecture, ways)
    whole = width * parameter_count(architecture) / (ways.tensor * ways.pipeline)
    ring = (ranks - 1) / ranks
    beside = alone = 0.0
    if ways.sharding in ("fsdp", "zero3"):
        gathers = 2 if ask.engine_options.get("reshard_after_forward", True) else 1
        beside = ring * (gathers * whole * micro + trained * micro)
    elif ways.sharding in ("zero1", "zero2"):
        beside, alone = 2 * ring * trained * (micro if ways.sharding == "zero2" else 1), ring * trained
    else:
        beside = 2 * ring * trained
    alone += micro * _between_layers(scenario, architecture, ways, width)
    host = offload.optimizer * 2 * trained / ranks + offload.weights * 3 * whole / ranks * micro
    return Volumes(beside, alone, host)


def _between_layers(scenario: Scenario, architecture: Architecture, ways: Ways, width: int) -> float:
    """Activations of one micro-batch.

    Sums of tensor parallelism, keys and values of context parallelism, tokens to experts, and from stage to stage.
    """
    ask = scenario.training
    layers = len(architecture.decoder.layers) / ways.pipeline
    stream = width * ask.batch * (ask.sequence or 1) / ways.context * architecture.hidden_size
    sides = SIDES + (2 if ask.checkpointing == "full" else 0)
    sums = sides * layers * 2 * (ways.tensor - 1) / ways.tensor * stream
    routed = sum(
        channel.experts_per_token
        for layer in architecture.decoder.layers
        for channel in layer.channel
        if isinstance(channel, MixtureOfExperts)
    )
    exchanged = SIDES * routed / ways.pipeline * (ways.expert - 1) / ways.expert * stream / ways.tensor
    ring = 3 * layers * (ways.context - 1) * 2 * stream / ways.tensor
    return sums + exchanged + ring + (2 * stream / ways.tensor if ways.pipeline > 1 else 0)


def _links(
    scenario: Scenario, architecture: Architecture, rates: Rates, volumes: Volumes, ways: Ways, beside_s: float
) -> dict[str, float]:
    """Seconds on the links: between GPUs of a machine, or between machines where replicas lie on several."""
    found: dict[str, float] = {}
    link = rates.link_bytes
    slowest = min(link or NETWORK_BYTES_PER_S, NETWORK_BYTES_PER_S * LINK_FRACTION) if scenario.hardware.nodes > 1 else link
    if ways.ranks > 1 and link and slowest:
        found["link"] = max(volumes.beside / slowest - beside_s, 0.0) + volumes.alone / link
    if volumes.host and rates.host_bytes:
        found["host"] = volumes.host / rates.host_bytes + _on_host_s(scenario, architecture, ways)
    return found


def _on_host_s(scenario: Scenario, architecture: Architecture, ways: Ways) -> float:
    """The optimizer's step on the host: fp32 masters, gradients and states pass its memory, or come from NVMe and go back."""
    offload, moments = scenario.offload, OPTIMIZERS[scenario.training.optimizer].moments
    elements = offload.optimizer * _trained(scenario, architecture, ways) / ways.sharded_over
    moved = FP32_BYTES * (3 + 2 * moments) * elements
    return moved / (NVME_BYTES_PER_S if offload.to == "nvme" else HOST_ADAM_BYTES_PER_S)
