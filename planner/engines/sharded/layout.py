"""Over how many ranks each dimension of a training is spread, and what the frameworks refuse."""

from __future__ import annotations

from planner.architecture.layers import Architecture, MixtureOfExperts
from planner.engines.sharded.tensor import tensor_faults
from planner.faults import Fault, Faults
from planner.record import record
from planner.scenario import Scenario
from planner.sharding import Split, split_faults

ZERO_STAGES = {"zero1": 1, "zero2": 2, "zero3": 3}
OWN_SHARDING = {"deepspeed": "zero2", "fsdp": "fsdp"}
"""What an engine does where the scenario names no sharding."""


@record
class Ways:
    """Ranks in each dimension; ``data``: replicas of the model (or of its shards), so that all multiply to the ranks."""

    tensor: int
    pipeline: int
    context: int
    expert: int
    data: int
    sharding: str

    @property
    def ranks(self) -> int:
        """All of them."""
        return self.tensor * self.pipeline * self.context * self.data

    @property
    def sharded_over(self) -> int:
        """Ranks that share the states of one model: those of context parallelism hold the same weights too."""
        return self.data * self.context


def ways_of(scenario: Scenario) -> Ways:
    """The ways of a training. One way of data parallelism means as many as the GPUs allow.

    Raises :class:`Faults` for more ranks than GPUs.
    """
    spread, cards = scenario.parallel, scenario.hardware.gpus * scenario.hardware.nodes
    model = spread.tensor * spread.pipeline * spread.context
    data = spread.data if spread.data > 1 else max(cards // model, 1)
    sharding = spread.sharding if spread.sharding != "none" else OWN_SHARDING.get(scenario.engine, "none")
    found = Ways(spread.tensor, spread.pipeline, spread.context, spread.expert, data, sharding)
    if found.ranks > cards:
        message = f"{' · '.join(map(str, (spread.tensor, spread.pipeline, spread.context, data)))} ranks need {found.ranks} GPUs, "
        raise Faults([Fault("hardware.gpus", message + f"there are {cards}; use {found.ranks}")])
    return found


def refuse(scenario: Scenario, architecture: Architecture, ways: Ways) -> None:
    """Raise :class:`Faults` for what the framework itself refuses."""
    faults = [*split_faults(architecture, Split(tensor=ways.tensor, pipeline=ways.pipeline))]
    faults += [fault for fault in tensor_faults(architecture, ways.tensor) if fault.path not in {each.path for each in faults}]
    if ways.pipeline > 1 and scenario.engine != "megatron":
        faults.append(Fault("parallel.pipeline", f"{scenario.engine} has no pipeline parallelism here; use 1 or engine megatron"))
    if ways.context > 1 and scenario.engine != "megatron" and ways.sharding != "fsdp":
        faults.append(Fault("parallel.context", "it goes with sharding fsdp or engine megatron; use 1 or one of these"))
    if ways.tensor > 1 and ways.sharding in ZERO_STAGES and scenario.engine != "megatron":
        faults.append(Fault("parallel.tensor", f"{ways.sharding} beside tensor parallelism is not read here; use 1"))
    faults += _of_experts(scenario, architecture, ways)
    sequence = scenario.training.sequence or 1
    if ways.context > 1 and sequence % (2 * ways.context):
        message = f"context parallelism cuts a sequence into 2 · {ways.context} equal parts; use a multiple of {2 * ways.context}"
        faults.append(Fault("training.sequence", message))
    if scenario.offload.weights and ways.sharding not in ("zero3", "fsdp"):
        faults.append(Fault("offload.weights", f"sharding {ways.sharding} keeps parameters on the GPU; use zero3 or fsdp"))
    if scenario.offload.optimizer and ways.sharding not in (*ZERO_STAGES, "fsdp"):
        faults.append(Fault("offload.optimizer", f"sharding {ways.sharding} keeps optimizer states on the GPU; use zero2 or fsdp"))
    if faults:
        raise Faults(faults)


def _of_experts(scenario: Scenario, architecture: Architecture, ways: Ways) -> list[Fault]:
    if ways.expert == 1:
        return []
    if scenario.engine != "megatron":
        return [Fault("parallel.expert", f"{scenario.engine} has no expert parallelism here; use 1 or engine megatron")]
    counts = {
        channel.num_experts for layer in architecture.decoder.layers for channel in layer.channel
        if isinstance(channel, MixtureOfExperts)
    }  # fmt: skip
    if not counts:
        return [Fault("parallel.expert", f"{architecture.model_class} has no experts; use 1")]
    if any(count % ways.expert for count in counts):
        return [Fault("parallel.expert", f"{ways.expert} does not divide the {max(counts)} experts")]
    if (ways.data * ways.context * ways.tensor) % ways.expert:
        return [
            Fault("parallel.expert", f"{ways.expert} does not divide the {ways.data * ways.context * ways.tensor} ranks of a stage")
        ]
    return []
