"""Kernels from other packages that some layers use when they are installed, and what runs where they are not."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

_NEEDED = (("Mamba", "mamba_ssm", "mamba-ssm"), ("DeltaNet", "fla", "flash-linear-attention"))
"""What the names of such layers have in common, the package's import and its name."""


def missing_kernels(model: Any) -> list[str]:
    """A note for each package that is not installed though layers of the model would use it."""
    names = {type(module).__name__ for module in model.modules()}
    return [
        f"{part} layers run as torch operators, as they do on a GPU where {package} is not installed; its kernels take less."
        for part, module, package in _NEEDED
        if any(part in name for name in names) and find_spec(module) is None
    ]
