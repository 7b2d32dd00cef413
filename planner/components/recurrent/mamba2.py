"""Mamba-2 (Dao & Gu 2024) as transformers 5.23 computes it where the ``mamba_ssm`` kernels are missing.

All families that have it (Mamba-2, Bamba, Granite 4, Nemotron-H, Falcon-H1, Zamba2) share ``mamba2_chunk_scan`` and
``mamba2_selective_state_update``. Names follow section 6 of the paper: L is the decay mask, G = C Bᵀ, M = G ∘ L.
"""

from __future__ import annotations

from collections.abc import Mapping

from planner.architecture.layers import Recurrent, Weight
from planner.components.autocast import in_16_bit, is_wide, narrowed, widened
from planner.components.graph import Graph, Node
from planner.components.operators import add, linear, multiply
from planner.components.recurrent.convolution import causal_convolution
from planner.components.recurrent.states import RECURRENT_STATE, recurrent_state
from planner.components.rules import Gradients, broadcast, passed_on, power, sliced, weighted
from planner.components.run import FP32_BYTES
from planner.components.tape import Size


def mamba2_forward(g: Graph, mixer: Recurrent, source: str, target: str) -> None:
    """Projection, convolution, scan (or one step of the recurrence), gated norm, output projection."""
    with in_16_bit(g):
        _mamba2_forward(g, mixer, source, target)


def _mamba2_forward(g: Graph, mixer: Recurrent, source: str, target: str) -> None:
    run, weights = g.run, modules(mixer)
    steps = bool(run.past_tokens) and run.sequence == 1
    projected = run.rows(mixer.inner_dim + mixer.conv_channels + mixer.num_heads)
    if mixer.scaled_input:
        multiply(g, "scaled input", run.hidden(), source)
        linear(g, "unscaled projected", "scaled input", projected, weights["in_proj"])
        multiply(g, "projected", projected, "unscaled projected")
        g.free("unscaled projected")
    else:
        linear(g, "projected", source, projected, weights["in_proj"])
    inner, shared = run.rows(mixer.inner_dim), run.rows(mixer.num_groups * mixer.state_dim)
    g.parts("projected", {"gate": inner, "conv in": run.rows(mixer.conv_channels), "dt raw": run.rows(mixer.num_heads)})
    causal_convolution(g, mixer, "x B C", "conv in")
    g.free("scaled input")
    g.parts("x B C", {"x in": inner, "B in": shared, "C in": shared})
    (_step if steps else _chunk_scan)(g, mixer)
    _gate(g, mixer, weights.get("norm", ()))
    linear(g, target, "gated", run.hidden(), weights["out_proj"])
    g.free("gated", "scanned", "scan wide", "states new", "gate", "conv in", "dt raw", "projected", "x in", "B in", "C in", "x B C")


def modules(mixer: Recurrent) -> dict[str, tuple[Weight, ...]]:
    """Weights and biases by the name of their module: ``in_proj``, ``conv1d``, ``norm``, ``out_proj``."""
    found: dict[str, tuple[Weight, ...]] = {"in_proj": (), "out_proj": ()}
    for weight in mixer.weights:
        path = weight.name.split(".")
        if path[-1] in ("weight", "bias"):
            found[path[-2]] = (*found.get(path[-2], ()), weight)
    return found


def named(mixer: Recurrent, name: str) -> tuple[Weight, ...]:
    """A parameter of the mixer's own: ``A_log``, ``D``, ``dt_bias``."""
    return tuple(weight for weight in mixer.weights if weight.name.rpartition(".")[2] == name)


def _chunk_scan(g: Graph, mixer: Recurrent) -> None:
    """The whole sequence in chunks, all of them at once; leaves ``scanned`` in fp32 and ``states new``."""
    run = g.run
    heads, width, state = mixer.num_heads, mixer.head_dim, mixer.state_dim
    step = Size(batch=run.batch, sequence=run.sequence, heads=heads, bytes=run.dtype_bytes)
    g.make("dt biased", step, ("dt raw",), (), weighted, weights=named(mixer, "dt_bias"))
    biased = "dt biased"
    if run.autocast:  # softplus is on the fp32 list
        biased, step = "dt biased fp32", widened(step)
        g.make(biased, step, ("dt biased",))
    g.make("dt positive", step, (biased,), (biased,))
    g.free("dt biased", biased)
    g.make("dt", step, ("dt positive",), ("dt positive",))
    g.free("dt positive")
    tokens = {"batch": run.batch, "sequence": run.sequence}
    x, decay = Size(**tokens, heads=heads, head_dim=width, fp32_bytes=4), Size(**tokens, heads=heads, fp32_bytes=4)
    grouped = Size(**tokens, groups=mixer.num_groups, state=state, fp32_bytes=4)
    for_heads = Size(**tokens, heads=heads, state=state, fp32_bytes=4)
    _wide(g, "x wide", "x in", x)
    for name in ("B", "C"):
        _wide(g, f"{name} grouped", f"{name} in", grouped)
        g.make(name, for_heads, (f"{name} grouped",))
        g.free(f"{name} grouped")
    _discretize(g, mixer, x, decay)
    _diagonal_blocks(g, mixer)
    _chunk_states(g, mixer)
    _off_diagonal_blocks(g, mixer)
    g.free(*(f"{name} chunks" for name in ("x", "A", "B", "C")), "A sum", "L", "G", "M", "Y", "decay", "B decayed")
    g.free("states before", "decay out", "C states", "Y off", "D x", "dt", "states of chunks")
    if run.cached:
        g.hold(RECURRENT_STATE, recurrent_state(mixer, run), "recurrent_state")


