"""The terms of a footprint: every byte of every phase with its formula, the numbers put in, and how sure they are."""

from __future__ import annotations

from collections.abc import Sequence

from planner.architecture.layers import Architecture
from planner.calibration import PERMILLE, Task
from planner.components.tape import Size
from planner.engines.transformers import Step
from planner.footprint import Certainty, Phase, Term
from planner.machine import Overheads

SOURCE = {
    "weights": "the architecture read from config.json",
    "other_models": "the other model's own architecture: it is held whole beside the trained one",
    "adapters": "PEFT 0.21: the parameters that the method adds to each module it targets, in the adapters' dtype",
    "quantization_state": "what the format keeps beside its packed values: scales, zero points, code tables",
    "kv_cache": "transformers 5.23 cache_utils.py: keys and values of every layer",
    "recurrent_state": "transformers 5.23 cache_utils.py: states of every layer that carries one, whatever the length",
    "activations": "what autograd saves for the backward, transformers 5.23 modeling code",
    "logits": "transformers 5.23 loss_utils.py: logits, their fp32 copy, log-softmax",
    "workspace": "tensors of the block that makes the peak, transformers 5.23 modeling code",
    "gradients": "torch autograd: one gradient a trainable parameter, in its dtype",
    "optimizer_state": "what the optimizer's class keeps of each trained parameter, in the dtype it keeps it in",
    "master_weights": "the fp32 copy of each trained parameter, which the optimizer updates",
    "communication": "buffers of the framework's collectives, alive at the peak",
}
CACHE_KEYS = ("num_hidden_layers", "num_key_value_heads", "head_dim")


def terms_of(
    steps: Sequence[Step], phases: Sequence[Phase], architecture: Architecture, machine: Overheads, task: Task
) -> tuple[Term, ...]:
    """One term for each kind of tensor alive at each phase's peak; they add up to the phase's components."""
    terms: list[Term] = []
    for step, phase in zip(steps, phases, strict=True):
        for component, name, size, count in step.peak.level.items():
            terms.append(_term(component, name, size, count, step, architecture, machine))
        terms.extend(_machine_terms(phase, machine, task))
    return tuple(_merge_gradients(terms))


def _term(component: str, name: str, size: Size, count: int, step: Step, architecture: Architecture, machine: Overheads) -> Term:
    formula = f"{name}: " + (f"{count} × {size.text()}" if count != 1 else size.text())
    because = SOURCE.get(component, "")
    if component == "kv_cache":
        because = "; ".join(architecture.sources[key] for key in CACHE_KEYS if key in architecture.sources) or because
    elif component == "workspace" and step.peak.where:
        because = f"{because}; the peak is in: {step.peak.where}"
    certainty: Certainty = "derived"
    if name == "cuBLAS workspace":
        measured = machine.calibration is not None and machine.calibration.cublas_workspace_bytes is not None
        certainty = "measured" if measured else "modelled"
    values = {"count": count, **size.values} if count != 1 else dict(size.values)
    return Term(component, formula, values, count * size.bytes, certainty, because, step.name)


def _machine_terms(phase: Phase, machine: Overheads, task: Task) -> list[Term]:
    if not machine.context_bytes:
        return []
    context = Term(
        "cuda_context", "CUDA context", {"context_bytes": machine.context_bytes}, machine.context_bytes, machine.certainty,
        machine.source, phase.name,
    )  # fmt: skip
    slack = phase.components.get("allocator_slack", 0)
    values = {"reserved": phase.reserved, "allocated": phase.allocated}
    because = "a model of PyTorch's caching allocator: segments once taken stay, and freed blocks are reused only where they fit"
    certainty: Certainty = "modelled"
    if machine.slack_permille(task) != PERMILLE:
        certainty, because = "measured", f"{because}; times {machine.slack_permille(task) / PERMILLE:g}, {machine.source}"
    return [context, Term("allocator_slack", "reserved − allocated", values, slack, certainty, because, phase.name)]


def _merge_gradients(terms: Sequence[Term]) -> list[Term]:
    """Gradients of one phase as one term: there is one for each parameter, and they say nothing apart."""
    merged: list[Term] = []
    sums: dict[str, int] = {}
    for term in terms:
        if term.component == "gradients" and term.phase is not None:
            sums[term.phase] = sums.get(term.phase, 0) + term.bytes
        else:
            merged.append(term)
    for phase, size_bytes in sums.items():
        merged.append(
            Term("gradients", "Σ elements · bytes of every gradient alive", {"gradient_bytes": size_bytes}, size_bytes,
                 "derived", SOURCE["gradients"], phase)
        )  # fmt: skip
    return merged
