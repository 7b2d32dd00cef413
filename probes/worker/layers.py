"""Fewer layers of a model, from its config alone. Needs no torch, so that a prediction can be cut the same way."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

LAYER_KEYS = (
    "num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers", "decoder_layers", "num_decoder_layers",
)  # fmt: skip
"""What families call the number of their layers."""


def keep_layers(config: Mapping[str, Any], layers: int) -> dict[str, Any]:
    """The config of the same model with its first ``layers`` layers, in nested text configs too; vision towers stay whole.

    Lists and strings with one entry per layer are cut alike.
    """
    kept = deepcopy(dict(config))
    for key, value in kept.items():
        if isinstance(value, dict) and "patch_size" not in value and any(name in value for name in LAYER_KEYS):
            kept[key] = keep_layers(value, layers)
    for key in LAYER_KEYS:
        whole = kept.get(key)
        if isinstance(whole, int) and whole > layers:
            kept |= {name: value[:layers] for name, value in kept.items() if _per_layer(value, whole)}
            kept |= _sharing(kept, whole, layers)
            kept[key] = layers
    return kept


def _per_layer(value: object, layers: int) -> bool:
    return isinstance(value, list | str) and len(value) == layers


def _sharing(config: Mapping[str, Any], whole: int, layers: int) -> dict[str, int]:
    """The last layers reuse the caches of those before them: the first ``layers`` layers keep their own kind."""
    shared = config.get("num_kv_shared_layers")
    return {"num_kv_shared_layers": max(0, layers - (whole - shared))} if isinstance(shared, int) else {}