def _discretize(g: Graph, mixer: Recurrent, x: Size, decay: Size) -> None:
    """x · dt and A · dt, everything padded to whole chunks; D · x beside them."""
    padded = _chunks(g, mixer, mixer.head_dim)
    g.make("x padded", padded, ("x wide",))
    g.make("D x", padded, ("x padded",), (), weighted, weights=named(mixer, "D"), for_weights=("x padded",))
    g.free("x padded")
    _wide(g, "dt for x", "dt", decay)
    g.make("x dt", x, ("x wide", "dt for x"), ("x wide", "dt for x"), broadcast)
    g.free("dt for x", "x wide")
    _wide(g, "dt for A", "dt", decay)
    g.make("A dt", decay, ("dt for A",), (), weighted, weights=named(mixer, "A_log"), for_weights=("dt for A",))
    g.free("dt for A")
    for name, source, width in (
        ("x", "x dt", mixer.head_dim),
        ("A", "A dt", 1),
        ("B", "B", mixer.state_dim),
        ("C", "C", mixer.state_dim),
    ):
        g.make(f"{name} chunks", _chunks(g, mixer, width), (source,))
    g.free("x dt", "A dt", "B", "C")


def _diagonal_blocks(g: Graph, mixer: Recurrent) -> None:
    """What the tokens of a chunk say to each other: L, G, M and Y = M x. ``einsum`` lays its operands out head by head."""
    mask, per_token = _pairs(g, mixer), _chunks(g, mixer, 1)
    g.make("A sum", per_token, ("A chunks",))
    g.make("A below", mask, ("A chunks",), (), _expanded)
    g.make("A below sum", mask, ("A below",), (), _summed_up)
    g.make("A masked", mask, ("A below sum",))
    g.free("A below sum", "A below")
    g.make("L", mask, ("A masked",), ("L",))
    g.free("A masked")
    with_state, with_width = _chunks(g, mixer, mixer.state_dim), _chunks(g, mixer, mixer.head_dim)
    anew = _is_laid_anew(g, mixer)
    _product(g, "G", mask, {"C chunks": with_state if anew else None, "B chunks": with_state if anew else None})
    g.make("M", mask, ("G", "L"), ("G", "L"), masked if g.run.autocast else None)
    _product(g, "Y", with_width, {"M": None, "x chunks": with_width if _chunk_count(g, mixer) > 1 else None})


def _chunk_states(g: Graph, mixer: Recurrent) -> None:
    """The state each chunk adds, and by their own scan the state each begins with (and the last ends with)."""
    run = g.run
    per_token, with_state = _chunks(g, mixer, 1), _chunks(g, mixer, mixer.state_dim)
    chunks = _chunk_count(g, mixer)
    g.make("decay difference", per_token, ("A sum",))
    g.make("decay", per_token, ("decay difference",), ("decay",))
    g.free("decay difference")
    g.make("B decayed", with_state, ("B chunks", "decay"), ("B chunks", "decay"), broadcast)
    operands = {
        "x chunks": _chunks(g, mixer, mixer.head_dim) if chunks > 1 else None,
        "B decayed": with_state if _is_laid_anew(g, mixer) else None,
    }
    _product(g, "states of chunks", _states(g, mixer, chunks), operands)
    g.hold("states before", _made(g, _states(g, mixer, 1)))
    g.make("states joined", _made(g, _states(g, mixer, chunks + 1)), ("states of chunks",), (), passed_on)
    g.free("states of chunks")
    joined = _states(g, mixer, chunks + 1)
    _product(g, "states new", joined, {"states joined": joined if run.batch > 1 else None})
    g.free("states joined")


