"""Linears whose products run in 8-bit floats while they train: what they keep, and what each cast and product holds.

Source: torchao 0.18 ``float8/float8_linear.py``. Autograd keeps the input and the weight as they came. For each of the three
products its operands are cast anew: times a scale in fp32 (``float8_training_tensor.py``), clamped in a tensor of its own
(``float8_utils.py``, ``to_fp8_saturated``), then narrowed. ``torch._scaled_mm`` takes its first operand by rows and its second by
columns; what lies otherwise is copied (``float8_ops.py``, ``preprocess_addmm``). In the backward rows with scales of their own are
multiplied by the kernel of one scale, and scaled afterwards by fp32 numbers as many as the result's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from planner.architecture.counts import layer_groups, layer_weights
from planner.architecture.implementation import implementation_of
from planner.architecture.layers import Architecture, Attention, LatentAttention, Weight
from planner.components.autocast import CACHED, is_wide, narrowed
from planner.components.quantised import rows_of
from planner.components.tape import Size
from planner.modelled import NotModelled
from planner.record import record
from planner.scenario import Scenario, Training

if TYPE_CHECKING:
    from planner.components.graph import Graph, Node
    from planner.components.rules import Gradients

RECIPES = ("tensorwise", "rowwise", "rowwise_with_gw_hp")
"""``Float8LinearRecipeName``: one scale a tensor, one a row, and one a row with the weight's gradient in 16 bit."""
DEFAULT_RECIPE = "tensorwise"
"""``Float8LinearConfig()``."""
MULTIPLE = 16
"""``torch._scaled_mm`` takes columns and inner dimensions that are multiples of it."""
FP32_BYTES = 4
CONV1D = ("gpt2", "openai-gpt")
"""Types whose linears are transformers' ``Conv1D``, which torchao passes over."""


@record
class Float8:
    """Products in 8 bit by a recipe; ``spared``: linears of the first layer that stay as they were."""

    recipe: str
    spared: tuple[str, ...] = ()

    def at(self, index: int) -> Float8:
        """Of the layer at a position."""
        return self if index == 0 or not self.spared else replace(self, spared=())

    @property
    def by_row(self) -> bool:
        """Whether rows have scales of their own."""
        return self.recipe != "tensorwise"

    def converts(self, weights: Sequence[Weight]) -> bool:
        """Whether a linear is converted (accelerate ``utils/ao.py``, ``filter_linear_layers``)."""
        weight = next((weight for weight in weights if weight.role != "bias"), None)
        if weight is None or weight.name in self.spared or not (weight.role == "linear" or weight.is_linear):
            return False
        return len(weight.shape) == 2 and not any(extent % MULTIPLE for extent in weight.shape)


def products_in_8_bit(training: Training) -> Float8 | None:
    """What a training's precision asks for, of every linear that fits."""
    return Float8(str(training.engine_options.get("fp8_recipe", DEFAULT_RECIPE))) if training.precision == "fp8" else None


def float8_of(scenario: Scenario, architecture: Architecture) -> Float8 | None:
    """The same without the linear that stays as it was. Raises :class:`NotModelled` for what no derivation covers."""
    ask = scenario.training
    float8 = products_in_8_bit(ask)
    if float8 is None:
        return None
    layers = architecture.decoder.layers
    code = implementation_of(architecture)
    plain = all(isinstance(mixer, Attention | LatentAttention) for layer in layers for mixer in layer.sequence)
    asked = {
        f"training.method: {ask.method}": ask.method not in ("full", "freeze"),
        f"training.objective: {ask.objective}": ask.objective != "sft",
        f"{architecture.model_class}: linears of its own, or other mixers than attention,": (
            architecture.kind != "decoder" or code is None or code.own_linears or architecture.model_type in CONV1D or not plain
        ),
        "training.engine_options.compile": bool(ask.engine_options.get("compile")),
        "training.engine_options.fused_kernels": bool(ask.engine_options.get("fused_kernels")),
        "training.engine_options.checkpoint_saves": bool(ask.engine_options.get("checkpoint_saves")),
    }
    for what, holds in asked.items():
        if holds:
            raise NotModelled(f"{what} with precision fp8 has no closed form yet")
    return replace(float8, spared=first_linear(architecture))


def first_linear(architecture: Architecture) -> tuple[str, ...]:
    """The first linear of the model, which accelerate leaves as it is, by the name it has in its layer."""
    layer = architecture.decoder.layers[0]
    weights = (weight for mixer in (*layer.sequence, *layer.channel) for weight in mixer.weights)
    return tuple(weight.name for weight in weights if weight.role == "linear")[:1]


def float8_product(
    g: Graph, float8: Float8, name: str, source: str, size: Size, weights: Sequence[Weight], component: str, *, copies: bool
) -> None:
    """The product ``name`` of ``source`` and a weight; a bias is added in a tensor of its own."""
    read, weight = source, weights[0]
    if g.run.autocast and is_wide(g.size_of(source)):
        read = f"{name} input {CACHED}"
        g.make(read, narrowed(g.size_of(source)), (source,))
    biased = len(weights) > 1
    out = f"{name} without bias" if biased else name
    held = _cast(g, f"{name} input", g.size_of(read), rows_of(size) if float8.by_row else {})
    held += _cast(g, f"{name} weight", _of_weight(g, weight), {"rows": weight.shape[0]} if float8.by_row else {})
    rule = partial(_backward, float8=float8, weight=weight)
    with g.operator("mm"):
        g.make(out, size, (read,), (read,), rule, component=component, weights=weights[:1], moment=size if copies else None)
    g.free(*held)
    if read != source:
        g.free(read)
    if biased:
        g.make(name, size, (out,), (), _summed, component=component, weights=weights[1:])
        g.free(out)


