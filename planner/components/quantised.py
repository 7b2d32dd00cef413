"""Products with quantised weights: what exists for a moment beside the input and the result, by scheme.

Sources: bitsandbytes 0.50 (``autograd/_functions.py``, ``nn/modules.py``, ``backends/cuda/ops.py``); GPTQModel's Marlin
kernels, which need no whole weight, and those that train (``nn_modules/qlinear/tritonv2.py``, ``torch.py``), which do;
transformers 5.23 ``integrations/finegrained_fp8.py``. Frozen weights, no autograd.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, cast

from planner.architecture.counts import is_routed
from planner.architecture.implementation import implementation_of
from planner.architecture.layers import Architecture, MixtureOfExperts, Weight
from planner.components.tape import Level, Size
from planner.formats.format import EXPERTS, Format, Override, scheme_of
from planner.formats.storage import Awq, BitsAndBytes4Bit, Gptq, Plain, Scaled, Scheme
from planner.modelled import NotModelled
from planner.record import record

if TYPE_CHECKING:
    from planner.components.graph import Graph

FEW_ROWS = 4
"""Up to so many rows the 4-bit kernel of bitsandbytes needs no whole weight (``_GEMM_4BIT_CUSTOM_FLOOR_M``)."""
FP8_BLOCK = 128
ROWS = ("batch", "sequence", "tokens", "keys", "experts_per_token")
"""Factors of a result's size that are its rows: its tokens, those of one expert, or all that are cached."""
ABSMAX_BLOCK = 64
KNOWN = ("nf4", "nf4-dq", "fp4", "fp4-dq", "int8", "fp8", "fp8-block", "mxfp4", "gptq", "awq")
"""Formats whose products are derived, by name or by what stands before its first number."""


@record
class QuantisedWeights:
    """The format a model's linears are held in (:func:`planner.formats.resolve_format` has filled it in)."""

    fmt: Format
    on_host: bool = False
    """Plain weights that the host holds: a module's come to the GPU for its product and go after it."""
    has_narrow_ends: bool = False
    """Embeddings and head are in 16 bit beside norms in fp32."""
    saves_inputs: bool = False
    """Products of 4-bit weights keep their input, which nobody reads (bitsandbytes before 0.43.2)."""

    @property
    def rest_dtype(self) -> str:
        """The dtype of what is not quantised, in which everything is computed."""
        return self.fmt.rest_dtype or "bf16"

    def level(self, architecture: Architecture) -> Level:
        """The weights as they lie on the device."""
        from planner.components.states import stored_weights  # noqa: PLC0415  states need the run, which needs this

        return stored_weights(architecture, self.fmt, 4 if self.rest_dtype == "fp32" else 2)

    def scheme(self, weights: Sequence[Weight]) -> Scheme | None:
        """How a linear's weight is stored; None when it is left as it was."""
        weight = next((weight for weight in weights if weight.role != "bias"), None)
        if weight is None:
            return None
        if self.on_host:
            return None if is_routed(weight) else Plain(self.rest_dtype)
        found = scheme_of(self.fmt, weight, "model.layers.*.")
        return None if isinstance(found, Plain) else found

    def is_four_bit(self, weights: Sequence[Weight]) -> bool:
        """Whether a linear's weight is one of bitsandbytes' 4-bit kinds."""
        return isinstance(self.scheme(weights), BitsAndBytes4Bit)


def with_narrow_ends(fmt: Format, architecture: Architecture) -> QuantisedWeights:
    """The format with embeddings and head in bf16, whatever else is not quantised is in."""
    modules = (weight.name.removesuffix(".weight") for weight in (*architecture.embeddings, *architecture.head))
    ends = Override(tuple(modules), Plain("bf16"))
    return QuantisedWeights(replace(fmt, overrides=(ends, *fmt.overrides)), has_narrow_ends=True)


def is_known(fmt: Format) -> bool:
    """Whether the products of a format are derived."""
    return fmt.name in KNOWN or fmt.name.partition("-")[0] in ("gptq", "awq")


def require_modelled_experts(fmt: Format, architecture: Architecture) -> None:
    """Raise :class:`NotModelled` where experts are held in the format and how transformers multiplies them is not derived.

    FP8: gated experts without biases that are called by their routes (``FP8Experts``). MXFP4: those of gpt-oss
    (``Mxfp4GptOssExperts``).
    """
    mixers = [
        channel for layer in architecture.decoder.layers for channel in layer.channel if isinstance(channel, MixtureOfExperts)
    ]
    code = implementation_of(architecture)
    if not fmt.quantizes & EXPERTS or not (mixers or fmt.quantizes - EXPERTS):
        fits = bool(fmt.quantizes - EXPERTS)
    elif fmt.name == "mxfp4":
        fits = code is not None and code.router == "topk"
    else:
        biased = any(is_routed(weight) and weight.role == "bias" for mixer in mixers for weight in mixer.weights)
        dense = code is None or code.experts == "dense" or biased or not all(mixer.gated for mixer in mixers)
        fits = not mixers or (fmt.name in ("fp8", "fp8-block") and not dense)
    if not fits:
        raise NotModelled(
            f"weights: transformers runs no experts of {architecture.model_class} held in {fmt.name}, or it is not derived"
        )