def _off_diagonal_blocks(g: Graph, mixer: Recurrent) -> None:
    """What earlier chunks say to a token: C times the state its chunk began with; then the sum with the diagonal."""
    with_width, chunks = _chunks(g, mixer, mixer.head_dim), _chunk_count(g, mixer)
    g.make("decay out", _chunks(g, mixer, 1), ("A sum",), ("decay out",))
    begun = _made(g, _states(g, mixer, chunks))
    g.view("states begun", "states new", sliced, begun)
    with_state = _chunks(g, mixer, mixer.state_dim) if _is_laid_anew(g, mixer) else None
    _product(g, "C states", with_width, {"C chunks": with_state, "states begun": begun if chunks > 1 else None})
    g.free("states begun")
    g.make("Y off", with_width, ("C states", "decay out"), ("C states", "decay out"), broadcast)
    add(g, "Y sum", with_width, "Y", "Y off")
    g.make("Y contiguous", with_width, ("Y sum",), (), passed_on)
    g.free("Y sum")
    add(g, "scanned", with_width, "Y contiguous", "D x")
    g.free("Y contiguous")


def _step(g: Graph, mixer: Recurrent) -> None:
    """One token: state · dA + dB x, then C times the state (``mamba2_selective_state_update``); leaves ``scanned``."""
    run, upcast = g.run, g.run.dtype_bytes != FP32_BYTES
    inner, outer = {"batch": run.batch, "inner": mixer.inner_dim}, {"batch": run.batch, "state": mixer.state_numel}
    narrow, wide = Size(**inner, bytes=run.dtype_bytes), Size(**inner, fp32_bytes=4)
    state, state_wide = Size(**outer, bytes=run.dtype_bytes), Size(**outer, fp32_bytes=4)
    for_heads = Size(batch=run.batch, heads=mixer.num_heads, state=mixer.state_dim, bytes=run.dtype_bytes)
    g.hold("dt biased", narrow)
    g.hold("dt", narrow)
    g.free("dt biased")
    if upcast:
        g.hold("dt wide", wide)
    g.hold("A dt", state_wide)
    g.free("dt wide")
    g.hold("dA", state_wide)
    g.free("A dt")
    g.hold("B", for_heads)
    g.hold("dB", state)
    g.hold("dB x", state)
    g.hold("state decayed", state_wide)
    g.hold("state new", state_wide)
    g.free("state decayed")
    g.hold("C", for_heads)
    if upcast:
        g.hold("state cast", state)
        g.free("state new")
    for name in ("read", "D x", "scanned"):
        g.hold(name, narrow)
    g.free("D x", "read", "dt", "B", "dA", "dB", "dB x", "state cast", "state new", "C")


def _gate(g: Graph, mixer: Recurrent, weights: tuple[Weight, ...]) -> None:
    """The scan's output times silu(gate), normed in groups where there is a norm; leaves ``gated`` in the model's dtype.

    The scan answers in fp32, one step of the recurrence in the model's dtype.
    """
    run = g.run
    narrow, wide = run.rows(mixer.inner_dim), run.upcast(mixer.inner_dim)
    upcast = run.dtype_bytes != FP32_BYTES
    steps = bool(run.past_tokens) and run.sequence == 1
    if not weights:
        _gate_alone(g, narrow, wide, steps=steps)
        return
    scanned = "scanned"
    if steps and upcast:
        scanned = "scan wide"
        g.hold(scanned, wide)
    _wide(g, "gate wide", "gate", wide)
    g.make("gate open", wide, ("gate wide",), ("gate wide",))
    g.free("gate wide")
    multiply(g, "product", wide, scanned, "gate open")
    g.free("gate open", "scan wide")
    g.make("square", wide, ("product",), ("product",), power)
    g.make("root", run.row(mixer.num_groups), ("square",), ("root",))
    g.free("square")
    g.make("normed", wide, ("product", "root"), ("product", "root"), broadcast)
    g.free("product", "root")
    if steps and upcast:
        g.hold("normed cast", narrow)
        g.hold("gated", narrow)
        g.free("normed cast", "normed", "scanned")
        return
    g.make("weighed", wide, ("normed",), (), weighted, weights=weights, for_weights=("normed",))
    g.free("normed")
    if run.parameter_bytes:  # behind fp32 norms it is cast to fp32, and for its product by autocast
        g.view("gated", "weighed")
    else:
        _narrow(g, "gated", "weighed", narrow)
    g.rename("weighed", "scan wide")


def _gate_alone(g: Graph, narrow: Size, wide: Size, *, steps: bool) -> None:
    """Without a norm one step of the recurrence has been gated already."""
    if steps:
        g.rename("scanned", "gated")
        return
    g.make("gate open", narrow, ("gate",), ("gate",))
    multiply(g, "gated wide", wide, "scanned", "gate open")
    g.free("gate open")
    _narrow(g, "gated", "gated wide", narrow)
    g.rename("gated wide", "scan wide")


def _wide(g: Graph, name: str, source: str, size: Size) -> None:
    """An fp32 copy; in an fp32 model the tensor itself."""
    if g.run.dtype_bytes == FP32_BYTES or is_wide(g.size_of(source)):
        g.view(name, source)
    else:
        g.make(name, size, (source,))


