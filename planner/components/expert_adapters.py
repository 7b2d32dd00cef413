"""Adapters of whole parameters as PEFT 0.21 computes them: experts that are stacked in one parameter, and their router's weight.

Source: PEFT ``tuners/lora/layer.py`` (``ParamWrapper``). While a module runs, ``torch.nn.utils.parametrize`` gives it W + BA in
the place of W: as large as all experts together, kept by autograd, and made once more beforehand to compare its dtype and shape
(``ParametrizationList``). The adapters of all experts lie side by side in two matrices.
"""

from __future__ import annotations

from functools import partial
from math import sqrt
from typing import TYPE_CHECKING

from planner.architecture.layers import MixtureOfExperts
from planner.components.graph import Graph, Node
from planner.components.rules import Gradients, passed_on
from planner.components.tape import Size
from planner.components.targets import FUSED, Part, Stacked, stacked_of
from planner.scenario import Lora

if TYPE_CHECKING:
    from planner.components.adapters import Adapters


def begin_experts(g: Graph, mixer: MixtureOfExperts) -> tuple[str, ...]:
    """Before the experts run: their adapters in the weights' dtype, and a first sum that goes. Returns what to free behind them."""
    adapters, held = g.run.adapters, list[str]()
    if adapters is None:
        return ()
    for part in ("down", "up"):
        if part in adapters.targets.parts:
            stacked = stacked_of(mixer, part, adapters.lora.rank)
            held += _factors(g, adapters, part, stacked)
            _check(g, part, _whole(stacked, g.run.dtype_bytes))
    return tuple(held)


def summed_experts(g: Graph, mixer: MixtureOfExperts, part: Part) -> str:
    """W + BA for one of the experts' products (``torch.baddbmm``); its name, or nothing where no adapter changes the weight."""
    adapters = g.run.adapters
    if adapters is None or part not in adapters.targets.parts:
        return ""
    stacked, factors = stacked_of(mixer, part, adapters.lora.rank), (f"{part} B", f"{part} A")
    kept = factors if adapters.dtype_bytes != g.run.dtype_bytes else ()
    rule = partial(_products, scaled=scaling_of(adapters.lora, stacked.rank) != 1)
    g.make(f"{part} summed", _whole(stacked, g.run.dtype_bytes), factors, kept, rule)
    return f"{part} summed"


def summed_router(g: Graph, mixer: MixtureOfExperts) -> str:
    """W + BA of the router's weight, BA being made in the adapter's dtype; nothing where no adapter changes it."""
    adapters = g.run.adapters
    if adapters is None or "router" not in adapters.targets.parts:
        return ""
    stacked = stacked_of(mixer, "router", adapters.lora.rank)
    wide, narrow = _whole(stacked, adapters.dtype_bytes), _whole(stacked, g.run.dtype_bytes)
    first, second = _first(stacked, adapters.dtype_bytes), _second(stacked, adapters.dtype_bytes)
    g.make("router B A", wide, (), (), partial(_both, first=first, second=second), trains=True)
    g.make("router change", wide, ("router B A",))
    g.free("router B A")
    if wide.bytes != narrow.bytes:
        g.make("router change cast", narrow, ("router change",))
        g.free("router change")
        g.rename("router change cast", "router change")
    _check(g, "router", narrow)
    g.make("router summed", narrow, ("router change",), (), passed_on)
    return "router summed"


def times(g: Graph, name: str, size: Size, source: str, weight: str) -> None:
    """A product with a weight that was made: autograd keeps both, and makes the weight's gradient first."""
    g.make(name, size, (source, weight), (source, weight))


def scaling_of(lora: Lora, rank: int) -> float:
    """What BA is multiplied by (PEFT's ``scaling``); alpha grows with a rank that counts several linears."""
    alpha = (lora.alpha or FUSED * lora.rank) * rank / lora.rank
    return alpha / (sqrt(rank) if lora.rslora else rank)


def _check(g: Graph, part: str, whole: Size) -> None:
    g.hold(f"{part} compared", whole)
    g.free(f"{part} compared")


def _factors(g: Graph, adapters: Adapters, part: Part, stacked: Stacked) -> list[str]:
    """B, then A, cast to the weights' dtype; where they have it already, they are the parameters themselves."""
    made = list[str]()
    for name, narrow, own in (
        (f"{part} B", _second(stacked, g.run.dtype_bytes), _second(stacked, adapters.dtype_bytes)),
        (f"{part} A", _first(stacked, g.run.dtype_bytes), _first(stacked, adapters.dtype_bytes)),
    ):
        rule = partial(_cast_back, own=own, copies=name.endswith("B"))
        if adapters.dtype_bytes != g.run.dtype_bytes:
            g.make(name, narrow, (), (), rule, trains=True)
            made.append(name)
        elif g.saving:
            g.record.sizes[name] = narrow
            g.record.nodes.append(Node(name, (), (), rule))
    return made


def _products(g: Graph, node: Node, gradient: str, *, scaled: bool) -> Gradients:  # noqa: ARG001
    """``baddbmm``: the gradient of each factor is a product, then that times the scaling."""
    made: Gradients = []
    for tensor in node.inputs:
        product = g.held(f"d {tensor} product", node, g.record.sizes[tensor]) if scaled else ""
        made.append((tensor, g.gradient(tensor, node)))
        g.consume(*(name for name in (product,) if name))
    return made


def _cast_back(g: Graph, node: Node, gradient: str, *, own: Size, copies: bool) -> Gradients:
    """To the adapter's dtype; of B, whose experts lie innermost, laid out anew."""
    wide = ""
    if copies and own.bytes != g.record.sizes[node.out].bytes:
        wide = g.held(f"d {node.out} wide", node, own)
        g.drop(gradient)
    _hold_gradient(g, node.out, own)
    g.consume(*(name for name in (wide,) if name))
    return []


def _both(g: Graph, node: Node, gradient: str, *, first: Size, second: Size) -> Gradients:  # noqa: ARG001
    """A product of two parameters."""
    _hold_gradient(g, f"{node.out}, A", first)
    _hold_gradient(g, f"{node.out}, B", second)
    return []


def _hold_gradient(g: Graph, gradient_of: str, size: Size) -> None:
    name = f"grad {gradient_of}"
    g.hold(name, size, "gradients")
    if g.run.accumulating:
        g.consume(name)


def _whole(stacked: Stacked, bytes_: int) -> Size:
    """All experts' weights."""
    return Size(num_experts=stacked.experts, out_features=stacked.outputs, in_features=stacked.inputs, bytes=bytes_)


def _first(stacked: Stacked, bytes_: int) -> Size:
    """A of all experts."""
    return Size(rank=stacked.rank, num_experts=stacked.experts, in_features=stacked.inputs, bytes=bytes_)


def _second(stacked: Stacked, bytes_: int) -> Size:
    """B of all experts."""
    return Size(out_features=stacked.outputs, rank=stacked.rank, num_experts=stacked.experts, bytes=bytes_)
