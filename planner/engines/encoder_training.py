"""transformers 5.23 on one device: the training step of encoders that fill masks and of encoder–decoders.

An encoder–decoder reads the same tokens twice: its encoder as they are, its decoder shifted by one. What both stacks leave
for the backward lies there until the loss; gradients of the encoder's output gather over the decoder's layers.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial

from planner.architecture.counts import layer_indices, layer_weights
from planner.architecture.implementation import LLAMA, implementation_of
from planner.architecture.layers import Architecture, Attention, Layer, Stack, Weight
from planner.components.autocast import narrowed
from planner.components.biased import ALIGNED_KEYS, CROSS_POSITIONS, POSITIONS, position_bias
from planner.components.encoder import (
    ENCODED,
    INDEX_BYTES,
    Block,
    bart_block,
    bert_block,
    is_used_as_decoder,
    modernbert_block,
    relative_positions,
    rotary_tables,
    t5_block,
    window_mask,
)
from planner.components.encoder_classifiers import classifies, lay_classifier
from planner.components.encoder_layers import LaidLayer, Stage, buckets, layer_back, layer_forward, layer_recomputed
from planner.components.encoder_outside import LEAF, PENDING, Part, embed, embedded_size, encode, lay_head, undo
from planner.components.optimizers import Moment
from planner.components.run import Run, gradient
from planner.components.tape import Course, Held, Level, Size, Span, Tape
from planner.components.trainable import OTHERS
from planner.engines.transformers import Step
from planner.engines.transformers_training import TrainingStep, forget_cached
from planner.modelled import NotModelled

BLOCKS: dict[str, Block] = {
    **dict.fromkeys(
        ("bert", "roberta", "xlm-roberta", "camembert", "ernie", "bart", "plbart", "marian", "blenderbot-small"), bert_block
    ),
    "distilbert": partial(bert_block, drops_attention=False),
    "electra": bert_block,
    **dict.fromkeys(("nomic_bert", "jina_embeddings_v3"), partial(bert_block, keeps_attention=True)),
    **dict.fromkeys(("mbart", "pegasus", "blenderbot", "roberta-prelayernorm", "eurobert"), bart_block),
    "xlm-roberta-xl": partial(bart_block, drops_mlp=False),
    "modernbert": modernbert_block,
    **dict.fromkeys(("t5", "mt5"), t5_block),
}
"""Families whose training was read in transformers: how a layer of theirs is laid."""
TABLES, MASK = "cosines and sines", "mask"
RETURNED = (POSITIONS, MASK)
"""What goes when a stack returns."""


def require_trained_encoder(architecture: Architecture, work: TrainingStep) -> Block:
    """How a layer of the family is laid. Raises :class:`NotModelled` where no derivation covers its training."""
    block = BLOCKS.get(architecture.model_type)
    masked = architecture.kind != "encoder" or architecture.model_class.endswith("ForMaskedLM")
    if not masked and not classifies(architecture):
        raise NotModelled(f"{architecture.model_class}: the loss of a class without a head, or of this one, has no closed form")
    if block is None or is_used_as_decoder(architecture):
        raise NotModelled(f"{architecture.model_class}: its training has no closed form yet")
    other = work.adapters is not None and work.adapters.method in ("ia3", *OTHERS)
    if work.names or work.quantised is not None or work.virtual_tokens or other:
        raise NotModelled(f"{architecture.model_class}: of encoders full training, LoRA and DoRA have closed forms")
    if work.eager:
        raise NotModelled(f"{architecture.model_class}: activations are modelled for fused attention")
    if work.autocast and not work.over_masters:
        raise NotModelled(
            f"training.precision: mixed precision of {architecture.model_class} over 16-bit weights has no closed form yet: "
            "choose weights fp32, or precision bf16"
        )
    if work.autocast and architecture.embeddings[0].shape[1] != architecture.hidden_size:
        raise NotModelled(f"training.precision: {architecture.model_class}: mixed precision of narrow embeddings is not derived")
    if work.flash and block is t5_block:
        raise NotModelled(f"training.attention: {architecture.model_class} has no FlashAttention: choose sdpa")
    return block


def encoder_training_phases(
    architecture: Architecture, weights: Level, optimizer: Level, work: TrainingStep, transient: Moment = ()
) -> list[Step]:
    """Load, forward, backward and optimizer of the steady step. Raises :class:`NotModelled` for what is not derived."""
    block = require_trained_encoder(architecture, work)
    course = Course()
    course.level = weights.fork()
    course.begin_phase()
    steps = [Step("load", course.peak)]
    for component, name, size, count in optimizer.items():
        course.level.change(component, name, size, count)
    run = Run(
        work.batch, work.sequence, architecture.hidden_size, work.dtype_bytes, cuda=work.cuda,
        accumulating=work.accumulation > 1, code=implementation_of(architecture) or LLAMA,
        trainable=work.adapters is None, adapters=work.adapters, autocast=work.autocast,
        parameter_bytes=work.dtype_bytes if work.over_masters else 0,
    )  # fmt: skip
    for tensor in work.trained if run.accumulating else ():
        factors = {f"dim{index}": extent for index, extent in enumerate(tensor.shape)}
        course.hold("gradients", f"grad {tensor.name}", Size(**factors, bytes=tensor.dtype_bytes), tensor.times)
    course.hold("workspace", "input ids", Size(batch=run.batch, sequence=run.sequence, int64_bytes=INDEX_BYTES))
    course.begin_phase()
    step = _Step(course, architecture, run, block, checkpointing=bool(work.checkpointing))
    step.forward()
    steps.append(Step("forward", course.peak))
    course.begin_phase()
    step.backward()
    steps.append(Step("backward", course.peak))
    step.end()
    course.begin_phase()
    for name, size in transient:
        course.hold("workspace", name, size, where="step of the optimizer")
    return [*steps, Step("optimizer", course.peak)]


class _Step:
    """One micro-batch on a course: forward stack by stack, and backwards over what that left."""

    def __init__(self, course: Course, architecture: Architecture, run: Run, block: Block, *, checkpointing: bool) -> None:
        self._course, self._architecture, self._run = course, architecture, run
        self._checkpointing = checkpointing
        stacks = [*(tower for tower in architecture.towers if tower.kind == "encoder"), architecture.decoder]
        self._stages = [_stage(stack, run, block, across=stack is not stacks[0], recomputed=checkpointing) for stack in stacks]
        self._parts: list[Part] = []
        self._laid: list[list[LaidLayer]] = []

    def forward(self) -> None:
        """Embeddings, layers and final norm of each stack; head and loss."""
        for index, stage in enumerate(self._stages):
            self._lay(embed(self._architecture, stage, self._run), "embeddings")
            self._hold_shared(stage)
            self._laid.append([layer_forward(stage, *kind) for kind in _kinds(stage)])
            self._hold_input(stage, self._laid[-1])
            self._course.run_stack([(laid.span, laid.places) for laid in self._laid[-1]], "forward of the layers")
            self._lay(encode(self._architecture, stage, self._run), "final norm")
            _drop(self._course, "embedded")
            self._release(stage, self._returned(stage))
            if index < len(self._stages) - 1:
                _become(self._course, "hidden", "activations", ENCODED)
        head = lay_classifier if classifies(self._architecture) else lay_head
        self._lay(head(self._architecture, self._run), "loss")
        forget_cached(self._course)
        if not self._checkpointing and (self._run.autocast or not self._run.trainable):
            _drop(self._course, ENCODED)

    def backward(self) -> None:
        """The same in the other direction."""
        self._undo({"loss": ""}, "hidden")
        for index in reversed(range(len(self._stages))):
            stage = self._stages[index]
            self._undo({"hidden": "d"}, "x")
            self._course.run_stack(list(self._blocks(stage, self._laid[index])), "backward of the layers", backwards=True)
            gone = (*self._returned(stage), *((POSITIONS, CROSS_POSITIONS) if stage.recomputed else ()))
            self._release(stage, [name for name in stage.shared if name not in gone])
            _drop(self._course, f"d {POSITIONS}")
            self._undo({"x": "d"}, "embedded")
            self._table_gradients(stage, last=index == 0)
            if index:
                _drop(self._course, ENCODED)
                _become(self._course, f"d {ENCODED}", "workspace", "d")

    def end(self) -> None:
        """The graph goes, and with it zeros across that are a leaf, and their gradient."""
        for stage in self._stages:
            if CROSS_POSITIONS in stage.leaves:
                self._release(stage, (CROSS_POSITIONS,))
        _drop(self._course, f"d {CROSS_POSITIONS}")

    def _lay(self, part: Part, where: str) -> None:
        self._course.run(part.span, 1, where)
        self._parts.append(part)

    def _undo(self, gradients: Mapping[str, str], leaf: str) -> None:
        self._course.run(undo(self._run, self._parts.pop(), gradients, leaf), 1, "backward outside the layers")

    def _hold_input(self, stage: Stage, laid: Sequence[LaidLayer]) -> None:
        """An encoder's caller holds what the first layer reads until the last has run, whether autograd keeps it or not."""
        first = next(each for each in laid if 0 in each.places)
        kept = stage.recomputed or "layer input" in first.span.live
        if self._architecture.kind == "encoder" and stage.block is not modernbert_block and not kept:
            self._course.level.change("workspace", "embedded", self._run.hidden(), 1)

    def _hold_shared(self, stage: Stage) -> None:
        """What the layers share; learnt positions are looked up by buckets, which autograd keeps."""
        if MASK in stage.shared:
            self._course.run(window_mask(stage.run), 1, "window mask")
            _drop(self._course, "mask")
        if POSITIONS in stage.shared:
            self._course.run(relative_positions(stage.run, stage.stack.layers[0]), 1, "relative positions")
            self._release(stage, (POSITIONS,))
            if not self._checkpointing and stage.run.trainable:
                self._course.level.change("activations", "buckets", buckets(stage.run), 1)
        for name, size in stage.shared.items():
            if name != ENCODED:
                self._course.hold("workspace", name, size)

    def _returned(self, stage: Stage) -> tuple[str, ...]:
        """What goes when a stack returns, unless checkpoints hold it as an input; rows that are padded are saved as copies."""
        if self._checkpointing:
            return ()
        padded = stage.run.sequence % ALIGNED_KEYS != 0
        return (*RETURNED, CROSS_POSITIONS) if padded else RETURNED

    def _release(self, stage: Stage, names: Collection[str]) -> None:
        """The stack's own hold on what its layers share goes."""
        for name in names:
            if name in stage.shared and name != ENCODED:
                self._course.level.change("workspace", name, stage.shared[name], -1)

    def _blocks(self, stage: Stage, laid: Sequence[LaidLayer]) -> list[tuple[Span, Sequence[int]]]:
        """The last layer makes the gradients of what all share, the others add theirs."""
        back = layer_recomputed if self._checkpointing else layer_back
        last, found = len(stage.stack.layers) - 1, list[tuple[Span, Sequence[int]]]()
        for kind in laid:
            others = [place for place in kind.places if place != last]
            if others:
                found.append((back(stage, kind, first=False), others))
            if last in kind.places:
                found.append((back(stage, kind, first=True), (last,)))
        return found

    def _table_gradients(self, stage: Stage, *, last: bool) -> None:
        """Dense gradients of the tables; the shared one's is added to what the head and the other stack left."""
        if not stage.run.trainable:
            _drop(self._course, "d", LEAF)
            return
        if POSITIONS in stage.shared and not self._checkpointing:
            self._course.level.change("activations", "buckets", buckets(stage.run), -1)
        words, *others = self._architecture.embeddings
        own = [weight for weight in stage.stack.weights if weight.role == "embedding" and not weight.fixed]
        pending = next((size for _, name, size, count in self._course.level.items() if name == PENDING and count), None)
        d = Held(embedded_size(self._architecture, self._run), "workspace")
        tape = Tape(start={"d": d} | ({PENDING: Held(pending, "gradients")} if pending else {}))
        for weight in (*others, *own):
            gradient(tape, self._run, weight)
        size = Size(rows=words.shape[0], columns=words.shape[1], bytes=self._run.dtype_bytes)
        tape.hold("grad of the words", size, "gradients")
        tape.consume("d")
        if pending is not None:
            tape.hold("sum", size, "gradients")
            tape.consume("grad of the words", PENDING)
            tape.rename("sum", "grad of the words")
        tape.rename("grad of the words", f"grad {words.name}" if last else PENDING)
        if last and self._run.accumulating:
            tape.consume(f"grad {words.name}")
        for weight in _position_tables(stage.stack):
            gradient(tape, self._run, weight)
        self._course.run(tape.span(), 1, "backward of the embeddings")


