"""Head and loss of a training step, forward and backward: the model's own loss, in chunks of tokens, or fused with the head.

``default``: transformers 5.23 ``loss_utils.py``, all logits at once. ``chunked``: checkpointed chunks, whose logits are made again
in the backward (as torchtune's and TRL's). ``fused``: Liger-Kernel 0.5 ``fused_linear_cross_entropy.py``, which makes the
gradients in the forward, a chunk at a time.
"""

from __future__ import annotations

from planner.architecture.counts import head_matrix
from planner.architecture.layers import Architecture, Weight
from planner.components.run import Run, factors_of, gradient
from planner.components.tape import Course, Held, Size, Span, Tape
from planner.engines.around import Around
from planner.engines.drawn_loss import drawn_backward, drawn_forward, values_backward, values_forward
from planner.engines.releases import LossCopies
from planner.engines.scored_loss import scored_backward, scored_forward, scored_tokens, tile
from planner.engines.trained_layers import Reached
from planner.engines.transformers import drop
from planner.record import record
from planner.symbolic.amount import smallest

FP32_BYTES = 4
TIED = "grad of the tied head"
HEAD_INPUT, HEAD_WEIGHT = "head input in 16 bit", "head weight in 16 bit"
INDEX_BYTES = 8
"""Token ids and positions are int64."""
ROWS, CHUNK_ROWS = "d predicted states", "d states of a chunk"
LOG_SUMS = "logarithms of sums"
KERNEL_COLUMNS = 65536
"""Columns of logits that one block of the in-place kernel reads (Unsloth's ``MAX_FUSED_SIZE``)."""
CHUNK_TOKENS = 1024
"""Tokens of one chunk of the chunked loss where the scenario does not say."""


@record
class Loss:
    """Which loss, the tokens of a chunk of the chunked one, and what the release copies for the default one."""

    kind: str = "default"
    chunk_tokens: int = CHUNK_TOKENS
    copies: LossCopies = "labels"
    prompt_tokens: int = 0
    """Of loss ``scores``: tokens of a row that are not scored."""
    extras: int = 0
    """Of loss ``scores``: fp32 numbers of each token that metrics take beside the log-probabilities."""
    hands_out: bool = False
    """Of losses ``drawn`` and ``values``: the inputs of all layers are handed out, and nothing else keeps them."""
    in_place: bool = False
    """The default loss by one kernel, which keeps the logits it reads and writes their gradient over them."""

    @property
    def upcasts(self) -> bool:
        """Whether the loss is computed in fp32."""
        return self.copies != "narrow_logits"

    def keeps_norm(self, run: Run, reached: Reached) -> bool:
        """Whether the final norm's output is kept for the backward: by the head, or by chunks that are views of it."""
        if self.kind in ("default", "drawn", "values"):
            return reached.head
        return self.kind == "chunked" and bool(run.batch == 1)


def loss_forward(course: Course, architecture: Architecture, run: Run, reached: Reached, loss: Loss) -> None:
    """From the final norm's output to the loss."""
    if loss.kind == "default":
        _default_forward(course, architecture, run, loss)
        drop(course, "final norm")
        return
    if loss.kind == "values":
        values_forward(course, architecture, run, hands_out=loss.hands_out)
        drop(course, "final norm")
        return
    if loss.kind == "drawn":
        drop(course, "final norm")
        drawn_forward(course, architecture, run, reached, loss.prompt_tokens, hands_out=loss.hands_out)
        return
    if loss.kind == "scores":
        scored_forward(course, run, loss.prompt_tokens, saving=True, extras=loss.extras)
        return
    _predicted_forward(course, run, saving=loss.kind == "chunked")
    if loss.kind == "chunked":
        tokens = smallest(loss.chunk_tokens, _predicted(run))
        tape = Tape()
        _chunk_logits(tape, architecture, run, tokens)
        tape.free("logits fp32", "log probabilities")
        course.run(tape.span(), 1, "loss of a chunk")
        return
    _fused_forward(course, architecture, run, reached)
    drop(course, "predicted states", "final norm")


