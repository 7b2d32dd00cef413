"""transformers 5.23 on one device: ``generate`` with a dynamic cache, and the training step of Trainer.

Inference: the cache grows by concatenation, one layer's tensors live at a time, ``generate`` keeps the logits of the
last position. Training: forward, backward, optimizer of the steady step, when the optimizer's states exist.
"""

from __future__ import annotations

from dataclasses import dataclass

from planner.architecture.counts import iter_weights, layer_groups
from planner.architecture.layers import Architecture, Attention, Norm, Weight
from planner.components.attention import sliding_mask
from planner.components.layer import layer_backward, layer_forward, layer_recomputed
from planner.components.norms import norm_backward, norm_forward
from planner.components.rotary import rotary_embedding
from planner.components.run import Run, gradient
from planner.components.tape import Course, Held, Level, Peak, Size, Span, Tape

FP32_BYTES = 4
TIED = "grad of the tied head"
INDEX_BYTES = 8
"""Token ids and positions are int64."""


@dataclass(frozen=True, slots=True)
class Step:
    """One phase: its name, and what is live at its highest moment."""

    name: str
    peak: Peak

    def hold_cublas_workspaces(self, size_bytes: int, handles: int) -> None:
        """cuBLAS takes a workspace through the allocator at the first matrix product of each handle, and keeps it."""
        self.peak.level.change("workspace", "cuBLAS workspace", Size(workspace_bytes=size_bytes), handles)


@dataclass(frozen=True, slots=True)
class Generation:
    """What ``generate`` is asked: sequences, prompt and new tokens of each, bytes of a value, and the device's kind."""

    batch: int
    prompt_tokens: int
    new_tokens: int
    dtype_bytes: int
    cuda: bool = True


@dataclass(frozen=True, slots=True)
class TrainingStep:
    """One micro-batch of full training."""

    batch: int
    sequence: int
    dtype_bytes: int
    checkpointing: bool
    accumulation: int
    cuda: bool = True


def generation_phases(architecture: Architecture, weights: Level, work: Generation) -> list[Step]:
    """Load, prefill and decode. The decode figure is of its worst step: the first (long prompts under a window) or the last."""
    course = Course()
    course.level = weights.fork()
    course.begin_phase()
    steps = [Step("load", course.peak)]
    prefill = Run(work.batch, work.prompt_tokens, architecture.hidden_size, work.dtype_bytes, cached=True, cuda=work.cuda)
    _forward_pass(course, architecture, prefill)
    steps.append(Step("prefill", course.peak))
    first = _decode_step(architecture, weights, work, work.prompt_tokens)
    last = _decode_step(architecture, weights, work, work.prompt_tokens + work.new_tokens - 1)
    steps.append(Step("decode", max(first, last, key=lambda peak: peak.level.total)))
    return steps


def training_phases(
    architecture: Architecture, weights: Level, optimizer: Level, work: TrainingStep, transient: Size | None
) -> list[Step]:
    """Load, forward, backward and optimizer of the steady step, without a cache (``TrainingArguments.use_cache``).

    ``optimizer``: the states that stay; ``transient``: what the optimizer's step holds for a moment.
    """
    course = Course()
    course.level = weights.fork()
    course.begin_phase()
    steps = [Step("load", course.peak)]
    for component, name, size, count in optimizer.items():
        course.level.change(component, name, size, count)
    accumulating = work.accumulation > 1
    run = Run(
        work.batch, work.sequence, architecture.hidden_size, work.dtype_bytes,
        cuda=work.cuda, accumulating=accumulating,
    )  # fmt: skip
    if accumulating:
        _hold_gradients(course, architecture, run)
    tokens = Size(batch=work.batch, sequence=work.sequence, int64_bytes=INDEX_BYTES)
    course.hold("workspace", "input ids", tokens)
    course.begin_phase()
    saved = _training_forward(course, architecture, run, checkpointing=work.checkpointing)
    steps.append(Step("forward", course.peak))
    course.begin_phase()
    _training_backward(course, architecture, run, saved, checkpointing=work.checkpointing)
    steps.append(Step("backward", course.peak))
    course.begin_phase()
    if transient is not None:
        course.hold("workspace", "optimizer transient", transient)
    steps.append(Step("optimizer", course.peak))
    return steps


