"""Adapters beside frozen linears that are no low-rank product of their own, as PEFT 0.21 computes them.

Sources: PEFT ``tuners/vera/layer.py`` (``Linear.forward``) and ``tuners/vera/model.py`` (one pair of random matrices for all),
``tuners/loha/layer.py`` (``Linear._get_delta_activations``, ``HadaWeight``), ``tuners/lokr/layer.py`` (``make_kron``). Their inputs
are cast to the adapters' dtype, and the sum with the base's result is cast back.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from planner.architecture.layers import Weight
from planner.components.graph import Graph, Node
from planner.components.rules import Gradients, Rule
from planner.components.tape import Size
from planner.components.trainable import is_factored, nearest_factors


def lay_scaled_projections(g: Graph, name: str, source: str, wide: Size, narrow: Size, outputs: int, width: int) -> None:
    """VeRA: b ∘ B(d ∘ A(x)) as ``{name} scaled``; A and B are frozen, the vectors d and b train."""
    g.make(f"{name} A", narrow, (source,))
    first, second = _scales(f"{name} d", int(narrow.values["rank"]), width), _scales(f"{name} b", outputs, width)
    g.make(f"{name} A scaled", narrow, (f"{name} A",), (), first, for_weights=(f"{name} A",), trains=True)
    g.free(f"{name} A")
    g.make(f"{name} B", wide, (f"{name} A scaled",))
    g.free(f"{name} A scaled")
    g.make(f"{name} scaled", wide, (f"{name} B",), (), second, for_weights=(f"{name} B",), trains=True)
    g.free(f"{name} B")


def _scales(name: str, features: int, width: int) -> Rule:
    return partial(_scaled, vector=name, row=Size(features=features, bytes=width))


def _scaled(g: Graph, node: Node, gradient: str, vector: str, row: Size) -> Gradients:  # noqa: ARG001  every rule's
    """The input's gradient, then the vector's, as large as the result until it is summed."""
    size = g.record.sizes[node.out]
    made = [(tensor, g.gradient(tensor, node)) for tensor in node.wanted]
    rows = g.held(f"{node.out} d_vector rows", node, size)
    hold_gradient(g, vector, row)
    g.consume(rows)
    return made


def lay_hadamard(g: Graph, name: str, source: str, wide: Size, rank: int, weights: Sequence[Weight], width: int) -> None:
    """LoHa: x · ((W₁ₐ W₁ᵦ) ∘ (W₂ₐ W₂ᵦ)) as ``{name} scaled``; autograd keeps the whole matrix and what it is multiplied with."""
    outputs, inputs = weights[0].shape
    whole = Size(out_features=outputs, in_features=inputs, bytes=width)
    first, second, both, delta = (f"{name} {part}" for part in ("first", "second", "first and second", "delta"))
    g.hold(first, whole)
    g.hold(second, whole)
    g.hold(both, whole)
    g.free(first, second)
    parts = (Size(out_features=outputs, rank=rank, bytes=width), Size(rank=rank, in_features=inputs, bytes=width))
    g.make(delta, whole, (), (), partial(_hadamard, of=name, whole=whole, parts=parts), trains=True)
    g.free(both)
    with g.operator("mm"):
        g.make(f"{name} scaled", wide, (source, delta), (source, delta), _product)
    g.free(delta)


def _product(g: Graph, node: Node, gradient: str) -> Gradients:  # noqa: ARG001  every rule's
    """The matrix's gradient, then the input's."""
    return [(tensor, g.gradient(tensor, node)) for tensor in reversed(node.wanted)]


def _hadamard(g: Graph, node: Node, gradient: str, of: str, whole: Size, parts: tuple[Size, Size]) -> Gradients:  # noqa: ARG001
    """The gradient scaled; for either half its product with the other's matrix, and from that those of the two factors."""
    scaled, last = g.held(f"{of} d scaled", node, whole), ""
    for half in ("w1", "w2"):
        other = g.held(f"{of} other of {half}", node, whole)
        times = g.held(f"{of} d {half}", node, whole)
        g.consume(other, last)
        for part, size in zip("ab", parts, strict=True):
            hold_gradient(g, f"{of} {half}_{part}", size)
        last = times
    g.consume(scaled, last)
    return []


def lay_kronecker(g: Graph, name: str, source: str, wide: Size, rank: int, weights: Sequence[Weight], width: int) -> None:
    """LoKr: x · (W₁ ⊗ W₂) as ``{name} scaled``, W₂ a product of two factors where these are smaller; the whole is kept."""
    outputs, inputs = weights[0].shape
    (rows, inner_rows), (columns, inner_columns) = nearest_factors(outputs), nearest_factors(inputs)
    whole = Size(out_features=outputs, in_features=inputs, bytes=width)
    outer, inner = Size(rows=rows, columns=columns, bytes=width), Size(rows=inner_rows, columns=inner_columns, bytes=width)
    second, kronecker, delta = (f"{name} {part}" for part in ("second", "kronecker", "delta"))
    factored = is_factored(rank, inner_rows, inner_columns)
    if factored:
        parts = {"w2_a": Size(rows=inner_rows, rank=rank, bytes=width), "w2_b": Size(rank=rank, columns=inner_columns, bytes=width)}
        g.make(second, inner, (), (), partial(_factors, of=name, parts=parts), trains=True)
    of_product, of_parameter = ((second,), {}) if factored else ((), {"w2": inner})
    rule = partial(_kronecker, of=name, whole=whole, trained={"w1": outer} | of_parameter, inner=inner)
    g.make(kronecker, whole, of_product, of_product, rule, trains=True)
    g.free(second)
    g.make(delta, whole, (kronecker,))
    g.free(kronecker)
    with g.operator("mm"):
        g.make(f"{name} scaled", wide, (source, delta), (source, delta), _product)
    g.free(delta)


def _factors(g: Graph, node: Node, gradient: str, of: str, parts: dict[str, Size]) -> Gradients:  # noqa: ARG001
    for part, size in parts.items():
        hold_gradient(g, f"{of} {part}", size)
    return []


def _kronecker(
    g: Graph, node: Node, gradient: str, of: str, whole: Size, trained: dict[str, Size], inner: Size  # noqa: ARG001
) -> Gradients:  # fmt: skip
    """Both gradients are as large as the product until they are summed."""
    rows = [g.held(f"{of} d {part} rows", node, whole) for part in ("w2", "w1")]
    for part, size in trained.items():
        hold_gradient(g, f"{of} {part}", size)
    made = [(tensor, g.held(f"d {tensor}", node, inner)) for tensor in node.inputs]
    g.consume(*rows)
    return made


def hold_gradient(g: Graph, name: str, size: Size) -> None:
    """A gradient of an adapter's parameter, kept or added to what earlier micro-batches left."""
    g.hold(f"grad {name}", size, "gradients")
    if g.run.accumulating:
        g.consume(f"grad {name}")
