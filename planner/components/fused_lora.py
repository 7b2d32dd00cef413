"""Adapters beside 4-bit linears as one autograd function, as Unsloth computes them and fms-acceleration after it.

Source: fms-acceleration ``fms_acceleration_foak/fused_ops/unsloth_lora`` (``utils.matmul_lora``, ``bnb/fast_lora.LoRA_QKV`` and
``LoRA_W``). Queries, keys and values are one function, whose backward writes the gradient over their input; the output projection
is another. What a dropout leaves of the input is kept for each adapter, its mask is not.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from planner.architecture.layers import Weight
from planner.components.adapters import Adapters
from planner.components.graph import Graph, Node
from planner.components.quantised import ABSMAX_BLOCK, QuantisedWeights, hold_product
from planner.components.rules import Gradients
from planner.components.tape import Size
from planner.formats.storage import BitsAndBytes4Bit, Scheme
from planner.record import record


@record
class Projection:
    """One linear of a fused function: the tensor it makes, its size, and its weight (with a bias)."""

    name: str
    size: Size
    weights: tuple[Weight, ...]


@record
class Frozen:
    """The adapters of a run, and the format of what they stand beside."""

    adapters: Adapters
    quantised: QuantisedWeights

    def scheme(self, projection: Projection) -> Scheme:
        """How a projection's weight is stored."""
        found = self.quantised.scheme(projection.weights)
        if found is None:
            raise AssertionError(f"{projection.name} is not quantised")
        return found


def _frozen(g: Graph) -> Frozen:
    if g.run.adapters is None or g.run.quantised is None:
        raise AssertionError("fused adapters stand beside quantised weights")
    return Frozen(g.run.adapters, g.run.quantised)


def fuses(g: Graph, weights: Sequence[Sequence[Weight]]) -> bool:
    """Whether the linears are computed by the fused function: each 4-bit, with a plain adapter beside it."""
    adapters, quantised = g.run.adapters, g.run.quantised
    if "lora" not in g.run.fused or adapters is None or adapters.method not in ("lora", "qlora") or quantised is None:
        return False
    return all(each and adapters.beside(each) and quantised.is_four_bit(each) for each in weights)


def lay_fused(g: Graph, source: str, projections: Sequence[Projection], *, over_input: bool = False) -> None:
    """All projections of ``source``; ``over_input``: the gradient takes the place of what they read."""
    frozen = _frozen(g)
    read = [_one(g, frozen, source, each) for each in projections]
    if g.saving:
        first, *others = projections
        rule = partial(_backward, frozen=frozen, projections=projections, read=read, source=source, over_input=over_input)
        g.record_function(first.name, source, [source, *(name for name in read if name != source)], rule)
        g.record.sizes.update({each.name: each.size for each in others})
        g.constants.difference_update(each.name for each in others)
    g.free(*(name for name in dict.fromkeys(read) if name != source))


def _one(g: Graph, frozen: Frozen, source: str, each: Projection) -> str:
    """W · x, then B · A · dropout(x) in a tensor of its own that is added to it; returns what the adapter read."""
    hold_product(g, frozen.scheme(each), each.weights[:1], each.name, each.size, "workspace")
    read, lora = source, frozen.adapters.lora
    if lora.dropout:
        read = f"{each.name} dropped"
        g.hold(read, g.size_of(source))
        if g.saving:
            g.record.sizes[read] = g.size_of(source)
        g.hold(f"{read} mask", Size(batch=g.run.batch, sequence=g.run.sequence, in_features=each.weights[0].shape[1], bool_bytes=1))
        g.free(f"{read} mask")
    g.hold(f"{each.name} A", Size(batch=g.run.batch, sequence=g.run.sequence, rank=lora.rank, bytes=g.run.dtype_bytes))
    g.hold(f"{each.name} B A", each.size)
    g.free(f"{each.name} A", f"{each.name} B A")
    return read


def _backward(
    g: Graph, node: Node, gradient: str, frozen: Frozen,  # noqa: ARG001  every rule's
    projections: Sequence[Projection], read: Sequence[str], source: str, *,
    over_input: bool,
) -> Gradients:  # fmt: skip
    """The adapters' gradients, then for each projection the whole weight again and its share of the input's gradient."""
    others = [g.gradients.pop(each.name, "") for each in projections[1:]]
    for each in projections:
        _adapter_gradients(g, frozen.adapters, each)
    size, made = g.record.sizes[source], ""
    for each, dropped in zip(projections, read, strict=True):
        held = _whole_weight(g, node, frozen.scheme(each), each)
        if not made and over_input:
            g.consume(node.saves[0].name)
        made = made or g.held(f"d {source}", node, size)
        if each is not projections[0]:
            g.consume(g.held(f"d {source} of {each.name}", node, size))
        g.consume(held)
        _adapter_share(g, node, size, dropped)
    for name in others:
        g.drop(name)
    return [(source, made)]


def _adapter_share(g: Graph, node: Node, size: Size, dropped: str) -> None:
    """``(x != 0) · (d · B · A)``: where the dropout left something, the product, and both together."""
    values = {key: value for key, value in size.values.items() if key not in ("bytes", "fp32_bytes")}
    parts = [g.held(f"{dropped} is left", node, Size(**values, bool_bytes=1))]  # type: ignore[arg-type]
    parts += [g.held(f"{dropped} {part}", node, size) for part in ("share", "share of what is left")]
    g.consume(*parts)


def _whole_weight(g: Graph, node: Node, scheme: Scheme, each: Projection) -> str:
    """The weight in the compute dtype, its nested scales made fp32 beside it."""
    outputs, inputs = each.weights[0].shape
    width = g.run.compute_bytes or g.run.dtype_bytes
    held = g.held(f"{each.name} whole weight", node, Size(out_features=outputs, in_features=inputs, bytes=width))
    if isinstance(scheme, BitsAndBytes4Bit) and scheme.double_quant:
        g.consume(g.held(f"{each.name} scales", node, Size(blocks=-(-outputs * inputs // ABSMAX_BLOCK), fp32_bytes=4)))
    return held


def _adapter_gradients(g: Graph, adapters: Adapters, each: Projection) -> None:
    outputs, inputs = each.weights[0].shape
    sizes = {
        "A": Size(rank=adapters.lora.rank, in_features=inputs, bytes=adapters.dtype_bytes),
        "B": Size(out_features=outputs, rank=adapters.lora.rank, bytes=adapters.dtype_bytes),
    }
    for part, size in sizes.items():
        name = f"grad {each.name} {part}"
        g.hold(name, size, "gradients")
        if g.run.accumulating:
            g.consume(name)
