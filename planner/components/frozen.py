"""Products with frozen quantised weights in training: what autograd keeps, and when the weight exists whole.

Source: bitsandbytes 0.50 ``autograd/_functions.py`` (``MatMul4Bit``, ``MatMul8bitLt``).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from planner.architecture.layers import Weight
from planner.components.quantised import ABSMAX_BLOCK
from planner.components.tape import Size
from planner.formats.storage import BitsAndBytes4Bit, Scaled, Scheme

if TYPE_CHECKING:
    from planner.components.graph import Gradients, Graph, Node

TRAINED_OVER = ("nf4", "nf4-dq", "fp4", "fp4-dq", "int8")
"""Formats over which adapters are derived."""


def record_product(g: Graph, scheme: Scheme, weights: Sequence[Weight], name: str, source: str, size: Size) -> None:
    """The node of a product that is held already: 4-bit ones save nothing, 8-bit ones their input.

    A bias is added in a tensor of its own, whose gradient is the product's.
    """
    saves = (source,) if isinstance(scheme, Scaled) else ()
    g.record_made(name, size, source, saves, partial(_dequantised, scheme=scheme, weight=weights[0]))


def _dequantised(g: Graph, node: Node, gradient: str, scheme: Scheme, weight: Weight) -> Gradients:  # noqa: ARG001
    """The gradient times the whole weight, whose nested scales are made fp32 first."""
    outputs, inputs = weight.shape
    scales = Size(blocks=-(-outputs * inputs // ABSMAX_BLOCK), fp32_bytes=4)
    nested = isinstance(scheme, BitsAndBytes4Bit) and scheme.double_quant
    held = g.held(f"{node.out} scales", node, scales) if nested else ""
    whole = Size(out_features=outputs, in_features=inputs, bytes=g.run.dtype_bytes)
    weight_again = g.held(f"{node.out} whole weight", node, whole)
    g.consume(held)
    made = [(tensor, g.gradient(tensor, node)) for tensor in node.wanted]
    g.consume(weight_again)
    return made
