"""transformers 5.23 on one device: ``generate`` with a dynamic cache, and the training step of Trainer.

Inference: the cache grows by concatenation, one layer's tensors live at a time, ``generate`` keeps the logits of the
last position. Training: forward, backward, optimizer of the steady step, when the optimizer's states exist.
"""

from __future__ import annotations

from dataclasses import replace

from planner.architecture.counts import decoder_weights, layer_groups, layer_indices
from planner.architecture.implementation import LLAMA, implementation_of
from planner.architecture.layers import Architecture, Attention, Layer, Weight
from planner.components.cache import cache_component, held_tensors
from planner.components.graph import Graph
from planner.components.inputs import SHARED, hold_inputs
from planner.components.layer import Laid, layer_backward, layer_forward, layer_recomputed, outliving
from planner.components.norms import norm_forward
from planner.components.quantised import QuantisedWeights
from planner.components.run import Run, gradient
from planner.components.tape import Course, Held, Level, Peak, Size, Span, Tape, highest
from planner.record import record

FP32_BYTES = 4
TIED = "grad of the tied head"
INDEX_BYTES = 8
"""Token ids and positions are int64."""


@record
class Step:
    """One phase: its name, and what is live at its highest moment."""

    name: str
    peak: Peak

    def hold_cublas_workspaces(self, size_bytes: int, handles: int) -> None:
        """cuBLAS takes a workspace through the allocator at the first matrix product of each handle, and keeps it."""
        self.peak.level.change("workspace", "cuBLAS workspace", Size(workspace_bytes=size_bytes), handles)


@record
class Generation:
    """What ``generate`` is asked: sequences, prompt and new tokens of each, bytes of a value, and the device's kind."""

    batch: int
    prompt_tokens: int
    new_tokens: int
    dtype_bytes: int
    cuda: bool = True
    eager: bool = False
    static_cache: bool = False
    quantised: QuantisedWeights | None = None


@record
class TrainingStep:
    """One micro-batch of full training."""

    batch: int
    sequence: int
    dtype_bytes: int
    checkpointing: bool
    accumulation: int
    cuda: bool = True
    eager: bool = False


def generation_phases(architecture: Architecture, weights: Level, work: Generation) -> list[Step]:
    """Load, prefill and, with a head that makes tokens, decode.

    The decode figure is of its worst step: the first (long prompts under a window) or the last.
    """
    course = Course()
    course.level = weights.fork()
    course.begin_phase()
    steps = [Step("load", course.peak)]
    _forward_pass(course, architecture, _inference_run(architecture, work, work.prompt_tokens))
    steps.append(Step("prefill", course.peak))
    if not generates(architecture):
        return steps
    first = _decode_step(architecture, weights, work, work.prompt_tokens)
    last = _decode_step(architecture, weights, work, work.prompt_tokens + work.new_tokens - 1)
    steps.append(Step("decode", highest(first, last)))
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
        cuda=work.cuda, accumulating=accumulating, code=implementation_of(architecture.model_type) or LLAMA, eager=work.eager,
        residual_in_fp32=architecture.decoder.layers[0].residual_in_fp32,
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
    run = _inference_run(architecture, work, 1, past)
    for layer, count in layer_groups(architecture.decoder):
        for name, size in held_tensors(layer, run, work.prompt_tokens).items():
            course.hold(cache_component(name), name, size, count)
    course.begin_phase()
    _forward_pass(course, architecture, run)
    return course.peak


def generates(architecture: Architecture) -> bool:
    """Whether the model has a head that makes tokens; without one it keeps no cache."""
    return bool(architecture.head) or architecture.tied_head


def _inference_run(architecture: Architecture, work: Generation, sequence: int, past: int = 0) -> Run:
    return Run(
        work.batch, sequence, architecture.hidden_size, work.dtype_bytes, cached=generates(architecture), cuda=work.cuda,
        past_tokens=past,
        code=implementation_of(architecture.model_type) or LLAMA, eager=work.eager,
        static_tokens=(work.prompt_tokens + work.new_tokens) * work.static_cache, quantised=work.quantised,
        residual_in_fp32=architecture.decoder.layers[0].residual_in_fp32,
    )  # fmt: skip