def _decode_step(architecture: Architecture, weights: Level, work: Generation, past: int) -> Peak:
    """One decode step when the cache holds ``past`` tokens; before the first step windowed layers hold the whole prompt."""
    course = Course()
    course.level = weights.fork()
    run = Run(work.batch, 1, architecture.hidden_size, work.dtype_bytes, cached=True, cuda=work.cuda, past_tokens=past)
    for layer, count in layer_groups(architecture.decoder):
        mixer = layer.sequence[0]
        assert isinstance(mixer, Attention)  # noqa: S101  require_modelled has looked
        for name in ("k", "v"):
            course.hold("kv_cache", f"{name} past", run.cache(mixer, name, _held_cells(mixer, run, work)), count)
    course.begin_phase()
    _forward_pass(course, architecture, run)
    return course.peak


def _held_cells(mixer: Attention, run: Run, work: Generation) -> int:
    """Tokens alive under a layer's cache before a decode step: after a long prefill the window is a view of them all."""
    if mixer.window_tokens is None or run.past_tokens == work.prompt_tokens:
        return run.past_tokens
    return min(run.past_tokens, mixer.window_tokens)


def _forward_pass(course: Course, architecture: Architecture, run: Run) -> None:
    """One forward without autograd: embeddings, layers, final norm, logits of the last position."""
    _hold_inputs(course, architecture, run)
    for layer, count in layer_groups(architecture.decoder):
        course.run(layer_forward(layer, run, saving=False), count, "layers")
    course.run(_final_norm(architecture, run, saving=False), 1, "final norm")
    _drop(course, "embeddings", "mask 0")
    logits = Size(batch=run.batch, vocab_size=architecture.vocab_size, bytes=run.dtype_bytes)
    course.hold("logits", "last logits", logits, where="head")
    course.hold("logits", "last logits fp32", Size(batch=run.batch, vocab_size=architecture.vocab_size, fp32_bytes=4), where="head")


def _training_forward(course: Course, architecture: Architecture, run: Run, *, checkpointing: bool) -> list[dict[str, Held]]:
    """Forward with autograd on; returns what each kind of layer saved, the final norm's last."""
    _hold_inputs(course, architecture, run, checkpointing=checkpointing)
    saved: list[dict[str, Held]] = []
    for layer, count in layer_groups(architecture.decoder):
        span = layer_forward(layer, run, saving=not checkpointing, keeps_input=checkpointing)
        course.run(span, count, "forward of the layers")
        saved.append(dict(span.live))
    norm = _final_norm(architecture, run, saving=True)
    course.run(norm, 1, "final norm")
    saved.append(dict(norm.live))
    _drop(course, "embeddings", *(() if checkpointing else ("mask 0",)))
    _loss_forward(course, architecture, run)
    return saved


def _training_backward(
    course: Course, architecture: Architecture, run: Run, saved: list[dict[str, Held]], *, checkpointing: bool
) -> None:
    _loss_backward(course, architecture, run)
    if architecture.final_norm is not None:
        course.run(_final_norm_backward(architecture.final_norm, run, saved[-1]), 1, "backward of the final norm")
    groups = list(zip(layer_groups(architecture.decoder), saved, strict=False))
    for (layer, count), live in reversed(groups):
        span = layer_recomputed(layer, run) if checkpointing else layer_backward(layer, run, live)
        course.run(span, count, "backward of the layers")
    _embedding_backward(course, architecture, run)
    _drop(course, "cosines and sines", "mask 0")


def _drop(course: Course, *names: str) -> None:
    """The last reference to shared tensors goes."""
    for component, name, size, count in list(course.level.items()):
        if name in names and component != "activations":
            course.level.change(component, name, size, -count)


def _hold_inputs(course: Course, architecture: Architecture, run: Run, *, checkpointing: bool = False) -> None:
    """The first layer's input, the embeddings (alive until the model returns; checkpointed they are one), cosines and sines."""
    course.hold("workspace", "x", run.hidden())
    mixers = [mixer for layer, _ in layer_groups(architecture.decoder) for mixer in layer.sequence if isinstance(mixer, Attention)]
    rotary_dim = max((mixer.rotary_dim for mixer in mixers), default=0)
    mask = next((found for mixer in mixers if (found := sliding_mask(run, mixer))), None)
    if mask is not None:
        tape = Tape()
        for part in range(mask[1]):
            tape.hold(f"mask {part}", mask[0])
        tape.free(*(f"mask {part}" for part in range(1, mask[1])))
        course.run(tape.span(), 1, "causal mask")
    if rotary_dim:
        kept, moment = rotary_embedding(run, rotary_dim)
        tape = Tape()
        tape.hold("frequencies", moment)
        tape.hold("cosines and sines", kept)
        tape.free("frequencies")
        course.run(tape.span(), 1, "rotary embedding")
    if not checkpointing:
        course.level.change("workspace", "embeddings", run.hidden(), 1)


