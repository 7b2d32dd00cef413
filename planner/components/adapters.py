"""Adapters beside frozen linears as PEFT 0.21 computes them, each tensor in the order of its code.

Sources: PEFT ``tuners/lora/layer.py`` (``Linear.forward``), ``tuners/lora/bnb.py`` (over bitsandbytes), ``gptq.py`` and ``awq.py``
beside it, ``tuners/lora/dora.py``, ``tuners/ia3/layer.py``.
A frozen weight saves no input; the adapter's own product does, in the adapter's dtype.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from planner.architecture.counts import iter_weights
from planner.architecture.layers import Architecture, Weight
from planner.components.autocast import CACHED, HALF_BYTES, is_wide, narrowed, widened
from planner.components.graph import Graph, Node
from planner.components.operators import product
from planner.components.other_adapters import lay_hadamard, lay_kronecker, lay_scaled_projections
from planner.components.rules import Gradients, Rule, passed_on
from planner.components.run import FP32_BYTES
from planner.components.tape import Level, Size
from planner.components.targets import Targets, targets_of
from planner.components.trainable import (
    ADAPTED,
    OTHERS,
    Trainable,
    adapter_dtype_bytes,
    feed_forward_weights,
    tower_adapters,
    trainable_tensors,
)
from planner.formats.storage import Awq, Gptq
from planner.record import record
from planner.scenario import Lora, Training


@record
class Adapters:
    """What trains beside the linears that ``lora`` names, and the bytes of one of its values.

    ``feed_forward``: identities of the weights whose input IA³ scales, instead of their result.
    """

    method: str
    lora: Lora
    dtype_bytes: int
    targets: Targets
    feed_forward: frozenset[int] = frozenset()

    def beside(self, weights: Sequence[Weight]) -> bool:
        """Whether a linear gets an adapter."""
        return any(self.targets.adapts(weight, "layers.*.") for weight in weights)

    def changes(self, weights: Sequence[Weight]) -> bool:
        """Whether an adapter trains beside one of the weights, or is added to it."""
        return self.beside(weights) or any(self.targets.changes(weight) for weight in weights)

    def lay(self, g: Graph, name: str, source: str, size: Size, weights: Sequence[Weight], component: str, *, copies: bool) -> None:
        """The linear ``name`` of ``source`` with its adapter, in place of the plain one."""
        if copies and g.saving:
            inner = f"{name} head by head"
            self._lay(g, inner, source, size, weights, component)
            g.rename(inner, name)
            g.record.nodes[-1].rule = _by_token
        else:
            self._lay(g, name, source, size, weights, component)

    def _lay(self, g: Graph, name: str, source: str, size: Size, weights: Sequence[Weight], component: str) -> None:
        if self.method == "ia3":
            _scaled(g, self, name, source, size, weights, component)
        elif self.method in OTHERS:
            _other(g, self, name, source, size, weights, component)
        elif self.method == "dora":
            _decomposed(g, self, name, source, size, weights, component)
        else:
            scheme = g.run.quantised.scheme(weights) if g.run.quantised is not None else None
            lay = _beside_plain if scheme is None or isinstance(scheme, Gptq) else _over_quantised
            lay(g, self, name, source, size, weights, component)


def adapters_for(architecture: Architecture, training: Training, dtype_bytes: int) -> Adapters | None:
    """The adapters of a training's method; None where it has none. ``dtype_bytes``: of a plain parameter."""
    if training.method not in ADAPTED:
        return None
    scaled = frozenset(map(id, feed_forward_weights(architecture.decoder))) if training.method == "ia3" else frozenset()
    targets = targets_of(architecture, training.method, training.lora.targets)
    return Adapters(training.method, training.lora, adapter_dtype_bytes(training, dtype_bytes), targets, scaled)


def adapter_tensors(architecture: Architecture, training: Training, dtype_bytes: int) -> tuple[Trainable, ...]:
    """The adapters' own parameters; those of towers too."""
    if training.method in ("full", "freeze"):
        return ()
    own = trainable_tensors(architecture, training, dtype_bytes)
    return (*own, *tower_adapters(architecture, training, dtype_bytes))


