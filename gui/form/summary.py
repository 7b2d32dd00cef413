"""One short paragraph on what a model is."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from resources.plan import Plan


def summary(plan: Plan) -> str:
    """Parameters, layers and context limit, with where the model was found."""
    architecture = plan.architecture
    parts = []
    if plan.footprint.parameters is not None:
        parts.append(f"{count_words(plan.footprint.parameters)} parameters")
    parts.append(f"{len(architecture.decoder.layers)} layers")
    parts.append(f"hidden {architecture.hidden_size:,}")
    if architecture.max_context_tokens:
        parts.append(f"context {token_words(architecture.max_context_tokens)}")
    return " · ".join([*parts, architecture.dtype])


def count_words(count: int) -> str:
    """``8.03 B``: a count of parameters as model cards give it."""
    for unit, name in ((10**12, "T"), (10**9, "B"), (10**6, "M")):
        if count >= unit:
            return f"{count / unit:.2f} {name}"
    return f"{count:,}"


def token_words(tokens: int) -> str:
    """``128K`` for 131072; counts that are no multiple of 1024 in full."""
    return f"{tokens // 1024}K" if tokens % 1024 == 0 else f"{tokens:,}"