def loss_backward(course: Course, architecture: Architecture, run: Run, reached: Reached, around: Around, loss: Loss) -> None:
    """From the loss to the gradient of the final norm's output, ``d``, with the head's gradients."""
    if loss.kind == "default":
        _default_backward(course, architecture, run, reached, around, loss)
    elif loss.kind == "scores":
        scored_backward(course, architecture, run, reached, around, loss.prompt_tokens)
    elif loss.kind == "values":
        values_backward(course, architecture, run, around)
    elif loss.kind == "drawn":
        drawn_backward(course, architecture, run, reached, around, loss.prompt_tokens)
    elif loss.kind == "chunked":
        around.at("head backward", course)
        _chunked_backward(course, architecture, run, reached, loss)
    else:
        around.at("head backward", course)
        _fused_backward(course, architecture, run, reached)


def highest_logits(architecture: Architecture, run: Run, loss: Loss) -> tuple[int, int]:
    """Bytes of all logits at the highest moment of the forward, and of the largest of these tensors."""
    if loss.kind == "scores":
        size = tile(run, scored_tokens(run, loss.prompt_tokens)).bytes
        return size, size
    if loss.kind == "fused":
        size = _logits(architecture, _fused_chunk(architecture, run), run.dtype_bytes).bytes
        return 2 * size, size
    tokens = run.batch * run.sequence if loss.kind == "default" else smallest(loss.chunk_tokens, _predicted(run))
    wide = _logits(architecture, tokens, FP32_BYTES).bytes
    narrow = _logits(architecture, tokens, run.dtype_bytes).bytes if run.dtype_bytes != FP32_BYTES else 0
    kept = narrow if loss.kind == "default" and loss.copies != "widened_logits" else 0
    copied = wide if loss.kind == "default" and loss.copies != "labels" else 0
    if loss.kind == "default" and not loss.upcasts:
        return 3 * (narrow or wide), narrow or wide
    return 2 * wide + copied + kept + (narrow if architecture.logit_softcap and kept else 0), wide


def like_parameter(weight: Weight, run: Run) -> Size:
    """A gradient of a table or a head."""
    return Size(rows=weight.shape[0], columns=weight.shape[-1], bytes=run.gradient_bytes)


def _predicted(run: Run) -> int:
    """Tokens whose next one is known: all but the last of each sequence (of one token: that one, to divide by)."""
    return run.batch * run.sequence - run.batch if run.sequence > 1 else run.batch


def _logits(architecture: Architecture, tokens: int, width: int) -> Size:
    return Size(tokens=tokens, vocab_size=architecture.vocab_size, bytes=width)


def _logits_by_row(architecture: Architecture, run: Run, width: int) -> Size:
    """Logits of every token, shaped as the model returns them."""
    return Size(batch=run.batch, sequence=run.sequence, vocab_size=architecture.vocab_size, bytes=width)


def _states(run: Run, tokens: int) -> Size:
    return Size(tokens=tokens, hidden_size=run.hidden_size, bytes=run.dtype_bytes)


def _labels(run: Run) -> Size:
    return Size(batch=run.batch, sequence=run.sequence, int64_bytes=INDEX_BYTES)


# -- the model's own loss


def _default_forward(course: Course, architecture: Architecture, run: Run, loss: Loss) -> None:
    """``ForCausalLMLoss``: logits, their fp32 copy, log-softmax (saved). In fp32 the logits are their own copy.

    Older releases shift the logits instead of the labels: a copy of all but each sequence's last, which a family's own loss
    leaves in their dtype (and log-softmax with it, unless autocast makes it fp32).
    """
    narrow, wide = (_logits_by_row(architecture, run, width) for width in (run.dtype_bytes, FP32_BYTES))
    tape = Tape()
    tape.hold("logits", narrow, "logits")
    if architecture.logit_softcap:
        for name, gone in (("divided", "logits"), ("tanh", "divided"), ("logits", "")):
            tape.hold(name, narrow, "logits")
            tape.free(gone)
    if run.dtype_bytes != FP32_BYTES and loss.upcasts:
        tape.hold("logits fp32", wide, "logits")
        tape.free(*(("logits",) if run.code.wide_logits or loss.copies == "widened_logits" else ()))
    if loss.copies != "labels":
        wide = _shifted(architecture, run, loss)
        tape.hold("shifted logits", wide, "logits")
    if run.autocast and not loss.upcasts and not loss.in_place:
        wide = _logits(architecture, _predicted(run), FP32_BYTES)
        tape.hold("logits fp32", wide, "logits")
    tape.hold("shifted labels", _labels(run))
    if loss.in_place:
        _in_place_forward(tape, architecture, run, loss)
    else:
        tape.hold("log probabilities", wide, "logits")
    tape.free("logits fp32", "shifted logits")
    if loss.in_place and run.autocast and loss.copies != "widened_logits":
        # accelerate hands out all in fp32 (convert_outputs_to_fp32); beside log-probabilities that is never the highest moment
        tape.hold("logits handed out", _logits_by_row(architecture, run, FP32_BYTES), "logits")
    tape.free("logits", "logits handed out")
    course.run(tape.span(), 1, "loss")


