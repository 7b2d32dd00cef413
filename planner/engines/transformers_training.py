"""transformers 5.23 on one device: the training step of ``Trainer``.

Forward, backward and optimizer of the steady step, when the optimizer's states exist.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from planner.architecture.counts import head_matrix
from planner.architecture.implementation import LLAMA, Implementation, implementation_of
from planner.architecture.layers import Architecture, Attention
from planner.components.adapters import Adapters
from planner.components.attention import HANDED_OUT
from planner.components.autocast import CACHED, HALF_BYTES, widened
from planner.components.beside import OF_OWN_INPUTS, OWN_INPUTS
from planner.components.checkpointing import Checkpointing
from planner.components.float8 import Float8
from planner.components.graph import Graph
from planner.components.inputs import TABLES, hold_inputs
from planner.components.layer import Laid
from planner.components.optimizers import Moment
from planner.components.quantised import QuantisedWeights
from planner.components.run import Run, gradient
from planner.components.states import narrow_positions
from planner.components.tape import Course, Held, Level, Size, Span, Tape
from planner.components.trainable import Trainable
from planner.engines.around import ALONE, Around
from planner.engines.objectives import Objective
from planner.engines.prefix import CACHED_KEYS, Prefix
from planner.engines.trained_layers import Reached, TrainedLayers, reached_by_gradients
from planner.engines.training_loss import (
    HEAD_INPUT,
    HEAD_WEIGHT,
    INDEX_BYTES,
    TIED,
    Loss,
    highest_logits,
    like_parameter,
    loss_backward,
    loss_forward,
)
from planner.engines.transformers import Step, drop, final_norm
from planner.modelled import NotModelled
from planner.record import record

FP32_BYTES = 4
LABELS = "labels"
LEAF = "embeddings that require a gradient"


@record
class TrainingStep:
    """One micro-batch of full training."""

    batch: int
    sequence: int
    dtype_bytes: int
    checkpointing: Checkpointing
    accumulation: int
    cuda: bool = True
    eager: bool = False
    flash: bool = False
    adapters: Adapters | None = None
    names: tuple[str, ...] = ()
    """Modules that train where not all do; with ``adapters`` none of the model's own does."""
    trained: tuple[Trainable, ...] = ()
    autocast: bool = False
    """Products run in 16 bit (``torch.autocast``), over fp32 weights where ``dtype_bytes`` say so."""
    compute_bytes: int = 0
    """Of a value in a 4-bit product, where what surrounds it was cast to fp32 (``prepare_model_for_kbit_training``)."""
    narrow_ends: bool = False
    """Embeddings and head were cast back to 16 bit then (TRL before 0.27)."""
    virtual_tokens: int = 0
    """Trained vectors before the tokens of each sequence (prompt tuning); then nothing of the model trains."""
    hands_out_keys: bool = False
    """Checkpointed layers hand out keys and values, until the forward returns."""
    prefix: Prefix | None = None
    """Trained keys and values before every layer's own; then nothing of the model trains."""
    quantised: QuantisedWeights | None = None
    experts_in_turn: bool = False
    """Experts are linears of their own, and compute one after another."""
    repeats_keys: bool = False
    """FlashAttention gets a copy of keys and values for every query head."""
    loss: Loss = Loss()
    fused: tuple[str, ...] = ()
    """Kernels in place of transformers' own code."""
    float8: Float8 | None = None
    """Linears whose products run in 8-bit floats."""
    objective: Objective | None = None
    """What trains with other models or its own answers adds to the step."""

    @property
    def over_masters(self) -> bool:
        """Whether products are cast from fp32 weights, which the optimizer changes."""
        return self.autocast and self.dtype_bytes == FP32_BYTES and self.quantised is None

    @property
    def casts_head(self) -> bool:
        """Whether the head is fp32 and multiplied in 16 bit."""
        return self.autocast and self.dtype_bytes == FP32_BYTES and not self.narrow_ends


