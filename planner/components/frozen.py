"""Products with frozen quantised weights in training: what autograd keeps, and when the weight exists whole.

Source: bitsandbytes 0.50 ``autograd/_functions.py`` (``MatMul4Bit``, ``MatMul8bitLt``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from planner.architecture.layers import Weight
from planner.components.autocast import CACHED, is_wide, narrowed
from planner.components.quantised import ABSMAX_BLOCK, hold_product
from planner.components.tape import Size
from planner.formats.storage import BitsAndBytes4Bit, Scaled, Scheme

if TYPE_CHECKING:
    from planner.components.graph import Graph, Node
    from planner.components.rules import Gradients

TRAINED_OVER = ("nf4", "nf4-dq", "fp4", "fp4-dq", "int8", "gptq", "awq")
"""Formats over which adapters are derived, by name or by what stands before its first number."""


def wide_product(g: Graph, scheme: Scheme, weights: Sequence[Weight], name: str, source: str, size: Size, component: str) -> None:
    """A 4-bit layer computes in 16 bit: its input is cast, and its result is cast back or, with an fp32 bias, is a sum of both.

    Of an input in 16 bit nothing is cast.
    """
    run, result, read = g.run, f"{name} {CACHED}", f"{name} input {CACHED}"
    if not is_wide(g.size_of(source)):
        g.run = replace(run, dtype_bytes=run.compute_bytes)
        hold_product(g, scheme, weights, name, size, component)
        if g.saving:
            record_product(g, scheme, weights, name, source, size)
        g.run = run
        return
    g.make(read, narrowed(g.size_of(source)), (source,))
    g.run = replace(run, dtype_bytes=run.compute_bytes)
    hold_product(g, scheme, weights[:1], result, narrowed(size), "workspace")
    g.run = run
    if g.saving:
        record_product(g, scheme, weights, result, read, narrowed(size))
    g.free(read)
    g.make(name, size, (result,), component=component)
    g.free(result)


def record_product(g: Graph, scheme: Scheme, weights: Sequence[Weight], name: str, source: str, size: Size) -> None:
    """The node of a product that is held already: 8-bit ones save their input, 4-bit ones did so in older releases.

    A bias is added in a tensor of its own, whose gradient is the product's.
    """
    older = g.run.quantised is not None and g.run.quantised.saves_inputs
    saves = (source,) if isinstance(scheme, Scaled) or older else ()
    g.record_made(name, size, source, saves, partial(_dequantised, scheme=scheme, weight=weights[0]))


def _dequantised(g: Graph, node: Node, gradient: str, scheme: Scheme, weight: Weight) -> Gradients:  # noqa: ARG001
    """The gradient times the whole weight, whose nested scales are made fp32 first."""
    outputs, inputs = weight.shape
    scales = Size(blocks=-(-outputs * inputs // ABSMAX_BLOCK), fp32_bytes=4)
    nested = isinstance(scheme, BitsAndBytes4Bit) and scheme.double_quant
    held = g.held(f"{node.out} scales", node, scales) if nested else ""
    computed = g.run.compute_bytes or g.run.dtype_bytes
    weight_again = g.held(f"{node.out} whole weight", node, Size(out_features=outputs, in_features=inputs, bytes=computed))
    g.consume(held)
    if g.run.compute_bytes and isinstance(scheme, Scaled) and is_wide(g.record.sizes[node.out]):
        whole = Size(out_features=outputs, in_features=inputs, bytes=g.run.dtype_bytes)
        cast = g.held(f"{node.out} whole weight cast", node, whole)
        g.consume(weight_again)
        weight_again = cast
    made = [(tensor, g.gradient(tensor, node)) for tensor in node.wanted]
    g.consume(weight_again)
    return made