def _in_place_forward(tape: Tape, architecture: Architecture, run: Run, loss: Loss) -> None:
    """A loss and a logarithm of sums for each row, the latter by blocks of the vocabulary first; the logits stay as they are."""
    rows = _predicted(run) if loss.copies != "labels" else run.batch * run.sequence
    blocks = -(-architecture.vocab_size // KERNEL_COLUMNS)
    tape.hold("losses", Size(tokens=rows, fp32_bytes=FP32_BYTES))
    if blocks > 1:
        tape.hold("log sums of blocks", Size(tokens=rows, blocks=blocks, fp32_bytes=FP32_BYTES))
    tape.hold(LOG_SUMS, Size(tokens=rows, fp32_bytes=FP32_BYTES), "activations")
    tape.free("log sums of blocks", "losses")
    tape.rename(_read_in_place(run, loss), "log probabilities")


def _read_in_place(run: Run, loss: Loss) -> str:
    """The tensor that the kernel reads: the shifted copy, or the logits in the dtype of the loss."""
    if loss.copies != "labels":
        return "shifted logits"
    return "logits fp32" if run.dtype_bytes != FP32_BYTES and loss.upcasts else "logits"


def _shifted(architecture: Architecture, run: Run, loss: Loss) -> Size:
    """Logits of all tokens whose next one is known, in fp32 where the loss is."""
    return _logits(architecture, _predicted(run), FP32_BYTES if loss.upcasts else run.dtype_bytes)


def _log_probabilities(architecture: Architecture, run: Run, loss: Loss) -> Size:
    """What the log-softmax makes; it is on autocast's fp32 list."""
    if loss.copies == "labels":
        return _logits_by_row(architecture, run, FP32_BYTES)
    widens = run.autocast and not loss.in_place
    return _logits(architecture, _predicted(run), FP32_BYTES) if widens else _shifted(architecture, run, loss)


def _shifted_backward(tape: Tape, architecture: Architecture, run: Run, loss: Loss) -> None:
    """The gradient of the copy (cast, where autocast made it fp32), then zeros of all logits into which it is copied."""
    if run.autocast and not loss.upcasts and not loss.in_place:
        tape.hold("d shifted logits cast", _shifted(architecture, run, loss), "logits")
        tape.consume("d shifted logits")
        tape.rename("d shifted logits cast", "d shifted logits")
    name, width = ("d logits fp32", FP32_BYTES) if loss.upcasts else ("d logits", run.dtype_bytes)
    tape.hold(name, _logits_by_row(architecture, run, width), "logits")
    tape.consume("d shifted logits")


def _default_backward(course: Course, architecture: Architecture, run: Run, reached: Reached, around: Around, loss: Loss) -> None:
    narrow = run.hidden()
    logits = _logits_by_row(architecture, run, run.dtype_bytes)
    last = _log_probabilities(architecture, run, loss)
    tape = Tape(start={"log probabilities": Held(last, "logits"), "shifted labels": Held(_labels(run), "workspace")})
    if architecture.logit_softcap:
        tape = Tape(start={**tape.span().live, "tanh": Held(logits, "logits")})
    first = "d shifted logits" if loss.copies != "labels" else "d logits fp32"
    if loss.in_place:
        tape.rename("log probabilities", first)
        _forget(course, LOG_SUMS)
    else:
        tape.hold("d log probabilities", last, "logits")
        tape.hold(first, last, "logits")
    tape.consume("d log probabilities", "log probabilities", "shifted labels")
    if loss.copies != "labels":
        _shifted_backward(tape, architecture, run, loss)
    if run.dtype_bytes != FP32_BYTES and loss.upcasts:
        tape.hold("d logits", logits, "logits")
        tape.consume("d logits fp32")
    if architecture.logit_softcap:
        _uncapped(tape, logits, "d logits" if run.dtype_bytes != FP32_BYTES else "d logits fp32")
    course.run(tape.span(), 1, "backward of the loss")
    around.at("head backward", course)
    tape = Tape(start=tape.span().live)
    if run.autocast and run.parameter_bytes:
        _cast_head_backward(course, tape, architecture, run, reached)
        return
    if architecture.tied_head and reached.head:
        tape.hold(TIED, like_parameter(architecture.embeddings[0], run), "gradients")
    for weight in architecture.head if reached.head else ():
        gradient(tape, run, weight)
    if reached.before_head:
        tape.hold("d", narrow)
    tape.consume("d logits", "d logits fp32", "d capped")
    course.run(tape.span(), 1, "backward of the head")


def _uncapped(tape: Tape, logits: Size, before: str) -> None:
    """Gradients of the product, the tangent and the quotient of capped logits."""
    for name in ("d tanh", "d divided", "d capped"):
        tape.hold(name, logits, "logits")
        tape.consume(before, "tanh" if name == "d divided" else "")
        before = name


def _cast_head_backward(course: Course, tape: Tape, architecture: Architecture, run: Run, reached: Reached) -> None:
    """Under autocast: gradients of the head's weight and input in 16 bit; what was saved goes; then the weight's own in fp32."""
    weight = head_matrix(architecture)
    half = "d head in 16 bit"
    if reached.head:
        tape.hold(half, Size(rows=weight.shape[0], columns=weight.shape[-1], bytes=run.dtype_bytes))
    if reached.before_head:
        tape.hold("d", run.hidden())
    tape.consume("d logits", "d logits fp32", "d capped")
    course.run(tape.span(), 1, "backward of the head")
    _forget(course, HEAD_INPUT, HEAD_WEIGHT)
    if not reached.head:
        return
    tape = Tape(start=tape.span().live)
    if architecture.tied_head:
        tape.hold(TIED, like_parameter(weight, run), "gradients")
    for own in architecture.head:
        gradient(tape, run, own)
    tape.consume(half)
    course.run(tape.span(), 1, "backward of the head")


# -- losses over the predicted tokens alone


def _predicted_forward(course: Course, run: Run, *, saving: bool) -> None:
    """All states but each sequence's last, in rows: of several sequences a copy, of one a view."""
    course.hold("workspace", "shifted labels", Size(tokens=_predicted(run), int64_bytes=INDEX_BYTES), int(run.batch > 1))
    if run.batch > 1:
        course.hold("activations" if saving else "workspace", "predicted states", _states(run, _predicted(run)))
        drop(course, "final norm")


def _chunk_logits(tape: Tape, architecture: Architecture, run: Run, tokens: int) -> None:
    """Logits of a chunk, their fp32 copy, log-softmax."""
    if run.dtype_bytes != FP32_BYTES:
        tape.hold("logits", _logits(architecture, tokens, run.dtype_bytes), "logits")
    tape.hold("logits fp32", _logits(architecture, tokens, FP32_BYTES), "logits")
    tape.free("logits")
    tape.hold("log probabilities", _logits(architecture, tokens, FP32_BYTES), "logits")


def _chunked_backward(course: Course, architecture: Architecture, run: Run, reached: Reached, loss: Loss) -> None:
    """The last chunk first, which may be shorter; each makes its logits again, and the head's gradients are summed up."""
    tokens = smallest(loss.chunk_tokens, _predicted(run))
    chunks = -(-_predicted(run) // tokens)
    rest = _predicted(run) - (chunks - 1) * tokens
    course.run(_chunk_backward(architecture, run, reached, rest, first=True), 1, "backward of a chunk's loss")
    if chunks > 1:
        course.run(_chunk_backward(architecture, run, reached, tokens, first=False), chunks - 1, "backward of a chunk's loss")
    drop(course, "shifted labels")
    _forget(course, "predicted states")
    _add_to_earlier(course, architecture, run, reached)
    if reached.before_head:
        course.hold("workspace", ROWS, _states(run, _predicted(run)), where="backward of the head")
        drop(course, CHUNK_ROWS)
        _whole_gradient(course, run)


def _chunk_backward(architecture: Architecture, run: Run, reached: Reached, tokens: int, *, first: bool) -> Span:
    """Forward of a chunk again, then its backward. A second gradient of the head is added to the first in a tensor of its own."""
    sums = _head_gradients(architecture, run, reached)
    tape = Tape(start={} if first else {name: Held(size, "gradients") for name, size in sums.items()})
    wide = _logits(architecture, tokens, FP32_BYTES)
    _chunk_logits(tape, architecture, run, tokens)
    tape.free("logits fp32")
    tape.hold("d log probabilities", wide, "logits")
    tape.hold("d logits", wide, "logits")
    tape.consume("d log probabilities", "log probabilities")
    if run.dtype_bytes != FP32_BYTES:
        tape.hold("d logits 16", _logits(architecture, tokens, run.dtype_bytes), "logits")
        tape.consume("d logits")
    for name, size in sums.items():
        tape.hold(name if first else f"{name} of the chunk", size, "gradients")
    if reached.before_head:
        tape.hold(CHUNK_ROWS, _states(run, tokens))
    tape.consume("d logits", "d logits 16")
    for name, size in sums.items() if not first else ():
        tape.hold(f"{name} sum", size, "gradients")
        tape.consume(name, f"{name} of the chunk")
        tape.rename(f"{name} sum", name)
    return tape.span()


def _head_gradients(architecture: Architecture, run: Run, reached: Reached) -> dict[str, Size]:
    """Gradients of the head's parameters by name; a tied head's waits for that of the embeddings."""
    if not reached.head:
        return {}
    if architecture.tied_head:
        return {TIED: like_parameter(architecture.embeddings[0], run)}
    return {f"grad {weight.name}": Size(**factors_of(weight), bytes=run.dtype_bytes) for weight in architecture.head}


def _add_to_earlier(course: Course, architecture: Architecture, run: Run, reached: Reached) -> None:
    """Where gradients exist already, the head's is added to them and goes."""
    if not run.accumulating or architecture.tied_head:
        return
    for name, size in _head_gradients(architecture, run, reached).items():
        course.level.change("gradients", name, size, -1)


def _whole_gradient(course: Course, run: Run) -> None:
    """The gradient of all states: zeros into which that of the predicted ones is copied (``slice_backward``)."""
    course.hold("workspace", "d", run.hidden(), where="backward of the head")
    _forget(course, ROWS)


def _forget(course: Course, *names: str) -> None:
    """Tensors go, whatever they counted as."""
    for component, name, size, count in list(course.level.items()):
        if name in names:
            course.level.change(component, name, size, -count)


# -- the loss fused with the head


def _fused_chunk(architecture: Architecture, run: Run) -> int:
    """Tokens of a chunk whose logits are about as large as the hidden states: a power of two."""
    wanted = -(-_predicted(run) // -(-architecture.vocab_size // run.hidden_size))
    tokens = 1
    while tokens < wanted:
        tokens *= 2
    return smallest(tokens, _predicted(run))  # type: ignore[no-any-return]


def _fused_forward(course: Course, architecture: Architecture, run: Run, reached: Reached) -> None:
    """Gradients of the states and the head are made here, one chunk's logits after another's."""
    tokens = _fused_chunk(architecture, run)
    course.hold("activations", ROWS, _states(run, _predicted(run)))
    sums = _head_gradients(architecture, run, reached)
    for name, size in sums.items():
        course.hold("gradients", name, size)
    course.hold("workspace", "losses", Size(tokens=_predicted(run), fp32_bytes=FP32_BYTES))
    logits = _logits(architecture, tokens, run.dtype_bytes)
    tape = Tape()
    tape.hold("logits", logits, "logits")
    tape.hold(CHUNK_ROWS, _states(run, tokens))
    tape.free(CHUNK_ROWS)
    for name, size in sums.items():
        tape.hold(f"{name} of the chunk", size)
        tape.free(f"{name} of the chunk")
    if _predicted(run) > tokens:
        tape.hold("logits of the next chunk", logits, "logits")
    tape.free("logits", "logits of the next chunk")
    course.run(tape.span(), 1, "fused loss")
    drop(course, "losses", "shifted labels")


def _fused_backward(course: Course, architecture: Architecture, run: Run, reached: Reached) -> None:
    """The gradients are there already; without a final norm that needs them the states' go unused."""
    _add_to_earlier(course, architecture, run, reached)
    if reached.before_head:
        _whole_gradient(course, run)
