"""The compute graph of ggml, as far as memory goes: tensors with shape, strides and sources, in the order they run.

Source: ggml ``ggml.c`` (0.25.3): what each operation makes of its inputs, which results are views, and the order in which
``ggml_build_forward_expand`` visits a tensor's sources (depth first, left to right).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod

Shape = tuple[int, int, int, int]
"""``ne``: values along each axis, the innermost first."""

F32, F16, INT32, INT64 = 4, 2, 4, 8
IN_PLACE = frozenset(
    {"add", "add_id", "sub", "mul", "div", "scale", "unary", "rope", "rms_norm", "clamp", "soft_max", "sqr", "fill"}
)
"""Operations whose result may take over a source's memory (``ggml_op_can_inplace``)."""
VIEWS = frozenset({"view", "reshape", "permute", "transpose"})
"""Operations that compute nothing and belong to no device (``ggml_is_view_op``)."""


class Tensor:
    """One tensor. ``root`` is the tensor whose memory a view shows; ``external`` memory (weights, caches) is not ours.

    ``lasting``: an input or its copy on a device, alive from layer to layer. ``children``, ``views``, ``lives`` and ``slot``
    belong to the allocator, which walks a graph once.
    """

    external = is_input = is_output = is_weight = lasting = visited = lives = False
    children = views = slot = 0
    device: int | None = None
    copies: dict[int, list[Tensor]] | None = None

    def __init__(
        self,
        op: str,
        ne: Shape,
        element_bytes: int,
        sources: tuple[Tensor, ...] = (),
        nb: Shape | None = None,
        root: Tensor | None = None,
    ) -> None:
        self.op, self.ne, self.element_bytes, self.sources, self.root = op, ne, element_bytes, sources, root
        row = element_bytes * ne[0]
        plane = row * ne[1]
        self.nb = nb or (element_bytes, row, plane, plane * ne[2])
        self.size_bytes = 0 if root is not None else plane * ne[2] * ne[3]

    @property
    def is_contiguous(self) -> bool:
        """Whether rows follow each other without gaps."""
        expected = self.element_bytes
        for extent, stride in zip(self.ne, self.nb, strict=True):
            if extent != 1 and stride != expected:
                return False
            expected *= extent
        return True


def weight(rows: int = 1, device: int = 0, size_bytes: int = 0) -> Tensor:
    """A weight in its model buffer: ``rows`` is the width of what it multiplies into."""
    tensor = Tensor("none", (1, rows, 1, 1), F32)
    tensor.external = tensor.is_weight = True
    tensor.device, tensor.size_bytes = device, size_bytes
    return tensor


def stored(ne: Shape, device: int = 0, element_bytes: int = F32, size_bytes: int | None = None) -> Tensor:
    """A tensor in a cache's buffer; ``size_bytes`` where its type packs values into blocks."""
    tensor = Tensor("none", ne, element_bytes)
    tensor.external, tensor.device = True, device
    if size_bytes is not None:
        tensor.size_bytes = size_bytes
    return tensor


def given(*ne: int, element_bytes: int = INT32) -> Tensor:
    """An input that the program fills in before the graph runs."""
    tensor = Tensor("none", _padded(ne), element_bytes)
    tensor.is_input = tensor.lasting = True
    return tensor


@dataclass(slots=True)
class Graph:
    """Nodes in the order they run, and the leaves (inputs, weights, caches) in the order they were met.

    ``marks``: how many nodes there were when each layer, and then the head, began to be drawn. What an earlier layer left
    undrawn until then comes after the mark.
    """

    nodes: list[Tensor] = field(default_factory=list)
    leaves: list[Tensor] = field(default_factory=list)
    marks: list[int] = field(default_factory=list)

    def expand(self, tensor: Tensor) -> Tensor:
        """Add ``tensor`` and everything it needs that is not there yet."""
        if not tensor.visited:
            tensor.visited = True
            for source in tensor.sources:
                if not source.visited:
                    self.expand(source)
            (self.leaves if tensor.op == "none" else self.nodes).append(tensor)
        return tensor


