"""Operators that most blocks are made of: linears with what is beside or around them, sums and products."""

from __future__ import annotations

from collections.abc import Sequence

from planner.architecture.counts import is_routed
from planner.architecture.layers import Weight
from planner.components.autocast import CACHED, cast_product, is_wide, narrowed
from planner.components.float8 import float8_product
from planner.components.frozen import record_product, wide_product
from planner.components.graph import Graph
from planner.components.quantised import hold_product
from planner.components.rules import linear_rule, passed_on
from planner.components.tape import Size


def linear(
    graph: Graph, name: str, source: str, size: Size, weights: Sequence[Weight] = (), *, component: str = "workspace",
    copies: bool = False,
) -> None:  # fmt: skip
    """``source`` times a weight (and a bias), with the adapter that trains beside it.

    ``copies``: the gradient arrives head by head and is laid out token by token.
    """
    adapters = graph.run.adapters
    if adapters is not None and adapters.beside(weights):
        adapters.lay(graph, name, source, size, weights, component, copies=copies)
    else:
        product(graph, name, source, size, weights, component=component, copies=copies)


def product(
    graph: Graph, name: str, source: str, size: Size, weights: Sequence[Weight] = (), *, component: str = "workspace",
    copies: bool = False,
) -> None:  # fmt: skip
    """A linear without an adapter, its weight plain or quantised.

    ``torch._grouped_mm`` is on no list of autocast's: what it reads is cast to its weights' dtype.
    """
    scheme = graph.run.quantised.scheme(weights) if graph.run.quantised is not None else None
    if scheme is not None:
        if graph.run.compute_bytes and graph.run.quantised is not None and graph.run.quantised.is_four_bit(weights):
            wide_product(graph, scheme, weights, name, source, size, component)
            return
        hold_product(graph, scheme, weights, name, size, component)
        if graph.saving:
            record_product(graph, scheme, weights, name, source, size)
        return
    if graph.run.float8 is not None and graph.run.float8.converts(weights):
        float8_product(graph, graph.run.float8, name, source, size, weights, component, copies=copies)
        return
    grouped = any(map(is_routed, weights)) and graph.run.code.experts == "grouped"
    if graph.run.autocast and graph.run.parameter_bytes and not grouped:
        cast_product(graph, name, source, size, weights, component, copies=copies)
        return
    moment, read = size if copies else None, source
    if graph.run.autocast and is_wide(graph.size_of(source)) and not (grouped and graph.run.parameter_bytes):
        read = f"{name} input {CACHED}"
        graph.make(read, narrowed(graph.size_of(source)), (source,))
    with graph.operator("grouped mm" if any(map(is_routed, weights)) else "mm"):
        graph.make(name, size, (read,), (), linear_rule, component=component, weights=weights, moment=moment, for_weights=(read,))
    if read != source:
        graph.free(read)


def add(graph: Graph, name: str, size: Size, *inputs: str) -> None:
    """A sum; under autocast one of its inputs may be in 16 bit."""
    graph.make(name, size, inputs, (), passed_on)


def multiply(graph: Graph, name: str, size: Size, *inputs: str) -> None:
    """A product of two tensors, both saved; or with one input, by a number or by a tensor that needs no gradient."""
    graph.make(name, size, inputs, inputs if len(inputs) > 1 else ())