def _stage(stack: Stack, run: Run, block: Block, *, across: bool, recomputed: bool) -> Stage:
    """A stack at work: what its layers share, and which of that needs a gradient.

    Checkpointed, T5 makes the zeros across require one (``T5Attention.forward``); else its decoder fills a cache.
    """
    attention = stack.layers[0].sequence[0]
    assert isinstance(attention, Attention)  # noqa: S101  encoders have nothing else
    shared: dict[str, Size] = {ENCODED: run.hidden()} if across else {}
    leaves = dict(shared)
    cached = False
    if block is t5_block:
        shared[POSITIONS] = position_bias(run, attention)
        leaves |= {POSITIONS: shared[POSITIONS]} if run.trainable else {}
        cached = across and not recomputed
        if across:
            shared[CROSS_POSITIONS] = narrowed(position_bias(run, attention)) if run.autocast else position_bias(run, attention)
            leaves |= {CROSS_POSITIONS: shared[CROSS_POSITIONS]} if recomputed else {}
    if block is modernbert_block:
        shared[MASK] = Size(queries=run.sequence, keys=run.sequence, bool_bytes=1)
    if tables := rotary_tables(run, stack.layers):
        shared[TABLES] = tables
    return Stage(stack, replace(run, cached=cached), block, shared, leaves, recomputed)


def _kinds(stage: Stage) -> list[tuple[Layer, tuple[int, ...], bool]]:
    """A stack's layers, alike ones together; the first apart where its input needs no gradient, as the embeddings are frozen."""
    found = layer_indices(stage.stack)
    if stage.run.trainable or stage.recomputed:
        return [(layer, places, False) for layer, places in found]
    first = [(stage.stack.layers[0], (0,), True)]
    rest = [(layer, tuple(place for place in places if place), False) for layer, places in found]
    return first + [kind for kind in rest if kind[1]]


def _position_tables(stack: Stack) -> list[Weight]:
    """Tables of relative positions, in the layers that look them up."""
    return [weight for weight in layer_weights(stack.layers[0]) if "relative_attention_bias" in weight.name]


def _drop(course: Course, *names: str) -> None:
    for component, name, size, count in list(course.level.items()):
        if name in names:
            course.level.change(component, name, size, -count)


def _become(course: Course, name: str, component: str, new: str) -> None:
    """A tensor goes on as another component under another name."""
    for old, held, size, count in list(course.level.items()):
        if held == name:
            course.level.change(old, held, size, -count)
            course.level.change(component, new, size, count)