def _forward_pass(course: Course, architecture: Architecture, run: Run) -> None:
    """One forward without autograd: embeddings, layers, final norm, logits of the last position."""
    hold_inputs(course, architecture, run)
    for name, size in outliving(architecture.decoder.layers[0], run).items():
        course.level.change("workspace", name, size, 1)
    kinds = layer_indices(architecture.decoder)
    spans = [layer_forward(layer, _queries_left(layer, run), saving=False).span for layer, _ in kinds]
    course.run_stack([(span, places) for span, (_, places) in zip(spans, kinds, strict=True)], "layers")
    course.run(_final_norm(architecture, run, saving=False).span, 1, "final norm")
    _drop(course, *SHARED)
    if not generates(architecture):
        return
    logits = Size(batch=run.batch, vocab_size=architecture.vocab_size, bytes=run.dtype_bytes)
    if architecture.logit_softcap:
        course.hold("logits", "logits before the cap", logits, where="head")
    course.hold("logits", "last logits", logits, where="head")
    course.hold("logits", "last logits fp32", Size(batch=run.batch, vocab_size=architecture.vocab_size, fp32_bytes=4), where="head")


def _queries_left(layer: Layer, run: Run) -> Run:
    """Layers that only read others' keys and values compute the tokens whose logits are kept, where the family does so."""
    reads = any(isinstance(mixer, Attention) and mixer.kv == "shared" for mixer in layer.sequence)
    if not reads or not run.code.skips_shared:
        return run
    return replace(run, sequence=1, past_tokens=run.past_tokens + run.sequence - 1)


def _training_forward(course: Course, architecture: Architecture, run: Run, *, checkpointing: bool) -> list[Laid]:
    """Forward with autograd on; returns what each kind of layer saved, the final norm's last."""
    hold_inputs(course, architecture, run, checkpointing=checkpointing)
    for name, size, count in _kept_of_embeddings(architecture, run):
        course.hold("activations", name, size, count)
    kinds = layer_indices(architecture.decoder)
    laid = [layer_forward(layer, run, saving=not checkpointing, keeps_input=checkpointing) for layer, _ in kinds]
    blocks = [(forward.span, places) for forward, (_, places) in zip(laid, kinds, strict=True)]
    course.run_stack(blocks, "forward of the layers")
    norm = _final_norm(architecture, run, saving=True)
    course.run(norm.span, 1, "final norm")
    laid.append(norm)
    _drop(course, "embeddings", "position embeddings", *(() if checkpointing else ("mask",)))
    _loss_forward(course, architecture, run)
    return laid


def _kept_of_embeddings(architecture: Architecture, run: Run) -> list[tuple[str, Size, int]]:
    """What autograd keeps before the layers: the mask of GPT-2's dropout, the input of BLOOM's norm; one or none of each."""
    dropped = run.code.keeps_positions and architecture.decoder.layers[0].dropout
    normed = any("embeddings_layernorm" in weight.name for weight in architecture.decoder.weights)
    return [
        ("embedding dropout mask", run.dropout_mask(), int(dropped)),
        ("embeddings before their norm", run.hidden(), int(normed)),
    ]


def _training_backward(course: Course, architecture: Architecture, run: Run, laid: list[Laid], *, checkpointing: bool) -> None:
    _loss_backward(course, architecture, run)
    if architecture.final_norm is not None:
        course.run(_final_norm_backward(run, laid[-1]), 1, "backward of the final norm")
    blocks = [
        (layer_recomputed(layer, run) if checkpointing else layer_backward(run, forward), places)
        for (layer, places), forward in zip(layer_indices(architecture.decoder), laid, strict=False)
    ]
    course.run_stack(blocks, "backward of the layers", backwards=True)
    for name, size, count in _kept_of_embeddings(architecture, run):
        course.level.change("activations", name, size, -count)
    _embedding_backward(course, architecture, run)
    _drop(course, "cosines and sines", "mask")


def _drop(course: Course, *names: str) -> None:
    """The last reference to shared tensors goes."""
    for component, name, size, count in list(course.level.items()):
        if name in names and component != "activations":
            course.level.change(component, name, size, -count)


