"""Mixtures of experts as transformers 5.23 computes them (integrations/moe.py): one grouped product for all experts."""

from __future__ import annotations

from planner.architecture.layers import DenseMLP, MixtureOfExperts
from planner.components.activations import activate
from planner.components.graph import Graph, add, linear, multiply
from planner.components.mlp import mlp_forward
from planner.components.run import FP32_BYTES
from planner.components.tape import Size


def moe_forward(g: Graph, mixer: MixtureOfExperts, source: str, target: str) -> None:
    """Router, routed experts, shared experts: reads ``source``, leaves ``target``."""
    shared = _shared(mixer)
    _router(g, mixer, source)
    if g.run.code.experts == "dense":
        _dense_experts(g, mixer, source, "routed")
    else:
        _grouped_experts(g, mixer, source, "routed")
    if shared is None:
        g.rename("routed", target)
    else:
        mlp_forward(g, shared, source, "shared")
        add(g, target, g.run.hidden(), "routed", "shared")
        g.free("routed", "shared")
    g.free("router logits", "router scores", "selected")


def _router(g: Graph, mixer: MixtureOfExperts, source: str) -> None:
    """Scores of all experts. DeepSeek's kind multiplies in fp32: a copy of what it reads, and of its weight."""
    run, code = g.run, g.run.code
    wide = Size(batch=run.batch, sequence=run.sequence, num_experts=mixer.num_experts, fp32_bytes=4)
    if code.router in ("sigmoid_fp32", "softmax_fp32"):
        g.hold("router input fp32", run.upcast(run.hidden_size))
        g.hold("router weight fp32", Size(num_experts=mixer.num_experts, hidden_size=run.hidden_size, fp32_bytes=4))
        g.hold("router logits", wide)
        g.free("router input fp32", "router weight fp32")
        g.hold("router scores", wide)
        return
    linear(g, "router logits", source, run.rows(mixer.num_experts))
    g.hold("router scores fp32", wide)
    g.hold("router scores", wide)
    g.free("router scores fp32")


def _grouped_experts(g: Graph, mixer: MixtureOfExperts, source: str, target: str) -> None:
    """``grouped_mm_experts_forward``: each token's vector once for each of its experts, sorted by expert; then back."""
    run, routing = g.run, FP32_BYTES if g.run.code.routing == "fp32" else g.run.dtype_bytes
    narrow, weighed = _routed(g, mixer, run.hidden_size), _routed(g, mixer, run.hidden_size, routing)
    g.make("selected", narrow, (source,))
    (_clamped if g.run.code.router == "topk" else _gated)(g, mixer)
    g.make("expert output", narrow, ("product",))
    g.free("product")
    g.make("weighed", weighed, ("expert output",))
    g.make("weighed in order", weighed, ("weighed",))
    g.free("weighed")
    if routing == run.dtype_bytes:
        g.make(target, run.hidden(), ("weighed in order",))
    else:
        g.make("summed", run.upcast(run.hidden_size), ("weighed in order",))
        g.make(target, run.hidden(), ("summed",))
    g.free("selected", "expert output", "weighed in order", "summed", "down bias")


def _gated(g: Graph, mixer: MixtureOfExperts) -> None:
    size = _routed(g, mixer, mixer.intermediate_size)
    rows = 2 if mixer.gated else 1
    g.make("gate and up", _routed(g, mixer, rows * mixer.intermediate_size), ("selected",))
    activate(g, mixer.activation, "gate and up", "activated", size)
    if mixer.gated:
        multiply(g, "product", size, "activated", "gate and up")
        g.free("activated")
    else:
        g.rename("activated", "product")
    g.free("gate and up")


def _clamped(g: Graph, mixer: MixtureOfExperts) -> None:
    """gpt-oss: biases gathered for every row, gate and up clamped, gate · sigmoid(α · gate) · (up + 1)."""
    size, both = _routed(g, mixer, mixer.intermediate_size), _routed(g, mixer, 2 * mixer.intermediate_size)
    g.hold("up bias", both)
    g.make("gate and up", both, ("selected",))
    for name, gone in (("gate", ""), ("up", ""), ("scaled", ""), ("open", "scaled"), ("glu", "open"), ("up and one", "")):
        g.hold(name, size)
        g.free(gone)
    g.hold("product", size)
    g.free("up and one", "gate", "up", "glu", "gate and up")
    g.hold("down bias", _routed(g, mixer, g.run.hidden_size))
    g.free("up bias")


def _dense_experts(g: Graph, mixer: MixtureOfExperts, source: str, target: str) -> None:
    """Llama 4: every expert computes every token, weighed beforehand, zero where it was not chosen."""
    narrow = _every(g, mixer, g.run.hidden_size)
    g.make("repeated", narrow, (source,))
    g.make("selected", narrow, ("repeated",))
    g.free("repeated")
    _dense(g, mixer)
    g.make("expert output", narrow, ("product",))
    g.free("product", "gate and up")
    g.rename("expert output", target)


def _dense(g: Graph, mixer: MixtureOfExperts) -> None:
    size = _every(g, mixer, mixer.intermediate_size)
    g.make("gate and up", _every(g, mixer, 2 * mixer.intermediate_size), ("selected",))
    g.make("activated", size, ("gate and up",))
    multiply(g, "product", size, "activated", "gate and up")
    g.free("activated")


def _routed(g: Graph, mixer: MixtureOfExperts, width: int, bytes_: int = 0) -> Size:
    run = g.run
    return Size(
        batch=run.batch, sequence=run.sequence, experts_per_token=mixer.experts_per_token, features=width,
        bytes=bytes_ or run.dtype_bytes,
    )  # fmt: skip


def _every(g: Graph, mixer: MixtureOfExperts, width: int) -> Size:
    run = g.run
    return Size(batch=run.batch, sequence=run.sequence, num_experts=mixer.num_experts, features=width, bytes=run.dtype_bytes)


def _shared(mixer: MixtureOfExperts) -> DenseMLP | None:
    """The shared experts as one feed-forward block."""
    width = mixer.shared_intermediate_size
    if not width:
        return None
    weights = tuple(weight for weight in mixer.weights if "shared" in weight.name and weight.role in ("linear", "bias"))
    return DenseMLP(width, mixer.gated, mixer.activation, weights)