def hold_shared(level: Level, architecture: Architecture, training: Training, dtype_bytes: int) -> None:
    """VeRA's random matrices, one pair for all linears, of the widest of each (``VeraModel._find_dim``)."""
    if training.method != "vera":
        return
    targets = targets_of(architecture, training.method, training.lora.targets)
    shapes = [weight.shape for path, weight, _ in iter_weights(architecture) if targets.adapts(weight, path)]
    width, rank = adapter_dtype_bytes(training, dtype_bytes), training.lora.rank
    inputs, outputs = max(shape[1] for shape in shapes), max(shape[0] for shape in shapes)
    level.change("weights", "vera_A", Size(rank=rank, in_features=inputs, bytes=width), 1)
    level.change("weights", "vera_B", Size(out_features=outputs, rank=rank, bytes=width), 1)


def hold_adapters(level: Level, tensors: tuple[Trainable, ...]) -> None:
    """Adapters from loading on."""
    for tensor in tensors:
        factors = {f"dim{index}": extent for index, extent in enumerate(tensor.shape)}
        level.change("adapters", tensor.name.rpartition(".")[2], Size(**factors, bytes=tensor.dtype_bytes), tensor.times)


def _beside_plain(
    g: Graph, adapters: Adapters, name: str, source: str, size: Size, weights: Sequence[Weight], component: str
) -> None:
    """``result + B(A(dropout(x))) · scaling``: the sum is in the wider dtype, then cast to the base's."""
    base, wide = f"{name} base", _in_bytes(size, adapters.dtype_bytes)
    product(g, base, source, size, weights, component=component)
    x = _cast_input(g, adapters, name, source, weights)
    _low_rank(g, adapters, name, x, size if g.run.autocast else wide, weights)
    _add_to_base(g, name, size, component, added="scaled")
    _free_input(g, source, x)


def _other(
    g: Graph, adapters: Adapters, name: str, source: str, size: Size, weights: Sequence[Weight], component: str
) -> None:  # fmt: skip
    """Adapters that are made of vectors, or of whole matrices: the base's result, then theirs in their own dtype, then the sum."""
    product(g, f"{name} base", source, size, weights, component=component)
    wide, width, rank = _in_bytes(size, adapters.dtype_bytes), adapters.dtype_bytes, adapters.lora.rank
    x = _cast_input(g, adapters, name, source, weights)
    if adapters.method != "vera":
        lay = lay_hadamard if adapters.method == "loha" else lay_kronecker
        lay(g, name, x, wide, rank, weights, width)
    else:
        dropped = _dropped(g, adapters, name, x, weights)
        narrow = Size(batch=g.run.batch, sequence=g.run.sequence, rank=rank, bytes=width)
        lay_scaled_projections(g, name, dropped, wide, narrow, weights[0].shape[0], width)
        if dropped != x:
            g.free(dropped)
    _add_to_base(g, name, size, component, added="scaled")
    _free_input(g, source, x)


def _add_to_base(g: Graph, name: str, size: Size, component: str, added: str) -> None:
    """The adapter's result and the base's: the sum is in the wider dtype, then cast to the base's."""
    base, scaled = f"{name} base", f"{name} {added}"
    wide = g.size_of(scaled)
    if wide.bytes == size.bytes:
        g.make(name, size, (base, scaled), (), passed_on, component=component)
        g.free(scaled, base)
        return
    g.make(f"{name} sum", wide, (base, scaled), (), passed_on, component=component)
    g.free(scaled, base)
    g.make(name, size, (f"{name} sum",), component=component)
    g.free(f"{name} sum")


def _over_quantised(
    g: Graph, adapters: Adapters, name: str, source: str, size: Size, weights: Sequence[Weight], component: str
) -> None:
    """Over bitsandbytes and AWQ the adapter's result is cast before it is added; a 4-bit product of the former is copied first."""
    base, wide = f"{name} base", _in_bytes(size, adapters.dtype_bytes)
    product(g, base, source, size, weights, component=component)
    if g.run.quantised is not None and g.run.quantised.is_four_bit(weights):
        g.make(f"{name} copied", size, (base,))
        g.free(base)
        base = f"{name} copied"
    x = source if g.run.autocast else _cast_input(g, adapters, name, source, weights)
    wide = narrowed(size) if g.run.autocast else wide
    comes_back = wide.bytes != size.bytes
    narrow = size if comes_back and isinstance(g.run.quantised and g.run.quantised.scheme(weights), Awq) else None
    _low_rank(g, adapters, name, x, wide, weights, cast_first=narrow)
    output = f"{name} scaled"
    if g.run.autocast:
        g.make(name, size, (base, output), (), passed_on, component=component)
        g.free(base, output)
        return
    if comes_back and narrow is None:
        g.make(f"{name} output", size, (output,))
        g.free(output)
        output = f"{name} output"
    g.make(name, size, (base, output), (), passed_on, component=component)
    g.free(base, output)
    _free_input(g, source, x)


