"""Normalisations as transformers 5.23 writes them: each lists its tensors in the order of the code."""

from __future__ import annotations

from planner.architecture.implementation import NormVariant
from planner.architecture.layers import Norm
from planner.components.autocast import as_wide_as, is_wide, widened
from planner.components.fused_kernels import fused_rms_norm
from planner.components.graph import Graph, Node
from planner.components.rules import Gradients, broadcast, power, weighted
from planner.components.run import FP32_BYTES
from planner.components.tape import Size


def norm_forward(g: Graph, norm: Norm, name: str, source: str, rows: int = 1, variant: NormVariant | None = None) -> None:
    """The norm of ``source``, as ``name``; ``rows`` of them for each token (heads). ``variant``: the family's unless said."""
    variant = variant or g.run.code.norm
    with as_wide_as(g, source):
        if variant == "centred":
            _centred(g, norm, name, source, rows)
        elif norm.kind == "layer" and variant == "wide" and g.run.dtype_bytes != FP32_BYTES:
            _wide_layer_norm(g, norm, name, source, rows)
        elif norm.kind == "layer":
            _layer_norm(g, norm, name, source, rows)
        elif "rms_norm" in g.run.fused:
            fused_rms_norm(g, norm, name, source, rows)
        else:
            _rms_norm(g, norm, name, source, rows, variant)


def _layer_norm(g: Graph, norm: Norm, name: str, source: str, rows: int) -> None:
    """``torch.nn.LayerNorm``: one kernel, that keeps its input, the means and the reciprocal deviations.

    It is on autocast's fp32 list: an input in 16 bit is cast, and the result is fp32.
    """
    size, row, read = g.run.rows(norm.width, rows), g.run.row(rows), source
    if g.run.autocast:
        size = widened(size)
        if not is_wide(g.size_of(source)):
            read = f"{name} input fp32"
            g.make(read, widened(g.size_of(source)), (source,))
    g.hold(f"{name} mean", row)
    g.hold(f"{name} deviation", row)
    saves = (read, f"{name} mean", f"{name} deviation")
    g.make(name, size, (read,), saves, _layer_norm_rule, weights=norm.weights)
    g.free(f"{name} mean", f"{name} deviation")
    if read != source:
        g.free(read)


def _wide_layer_norm(g: Graph, norm: Norm, name: str, source: str, rows: int) -> None:
    """``OlmoLayerNorm``: the kernel over a copy in fp32, its result cast back."""
    wide = g.run.upcast(norm.width, rows)
    parts = (f"{name} fp32", f"{name} mean", f"{name} deviation")
    g.make(parts[0], wide, (source,))
    for part in parts[1:]:
        g.hold(part, g.run.row(rows))
    g.make(f"{name} wide", wide, parts[:1], parts, _layer_norm_rule, weights=norm.weights)
    g.free(*parts)
    g.make(name, g.run.rows(norm.width, rows), (f"{name} wide",))
    g.free(f"{name} wide")


def _layer_norm_rule(g: Graph, node: Node, gradient: str) -> Gradients:  # noqa: ARG001
    """``native_layer_norm_backward``: the input's gradient, the weight's and the bias's."""
    made = [(tensor, g.gradient(tensor, node)) for tensor in node.inputs]
    g.weight_gradients(node)
    g.settle_weight_gradients(node)
    return made


