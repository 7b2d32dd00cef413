"""Dense feed-forward blocks, forward and backward, as transformers 5.23 writes them."""

from __future__ import annotations

from planner.architecture.layers import DenseMLP, Weight
from planner.components.run import Run, linear_gradients, module_of
from planner.components.tape import Tape


def mlp_forward(tape: Tape, run: Run, mixer: DenseMLP, source: str, target: str, *, whole: bool = True) -> None:  # noqa: ARG001
    """down(act(gate) · up), or down(act(up)): reads ``source``, leaves ``target`` (``LlamaMLP.forward``).

    Without ``whole`` it ends at the input of the down projection.
    """
    wide = run.mlp(mixer.intermediate_size)
    tape.hold("gate", wide, saved=True)
    tape.hold("activated", wide, saved=True)
    tape.free("gate")
    if mixer.gated:
        tape.hold("up", wide, saved=True)
        tape.hold("product", wide, saved=True)
        tape.free("activated", "up")
    if whole:
        tape.hold(target, run.hidden())
    tape.free("product", "activated")


def mlp_backward(tape: Tape, run: Run, mixer: DenseMLP, source: str, target: str) -> None:  # noqa: ARG001  every mixer's
    """From the gradient of the output to ``{source} d``; the output's own gradient stays, the residual needs it."""
    wide, narrow = run.mlp(mixer.intermediate_size), run.hidden()
    project = {module_of(weight): weight for weight in mixer.weights if weight.role != "bias"}
    down, first, second = _mlp_projections(project, gated=mixer.gated)
    linear_gradients(tape, run, down)
    tape.hold("d product", wide)
    tape.consume("product")
    if mixer.gated:
        tape.hold("d up", wide)
        tape.hold("d activated", wide)
        tape.consume("d product", "up", "activated")
        linear_gradients(tape, run, second)
        tape.hold(f"{source} d1", narrow)
        tape.consume("d up")
        tape.hold("d gate", wide)
        tape.consume("d activated", "gate")
        linear_gradients(tape, run, first)
        tape.hold(f"{source} d2", narrow)
        tape.consume("d gate", source)
        tape.hold(f"{source} d", narrow)
        tape.consume(f"{source} d1", f"{source} d2")
    else:
        tape.consume("activated")
        tape.hold("d gate", wide)
        tape.consume("d product", "gate")
        linear_gradients(tape, run, first)
        tape.hold(f"{source} d", narrow)
        tape.consume("d gate", source)


def _mlp_projections(project: dict[str, Weight], *, gated: bool) -> tuple[tuple[Weight, ...], ...]:
    """(down, gate, up) weights; an ungated block has its first linear as gate."""
    named = list(project.values())
    if gated and {"down_proj", "gate_proj", "up_proj"} <= project.keys():
        return (project["down_proj"],), (project["gate_proj"],), (project["up_proj"],)
    return tuple(named[-1:]), tuple(named[:-1]), ()