def _low_rank(
    g: Graph, adapters: Adapters, name: str, x: str, wide: Size, weights: Sequence[Weight], *, cast_first: Size | None = None
) -> None:
    """``{name} scaled`` = B(A(dropout(x))) · scaling; ``x`` stays. ``cast_first``: the size it is cast to before it is scaled."""
    dropped = _dropped(g, adapters, name, x, weights)
    _low_rank_of(g, adapters, name, dropped, wide, weights, last=dropped != x)
    made = f"{name} B"
    if cast_first is not None:
        g.make(f"{name} output", cast_first, (made,))
        g.free(made)
        made = f"{name} output"
    g.make(f"{name} scaled", cast_first or wide, (made,))
    g.free(made)


def _low_rank_of(
    g: Graph, adapters: Adapters, name: str, dropped: str, wide: Size, weights: Sequence[Weight], *, last: bool = False
) -> None:
    """``{name} B`` = B(A(x)) of an input in the adapter's dtype; ``last``: nobody else reads the input, so that it goes."""
    run, lora, bytes_ = g.run, adapters.lora, adapters.dtype_bytes
    outputs, inputs = weights[0].shape
    read = dropped
    if run.autocast:
        bytes_ = HALF_BYTES
        if is_wide(g.size_of(dropped)):
            read = f"{name} dropped {CACHED}"
            g.make(read, narrowed(g.size_of(dropped)), (dropped,))
    narrow = Size(batch=run.batch, sequence=run.sequence, rank=lora.rank, bytes=bytes_)
    first = partial(
        _adapter_rule, gradient_of=f"{name} A", size=Size(rank=lora.rank, in_features=inputs, bytes=adapters.dtype_bytes)
    )
    second = partial(
        _adapter_rule, gradient_of=f"{name} B", size=Size(out_features=outputs, rank=lora.rank, bytes=adapters.dtype_bytes)
    )
    _multiply(g, adapters, f"{name} A", narrow, read, Size(rank=lora.rank, in_features=inputs, bytes=bytes_), first)
    if read != dropped:
        g.free(read)
    if last:
        g.free(dropped)
    _multiply(g, adapters, f"{name} B", wide, f"{name} A", Size(out_features=outputs, rank=lora.rank, bytes=bytes_), second)
    g.free(f"{name} A")


def _multiply(g: Graph, adapters: Adapters, name: str, size: Size, source: str, weight: Size, rule: Rule) -> None:
    """One matrix of the adapter. In fp32 under autocast it is cast first: autograd keeps the cast, else autocast's cache does."""
    cast, saves = f"{name} weight {CACHED}", tuple[str, ...]()
    if g.run.autocast and adapters.dtype_bytes != HALF_BYTES:
        g.hold(cast, weight)
        saves = (cast,) if source not in g.constants else ()
    with g.operator("mm"):
        g.make(name, size, (source,), saves, rule, for_weights=(source,), trains=True)
    if g.saving and saves:
        g.free(cast)


def _dropped(g: Graph, adapters: Adapters, name: str, x: str, weights: Sequence[Weight]) -> str:
    """The adapter's input after its dropout, whose mask of one byte a value autograd keeps."""
    if not adapters.lora.dropout:
        return x
    run, inputs = g.run, weights[0].shape[1]
    dropped, mask = f"{name} dropped", f"{name} dropout mask"
    g.make(dropped, g.size_of(x), (x,))
    g.hold(mask, Size(batch=run.batch, sequence=run.sequence, in_features=inputs, bool_bytes=1))
    g.save_for_last(mask)
    g.free(mask)
    return dropped


def _scaled(g: Graph, adapters: Adapters, name: str, source: str, size: Size, weights: Sequence[Weight], component: str) -> None:
    """IA³: what a feed-forward block's last linear reads, or what another makes, times a trained vector."""
    run, (outputs, inputs) = g.run, weights[0].shape
    if id(weights[0]) in adapters.feed_forward:
        read = _cast_input(g, adapters, name, source, weights)
        narrow = _in_bytes(run.hidden(inputs), run.dtype_bytes)
        _times_vector(g, adapters, f"{name} read", read, narrow, inputs)
        product(g, name, f"{name} read", size, weights, component=component)
        g.free(f"{name} read")
        _free_input(g, source, read)
        return
    product(g, f"{name} base", source, size, weights, component=component)
    _times_vector(g, adapters, name, f"{name} base", size, outputs)
    g.free(f"{name} base")


