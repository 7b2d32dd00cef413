"""The gated short convolution of LFM2 as transformers 5.23 computes it where the ``causal_conv1d`` kernels are missing."""

from __future__ import annotations

from planner.architecture.layers import Recurrent
from planner.components.graph import Graph
from planner.components.recurrent.states import CONV_STATE, conv_state
from planner.components.tape import Size


def short_conv_forward(g: Graph, mixer: Recurrent, target: str) -> None:
    """B, C, x = projection; C · conv(B · x); output projection (``Lfm2ShortConv.slow_forward``)."""
    run, kernel = g.run, mixer.conv_kernel
    one = {"batch": run.batch, "channels": mixer.conv_channels, "bytes": run.dtype_bytes}
    inner = run.rows(mixer.inner_dim)
    steps = bool(run.past_tokens) and run.sequence == 1
    g.hold("B C x", run.rows(3 * mixer.inner_dim))
    g.hold("B x", inner)
    if steps:
        g.hold("conv input", Size(**one, tokens=kernel + 1))
        g.hold("convolved", Size(**one, tokens=2))
    else:
        if run.cached:
            g.hold(CONV_STATE, conv_state(mixer, run), "recurrent_state")
        g.hold("convolved", Size(**one, tokens=run.sequence + kernel - 1))
    g.free("conv input", "B x")
    g.hold("gated", inner)
    g.hold(target, run.hidden())
    g.free("gated", "convolved", "B C x")
