"""PPO's loss from all logits of the policy, and the value model's head, forward and backward.

TRL 1.11 ``experimental/ppo/ppo_trainer.py`` (``train``) and ``trainer/utils.py`` (``selective_log_softmax``): logits of the
completion are a view of all, divided in place by the temperature; log-probabilities are made and kept row by row. Their gradient
goes back into zeros of all logits, and as the view was written into, through a copy of them (torch
``autograd/functions/tensor.cpp``, ``CopySlices``).
"""

from __future__ import annotations

from planner.architecture.layers import Architecture
from planner.components.run import Run, gradient
from planner.components.tape import Course, Held, Size, Tape
from planner.engines.around import Around
from planner.engines.trained_layers import Reached
from planner.symbolic.amount import largest

HANDED_OUT = "hidden states handed out"
OF_VALUES = f"{HANDED_OUT} by the value model"
LOGITS = "logits of all tokens"
PROBABILITIES = "probabilities of drawn tokens, of the micro-batch before"
LOG_PROBABILITIES = "log-probabilities of every token, by row"
TIED = "grad of the tied head"


def _logits(architecture: Architecture, run: Run) -> Size:
    return Size(batch=run.batch, sequence=run.sequence, vocab_size=architecture.vocab_size, bytes=run.dtype_bytes)


def _row(architecture: Architecture, run: Run, prompt_tokens: int) -> Size:
    completion = largest(1, run.sequence - prompt_tokens)
    return Size(completion=completion, vocab_size=architecture.vocab_size, bytes=run.dtype_bytes)


def _drawn(architecture: Architecture, run: Run, prompt_tokens: int) -> Size:
    completion = largest(1, run.sequence - prompt_tokens)
    return Size(batch=run.batch, completion=completion, vocab_size=architecture.vocab_size, bytes=run.dtype_bytes)


def drop_all(course: Course, *names: str) -> None:
    """Every tensor of a name goes, whatever it counts as."""
    for component, name, size, count in list(course.level.items()):
        if name in names:
            course.level.change(component, name, size, -count)


def values_forward(course: Course, architecture: Architecture, run: Run, *, hands_out: bool) -> None:
    """One number a token; what the value model handed out is held until the policy is through."""
    drop_all(course, HANDED_OUT)
    course.hold("workspace", OF_VALUES, run.stream(), hands_out * len(architecture.decoder.layers))


def values_backward(course: Course, architecture: Architecture, run: Run, around: Around) -> None:
    """The head's gradient, and that of the final norm's output."""
    around.at("head backward", course)
    tape = Tape()
    for weight in architecture.head:
        gradient(tape, run, weight)
    tape.hold("d", run.hidden())
    course.run(tape.span(), 1, "backward of the value head")


def drawn_forward(
    course: Course, architecture: Architecture, run: Run, reached: Reached, prompt_tokens: int, *, hands_out: bool
) -> None:
    """All logits, then log-probabilities of every token that could have been drawn.

    The final norm's output is handed out too, where it is not kept for the head's gradient anyway.
    """
    drop_all(course, HANDED_OUT)
    inputs = hands_out * len(architecture.decoder.layers)
    course.hold("activations", HANDED_OUT, run.stream(), inputs + (not reached.head))
    course.hold("logits", LOGITS, _logits(architecture, run), where="head")
    drop_all(course, OF_VALUES, f"{LOGITS}, earlier", f"{HANDED_OUT}, earlier", "k cached, earlier", "v cached, earlier")
    course.hold("logits", LOG_PROBABILITIES, _row(architecture, run, prompt_tokens), run.batch, where="log-probabilities")


def drawn_backward(
    course: Course, architecture: Architecture, run: Run, reached: Reached, around: Around, prompt_tokens: int
) -> None:
    """From the loss to the gradient of the final norm's output, ``d``, with the head's."""
    row, drawn = _row(architecture, run, prompt_tokens), _drawn(architecture, run, prompt_tokens)
    logits = _logits(architecture, run)
    course.hold("logits", "d log-probabilities of a row", row, 2, where="backward of the log-probabilities")
    course.hold("logits", "d log-probabilities of a row", row, -2)
    drop_all(course, LOG_PROBABILITIES)
    course.hold("logits", "d logits by row", row, run.batch)
    tape = Tape()
    tape.hold("d drawn logits", drawn, "logits")
    course.run(tape.span(), 1, "backward of the log-probabilities")
    drop_all(course, "d logits by row")
    tape = Tape(start={"d drawn logits": Held(drawn, "logits")})
    tape.hold("d logits", logits, "logits")
    tape.consume("d drawn logits")
    tape.hold("d logits copied", logits, "logits")
    tape.hold("d drawn logits copied", drawn, "logits")
    tape.hold("d divided", drawn, "logits")
    tape.consume("d logits", "d drawn logits copied", "d divided")
    course.run(tape.span(), 1, "backward of the temperature")
    around.at("head backward", course)
    tape = Tape(start={"d logits copied": Held(logits, "logits")})
    if architecture.tied_head and reached.head:
        weight = architecture.embeddings[0]
        tape.hold(TIED, Size(rows=weight.shape[0], columns=weight.shape[-1], bytes=run.gradient_bytes), "gradients")
    for weight in architecture.head if reached.head else ():
        gradient(tape, run, weight)
    if reached.before_head:
        tape.hold("d", run.hidden())
    tape.consume("d logits copied")
    course.run(tape.span(), 1, "backward of the head")