def _narrow(g: Graph, name: str, source: str, size: Size) -> None:
    """A copy in the model's dtype; in an fp32 model the tensor itself."""
    if g.run.dtype_bytes == FP32_BYTES:
        g.view(name, source)
    else:
        g.make(name, size, (source,))


def _product(g: Graph, name: str, size: Size, operands: Mapping[str, Size | None]) -> None:
    """A batched matrix product of tensors, those with a size laid out anew for it.

    ``einsum`` is on autocast's 16-bit list: all are cast first.
    """
    cast = {source: _cast(g, name, source) for source in operands}
    inputs = dict(cast)
    for index, (source, anew) in enumerate(operands.items()):
        if anew is not None:
            inputs[source] = f"{name} operand {index}"
            g.make(inputs[source], _made(g, anew), (cast[source],), (), passed_on)
    g.make(name, _made(g, size), tuple(inputs.values()), tuple(inputs.values()))
    g.free(*(read for source, read in inputs.items() if read != cast[source]))
    g.free(*(made for source, made in cast.items() if made != source))


def _is_laid_anew(g: Graph, mixer: Recurrent) -> bool:
    """Whether B and C of (batch, chunks, tokens, heads, state) are copied head by head for ``bmm`` (``sumproduct_pair``'s reshape).

    A single chunk of a single sequence has one stride for all heads, and is viewed. So is a single chunk of x, whatever the
    batch: it comes of the convolution, whose tokens lie side by side.
    """
    return g.run.batch > 1 or _chunk_count(g, mixer) > 1


def _chunk_count(g: Graph, mixer: Recurrent) -> int:
    return -(-g.run.sequence // mixer.chunk_tokens)


def _cast(g: Graph, name: str, source: str) -> str:
    """An operand in 16 bit under autocast, else the operand itself."""
    if not g.run.autocast or not is_wide(g.size_of(source)):
        return source
    made = f"{source} for {name}"
    g.make(made, narrowed(g.size_of(source)), (source,))
    return made


def _made(g: Graph, size: Size) -> Size:
    """What a product makes: under autocast in 16 bit."""
    return narrowed(size) if g.run.autocast else size


def masked(g: Graph, node: Node, gradient: str) -> Gradients:  # noqa: ARG001
    """Of 16-bit scores and an fp32 mask: both gradients in fp32, and that of the scores cast while all else is there."""
    wide = [(tensor, g.held(f"d {tensor} of the mask", node, g.record.sizes[node.out])) for tensor in node.wanted]
    made = [(tensor, name if is_wide(g.record.sizes[tensor]) else g.gradient(tensor, node)) for tensor, name in wide]
    g.consume(*(name for name in dict(wide).values() if name not in dict(made).values()))
    return made


def _expanded(g: Graph, node: Node, gradient: str) -> Gradients:  # noqa: ARG001
    """A masked copy of an expanded tensor: the gradient is masked, then summed to the tensor's own size."""
    rows = g.held(f"d {node.out} masked", node, g.record.sizes[node.out])
    made = [(tensor, g.gradient(tensor, node)) for tensor in node.inputs]
    g.consume(rows)
    return made


def _summed_up(g: Graph, node: Node, gradient: str) -> Gradients:  # noqa: ARG001
    """``cumsum_backward``: the gradient is turned round, summed up, and turned back."""
    size = g.record.sizes[node.out]
    moments = [g.held(f"{node.out} {moment}", node, size) for moment in ("turned", "summed")]
    made = [(tensor, g.gradient(tensor, node)) for tensor in node.inputs]
    g.consume(*moments)
    return made


def _chunks(g: Graph, mixer: Recurrent, width: int) -> Size:
    """``width`` fp32 values for each head and token, padded to whole chunks."""
    return Size(
        batch=g.run.batch,
        chunks=_chunk_count(g, mixer),
        chunk_tokens=mixer.chunk_tokens,
        heads=mixer.num_heads,
        features=width,
        fp32_bytes=4,
    )


def _pairs(g: Graph, mixer: Recurrent) -> Size:
    """One fp32 value for each head and pair of tokens of a chunk."""
    pair = {"chunk_tokens": mixer.chunk_tokens, "chunk_keys": mixer.chunk_tokens}
    return Size(batch=g.run.batch, chunks=_chunk_count(g, mixer), **pair, heads=mixer.num_heads, fp32_bytes=4)


def _states(g: Graph, mixer: Recurrent, count: int) -> Size:
    """``count`` fp32 states of all heads."""
    return Size(
        batch=g.run.batch, states=count, heads=mixer.num_heads, head_dim=mixer.head_dim, state=mixer.state_dim, fp32_bytes=4
    )
