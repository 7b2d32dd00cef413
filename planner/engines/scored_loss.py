"""Log-probabilities of completions as TRL's trainers compute them, forward and backward, without all logits.

TRL 1.16 ``trainer/utils.py`` (``add_fused_lm_head``) and ``kernels/chunked_logprob.py``: hidden states of the scored positions are
copied, one buffer holds a tile of logits after another, and the backward sums the gradients of states and head in fp32.
"""

from __future__ import annotations

from planner.architecture.counts import head_matrix
from planner.architecture.layers import Architecture
from planner.components.run import Run, factors_of
from planner.components.tape import Course, Held, Size, Tape
from planner.engines.around import Around
from planner.engines.trained_layers import Reached
from planner.engines.transformers import drop
from planner.engines.trl import TILE_COLUMNS, TILE_STATISTICS, TILE_TOKENS
from planner.symbolic.amount import largest, smallest

FP32_BYTES, INDEX_BYTES = 4, 8
TIED = "grad of the tied head"
STATES, LABELS, MASK, KEPT = "scored states", "scored labels", "scored positions", "log-sum and entropy"
ROWS, BUFFER = "d scored states", "tile of logits"
SCORES = "log-probabilities"


def scored_tokens(run: Run, prompt_tokens: int) -> int:
    """Positions of all rows whose next token belongs to a completion."""
    return run.batch * largest(1, run.sequence - prompt_tokens)  # type: ignore[no-any-return]


def tile(run: Run, tokens: int) -> Size:
    """The buffer of one tile of logits."""
    return Size(tile_tokens=smallest(tokens, TILE_TOKENS), tile_columns=TILE_COLUMNS, bytes=run.dtype_bytes)


def scored_forward(course: Course, run: Run, prompt_tokens: int, *, saving: bool, extras: int) -> None:
    """From the final norm's output to log-probabilities. ``extras``: fp32 numbers of each token beside, for metrics."""
    tokens = scored_tokens(run, prompt_tokens)
    number = Size(tokens=tokens, fp32_bytes=FP32_BYTES)
    places = Size(tokens=tokens, dimensions=2, int64_bytes=INDEX_BYTES)
    tape = Tape(saving=saving)
    tape.hold(MASK, _by_position(run, 1), saved=True)
    tape.hold("places", places)
    tape.hold(STATES, _states(run, tokens), saved=True)
    tape.free("places")
    tape.hold(LABELS, Size(tokens=tokens, int64_bytes=INDEX_BYTES), saved=True)
    for index in range(TILE_STATISTICS):
        tape.hold(f"statistics {index}", number)
    tape.hold(BUFFER, tile(run, tokens), "logits")
    tape.hold(KEPT, Size(tokens=tokens, numbers=2 if extras else 1, fp32_bytes=FP32_BYTES), saved=True)
    for index in range(1 + extras):
        tape.hold(f"result {index}", number)
    tape.free(BUFFER, *(f"statistics {index}" for index in range(TILE_STATISTICS)))
    tape.hold(SCORES, _by_position(run, FP32_BYTES))
    for index in range(extras):
        tape.hold(f"metric {index}", _by_position(run, FP32_BYTES))
    tape.free(*(f"result {index}" for index in range(1 + extras)))
    course.run(tape.span(), 1, "log-probabilities")
    drop(course, "final norm")


def scored_backward(
    course: Course, architecture: Architecture, run: Run, reached: Reached, around: Around, prompt_tokens: int
) -> None:
    """From the loss to the gradient of the final norm's output, ``d``, with the head's gradient.

    CUDA multiplies 16-bit operands into an fp32 sum; elsewhere they are cast first.
    """
    around.at("head backward", course)
    tokens = scored_tokens(run, prompt_tokens)
    head = head_matrix(architecture)
    tape = Tape(start=_kept(run, tokens))
    wide = Size(tokens=tokens, hidden_size=run.hidden_size, fp32_bytes=FP32_BYTES)
    if reached.before_head:
        tape.hold("d scored states fp32", wide)
    if reached.head:
        tape.hold("d head fp32", Size(**factors_of(head), fp32_bytes=FP32_BYTES))
    tape.hold(BUFFER, tile(run, tokens), "logits")
    if not run.cuda and run.dtype_bytes != FP32_BYTES:
        columns = smallest(TILE_COLUMNS, architecture.vocab_size)
        tape.hold("tile in fp32", Size(tile_tokens=smallest(tokens, TILE_TOKENS), columns=columns, fp32_bytes=FP32_BYTES))
        tape.hold("head in fp32", Size(columns=columns, hidden_size=run.hidden_size, fp32_bytes=FP32_BYTES))
        tape.free("tile in fp32", "head in fp32")
    _narrow(tape, run, "d scored states fp32", ROWS, _states(run, tokens), "workspace", made=reached.before_head)
    name = TIED if architecture.tied_head else f"grad {head.name}"
    _narrow(tape, run, "d head fp32", name, Size(**factors_of(head), bytes=run.gradient_bytes), "gradients", made=reached.head)
    tape.consume("d scored states fp32", "d head fp32", BUFFER, STATES, LABELS, KEPT)
    if run.accumulating and not architecture.tied_head:
        tape.consume(name)
    if reached.before_head:
        tape.hold("d predicted states", _predicted(run))
        tape.consume(ROWS, MASK)
        tape.hold("d", run.hidden())
        tape.consume("d predicted states")
    tape.consume(MASK)
    course.run(tape.span(), 1, "backward of the log-probabilities")
    drop(course, SCORES, *(f"metric {index}" for index in range(2)))


def _narrow(tape: Tape, run: Run, wide: str, name: str, size: Size, component: str, *, made: bool) -> None:
    """The fp32 sum in the dtype of what it is the gradient of; in fp32 it is that already."""
    if not made:
        return
    if run.dtype_bytes == FP32_BYTES:
        tape.rename(wide, name)
        tape.relabel(name, component)
    else:
        tape.hold(name, size, component)


def _kept(run: Run, tokens: int) -> dict[str, Held]:
    """What the forward left for the backward."""
    sizes = {
        MASK: _by_position(run, 1),
        STATES: _states(run, tokens),
        LABELS: Size(tokens=tokens, int64_bytes=INDEX_BYTES),
        KEPT: Size(tokens=tokens, numbers=2, fp32_bytes=FP32_BYTES),
    }
    return {name: Held(size, "activations", saved=True) for name, size in sizes.items()}


def _by_position(run: Run, width: int) -> Size:
    """One value for each position that has a next token."""
    return Size(batch=run.batch, positions=largest(1, run.sequence - 1), bytes=width)


def _states(run: Run, tokens: int) -> Size:
    return Size(tokens=tokens, hidden_size=run.hidden_size, bytes=run.dtype_bytes)


def _predicted(run: Run) -> Size:
    return Size(batch=run.batch, positions=largest(1, run.sequence - 1), hidden_size=run.hidden_size, bytes=run.dtype_bytes)