def _final_norm(architecture: Architecture, run: Run, *, saving: bool) -> Laid:
    g = Graph(run, saving=saving, start={"x": Held(run.stream(), "workspace")})
    if architecture.final_norm is not None:
        norm_forward(g, architecture.final_norm, "final norm", "x")
        if saving:
            g.save("final norm")
    if g.is_saved("x"):
        g.rename("x", "layer input")
    else:
        g.free("x")
    span = g.span()
    return Laid(span, g.record, span.live)


def _final_norm_backward(run: Run, laid: Laid) -> Span:
    start = {name: held for name, held in laid.live.items() if held.component == "activations"}
    g = Graph(run, start={**start, "d": Held(run.hidden(), "workspace")})
    g.consume("final norm")
    g.rename(g.backward(laid.record, {"final norm": "d"})["x"], "d")
    return g.span()


def _loss_forward(course: Course, architecture: Architecture, run: Run) -> None:
    """``ForCausalLMLoss``: logits, their fp32 copy, log-softmax (saved). In fp32 the logits are their own copy."""
    vocab = architecture.vocab_size
    narrow = Size(batch=run.batch, sequence=run.sequence, vocab_size=vocab, bytes=run.dtype_bytes)
    wide = Size(batch=run.batch, sequence=run.sequence, vocab_size=vocab, fp32_bytes=4)
    tape = Tape()
    tape.hold("logits", narrow, "logits")
    if architecture.logit_softcap:
        for name, gone in (("divided", "logits"), ("tanh", "divided"), ("logits", "")):
            tape.hold(name, narrow, "logits")
            tape.free(gone)
    if run.dtype_bytes != FP32_BYTES:
        tape.hold("logits fp32", wide, "logits")
        tape.free(*(("logits",) if run.code.wide_logits else ()))
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
    if architecture.logit_softcap:
        tape = Tape(start={**tape.span().live, "tanh": Held(logits, "logits")})
    tape.hold("d log probabilities", wide, "logits")
    tape.hold("d logits fp32", wide, "logits")
    tape.consume("d log probabilities", "log probabilities", "shifted labels")
    if run.dtype_bytes != FP32_BYTES:
        tape.hold("d logits", logits, "logits")
        tape.consume("d logits fp32")
    if architecture.logit_softcap:
        before = "d logits" if run.dtype_bytes != FP32_BYTES else "d logits fp32"
        for name in ("d tanh", "d divided", "d capped"):
            tape.hold(name, logits, "logits")
            tape.consume(before, "tanh" if name == "d divided" else "")
            before = name
    if architecture.tied_head:
        tape.hold(TIED, _like_parameter(architecture.embeddings[0], run), "gradients")
    for weight in architecture.head:
        gradient(tape, run, weight)
    tape.hold("d", narrow)
    tape.consume("d logits", "d logits fp32", "d capped")
    course.run(tape.span(), 1, "backward of the head")


def _embedding_backward(course: Course, architecture: Architecture, run: Run) -> None:
    """The table's gradient is dense. A tied head's has waited for it: both are alive while their sum is made."""
    start = {"d": Held(run.stream(), "workspace")}
    if architecture.tied_head:
        start[TIED] = Held(_like_parameter(architecture.embeddings[0], run), "gradients")
    tape = Tape(start=start)
    for index, weight in reversed(list(enumerate(architecture.embeddings))):
        size, name = _like_parameter(weight, run), f"grad {weight.name}"
        tape.hold(name, size, "gradients")
        if index == 0:
            tape.consume("d")
        if architecture.tied_head and index == 0:
            tape.hold("tied sum", size, "gradients")
            tape.consume(name, TIED)
            tape.rename("tied sum", name)
        if run.accumulating:
            tape.consume(name)
    course.run(tape.span(), 1, "backward of the embeddings")


def _like_parameter(weight: Weight, run: Run) -> Size:
    return Size(rows=weight.shape[0], columns=weight.shape[-1], bytes=run.dtype_bytes)


def _hold_gradients(course: Course, architecture: Architecture, run: Run) -> None:
    """Gradients of every parameter that has some, left by the earlier micro-batches."""
    for _, weight, times in decoder_weights(architecture):
        if not weight.is_buffer:
            factors = {f"dim{index}": extent for index, extent in enumerate(weight.shape)}
            course.hold("gradients", f"grad {weight.name}", Size(**factors, bytes=run.dtype_bytes), times * weight.count)
