"""Mixers with a constant state per sequence, by their kind."""

from __future__ import annotations

from collections.abc import Callable

from planner.architecture.layers import Recurrent
from planner.components.graph import Graph
from planner.components.recurrent.delta_net import delta_net_forward
from planner.components.recurrent.kimi_delta import kimi_delta_forward
from planner.components.recurrent.lightning import lightning_forward
from planner.components.recurrent.mamba import mamba_forward
from planner.components.recurrent.mamba2 import mamba2_forward
from planner.components.recurrent.short_conv import short_conv_forward

FORWARDS: dict[str, Callable[[Graph, Recurrent, str, str], None]] = {
    "gated_delta_net": delta_net_forward,
    "kimi_delta": kimi_delta_forward,
    "lightning": lightning_forward,
    "mamba": mamba_forward,
    "mamba2": mamba2_forward,
    "short_conv": short_conv_forward,
}
"""Kinds with a closed form, laid as operators from ``source`` to ``target``: their backward follows."""


def unmodelled_recurrent(mixer: Recurrent) -> str:
    """Why a mixer has no closed form, in words; empty when it has."""
    if mixer.kind not in FORWARDS:
        return f"{mixer.kind} mixers"
    projected = any("in_proj_qkv" in weight.name or ".g_proj" in weight.name for weight in mixer.weights)
    if mixer.kind == "gated_delta_net" and not projected:
        return "delta nets with projections of their own"
    return ""


def recurrent_forward(g: Graph, mixer: Recurrent, source: str, target: str) -> None:
    """A recurrent mixer: reads ``source``, which stays, leaves ``target`` and, where there is a cache, its states."""
    FORWARDS[mixer.kind](g, mixer, source, target)
