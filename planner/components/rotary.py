"""Rotary position embeddings: the shared cosines and sines, and the rotation of queries and keys in each way of writing it."""

from __future__ import annotations

from collections.abc import Sequence

from planner.architecture.implementation import RotaryStyle
from planner.components.autocast import is_wide, widened
from planner.components.graph import Graph
from planner.components.operators import add, multiply
from planner.components.rules import passed_on, sliced
from planner.components.run import FP32_BYTES, Run
from planner.components.tape import Size
from planner.record import record

PAIRED = "tables in pairs"


@record
class Rotated:
    """A tensor to rotate: its name, heads, width of a head, and how much of the width is rotated."""

    name: str
    heads: int
    head_dim: int
    rotary_dim: int


def rotary_embedding(run: Run, rotary_dim: int) -> tuple[Size, Size]:
    """Cosines and sines shared by all layers: (kept, what is held for a moment while they are made)."""
    kept = Size(two=2, sequence=run.sequence, rotary_dim=rotary_dim, bytes=run.dtype_bytes)
    moment = Size(sequence=run.sequence, rotary_dim=rotary_dim, fp32_bytes=14)
    return kept, moment


def rotate(g: Graph, style: RotaryStyle, tensors: Sequence[Rotated]) -> None:
    """Rotate queries and keys: ``{name} rotated`` for each; the unrotated ones go together at the end.

    Written inline in the attention (GPT-J, Phi), they and the rotated parts stay until its end.
    """
    inline = style in ("pairs_inline", "pairs_in_fp32") or g.run.code.keeps_unrotated
    if "rope" in g.run.fused:
        _rotate_in_place(g, tensors)
        return
    if style == "pairs_in_fp32" and g.run.dtype_bytes != FP32_BYTES:
        _rotate_by_fp32(g, tensors)
    elif g.run.autocast and g.run.parameter_bytes and style not in ("pairs_inline", "chunks", "complex"):
        _rotate_promoted(g, style, tensors)
    elif style in ("wide", "pairs_wide"):
        _rotate_wide(g, style, tensors)
    elif style == "complex":
        _rotate_complex(g, tensors)
    elif style == "pairs_late":
        _rotate_late(g, tensors)
    else:
        _rotate_plainly(g, style, tensors, inline=inline)
    g.free(PAIRED)
    if not inline:
        g.free(*(tensor.name for tensor in tensors))


def _hold_paired(g: Graph, tensors: Sequence[Rotated], bytes_: int) -> None:
    """Cosines and sines of which each stands twice in a row, made in every layer anew."""
    g.hold(PAIRED, Size(two=2, sequence=g.run.sequence, rotary_dim=tensors[0].rotary_dim, bytes=bytes_))


def _rotate_in_place(g: Graph, tensors: Sequence[Rotated]) -> None:
    """A fused kernel turns what it reads, and the gradient back, where they lie."""
    for tensor in tensors:
        g.rename(tensor.name, f"{tensor.name} rotated")


def _rotate_plainly(g: Graph, style: RotaryStyle, tensors: Sequence[Rotated], *, inline: bool) -> None:
    if style in ("pairs", "pairs_whole"):
        _hold_paired(g, tensors, g.run.dtype_bytes)
    for tensor in tensors:
        _rotate_one(g, style, tensor)
        if style == "joined":
            _join(g, tensor)
    for tensor in tensors:
        whole = tensor.rotary_dim == tensor.head_dim and not (g.run.code.keeps_unrotated or g.run.code.joins)
        if style != "joined" and (style == "pairs" or not whole):
            _join(g, tensor, kept=inline)