def training_phases(
    architecture: Architecture,
    weights: Level,
    optimizer: Level,
    work: TrainingStep,
    transient: Moment = (),
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
    narrow_positions(course.level, architecture, work.dtype_bytes)
    for component, name, size, count in optimizer.items():
        course.level.change(component, name, size, count)
    accumulating = around.adds_gradients(accumulating=work.accumulation > 1)
    run = run_of(architecture, work, accumulating=accumulating)
    requires = bool(work.checkpointing) or work.virtual_tokens > 0
    reached = reached_by_gradients(architecture, run, input_requires=requires, prefixed=work.prefix is not None)
    tokens = Size(batch=work.batch, sequence=work.sequence, int64_bytes=INDEX_BYTES)
    objective, waiting = work.objective, accumulating and not around.holds_gradients
    course.hold("workspace", "input ids", tokens, objective.inputs if objective is not None else 1)
    if waiting and (objective is None or objective.amid_gradients):
        hold_gradients(course, work.trained)
    steps += objective.before(course, architecture, run) if objective is not None else []
    if waiting and objective is not None and not objective.amid_gradients:
        hold_gradients(course, work.trained)
    if objective is not None:
        course.hold("workspace", LABELS, tokens)
    course.begin_phase()
    saved = training_forward(course, architecture, run, reached, around, work)
    steps.append(Step("forward", course.peak, *highest_logits(architecture, run, work.loss), course.blocks))
    steps += objective.between(course, architecture, run) if objective is not None else []
    drop(course, LABELS)
    course.begin_phase()
    training_backward(course, architecture, run, reached, saved, around, work)
    steps.append(Step("backward", course.peak, blocks=course.blocks))
    course.begin_phase()
    around.at("optimizer", course)
    for name, size in transient:
        course.hold("workspace", name, size, where="step of the optimizer")
    steps.append(Step("optimizer", course.peak))
    return steps


def run_of(architecture: Architecture, work: TrainingStep, *, accumulating: bool) -> Run:
    """What every block of the step's forward needs."""
    code = _code(architecture, flash=work.flash, checkpointed=bool(work.checkpointing))
    return Run(
        work.batch, work.sequence + work.virtual_tokens, architecture.hidden_size, work.dtype_bytes,
        cuda=work.cuda, accumulating=accumulating, code=code,
        eager=work.eager, flash=work.flash,
        residual_in_fp32=architecture.decoder.layers[0].residual_in_fp32 or (work.autocast and norms_embeddings(architecture)),
        cached=work.prefix is not None, past_tokens=work.prefix.tokens if work.prefix is not None else 0,
        trainable=work.adapters is None and not work.virtual_tokens and work.prefix is None, adapters=work.adapters,
        names=work.names,
        quantised=work.quantised, compute_bytes=work.compute_bytes, autocast=work.autocast,
        parameter_bytes=work.dtype_bytes if work.over_masters else 0, narrow_ends=work.narrow_ends,
        hands_out_keys=work.hands_out_keys, fused=work.fused, repeats_keys=work.repeats_keys,
        experts_in_turn=work.experts_in_turn, float8=work.float8,
    )  # fmt: skip


def _code(architecture: Architecture, *, flash: bool, checkpointed: bool) -> Implementation:
    """How the family is written. FlashAttention caps scores itself, where the class computes them eagerly for that."""
    code = implementation_of(architecture) or LLAMA
    if checkpointed and not code.checkpoints:
        raise NotModelled(f"training.checkpointing: transformers does not checkpoint {architecture.model_class}: use none")
    if not flash or code.attention == "sdpa":
        return code
    mixers = [mixer for layer in architecture.decoder.layers for mixer in layer.sequence]
    if code.attention != "eager" or not all(isinstance(mixer, Attention) and not mixer.has_sinks for mixer in mixers):
        raise NotModelled(f"training.attention: {architecture.model_class} by FlashAttention has no closed form yet: choose eager")
    return replace(code, attention="sdpa")


def training_forward(
    course: Course, architecture: Architecture, run: Run, reached: Reached, around: Around, work: TrainingStep
) -> list[Laid]:
    """Forward with autograd on; returns what each kind of layer saved, the final norm's last."""
    checkpointing, loss = work.checkpointing, work.loss
    around.at("forward", course)
    if work.prefix is not None:
        work.prefix.begin(course, architecture, run)
    hold_inputs(course, architecture, run, checkpointing=bool(checkpointing), offloaded=checkpointing.offloads)
    for name, size, count in _kept_of_embeddings(architecture, run, reached, work):
        course.hold("activations", name, size, count)
        if name == LEAF and count and not work.virtual_tokens:
            drop(course, "embeddings")
    parts = _parts(reached, checkpointing)
    laid = [checkpointing.forward(each.layer, each.run, covered=covered) for each, covered in parts]
    blocks = [(forward.span, each.places) for forward, (each, _) in zip(laid, parts, strict=True)]
    around.at("layers", course)
    course.run_stack(around.forward(blocks), "forward of the layers")
    around.at("head", course)
    outside = replace(run, path="", constant_input=not reached.before_norm)
    norm = final_norm(architecture, outside, saving=True, keeps=loss.keeps_norm(run, reached) and not work.over_masters)
    course.run(norm.span, 1, "final norm")
    laid.append(norm)
    # PEFT's own forward holds what it has put the virtual tokens before; a layer that saves its input holds the same, unless
    # something was made of it first.
    held = work.virtual_tokens and (_makes_input(architecture, run) or "layer input" not in laid[0].live)
    read_again = checkpointing or (checkpointing.part == "attention" and reached.before_norm)
    mask, embeddings = () if read_again else ("mask",), () if held else ("embeddings",)
    tables = () if reached.before_norm else (TABLES,)
    drop(course, "position embeddings", "earlier probabilities", *mask, *embeddings, *tables)
    if work.casts_head:
        _hold_head_casts(course, architecture, run, reached)
    loss_forward(course, architecture, at_the_head(run), reached, loss)
    forget_cached(course)
    drop(course, "embeddings", HANDED_OUT, *CACHED_KEYS)
    around.at("loss", course)
    return laid


def at_the_head(run: Run) -> Run:
    """Under autocast over an fp32 head logits are in 16 bit."""
    return replace(run, dtype_bytes=HALF_BYTES) if run.autocast else run


def _hold_head_casts(course: Course, architecture: Architecture, run: Run, reached: Reached) -> None:
    """What autocast makes of the head's input and weight: autograd keeps each for the other's gradient, else a cache the weight."""
    weight = head_matrix(architecture)
    course.hold("activations", HEAD_INPUT, at_the_head(run).hidden(), int(reached.head))
    kept = "activations" if reached.before_head else "workspace"
    course.hold(kept, HEAD_WEIGHT, Size(rows=weight.shape[0], columns=weight.shape[-1], bytes=HALF_BYTES))


def _widen_gradient(course: Course, run: Run) -> None:
    """The gradient of the head's input goes on in the dtype of the norm's output; the casts are used up."""
    _drop_saved(course, HEAD_WEIGHT)
    _drop_saved(course, HEAD_INPUT)
    course.hold("workspace", "d wide", run.hidden(), where="backward of the head")
    _drop_saved(course, "d")
    _drop_saved(course, "d wide")
    course.level.change("workspace", "d", run.hidden(), 1)


def forget_cached(course: Course) -> None:
    """Autocast ends with the loss, and with it its cache of cast weights; those that autograd keeps stay."""
    for component, name, size, count in list(course.level.items()):
        if component == "workspace" and name.endswith(CACHED):
            course.level.change(component, name, size, -count)


def _kept_of_embeddings(architecture: Architecture, run: Run, reached: Reached, work: TrainingStep) -> list[tuple[str, Size, int]]:
    """What autograd keeps before the layers; one or none of each.

    The mask of GPT-2's dropout, the input of BLOOM's norm; and what frozen embeddings made, where that was told to require
    a gradient (it is a leaf then) and the layers read something made of it, or keep their inputs on the host.
    """
    if not reached.input:
        return []
    adds = (run.code.keeps_positions and not run.code.positions_by_row) or run.code.computes_positions
    dropped = adds and architecture.decoder.layers[0].dropout
    normed = norms_embeddings(architecture)
    cast = normed and work.autocast and run.dtype_bytes == HALF_BYTES
    made = run.code.scales_embeddings or run.code.norms_embeddings or _adds_positions(architecture) or run.code.computes_positions
    elsewhere = made or work.virtual_tokens > 0 or work.checkpointing.offloads
    leaf = not reached.embeddings and bool(work.checkpointing) and elsewhere
    return [
        ("embedding dropout mask", run.dropout_mask(), int(dropped)),
        ("embeddings before their norm", run.hidden(), int(normed)),
        ("embeddings before their norm, copied", run.upcast(run.hidden_size), int(run.code.norms_embeddings)),
        ("embeddings before their norm, fp32", widened(run.hidden()), int(cast)),
        (LEAF, replace(run, narrow_input=True).entering() if run.narrow_ends else run.hidden(), int(leaf)),
    ]


def _adds_positions(architecture: Architecture) -> bool:
    return any("position" in weight.name or "wpe" in weight.name for weight in architecture.embeddings)


def _makes_input(architecture: Architecture, run: Run) -> bool:
    """Whether the first layer reads something made of the embeddings."""
    made = run.code.scales_embeddings or run.code.norms_embeddings or run.code.computes_positions
    return made or _adds_positions(architecture) or norms_embeddings(architecture)


def norms_embeddings(architecture: Architecture) -> bool:
    """Whether a layer norm stands before the layers (BLOOM's); under autocast all that follows it is added up in fp32."""
    return any("embeddings_layernorm" in weight.name for weight in architecture.decoder.weights)


def training_backward(
    course: Course, architecture: Architecture, run: Run, reached: Reached, laid: list[Laid], around: Around,
    work: TrainingStep,
) -> None:  # fmt: skip
    """From the loss to the embeddings; ``laid``: what :func:`training_forward` returned."""
    around.at("backward", course)
    loss_backward(course, architecture, at_the_head(run), reached, around, work.loss)
    if work.casts_head or work.narrow_ends:
        _widen_gradient(course, run)
    if architecture.final_norm is not None and reached.before_head:
        course.run(_final_norm_backward(replace(run, path=""), laid[-1]), 1, "backward of the final norm")
    else:
        _drop_saved(course, "final norm")
    blocks = [
        (work.checkpointing.backward(each.layer, each.run, forward, covered=covered), each.places)
        for (each, covered), forward in zip(_parts(reached, work.checkpointing), laid, strict=False)
    ]
    around.at("layers backward", course)
    course.run_stack(around.backward(blocks), "backward of the layers", backwards=True)
    around.at("embeddings backward", course)
    for name, size, count in _kept_of_embeddings(architecture, run, reached, work):
        course.level.change("activations", name, size, -count)
    if reached.embeddings:
        _embedding_backward(course, architecture, run)
    else:
        drop(course, "d")
    if work.prefix is not None:
        work.prefix.backward(course, architecture, run)
    if work.virtual_tokens and not run.accumulating:
        hold_gradients(course, work.trained)
    if work.adapters is not None and not run.accumulating:
        hold_gradients(course, [found for found in work.trained if any(f"{name}." in found.name for name in OF_OWN_INPUTS)])
    drop(course, TABLES, "mask", *OWN_INPUTS)
    around.at("end", course)


def _parts(reached: Reached, checkpointing: Checkpointing) -> list[tuple[TrainedLayers, bool]]:
    """Layers that are alike, and whether they are checkpoints."""
    return [
        (TrainedLayers(each.layer, each.run, places), covered)
        for each in reached.layers
        for covered, places in checkpointing.parted(each.places)
    ]


def _drop_saved(course: Course, name: str) -> None:
    """The head's backward has used its input, and nothing before it trains."""
    for component, held, size, count in list(course.level.items()):
        if held == name:
            course.level.change(component, held, size, -count)


def _final_norm_backward(run: Run, laid: Laid) -> Span:
    start = {name: held for name, held in laid.live.items() if held.component == "activations"}
    g = Graph(run, start={**start, "d": Held(run.hidden(), "workspace")})
    g.consume("final norm")
    found = g.backward(laid.record, {"final norm": "d"})
    if "x" in found:
        g.rename(found["x"], "d")
    return g.span()


def _embedding_backward(course: Course, architecture: Architecture, run: Run) -> None:
    """The table's gradient is dense. A tied head's has waited for it: both are alive while their sum is made."""
    start = {"d": Held(run.stream(), "workspace")}
    if architecture.tied_head:
        start[TIED] = Held(like_parameter(architecture.embeddings[0], run), "gradients")
    tape = Tape(start=start)
    outside = replace(run, path="")
    for index, weight in reversed(list(enumerate(architecture.embeddings))):
        if not outside.trains((weight,)):
            continue
        size, name = like_parameter(weight, run), f"grad {weight.name}"
        tape.hold(name, size, "gradients")
        if index == 0:
            tape.consume("d")
        if architecture.tied_head and index == 0:
            tape.hold("tied sum", size, "gradients")
            tape.consume(name, TIED)
            tape.rename("tied sum", name)
        if run.accumulating:
            tape.consume(name)
    for weight in architecture.decoder.weights:
        if weight.name.rpartition(".")[0].endswith(OF_OWN_INPUTS) and outside.trains((weight,)):
            gradient(tape, run, weight)
    course.run(tape.span(), 1, "backward of the embeddings")


def hold_gradients(course: Course, trained: Sequence[Trainable]) -> None:
    """Gradients of every parameter that has some, left by the earlier micro-batches."""
    for tensor in trained:
        factors = {f"dim{index}": extent for index, extent in enumerate(tensor.shape)}
        course.hold("gradients", f"grad {tensor.name}", Size(**factors, bytes=tensor.dtype_bytes), tensor.times)
