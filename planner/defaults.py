"""What a scenario leaves out, settled: the engine's own default where it has one, and a note for each one taken."""

from __future__ import annotations

from dataclasses import replace

from planner.architecture.layers import Architecture
from planner.faults import Fault, Faults
from planner.scenario import Inference, Scenario, Training
from planner.symbolic.amount import largest, smallest

DEFAULT_GPU = "H100 SXM5 80GB"
"""Stands in when no card is named and none is found; the answer says that it is simulated."""
DEFAULT_CONTEXT_TOKENS = 8192
"""Prompt and new tokens of a sequence when neither is given and the model allows it."""
DEFAULT_NEW_TOKENS = 256
DEFAULT_SEQUENCE_TOKENS = 2048
WEIGHTS_OF_PRECISION = {"bf16": "bf16", "fp32": "fp32", "amp-bf16": "fp32", "amp-fp16": "fp32", "fp8": "bf16"}
"""Dtype in which a training keeps its parameters: automatic mixed precision keeps fp32 masters."""
PLAIN = ("fp32", "bf16", "fp16")


def settle(scenario: Scenario, architecture: Architecture, native: str) -> tuple[Scenario, tuple[str, ...]]:
    """The scenario with every default filled in, and the defaults taken, in words.

    ``native``: the name of the format the checkpoint is stored in. Raises :class:`planner.faults.Faults` where a
    choice contradicts another.
    """
    notes: list[str] = []
    hardware = scenario.hardware
    if hardware.gpu is None:
        notes.append(f"hardware.gpu: none named; simulated on {DEFAULT_GPU}")
        hardware = replace(hardware, gpu=DEFAULT_GPU)
    limit = architecture.max_context_tokens
    settled = replace(scenario, hardware=hardware)
    if scenario.task == "inference":
        settled = replace(
            settled,
            weights=native if scenario.weights == "native" else scenario.weights,
            inference=_settle_inference(scenario.inference, limit, notes),
        )
    else:
        training = _settle_training(scenario.training, limit, notes)
        settled = replace(settled, weights=_training_weights(scenario, notes), training=training)
    return settled, tuple(notes)


def _settle_inference(inference: Inference, limit: int | None, notes: list[str]) -> Inference:
    context = min(limit or DEFAULT_CONTEXT_TOKENS, DEFAULT_CONTEXT_TOKENS)
    new_tokens, prompt_tokens = inference.new_tokens, inference.prompt_tokens
    if new_tokens is None:
        room = (limit or DEFAULT_CONTEXT_TOKENS) - (prompt_tokens or 0)
        new_tokens = max(1, min(DEFAULT_NEW_TOKENS, room // 2 if prompt_tokens is None else room))
        notes.append(f"inference.new_tokens: {new_tokens} by default")
    if prompt_tokens is None:
        prompt_tokens = max(1, context - new_tokens)
        notes.append(f"inference.prompt_tokens: {prompt_tokens} by default, a context of {prompt_tokens + new_tokens}")
    if limit is not None and prompt_tokens + new_tokens > limit:
        notes.append(f"{prompt_tokens + new_tokens} tokens exceed the model's context limit of {limit}")
    attention = "sdpa" if inference.attention == "auto" else inference.attention
    return replace(inference, prompt_tokens=prompt_tokens, new_tokens=new_tokens, attention=attention)


def _settle_training(training: Training, limit: int | None, notes: list[str]) -> Training:
    sequence = training.sequence
    if training.lengths and training.data != "packed":
        sequence = _longest(training, notes)
    elif sequence is None:
        sequence = min(limit or DEFAULT_SEQUENCE_TOKENS, DEFAULT_SEQUENCE_TOKENS)
        notes.append(f"training.sequence: {sequence} by default")
    elif limit is not None and sequence > limit:
        notes.append(f"a sequence of {sequence} tokens exceeds the model's context limit of {limit}")
    if training.precision == "fp8" and "fp8_recipe" not in training.engine_options:
        notes.append(
            "training.engine_options.fp8_recipe: tensorwise by default, of torchao's linears as they are without torch.compile"
        )
    attention = "sdpa" if training.attention == "auto" else training.attention
    settled = replace(training, sequence=sequence, attention=attention)
    return settled if training.objective == "sft" else _settle_objective(settled, notes)


def _settle_objective(training: Training, notes: list[str]) -> Training:
    """What TRL compares with where it is not told (a copy of the model, or the base under its adapters), and the prompts."""
    found: dict[str, object] = {}
    if training.reference == "auto":
        beside = "model" if training.method in ("full", "freeze") else "adapter"
        found["reference"] = "none" if training.objective == "grpo" else beside
        notes.append(f"training.reference: {found['reference']} by default, as TRL takes it")
    if training.prompt_tokens is None:
        found["prompt_tokens"] = largest(1, (training.sequence or 1) // 2)
        notes.append("training.prompt_tokens: half of the sequence by default")
    return replace(training, **found)  # type: ignore[arg-type]


def _longest(training: Training, notes: list[str]) -> int:
    """Tokens of the longest example, which decides the peak; longer ones than ``sequence`` are cut."""
    longest, mean = max(training.lengths), -(-sum(training.lengths) // len(training.lengths))
    sequence = longest if training.sequence is None else smallest(longest, training.sequence)
    notes.append(f"training.lengths: the peak is that of batches with the longest examples, {sequence} tokens; the mean is {mean}")
    return sequence


def _training_weights(scenario: Scenario, notes: list[str]) -> str:
    if scenario.training.method == "qlora":
        if scenario.weights in PLAIN:
            notes.append(f"weights: {scenario.weights} is not quantised, so that qlora is lora with its preparation; nf4 quantises")
        return "nf4-dq" if scenario.weights == "native" else scenario.weights
    dtype = WEIGHTS_OF_PRECISION[scenario.training.precision]
    if scenario.training.method in ("lora", "dora"):
        # A frozen base has no masters: mixed precision finds it in the dtype it was loaded in.
        dtype = {"amp-bf16": "bf16", "amp-fp16": "fp16"}.get(scenario.training.precision, dtype)
        if scenario.weights in PLAIN:
            return scenario.weights
    if scenario.training.precision == "fp8" and scenario.weights == "fp32":
        return scenario.weights
    if scenario.weights in ("native", dtype):
        return dtype
    if scenario.weights in PLAIN:
        notes.append(f"weights: {scenario.weights} are kept as {dtype}, as training.precision {scenario.training.precision} asks")
        return dtype
    message = f"{scenario.weights} can't be trained with method {scenario.training.method}; use native, {dtype}, or method qlora"
    raise Faults([Fault("weights", message)])