def _rotate_one(g: Graph, style: RotaryStyle, tensor: Rotated) -> None:
    run, name = g.run, tensor.name
    size, half = run.heads(tensor.heads, tensor.rotary_dim), run.heads(tensor.heads, max(tensor.rotary_dim // 2, 1))
    if style == "chunks":
        _rotate_chunks(g, name, size, half)
    else:
        table = PAIRED if style in ("pairs", "pairs_whole") else ""
        _rotate_halves(g, name, _part(g, tensor, size), size, half, size, f"{name} rotated", table)
        g.free(f"{name} part")


def _rotate_halves(
    g: Graph, name: str, source: str, size: Size, half: Size, turned: Size, result: str, table: str = ""
) -> None:  # fmt: skip
    """x · cos + rotate_half(x) · sin (``apply_rotary_pos_emb``); cosines and sines are shared and need no gradient.

    ``table``: those that the layer has made for itself, which autograd keeps.
    """
    saves = (table,) if table else ()
    g.make(f"{name} cos", size, (source,), saves)
    g.view(f"{name} low", source, sliced, half)
    g.view(f"{name} high", source, sliced, half)
    g.make(f"{name} half", half, (f"{name} high",))
    g.make(f"{name} turned", turned, (f"{name} half", f"{name} low"), (), passed_on)
    g.free(f"{name} half", f"{name} low", f"{name} high")
    g.make(f"{name} sin", size, (f"{name} turned",), saves)
    g.free(f"{name} turned")
    add(g, result, size, f"{name} cos", f"{name} sin")
    g.free(f"{name} cos", f"{name} sin")


def _rotate_chunks(g: Graph, name: str, size: Size, half: Size) -> None:
    """(first · cos − second · sin, second · cos + first · sin) joined (gpt-oss, DeepSeek-V3).

    By cosines and sines in fp32, where autocast has left them so.
    """
    for part in ("low", "high"):
        g.view(f"{name} {part}", name, sliced, widened(half) if g.run.autocast and is_wide(g.size_of(name)) else half)
    if g.run.autocast and g.run.parameter_bytes:
        size, half = widened(size), widened(half)
    for made, other in (("low", "high"), ("high", "low")):
        multiply(g, f"{name} {made} cos", half, f"{name} {made}")
        multiply(g, f"{name} {made} sin", half, f"{name} {other}")
        add(g, f"{name} {made} new", half, f"{name} {made} cos", f"{name} {made} sin")
        g.free(f"{name} {made} cos", f"{name} {made} sin")
    g.make(f"{name} rotated", size, (f"{name} low new", f"{name} high new"), (), passed_on)
    g.free(f"{name} low new", f"{name} high new", f"{name} low", f"{name} high")


def _rotate_wide(g: Graph, style: RotaryStyle, tensors: Sequence[Rotated]) -> None:
    """In fp32, then cast back. ``wide``: the fp32 cosines make products fp32 (OLMo 2); ``pairs_wide``: cast first (Cohere)."""
    run, cast = g.run, g.run.dtype_bytes != FP32_BYTES
    first = style == "pairs_wide" and cast
    for tensor in tensors:
        if first:
            g.make(f"{tensor.name} fp32", run.heads(tensor.heads, tensor.head_dim, FP32_BYTES), (tensor.name,))
    for tensor in tensors:
        name, heads, width = tensor.name, tensor.heads, tensor.rotary_dim
        wide = run.heads(heads, width, FP32_BYTES)
        bytes_ = FP32_BYTES if style == "pairs_wide" else run.dtype_bytes
        half, turned = run.heads(heads, max(width // 2, 1), bytes_), run.heads(heads, width, bytes_)
        result = f"{name} wide" if cast else f"{name} rotated"
        _rotate_halves(g, name, f"{name} fp32" if first else _part(g, tensor, turned), wide, half, turned, result)
    for tensor in tensors if cast else ():
        g.make(f"{tensor.name} rotated", run.heads(tensor.heads, tensor.head_dim), (f"{tensor.name} wide",))
    for tensor in tensors:
        g.free(f"{tensor.name} fp32", f"{tensor.name} wide")


def _rotate_late(g: Graph, tensors: Sequence[Rotated]) -> None:
    """x.float() · cos + rotate_half(x).float() · sin: turned in the model's dtype, then copied to fp32 (ERNIE 4.5, GLM-OCR)."""
    run, cast = g.run, g.run.dtype_bytes != FP32_BYTES
    _hold_paired(g, tensors, FP32_BYTES)
    for tensor in tensors:
        name, heads, width = tensor.name, tensor.heads, tensor.rotary_dim
        wide, narrow, half = run.heads(heads, width, FP32_BYTES), run.heads(heads, width), run.heads(heads, max(width // 2, 1))
        copied = f"{name} fp32" if cast else name
        if cast:
            g.make(copied, wide, (name,))
        g.make(f"{name} cos", wide, (copied,), (PAIRED,))
        g.free(f"{name} fp32")
        g.view(f"{name} low", name, sliced, half)
        g.view(f"{name} high", name, sliced, half)
        g.make(f"{name} half", half, (f"{name} high",))
        g.make(f"{name} turned", narrow, (f"{name} half", f"{name} low"), (), passed_on)
        g.free(f"{name} half", f"{name} low", f"{name} high")
        turned = f"{name} turned fp32" if cast else f"{name} turned"
        if cast:
            g.make(turned, wide, (f"{name} turned",))
            g.free(f"{name} turned")
        g.make(f"{name} sin", wide, (turned,), (PAIRED,))
        g.free(turned)
        add(g, f"{name} wide" if cast else f"{name} rotated", wide, f"{name} cos", f"{name} sin")
        g.free(f"{name} cos", f"{name} sin")
    for tensor in tensors if cast else ():
        g.make(f"{tensor.name} rotated", run.heads(tensor.heads, tensor.head_dim), (f"{tensor.name} wide",))
    g.free(*(f"{tensor.name} wide" for tensor in tensors))


def _rotate_by_fp32(g: Graph, tensors: Sequence[Rotated]) -> None:
    """By sines and cosines that stay in fp32, and so does what is laid together with the rest (CodeGen), keys first."""
    for tensor in reversed(tensors):
        run, name, heads, width = g.run, tensor.name, tensor.heads, tensor.rotary_dim
        wide, turned, half = run.heads(heads, width, FP32_BYTES), run.heads(heads, width), run.heads(heads, max(width // 2, 1))
        _rotate_halves(g, name, _part(g, tensor, turned), wide, half, turned, f"{name} rotated")
        g.free(f"{name} part")
    for tensor in reversed(tensors):
        if tensor.rotary_dim != tensor.head_dim:
            name, rest = tensor.name, g.run.heads(tensor.heads, tensor.head_dim - tensor.rotary_dim)
            g.rename(f"{name} rotated", f"{name} new")
            g.view(f"{name} rest", name, sliced, rest)
            both = (f"{name} new", f"{name} rest")
            g.make(f"{name} rotated", g.run.heads(tensor.heads, tensor.head_dim, FP32_BYTES), both, (), passed_on)
            g.free(f"{name} rest")


def _rotate_promoted(g: Graph, style: RotaryStyle, tensors: Sequence[Rotated]) -> None:
    """Under autocast over an fp32 model cosines and sines are fp32, and so is what is multiplied with them.

    What is not rotated is cast to be laid behind (``cat`` is on autocast's list of those that take the widest dtype).
    """
    for tensor in tensors:
        source = g.size_of(tensor.name)
        bytes_ = FP32_BYTES if is_wide(source) else g.run.dtype_bytes
        half = g.run.heads(tensor.heads, max(tensor.rotary_dim // 2, 1), bytes_)
        turned, wide = (g.run.heads(tensor.heads, tensor.rotary_dim, each) for each in (bytes_, FP32_BYTES))
        _rotate_halves(g, tensor.name, _part(g, tensor, turned), wide, half, turned, f"{tensor.name} rotated")
        g.free(f"{tensor.name} part")
        if style == "joined":
            _join_promoted(g, tensor, bytes_)
    for tensor in tensors:
        if style != "joined" and (style == "pairs" or g.run.code.joins or tensor.rotary_dim != tensor.head_dim):
            _join_promoted(g, tensor, bytes_)


def _join_promoted(g: Graph, tensor: Rotated, bytes_: int) -> None:
    name, width = tensor.name, tensor.head_dim - tensor.rotary_dim
    g.rename(f"{name} rotated", f"{name} new")
    g.view(f"{name} rest", name, sliced, g.run.heads(tensor.heads, width, bytes_))
    rest = f"{name} rest"
    if bytes_ != FP32_BYTES:
        rest = f"{name} rest fp32"
        g.make(rest, g.run.heads(tensor.heads, width, FP32_BYTES), (f"{name} rest",))
    whole = g.run.heads(tensor.heads, tensor.head_dim, FP32_BYTES)
    g.make(f"{name} rotated", whole, (f"{name} new", rest), (), passed_on)
    g.free(f"{name} rest", f"{name} rest fp32", f"{name} new")


def _rotate_complex(g: Graph, tensors: Sequence[Rotated]) -> None:
    """As complex numbers in fp32 (Llama 4, DeepSeek-V2)."""
    run = g.run
    wide = [run.heads(tensor.heads, tensor.rotary_dim, FP32_BYTES) for tensor in tensors]
    if run.dtype_bytes == FP32_BYTES:
        for tensor, size in zip(tensors, wide, strict=True):
            g.make(f"{tensor.name} rotated", size, (tensor.name,))
        return
    for part, source in (("fp32", ""), ("complex", " fp32")):
        for tensor, size in zip(tensors, wide, strict=True):
            g.make(f"{tensor.name} {part}", size, (tensor.name + source,))
    for tensor in tensors:
        g.make(f"{tensor.name} rotated", run.heads(tensor.heads, tensor.rotary_dim), (f"{tensor.name} complex",))
    for tensor in tensors:
        g.free(f"{tensor.name} fp32", f"{tensor.name} complex")


def _part(g: Graph, tensor: Rotated, size: Size) -> str:
    """The rotated part of every head, where it is not the whole."""
    if tensor.rotary_dim == tensor.head_dim:
        return tensor.name
    g.view(f"{tensor.name} part", tensor.name, sliced, size)
    return f"{tensor.name} part"


def _join(g: Graph, tensor: Rotated, *, kept: bool = False) -> None:
    """What is not rotated is laid behind what is (where nothing is left, transformers' Phi-3 copies all the same)."""
    name, run = tensor.name, g.run
    g.rename(f"{name} rotated", f"{name} new")
    rest = run.heads(tensor.heads, tensor.head_dim - tensor.rotary_dim)
    g.view(f"{name} rest", name, sliced, rest)
    g.make(f"{name} rotated", run.heads(tensor.heads, tensor.head_dim), (f"{name} new", f"{name} rest"), (), passed_on)
    g.free(f"{name} rest")
    if not kept:
        g.free(f"{name} new")
