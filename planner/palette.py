"""How components are painted everywhere: a colour for light and for dark grounds, and a hatch as the second cue."""

from __future__ import annotations

from dataclasses import dataclass

SOLID, DIAGONAL, BACKWARD, DOTS, CROSS, HORIZONTAL = "solid", "diagonal", "backward", "dots", "cross", "horizontal"


@dataclass(frozen=True, slots=True)
class Fill:
    """A colour pair and a hatch."""

    light: str
    dark: str
    hatch: str = SOLID


FILLS: dict[str, Fill] = {
    "weights": Fill("#3b6fb6", "#5b8fd6"),
    "other_models": Fill("#3b6fb6", "#5b8fd6", HORIZONTAL),
    "adapters": Fill("#3b6fb6", "#5b8fd6", DIAGONAL),
    "quantization_state": Fill("#3b6fb6", "#5b8fd6", DOTS),
    "kv_cache": Fill("#e08a1e", "#e59a3c"),
    "recurrent_state": Fill("#e08a1e", "#e59a3c", DIAGONAL),
    "activations": Fill("#2f9e8f", "#45b5a6"),
    "logits": Fill("#d8c24a", "#d9c65c", BACKWARD),
    "workspace": Fill("#7fb8a4", "#6fa894", DIAGONAL),
    "gradients": Fill("#9650a4", "#b878c4"),
    "optimizer_state": Fill("#bd4c66", "#d0708a"),
    "master_weights": Fill("#5a4fa3", "#8a80d0", BACKWARD),
    "communication": Fill("#56b4e9", "#6cc0ee", HORIZONTAL),
    "cuda_graphs": Fill("#9a7b4f", "#b3946a", CROSS),
    "cuda_context": Fill("#7c8797", "#7d8898"),
    "allocator_slack": Fill("#b9c1cc", "#565f6d", DIAGONAL),
}
FALLBACK = Fill("#7c8797", "#7d8898", CROSS)
"""For a component the vocabulary lacks."""
