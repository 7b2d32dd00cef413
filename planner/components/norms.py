"""Normalisations, forward and backward, as transformers 5.23 writes them."""

from __future__ import annotations

from planner.architecture.layers import Norm
from planner.components.run import FP32_BYTES, Run, gradient, like, row_of
from planner.components.tape import Tape


def norm_forward(tape: Tape, run: Run, norm: Norm, name: str, source: str, rows: int = 1, *, result_saved: bool = True) -> None:
    """RMSNorm of ``source``: fp32 copy, square, mean, product, cast back, weight (``LlamaRMSNorm.forward``).

    In training autograd keeps the fp32 copy, the mean's root and the cast; the result is kept by the linears that read
    it. In an fp32 model the copy and the cast are the tensors themselves, and the source is what is kept.
    """
    wide, row, narrow = run.upcast(norm.width, rows), row_of(run, rows), like(run, norm.width, rows)
    upcast = run.dtype_bytes != FP32_BYTES
    if upcast:
        tape.hold(f"{name} fp32", wide, saved=True)
    tape.hold(f"{name} square", wide)
    tape.hold(f"{name} variance", row)
    tape.free(f"{name} square")
    tape.hold(f"{name} root", row, saved=True)
    tape.hold(f"{name} scaled", wide, saved=not upcast)
    tape.free(f"{name} fp32", f"{name} root")
    if upcast:
        tape.hold(f"{name} cast", narrow, saved=True)
    else:
        tape.keep(source)
    tape.hold(name, narrow, saved=result_saved)
    tape.free(f"{name} cast", f"{name} scaled", f"{name} variance")


def norm_backward(tape: Tape, run: Run, norm: Norm, name: str, grad: str, source: str, rows: int = 1) -> None:
    """From the gradient of the result (``grad``, dropped) to ``{name} dx``, the gradient of the norm's input."""
    wide, narrow = run.upcast(norm.width, rows), like(run, norm.width, rows)
    upcast = run.dtype_bytes != FP32_BYTES
    tape.hold(f"{name} d_cast", narrow)
    if run.trainable:
        tape.hold(f"{name} d_weight rows", narrow)
        for weight in norm.weights:
            gradient(tape, run, weight)
    tape.consume(f"{name} cast", f"{name} d_weight rows", grad)
    if upcast:
        tape.hold(f"{name} d_scaled", wide)
        tape.consume(f"{name} d_cast", f"{name} scaled")
    else:
        tape.consume(f"{name} scaled")
        tape.rename(f"{name} d_cast", f"{name} d_scaled")
    tape.hold(f"{name} d_root rows", wide)
    tape.hold(f"{name} d_fp32", wide)
    tape.consume(f"{name} d_root rows", f"{name} d_scaled", f"{name} root")
    for moment in ("d_square", "power", "twice", "d_square fp32"):
        tape.hold(f"{name} {moment}", wide)
    tape.consume(f"{name} twice", f"{name} power", f"{name} d_square", f"{name} fp32")
    if not upcast:
        tape.consume(f"kept {source}")
    tape.hold(f"{name} d_sum", wide)
    tape.consume(f"{name} d_fp32", f"{name} d_square fp32")
    if upcast:
        tape.hold(f"{name} dx", narrow)
        tape.consume(f"{name} d_sum")
    else:
        tape.rename(f"{name} d_sum", f"{name} dx")