def like(op: str, first: Tensor, *others: Tensor) -> Tensor:
    """A new tensor of the first source's shape: element-wise operations, norms, rotary embedding."""
    return Tensor(op, first.ne, first.element_bytes, (first, *others))


def made(op: str, ne: tuple[int, ...], *sources: Tensor, element_bytes: int = F32) -> Tensor:
    """A new tensor of a shape of its own."""
    return Tensor(op, _padded(ne), element_bytes, sources)


def product(left: Tensor, right: Tensor) -> Tensor:
    """``ggml_mul_mat``: (rows of left, rows of right, and right's outer axes)."""
    return Tensor("mul_mat", (left.ne[1], *right.ne[1:]), F32, (left, right))


def rows_of(table: Tensor, ids: Tensor) -> Tensor:
    """``ggml_get_rows``: the rows of ``table`` that ``ids`` names."""
    return Tensor("get_rows", (table.ne[0], ids.ne[0], ids.ne[1], ids.ne[2]), F32, (table, ids))


def view(source: Tensor, ne: tuple[int, ...], strides: tuple[int, ...] = ()) -> Tensor:
    """Part of a tensor; ``strides``: bytes from one element of the second, third … axis to the next, packed when left out."""
    shape, element = _padded(ne), source.element_bytes
    nb = [element, element * shape[0], 0, 0]
    for axis in (1, 2, 3):
        nb[axis] = strides[axis - 1] if axis <= len(strides) else nb[axis - 1] * shape[axis - 1]
    return Tensor("view", shape, element, (source,), (nb[0], nb[1], nb[2], nb[3]), source.root or source)


def reshape(source: Tensor, *ne: int) -> Tensor:
    """The same values in the same order under another shape."""
    return Tensor("reshape", _padded(ne), source.element_bytes, (source,), None, source.root or source)


def permute(source: Tensor, *axes: int) -> Tensor:
    """Axis i of the source becomes axis ``axes[i]``."""
    ne, nb = [1] * 4, [0] * 4
    for index, axis in enumerate(axes):
        ne[axis], nb[axis] = source.ne[index], source.nb[index]
    return Tensor("permute", _padded(ne), source.element_bytes, (source,), (nb[0], nb[1], nb[2], nb[3]), source.root or source)


def transpose(source: Tensor) -> Tensor:
    """The first two axes swapped."""
    ne, nb = source.ne, source.nb
    shape, strides = (ne[1], ne[0], ne[2], ne[3]), (nb[1], nb[0], nb[2], nb[3])
    return Tensor("transpose", shape, source.element_bytes, (source,), strides, source.root or source)


def packed(source: Tensor, *ne: int) -> Tensor:
    """``ggml_cont``: a contiguous copy."""
    return Tensor("cont", _padded(ne) if ne else source.ne, source.element_bytes, (source,))


def joined(left: Tensor, right: Tensor) -> Tensor:
    """``ggml_concat`` along the innermost axis."""
    return Tensor("concat", (left.ne[0] + right.ne[0], *left.ne[1:]), left.element_bytes, (left, right))


def written(target: Tensor, *sources: Tensor) -> Tensor:
    """A write into ``target``'s memory (``ggml_cpy``, ``ggml_set_rows``): the result is a view of it."""
    return Tensor("write", target.ne, target.element_bytes, (*sources, target), target.nb, target.root or target)


def gated(gate: Tensor, up: Tensor | None = None) -> Tensor:
    """``ggml_glu``: act(gate) · up, from two tensors or the two halves of one."""
    if up is not None:
        return Tensor("glu", gate.ne, gate.element_bytes, (gate, up))
    return Tensor("glu", (gate.ne[0] // 2, *gate.ne[1:]), gate.element_bytes, (gate,))


def values_in(tensor: Tensor) -> int:
    """How many values a tensor holds."""
    return prod(tensor.ne)


def _padded(ne: tuple[int, ...] | list[int]) -> Shape:
    first, second, third, fourth = (*ne, 1, 1, 1)[:4]
    return first, second, third, fourth