def hold_product(g: Graph, scheme: Scheme, weights: Sequence[Weight], name: str, size: Size, component: str) -> None:
    """The result ``name`` of a product, and what exists beside it until it is there; a bias is added in a tensor of its own."""
    if isinstance(scheme, Plain):
        _fetched(g, weights, name, size, component)
        return
    biased = any(weight.role == "bias" for weight in weights)
    _product(g, scheme, weights[0], f"{name} without bias" if biased else name, size, component)
    if biased:
        g.hold(name, size, component)
        g.free(f"{name} without bias")


def _fetched(g: Graph, weights: Sequence[Weight], name: str, size: Size, component: str) -> None:
    held = hold_from_host(g, weights)
    g.hold(name, size, component)
    g.free(*held)


def hold_from_host(g: Graph, weights: Sequence[Weight]) -> list[str]:
    """A module's parameters that come to the GPU for its forward (accelerate's ``AlignDevicesHook``): what to free after it."""
    if g.run.quantised is None or not g.run.quantised.on_host:
        return []
    held = [f"{weight.name} from the host" for weight in weights]
    for label, weight in zip(held, weights, strict=True):
        dimensions = {f"dim{index}": extent for index, extent in enumerate(weight.shape)}
        g.hold(label, Size(count=weight.count, **dimensions, bytes=g.run.dtype_bytes))
    return held


def _product(g: Graph, scheme: Scheme, weight: Weight, name: str, size: Size, component: str) -> None:
    if isinstance(scheme, BitsAndBytes4Bit):
        _four_bit(g, scheme, weight, name, size, component)
    elif isinstance(scheme, Scaled) and scheme.dtype == "int8":
        _eight_bit(g, weight, name, size, component)
    elif isinstance(scheme, Scaled):
        _fp8(g, weight, name, size, component)
    elif isinstance(scheme, Gptq | Awq):
        _packed(g, weight, name, size, component)
    else:
        raise NotImplementedError(f"products of {scheme.dtype} weights")


def rows_of(size: Size) -> dict[str, int]:
    """How many rows a product has: the factors of its result that are not features."""
    return {factor: cast("int", count) for factor, count in size.values.items() if factor in ROWS}


def _packed(g: Graph, weight: Weight, name: str, size: Size, component: str) -> None:
    """Marlin needs no whole weight but does not train (``SUPPORTS_TRAINING``); what trains makes it whole for each product."""
    outputs, inputs = weight.shape
    whole = f"{name} whole weight"
    if g.run.adapters is not None:
        g.hold(whole, Size(out_features=outputs, in_features=inputs, bytes=g.run.dtype_bytes))
    with g.operator("mm"):
        g.hold(name, size, component)
    g.free(whole)


def _four_bit(g: Graph, scheme: BitsAndBytes4Bit, weight: Weight, name: str, size: Size, component: str) -> None:
    """``MatMul4Bit``: the whole weight in the compute dtype, its scales made fp32 first where they are nested."""
    outputs, inputs = weight.shape
    if math.prod(rows_of(size).values()) <= FEW_ROWS:
        g.hold(name, size, component)
        return
    if scheme.double_quant:
        g.hold(f"{name} scales", Size(blocks=-(-outputs * inputs // ABSMAX_BLOCK), fp32_bytes=4))
    g.hold(f"{name} whole weight", Size(out_features=outputs, in_features=inputs, bytes=g.run.dtype_bytes))
    g.free(f"{name} scales")
    with g.operator("mm"):
        g.hold(name, size, component)
    g.free(f"{name} whole weight")


def _eight_bit(g: Graph, weight: Weight, name: str, size: Size, component: str) -> None:
    """``MatMul8bitLt``: the input in fp16 and in int8 with a scale a row, int32 sums, the result in fp16, then as asked."""
    outputs, inputs = weight.shape
    rows = rows_of(size)
    half = g.run.quantised is not None and g.run.quantised.rest_dtype == "fp16"
    if not half:
        g.hold(f"{name} input fp16", Size(**rows, in_features=inputs, fp16_bytes=2))
    g.hold(f"{name} input int8", Size(**rows, in_features=inputs))
    g.hold(f"{name} input scales", Size(**rows, fp32_bytes=4))
    g.free(f"{name} input fp16")
    g.hold(f"{name} sums", Size(**rows, out_features=outputs, int32_bytes=4))
    g.hold(name if half else f"{name} fp16", Size(**rows, out_features=outputs, fp16_bytes=2), component)
    g.free(f"{name} input int8", f"{name} input scales", f"{name} sums")
    if not half:
        g.hold(name, size, component)
        g.free(f"{name} fp16")


def _fp8(g: Graph, weight: Weight, name: str, size: Size, component: str) -> None:
    """``fp8_linear``, and of all experts at once ``fp8_grouped_matmul``: the input in FP8, a scale for 128 values of a row."""
    inputs = weight.shape[1]
    rows = rows_of(size)
    g.hold(f"{name} input fp8", Size(**rows, in_features=inputs))
    g.hold(f"{name} input scales", Size(**rows, blocks=-(-inputs // FP8_BLOCK), fp32_bytes=4))
    g.hold(name, size, component)
    g.free(f"{name} input fp8", f"{name} input scales")