def _cast(g: Graph, name: str, size: Size, scales: dict[str, int]) -> list[str]:
    """A tensor in 8 bit and its scales: what is held of it until its product is there."""
    dims = {key: value for key, value in size.values.items() if key not in ("bytes", "fp32_bytes")}
    wide, narrow = Size(**dims, fp32_bytes=FP32_BYTES), Size(**dims)  # type: ignore[arg-type]
    g.hold(f"{name} scales", Size(**scales, fp32_bytes=FP32_BYTES))
    if not is_wide(size):
        g.hold(f"{name} fp32", wide)
    g.hold(f"{name} scaled", wide)
    g.free(*(() if is_wide(size) else (f"{name} fp32",)))
    g.hold(f"{name} clamped", wide)
    g.hold(f"{name} fp8", narrow)
    g.free(f"{name} scaled", f"{name} clamped")
    return [f"{name} fp8", f"{name} scales"]


def _backward(g: Graph, node: Node, gradient: str, *, float8: Float8, weight: Weight) -> Gradients:  # noqa: ARG001
    """The gradient of the input, then the weight's; both are made, whichever is asked for."""
    (source,), out = node.inputs, g.record.sizes[node.out]
    name, rows = f"d {node.out}", rows_of(out) if float8.by_row else {}
    held = [g.held(f"{name} by token", node, node.moment)] if node.moment is not None else []
    held += _cast(g, f"{name} by rows", out, rows)
    inputs = {"columns": weight.shape[1]} if float8.by_row else {}
    held += _cast(g, f"{node.out} weight", _of_weight(g, weight), inputs)
    beside = [_hold(g, f"{node.out} weight by columns", _narrow(_of_weight(g, weight)))]
    if float8.by_row:
        beside.append(_hold(g, f"{name} scales of the result", _fp32(g.record.sizes[source])))
    made = [(source, g.gradient(source, node))]
    g.consume(*beside)
    beside = []
    if float8.recipe != "rowwise_with_gw_hp":
        held += _cast(g, f"{name} by columns", out, {"columns": weight.shape[0]} if float8.by_row else {})
        held += _cast(g, f"{node.out} input", g.record.sizes[source], inputs)
        beside = [_hold(g, f"{name} turned", _narrow(out)), _hold(g, f"{node.out} input turned", _narrow(g.record.sizes[source]))]
        if float8.by_row:
            beside.append(_hold(g, f"{weight.name} scales of the gradient", _fp32(_of_weight(g, weight))))
    _weight_gradient(g, node, weight, [*held, *beside])
    return made


def _weight_gradient(g: Graph, node: Node, weight: Weight, held: Sequence[str]) -> None:
    """It is made in 16 bit; autograd drops it where the weight is frozen, and widens it for one in fp32."""
    wide = g.run.gradient_bytes == FP32_BYTES
    if node.trains and not wide:
        g.weight_gradients(node)
        g.consume(*held)
    else:
        half = _hold(g, f"{weight.name} gradient in 16 bit", narrowed(_of_weight(g, weight)))
        g.consume(*held)
        g.weight_gradients(node)
        g.consume(half)
    g.settle_weight_gradients(node)


def _summed(g: Graph, node: Node, gradient: str) -> Gradients:
    """A bias that was added: its gradient is the sum over all tokens."""
    g.weight_gradients(node)
    g.settle_weight_gradients(node)
    return [(tensor, g.share(gradient)) for tensor in node.wanted]


def _hold(g: Graph, name: str, size: Size) -> str:
    g.hold(name, size)
    return name


def _of_weight(g: Graph, weight: Weight) -> Size:
    return Size(out_features=weight.shape[0], in_features=weight.shape[1], bytes=g.run.gradient_bytes)


def _narrow(size: Size) -> Size:
    return Size(**{key: value for key, value in size.values.items() if key not in ("bytes", "fp32_bytes")})  # type: ignore[arg-type]


def _fp32(size: Size) -> Size:
    return Size(**_narrow(size).values, fp32_bytes=FP32_BYTES)  # type: ignore[arg-type]


CAST_BYTES = 31
"""What casting a 16-bit value moves, one kernel after another: its magnitude (2 read, 2 written), the highest of them (2), fp32
(2, 4), scaled (4, 4), clamped (4, 4), narrowed (4, 1)."""


def cast_values(architecture: Architecture, float8: Float8, tokens: int) -> int:
    """Values that a forward of ``tokens`` casts: of each converted linear its input and its weight.

    A backward casts twice as many or fewer: the gradient of the result twice, weight and input once more.
    """
    total = 0
    for layer, times in layer_groups(architecture.decoder):
        weights = [weight for weight in layer_weights(layer) if float8.converts((weight,))]
        total += times * sum(weight.shape[1] * (tokens + weight.shape[0]) for weight in weights)
    return total
