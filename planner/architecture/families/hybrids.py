"""Layers put together from kinds of mixers: what the hybrid families share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from planner.architecture.blocks import (
    block,
)
from planner.architecture.config import Config
from planner.architecture.families.llama_like import PRE
from planner.architecture.families.moe import (
    DENSE,
)
from planner.architecture.layers import (
    ChannelMixer,
    Layer,
    SequenceMixer,
)

LINEAR = "linear_attention"
PRE_FF = ("input_layernorm", "pre_ff_layernorm")


def hybrid(
    config: Config,
    types: tuple[str, ...],
    mixers: dict[str, Callable[[], SequenceMixer]],
    channels: dict[str, Callable[[], ChannelMixer]],
    channel_types: tuple[str, ...] | None = None,
    norms: dict[str, tuple[str, ...]] | tuple[str, ...] = PRE,
    **options: Any,
) -> list[Layer]:
    """Layers from kinds of sequence mixers and of channel mixers; equal ones are one object."""
    channel_types = channel_types or (DENSE,) * len(types)
    made_mixers = {name: mixers[name]() for name in dict.fromkeys(types)}
    made_channels = {name: channels[name]() for name in dict.fromkeys(channel_types)}

    def layer(kind: tuple[str, str]) -> Layer:
        names = norms[kind[0]] if isinstance(norms, dict) else norms
        return block(config, made_mixers[kind[0]], made_channels[kind[1]], norms=names, **options)

    kinds = list(zip(types, channel_types, strict=False))
    made = {kind: layer(kind) for kind in dict.fromkeys(kinds)}
    return [made[kind] for kind in kinds]