def _final_norm(architecture: Architecture, run: Run, *, saving: bool) -> Span:
    tape = Tape(saving=saving, start={"x": Held(run.hidden(), "workspace")})
    if architecture.final_norm is not None:
        norm_forward(tape, run, architecture.final_norm, "final norm", "x")
    tape.free("x")
    return tape.span()


def _final_norm_backward(norm: Norm, run: Run, saved: dict[str, Held]) -> Span:
    tape = Tape(start={**saved, "d": Held(run.hidden(), "workspace")})
    tape.consume("final norm")
    norm_backward(tape, run, norm, "final norm", "d", "x")
    tape.rename("final norm dx", "d")
    return tape.span()


def _loss_forward(course: Course, architecture: Architecture, run: Run) -> None:
    """``ForCausalLMLoss``: logits, their fp32 copy, log-softmax (saved). In fp32 the logits are their own copy."""
    vocab = architecture.vocab_size
    narrow = Size(batch=run.batch, sequence=run.sequence, vocab_size=vocab, bytes=run.dtype_bytes)
    wide = Size(batch=run.batch, sequence=run.sequence, vocab_size=vocab, fp32_bytes=4)
    tape = Tape()
    tape.hold("logits", narrow, "logits")
    if run.dtype_bytes != FP32_BYTES:
        tape.hold("logits fp32", wide, "logits")
    tape.hold("shifted labels", Size(batch=run.batch, sequence=run.sequence, int64_bytes=INDEX_BYTES))
    tape.hold("log probabilities", wide, "logits")
    tape.free("logits fp32", "logits")
    course.run(tape.span(), 1, "loss")


def _loss_backward(course: Course, architecture: Architecture, run: Run) -> None:
    vocab, narrow = architecture.vocab_size, run.hidden()
    logits = Size(batch=run.batch, sequence=run.sequence, vocab_size=vocab, bytes=run.dtype_bytes)
    wide = Size(batch=run.batch, sequence=run.sequence, vocab_size=vocab, fp32_bytes=4)
    labels = Size(batch=run.batch, sequence=run.sequence, int64_bytes=INDEX_BYTES)
    tape = Tape(start={"log probabilities": Held(wide, "logits"), "shifted labels": Held(labels, "workspace")})
    tape.hold("d log probabilities", wide, "logits")
    tape.hold("d logits fp32", wide, "logits")
    tape.consume("d log probabilities", "log probabilities", "shifted labels")
    if run.dtype_bytes != FP32_BYTES:
        tape.hold("d logits", logits, "logits")
        tape.consume("d logits fp32")
    if architecture.tied_head:
        tape.hold(TIED, _like_parameter(architecture.embeddings[0], run), "gradients")
    for weight in architecture.head:
        gradient(tape, run, weight)
    tape.hold("d", narrow)
    tape.consume("d logits", "d logits fp32")
    course.run(tape.span(), 1, "backward of the head")


def _embedding_backward(course: Course, architecture: Architecture, run: Run) -> None:
    """The table's gradient is dense. A tied head's has waited for it: both are alive while their sum is made."""
    start = {"d": Held(run.hidden(), "workspace")}
    if architecture.tied_head:
        start[TIED] = Held(_like_parameter(architecture.embeddings[0], run), "gradients")
    tape = Tape(start=start)
    for index, weight in enumerate(architecture.embeddings):
        size, name = _like_parameter(weight, run), f"grad {weight.name}"
        tape.hold(name, size, "gradients")
        if architecture.tied_head and index == 0:
            tape.hold("tied sum", size, "gradients")
            tape.consume(name, TIED)
            tape.rename("tied sum", name)
        if run.accumulating:
            tape.consume(name)
    tape.consume("d")
    course.run(tape.span(), 1, "backward of the embeddings")


def _like_parameter(weight: Weight, run: Run) -> Size:
    return Size(rows=weight.shape[0], columns=weight.shape[-1], bytes=run.dtype_bytes)


def _hold_gradients(course: Course, architecture: Architecture, run: Run) -> None:
    """Gradients of every parameter, left by the earlier micro-batches."""
    for _, weight, times in iter_weights(architecture):
        if not weight.is_buffer:
            factors = {f"dim{index}": extent for index, extent in enumerate(weight.shape)}
            course.hold("gradients", f"grad {weight.name}", Size(**factors, bytes=run.dtype_bytes), times * weight.count)
