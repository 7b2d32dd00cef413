"""The gated short convolution of LFM2 as transformers 5.23 computes it where the ``causal_conv1d`` kernels are missing."""

from __future__ import annotations

from planner.architecture.layers import Recurrent
from planner.components.autocast import in_16_bit
from planner.components.graph import Graph
from planner.components.operators import linear, multiply
from planner.components.recurrent.convolution import convolution_rule
from planner.components.recurrent.mamba2 import modules
from planner.components.recurrent.states import CONV_STATE, conv_state
from planner.components.rules import sliced
from planner.components.tape import Size


def short_conv_forward(g: Graph, mixer: Recurrent, source: str, target: str) -> None:
    """B, C, x = projection; C · conv(B · x); output projection (``Lfm2ShortConv.slow_forward``)."""
    with in_16_bit(g):
        _short_conv_forward(g, mixer, source, target)


def _short_conv_forward(g: Graph, mixer: Recurrent, source: str, target: str) -> None:
    run, kernel, weights = g.run, mixer.conv_kernel, modules(mixer)
    one = {"batch": run.batch, "channels": mixer.conv_channels, "bytes": run.dtype_bytes}
    inner = run.rows(mixer.inner_dim)
    steps = bool(run.past_tokens) and run.sequence == 1
    linear(g, "B C x", source, run.rows(3 * mixer.inner_dim), weights["in_proj"])
    g.parts("B C x", {"B in": inner, "C in": inner, "x in": inner})
    multiply(g, "B x", inner, "B in", "x in")
    if steps:
        g.hold("conv input", Size(**one, tokens=kernel + 1))
        g.hold("convolved", Size(**one, tokens=2))
    else:
        if run.cached:
            g.hold(CONV_STATE, conv_state(mixer, run), "recurrent_state")
        size = Size(**one, tokens=run.sequence + kernel - 1)
        g.make("convolved", size, ("B x",), ("B x",), convolution_rule, weights=weights.get("conv", ()))
    g.view("convolved tokens", "convolved", sliced, inner)
    g.free("conv input", "B x")
    multiply(g, "gated", inner, "C in", "convolved tokens")
    linear(g, target, "gated", run.hidden(), weights["out_proj"])
    g.free("gated", "convolved tokens", "convolved", "B in", "C in", "x in", "B C x")
