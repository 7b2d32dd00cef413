"""Rotary position embeddings: the shared cosines and sines, and the rotation of queries and keys."""

from __future__ import annotations

from planner.components.run import Run
from planner.components.tape import Size, Tape


def rotary_embedding(run: Run, rotary_dim: int) -> tuple[Size, Size]:
    """Cosines and sines shared by all layers: (kept, what is held for a moment while they are made)."""
    kept = Size(two=2, sequence=run.sequence, rotary_dim=rotary_dim, bytes=run.dtype_bytes)
    moment = Size(sequence=run.sequence, rotary_dim=rotary_dim, fp32_bytes=14)
    return kept, moment


def rotate_forward(tape: Tape, name: str, size: Size, *, saved: bool = True) -> None:
    """x · cos + rotate_half(x) · sin (``apply_rotary_pos_emb``): only cosines and sines are saved, they are shared."""
    half = _half(size)
    tape.hold(f"{name} cos", size)
    tape.hold(f"{name} half", half)
    tape.hold(f"{name} turned", size)
    tape.free(f"{name} half")
    tape.hold(f"{name} sin", size)
    tape.free(f"{name} turned")
    tape.hold(f"{name} rotated", size, saved=saved)
    tape.free(f"{name} cos", f"{name} sin")


def rotate_backward(tape: Tape, name: str, size: Size) -> None:
    """From ``d {name} rotated`` to ``d {name}``."""
    half = _half(size)
    tape.hold(f"d {name} sin", size)
    tape.hold(f"d {name} half", half)
    tape.hold(f"d {name} low", size)
    tape.consume(f"d {name} half")
    tape.hold(f"d {name} high", size)
    tape.consume(f"d {name} sin")
    tape.hold(f"d {name} turned", size)
    tape.consume(f"d {name} low", f"d {name} high")
    tape.hold(f"d {name} cos", size)
    tape.consume(f"d {name} rotated")
    tape.hold(f"d {name}", size)
    tape.consume(f"d {name} turned", f"d {name} cos")


def _half(size: Size) -> Size:
    """One of the two halves of every head that ``rotate_half`` moves."""
    factors = {name: value for name, value in size.values.items() if isinstance(value, int)}
    return Size(**factors | {"head_dim": max(factors["head_dim"] // 2, 1)})
