"""transformers 5.23 on one device: the training step of ``Trainer``.

Forward, backward and optimizer of the steady step, when the optimizer's states exist.
"""

from __future__ import annotations

from planner.architecture.counts import decoder_weights, layer_indices
from planner.architecture.implementation import LLAMA, implementation_of
from planner.architecture.layers import Architecture, Weight
from planner.components.graph import Graph
from planner.components.inputs import hold_inputs
from planner.components.layer import Laid, layer_backward, layer_forward, layer_recomputed
from planner.components.run import Run, gradient
from planner.components.tape import Course, Held, Level, Size, Span, Tape
from planner.engines.around import ALONE, Around
from planner.engines.transformers import Step, drop, final_norm
from planner.record import record

FP32_BYTES = 4
TIED = "grad of the tied head"
INDEX_BYTES = 8
"""Token ids and positions are int64."""


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


def training_phases(
    architecture: Architecture,
    weights: Level,
    optimizer: Level,
    work: TrainingStep,
    transient: Size | None,
    around: Around = ALONE,
) -> list[Step]:
    """Load, forward, backward and optimizer of the steady step, without a cache (``TrainingArguments.use_cache``).

    ``optimizer``: the states that stay; ``transient``: what the optimizer's step holds for a moment; ``around``: what a
    sharding does in between.
    """
    course = Course()
    course.level = weights.fork()
    course.begin_phase()
    steps = [Step("load", course.peak)]
    for component, name, size, count in optimizer.items():
        course.level.change(component, name, size, count)
    accumulating = around.adds_gradients(accumulating=work.accumulation > 1)
    run = Run(
        work.batch, work.sequence, architecture.hidden_size, work.dtype_bytes,
        cuda=work.cuda, accumulating=accumulating, code=implementation_of(architecture.model_type) or LLAMA, eager=work.eager,
        residual_in_fp32=architecture.decoder.layers[0].residual_in_fp32,
    )  # fmt: skip
    if accumulating and not around.holds_gradients:
        _hold_gradients(course, architecture, run)
    tokens = Size(batch=work.batch, sequence=work.sequence, int64_bytes=INDEX_BYTES)
    course.hold("workspace", "input ids", tokens)
    course.begin_phase()
    saved = _training_forward(course, architecture, run, around, checkpointing=work.checkpointing)
    steps.append(Step("forward", course.peak))
    course.begin_phase()
    _training_backward(course, architecture, run, saved, around, checkpointing=work.checkpointing)
    steps.append(Step("backward", course.peak))
    course.begin_phase()
    around.at("optimizer", course)
    if transient is not None:
        course.hold("workspace", "optimizer transient", transient)
    steps.append(Step("optimizer", course.peak))
    return steps


def _training_forward(course: Course, architecture: Architecture, run: Run, around: Around, *, checkpointing: bool) -> list[Laid]:
    """Forward with autograd on; returns what each kind of layer saved, the final norm's last."""
    around.at("forward", course)
    hold_inputs(course, architecture, run, checkpointing=checkpointing)
    for name, size, count in _kept_of_embeddings(architecture, run):
        course.hold("activations", name, size, count)
    kinds = layer_indices(architecture.decoder)
    laid = [layer_forward(layer, run, saving=not checkpointing, keeps_input=checkpointing) for layer, _ in kinds]
    blocks = [(forward.span, places) for forward, (_, places) in zip(laid, kinds, strict=True)]
    around.at("layers", course)
    course.run_stack(around.forward(blocks), "forward of the layers")
    around.at("head", course)
    norm = final_norm(architecture, run, saving=True)
    course.run(norm.span, 1, "final norm")
    laid.append(norm)
    drop(course, "embeddings", "position embeddings", "earlier probabilities", *(() if checkpointing else ("mask",)))
    _loss_forward(course, architecture, run)
    around.at("loss", course)
    return laid


def _kept_of_embeddings(architecture: Architecture, run: Run) -> list[tuple[str, Size, int]]:
    """What autograd keeps before the layers: the mask of GPT-2's dropout, the input of BLOOM's norm; one or none of each."""
    dropped = run.code.keeps_positions and architecture.decoder.layers[0].dropout
    normed = any("embeddings_layernorm" in weight.name for weight in architecture.decoder.weights)
    return [
        ("embedding dropout mask", run.dropout_mask(), int(dropped)),
        ("embeddings before their norm", run.hidden(), int(normed)),
    ]


def _training_backward(
    course: Course, architecture: Architecture, run: Run, laid: list[Laid], around: Around, *, checkpointing: bool
) -> None:
    around.at("backward", course)
    _loss_backward(course, architecture, run)
    if architecture.final_norm is not None:
        course.run(_final_norm_backward(run, laid[-1]), 1, "backward of the final norm")
    blocks = [
        (layer_recomputed(layer, run) if checkpointing else layer_backward(run, forward), places)
        for (layer, places), forward in zip(layer_indices(architecture.decoder), laid, strict=False)
    ]
    around.at("layers backward", course)
    course.run_stack(around.backward(blocks), "backward of the layers", backwards=True)
    around.at("embeddings backward", course)
    for name, size, count in _kept_of_embeddings(architecture, run):
        course.level.change("activations", name, size, -count)
    _embedding_backward(course, architecture, run)
    drop(course, "cosines and sines", "mask")
    around.at("end", course)


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
