"""How a model's counts are written."""

from __future__ import annotations


def count_words(count: int) -> str:
    """``8.03 B``: a count of parameters as model cards give it."""
    for unit, name in ((10**12, "T"), (10**9, "B"), (10**6, "M")):
        if count >= unit:
            return f"{count / unit:.2f} {name}"
    return f"{count:,}"


def token_words(tokens: int) -> str:
    """``128K`` for 131072; counts that are no multiple of 1024 in full."""
    return f"{tokens // 1024}K" if tokens % 1024 == 0 else f"{tokens:,}"
