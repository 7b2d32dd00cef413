"""An embedding model on the first GPU beside the model that answers: it finds the passages that a conversation retrieves.

Beside ``generate`` it is another model of the same process, whose forward is over before the answer's begins. Beside a
server it is a process of its own, with a CUDA context and tensors that stay: the server finds that much less free.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from planner.architecture.counts import parameter_count
from planner.components.states import plain_weights
from planner.engines.beside import EMBEDDER, read_beside
from planner.engines.transformers import Generation, generation_phases
from planner.engines.unified import ORDER
from planner.footprint import Footprint, GpuFootprint, Phase, Term, judge
from planner.later import LaterSequence
from planner.machine import Overheads
from planner.memo import remember_by_identity
from planner.modelled import NotModelled
from planner.record import record
from planner.scenario import Embedder, Scenario
from planner.symbolic.amount import smallest
from planner.units import GIB

BYTES = 2
"""Embedding models are served in 16 bit."""
PASSAGE_TOKENS = 512
"""The longest passage embedded at once, what BERT and its kin can take; a model that takes less takes its limit."""
BY_LAYERS = ("transformers", "llama.cpp")
"""Engines whose verdict is that of each GPU; a server's pool is already bounded by the poorest."""


@record
class Beside:
    """Bytes of the embedding model on the first GPU: weights, a forward of its own process, that process's context."""

    weights_bytes: int
    step_bytes: int
    context_bytes: int
    words: str
    values: Mapping[str, int]

    @property
    def held_bytes(self) -> int:
        """Its tensors."""
        return self.weights_bytes + self.step_bytes

    @property
    def total_bytes(self) -> int:
        """All that is not free for the model that answers."""
        return self.held_bytes + self.context_bytes


def embedder_beside(scenario: Scenario, machine: Overheads) -> Beside | None:
    """What the scenario's embedding model takes; None where there is none.

    Raises :class:`planner.faults.Faults` for a config of no model.
    """
    asked = scenario.inference.embedder
    if scenario.task != "inference" or not asked.is_held:
        return None
    own = scenario.engine != "transformers"
    weights, step, words, values = _sizes(asked.config) if asked.config is not None else _told(asked)
    return Beside(weights, step if own else 0, machine.context_bytes if own else 0, words, values)


def _told(asked: Embedder) -> tuple[int, int, str, dict[str, int]]:
    parameters = asked.parameters or 0
    return parameters * BYTES, 0, "what its forward holds is not counted", {"parameters": parameters, "bytes": BYTES}


@remember_by_identity(16)
def _sizes(config: Mapping[str, object]) -> tuple[int, int, str, dict[str, int]]:
    """(weights, what a forward of one passage holds beside them, in words, the numbers)."""
    architecture = read_beside(config, EMBEDDER)
    level = plain_weights(architecture, BYTES)
    tokens = min(PASSAGE_TOKENS, architecture.max_context_tokens or PASSAGE_TOKENS)
    values = {"parameters": parameter_count(architecture), "bytes": BYTES}
    work = Generation(1, tokens, 1, BYTES, cuda=True)
    try:
        if architecture.kind == "decoder":
            steps = generation_phases(architecture, level, work)
        else:
            from planner.engines.transformers_seq2seq import encoding_phases  # noqa: PLC0415  loaded for those who ask

            steps = encoding_phases(architecture, level, work)
    except NotModelled:
        return level.total, 0, "what its forward holds is not counted", values
    return level.total, steps[1].peak.level.total - level.total, f"a forward of a passage of {tokens} tokens", values


def with_room_for(machine: Overheads, beside: Beside | None) -> Overheads:
    """The machine as the model that answers finds it: what the embedding model takes is as little free as a context."""
    if beside is None or not machine.context_bytes:
        return machine
    return replace(machine, context_bytes=machine.context_bytes + beside.total_bytes)


def with_embedder(found: Footprint, scenario: Scenario, machine: Overheads, beside: Beside) -> Footprint:
    """A footprint made with room for an embedding model, told apart: on the first GPU ``other_models``, on others nothing."""
    if found.verdict == "unknown" or not all(gpu.phases for gpu in found.gpus):
        return found
    shifted = beside.total_bytes if machine.context_bytes else 0
    gpus = tuple(replace(gpu, phases=tuple(_phase(phase, gpu, beside, shifted) for phase in gpu.phases)) for gpu in found.gpus)
    taken = f"inference.embedder: {beside.held_bytes / GIB:.2f} GiB on the first GPU, {beside.words}"
    told = replace(
        found,
        gpus=gpus,
        notes=(*found.notes, taken),
        terms=LaterSequence(lambda: [*_as_it_was(found.terms, shifted), *_terms(beside)]),
    )
    return _judged(told) if scenario.engine in BY_LAYERS else told


def _phase(phase: Phase, gpu: GpuFootprint, beside: Beside, shifted: int) -> Phase:
    own = phase.components.get("cuda_context", 0) - shifted
    if gpu.index:
        return replace(phase, device=phase.device - shifted, components={**phase.components, "cuda_context": own})
    held = beside.held_bytes
    parts = {**phase.components, "other_models": held}
    if shifted:
        parts["cuda_context"] = own + beside.context_bytes
    device = phase.device if shifted else phase.device + held
    return Phase(phase.name, phase.allocated + held, phase.reserved + held, device, parts)


def _judged(found: Footprint) -> Footprint:
    """The worst of the GPUs again, of which all but the first hold less than was taken for them."""
    pairs = [(gpu.peak.device, gpu.capacity_bytes or 0) for gpu in found.gpus if gpu.peak is not None]
    verdicts = [judge(device, capacity, found.uncertainty_bytes or 0) for device, capacity in pairs]
    headroom = smallest(*(capacity - device for device, capacity in pairs))
    return replace(found, verdict=min(verdicts, key=ORDER.index), headroom_bytes=headroom)


def _as_it_was(terms: Sequence[Term], shifted: int) -> list[Term]:
    """The terms with the context alone where it was told with room for the embedding model."""
    found: list[Term] = []
    for term in terms:
        if term.component != "cuda_context" or "context_bytes" not in term.values or not shifted:
            found.append(term)
            continue
        size = term.bytes - shifted
        found.append(replace(term, bytes=size, values={**term.values, "context_bytes": size}))
    return found


def _terms(beside: Beside) -> list[Term]:
    found = [
        Term(
            "other_models", "parameters · bytes + forward", {**beside.values, "forward": beside.step_bytes}, beside.held_bytes,
            "derived", f"the embedding model: weights in 16 bit, {beside.words}", gpu=0,
        )
    ]  # fmt: skip
    if beside.context_bytes:
        values = {"embedder_context": beside.context_bytes}
        because = "the embedding model runs in a process of its own"
        found.append(
            Term("cuda_context", "CUDA context of another process", values, beside.context_bytes, "modelled", because, gpu=0)
        )
    return found