def _times_vector(g: Graph, adapters: Adapters, name: str, source: str, size: Size, width: int) -> None:
    """``(source · vector).to(dtype)``: the product is in the wider dtype."""
    wide = _in_bytes(size, adapters.dtype_bytes)
    vector = Size(features=width, bytes=adapters.dtype_bytes)
    rule = partial(_vector_rule, gradient_of=name, vector=vector)
    if wide.bytes == size.bytes:
        g.make(name, size, (source,), (), rule, for_weights=(source,), trains=True)
        return
    g.make(f"{name} wide", wide, (source,), (), rule, for_weights=(source,), trains=True)
    g.make(name, size, (f"{name} wide",))
    g.free(f"{name} wide")


def _decomposed(
    g: Graph, adapters: Adapters, name: str, source: str, size: Size, weights: Sequence[Weight], component: str
) -> None:
    """DoRA: ``result + (m − 1) · result + m · B(A(x)) · scaling``, m being the trained magnitude over the norm of W + BA.

    A dropout makes the base's product again from what was left, in the adapter's dtype.
    """
    base, wide = f"{name} base", _in_bytes(size, adapters.dtype_bytes)
    product(g, base, source, size, weights, component=component)
    x = _cast_input(g, adapters, name, source, weights)
    dropped = _dropped(g, adapters, name, x, weights)
    weight, moments = _weight_norm(g, adapters, name, weights)
    made = size if g.run.autocast else wide
    _low_rank_of(g, adapters, name, dropped, made, weights)
    again = base
    if dropped != x:
        again = f"{name} again"
        _product_again(g, again, dropped, made, weight, weights)
    elif len(weights) > 1:
        again = f"{name} without bias"
        g.make(again, widened(size) if g.run.autocast and g.run.parameter_bytes else size, (base,), (), passed_on)
    row = Size(out_features=weights[0].shape[0], bytes=adapters.dtype_bytes)
    less = partial(_magnitude, row=row)
    norms, share, less_one = rows = [f"{name} {part}" for part in ("row norms", "magnitude share", "magnitude share less one")]
    for part in rows:
        g.hold(part, row)
    g.make(f"{name} less", wide, (again,), (norms, less_one), less, for_weights=(again,), trains=True)
    g.make(f"{name} more", wide, (f"{name} B",), (share,), _magnitude, for_weights=(f"{name} B",), trains=True)
    g.free(*rows)
    g.make(f"{name} scaled", wide, (f"{name} more",))
    g.free(f"{name} more")
    g.make(f"{name} both", wide, (f"{name} less", f"{name} scaled"), (), passed_on)
    g.free(f"{name} less", f"{name} scaled", f"{name} B", *moments, weight)
    if again != base:
        g.free(again)
    if dropped != x:
        g.free(x, dropped)
    _add_to_base(g, name, size, component, added="both")
    _free_input(g, source, x)


def _product_again(g: Graph, name: str, source: str, size: Size, weight: str, weights: Sequence[Weight]) -> None:
    """The base's product of what a dropout left, with the weight as it was read for the norm; autocast casts both."""
    read = source
    if g.run.autocast:
        read, weight = f"{name} input {CACHED}", f"{name} weight {CACHED}"
        g.make(read, narrowed(g.size_of(source)), (source,))
        outputs, inputs = weights[0].shape
        g.hold(weight, Size(out_features=outputs, in_features=inputs, bytes=HALF_BYTES))
    with g.operator("mm"):
        g.make(name, size, (read,), (), _over_held)
    g.save_for_last(weight)
    if read != source:
        g.free(read, weight)