def _rms_norm(g: Graph, norm: Norm, name: str, source: str, rows: int, variant: NormVariant) -> None:
    """fp32 copy, square, mean, reciprocal root, product; then the weight, before or after the cast back.

    ``cast`` (``LlamaRMSNorm``): cast, then weight. ``wide`` (``Olmo2RMSNorm``, ``GptOssRMSNorm``): weight in fp32, then
    cast. ``added`` (``GemmaRMSNorm``): the same with 1 + weight, written so that the unweighted product goes before the
    cast. ``nested`` (``Llama4TextRMSNorm``): as ``cast``, the product gone as soon as it is cast; ``none``: without a weight.
    ``narrow`` (``T5LayerNorm``): as ``nested``, but it is the input itself that is multiplied.
    In an fp32 model copies and casts are the tensors themselves.
    """
    run = g.run
    wide, narrow, row = run.upcast(norm.width, rows), run.rows(norm.width, rows), run.row(rows)
    upcast = run.dtype_bytes != FP32_BYTES
    fp32, scaled = f"{name} fp32", f"{name} scaled"
    if upcast:
        g.make(fp32, wide, (source,))
    else:
        g.view(fp32, source)
    g.make(f"{name} square", wide, (fp32,), (fp32,), power)
    g.make(f"{name} variance", row, (f"{name} square",))
    g.free(f"{name} square")
    root = f"{name} root"
    g.make(root, row, (f"{name} variance",), (root,))
    if variant == "narrow":
        g.free(fp32)
        g.make(scaled, wide, (source, root), (source, root), _mixed if upcast else broadcast)
    else:
        g.make(scaled, wide, (fp32, root), (fp32, root), broadcast)
    g.free(fp32, root)
    if variant in ("wide", "added"):
        _weight_then_cast(g, norm, name, scaled, wide, narrow, early=variant == "added")
    else:
        cast = _cast(g, f"{name} cast", scaled, narrow)
        if variant != "cast":
            g.free(scaled)
        if variant == "none":
            g.rename(cast, name)
        else:
            # Under autocast the weight is fp32 beside a 16-bit result, and their product is fp32.
            result = widened(narrow) if run.autocast and (run.parameter_bytes or run.compute_bytes) else narrow
            g.make(name, result, (cast,), (), weighted, weights=norm.weights, for_weights=(cast,))
            g.free(cast)
    g.free(f"{name} variance", *(() if variant == "none" else (scaled,)))


def _mixed(g: Graph, node: Node, gradient: str) -> Gradients:  # noqa: ARG001
    """x · root, x in 16 bit and the root in fp32: both gradients in fp32 rows, then x's cast and the root's summed."""
    source, root = node.inputs
    size = g.record.sizes[node.out]
    rows = g.held(f"d {root} rows", node, size)
    made = [(source, g.held(f"d {source} wide", node, size)), (root, g.gradient(root, node))]
    g.consume(rows)
    return made


def _weight_then_cast(g: Graph, norm: Norm, name: str, scaled: str, wide: Size, narrow: Size, *, early: bool) -> None:
    weighed = f"{name} weighed"
    g.make(weighed, wide, (scaled,), (), weighted, weights=norm.weights, for_weights=(scaled,))
    if early:
        g.free(scaled)
    if g.run.dtype_bytes == FP32_BYTES:
        g.rename(weighed, name)
        return
    g.make(name, narrow, (weighed,))
    g.free(weighed)


def _cast(g: Graph, name: str, source: str, narrow: Size) -> str:
    """Back to the model's dtype; in an fp32 model the tensor itself."""
    if g.run.dtype_bytes == FP32_BYTES:
        g.view(name, source)
    else:
        g.make(name, narrow, (source,))
    return name


def _centred(g: Graph, norm: Norm, name: str, source: str, rows: int) -> None:
    """``CohereLayerNorm``: written out in fp32, with a weight and no bias."""
    run = g.run
    wide, narrow, row = run.upcast(norm.width, rows), run.rows(norm.width, rows), run.row(rows)
    fp32, mean, root, centred, scaled = (f"{name} {part}" for part in ("fp32", "mean", "root", "centred", "scaled"))
    g.make(fp32, wide, (source,))
    g.make(mean, row, (fp32,))
    g.make(f"{name} difference", wide, (fp32, mean), (), _difference)
    g.make(f"{name} square", wide, (f"{name} difference",), (f"{name} difference",), power)
    g.make(f"{name} variance", row, (f"{name} square",))
    g.free(f"{name} difference", f"{name} square")
    g.make(centred, wide, (fp32, mean), (), _difference)
    g.make(root, row, (f"{name} variance",), (root,))
    g.make(scaled, wide, (centred, root), (centred, root), broadcast)
    g.free(centred, root, fp32)
    g.make(f"{name} weighed", wide, (scaled,), (), weighted, weights=norm.weights, for_weights=(scaled,))
    g.free(scaled)
    g.make(name, narrow, (f"{name} weighed",))
    g.free(f"{name} weighed", mean, f"{name} variance")


def _difference(g: Graph, node: Node, gradient: str) -> Gradients:
    """x − mean: the gradient itself, and its negative, summed to the means."""
    tensor, mean = node.inputs
    negative = g.held(f"d {mean} rows", node, g.record.sizes[node.out])
    made = g.gradient(mean, node)
    g.consume(negative)
    return [(tensor, g.share(gradient)), (mean, made)]