def _weight_norm(g: Graph, adapters: Adapters, name: str, weights: Sequence[Weight]) -> tuple[str, list[str]]:
    """‖W + scaling · BA‖ row by row, without a gradient; the names of W and of what stays beside it until the sum is made.

    BA is what the adapter makes of an identity matrix, in the adapter's dtype; autograd keeps what leads to it. Under autocast
    the product is in 16 bit and then cast.
    """
    outputs, inputs = weights[0].shape
    bytes_, narrow = adapters.dtype_bytes, g.run.autocast and adapters.dtype_bytes != HALF_BYTES
    whole = Size(out_features=outputs, in_features=inputs, bytes=bytes_)
    eye, first, both, weight = f"{name} identity", f"{name} A of identity", f"{name} B A", f"{name} W cast"
    g.hold(eye, Size(rows=inputs, in_features=inputs, bytes=bytes_))
    if narrow:
        g.hold(f"{eye} in 16 bit", Size(rows=inputs, in_features=inputs, bytes=HALF_BYTES))
    with g.operator("mm"):
        g.hold(first, Size(in_features=inputs, rank=adapters.lora.rank, bytes=HALF_BYTES if narrow else bytes_))
    if not g.saving:
        g.free(f"{eye} in 16 bit")
    with g.operator("mm"):
        g.hold(both, narrowed(whole) if narrow else whole)
    if narrow or not g.saving:
        g.free(eye)
    if not g.saving:
        g.free(first)
    if narrow:
        g.hold(f"{both} cast", whole)
        g.free(both)
    if g.run.gradient_bytes != bytes_:
        g.hold(weight, whole)
    g.hold(f"{name} B A scaled", whole)
    g.hold(f"{name} W and B A", whole)
    g.free(f"{name} B A scaled")
    g.free(f"{name} W and B A")
    return weight, [eye, f"{eye} in 16 bit", first, both, f"{both} cast"]


def _over_held(g: Graph, node: Node, gradient: str) -> Gradients:  # noqa: ARG001
    """A product with a weight that autograd keeps."""
    return [(tensor, g.gradient(tensor, node)) for tensor in node.wanted]


def _magnitude(g: Graph, node: Node, gradient: str, row: Size | None = None) -> Gradients:  # noqa: ARG001
    """A product with a row that stands for the magnitude, whose gradient is as large as the result until it is summed.

    ``row``: the last product of the two with the magnitude to be reached; behind it stands the parameter's own gradient.
    """
    size = g.record.sizes[node.out]
    rows = g.held(f"{node.out} d_row rows", node, size)
    made = [(tensor, g.held(f"d {tensor} wide", node, size)) for tensor in node.wanted]
    if row is not None:
        _hold_gradient(g, f"{node.out} magnitude", row)
    g.consume(rows)
    return made


def _cast_input(g: Graph, adapters: Adapters, name: str, source: str, weights: Sequence[Weight]) -> str:
    """The linear's input in the adapter's dtype; the input itself where it has that already."""
    if g.run.dtype_bytes == adapters.dtype_bytes or (adapters.dtype_bytes == FP32_BYTES and is_wide(g.size_of(source))):
        return source
    cast = f"{name} x cast"
    g.make(cast, _in_bytes(g.run.hidden(weights[0].shape[1]), adapters.dtype_bytes), (source,))
    return cast


def _free_input(g: Graph, source: str, x: str) -> None:
    if x != source:
        g.free(x)


def _in_bytes(size: Size, bytes_: int) -> Size:
    """The same number of values, each of ``bytes_``."""
    values = {key: value for key, value in size.values.items() if key not in ("bytes", "fp32_bytes")}
    return Size(**values, **{"fp32_bytes" if bytes_ == FP32_BYTES else "bytes": bytes_})  # type: ignore[arg-type]


def _by_token(g: Graph, node: Node, gradient: str) -> Gradients:
    """A gradient that arrives head by head is laid out token by token."""
    return [(tensor, g.gradient(tensor, node)) for tensor in node.wanted] if gradient else []


def _hold_gradient(g: Graph, gradient_of: str, size: Size) -> None:
    name = f"grad {gradient_of}"
    g.hold(name, size, "gradients")
    if g.run.accumulating:
        g.consume(name)


def _adapter_rule(g: Graph, node: Node, gradient: str, gradient_of: str, size: Size) -> Gradients:  # noqa: ARG001
    """Gradients of the adapter's matrix, then of what it read."""
    _hold_gradient(g, gradient_of, size)
    return [(tensor, g.gradient(tensor, node)) for tensor in node.wanted]


def _vector_rule(g: Graph, node: Node, gradient: str, gradient_of: str, vector: Size) -> Gradients:  # noqa: ARG001
    """The input's gradient in the product's dtype, then cast; the vector's is as large as the result until it is summed."""
    size = g.record.sizes[node.out]
    made = [(tensor, g.held(f"d {tensor} wide", node, size)) for tensor in node.wanted]
    rows = g.held(f"{node.out} d_vector rows", node, size)
    _hold_gradient(g, gradient_of, vector)
    g.consume(rows)
    return made
