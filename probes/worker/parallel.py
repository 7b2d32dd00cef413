"""How the processes of one run share its work, read from the order. Without torch: what starts them needs none."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .errors import WorkerError

_FIELD = "scenario.parallel"
_ALONE = ("pipeline", "expert", "context")


@dataclass(frozen=True)
class Layout:
    """How the ranks share the work: ``ddp``, ``fsdp`` or ``tensor``."""

    kind: str
    ranks: int


def world() -> int:
    """How many ranks there are; 1 without torchrun."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def layout_of(parallel: Mapping[str, Any], task: str, ranks: int) -> Layout:
    """What ``scenario.parallel`` asks of ``ranks`` processes. Raises :class:`WorkerError` (unsupported)."""
    for name in _ALONE:
        if int(parallel.get(name) or 1) > 1:
            raise unsupported(name, "cannot be measured; measure data or tensor parallel, or predict it")
    tensor, data = int(parallel.get("tensor") or 1), int(parallel.get("data") or 1)
    sharding = str(parallel.get("sharding") or "none")
    if tensor > 1 and (data > 1 or sharding != "none"):
        raise unsupported("tensor", "is measured alone: set data to 1 and sharding to none")
    if tensor > 1:
        return Layout("tensor", ranks)
    if sharding not in ("none", "fsdp"):
        raise unsupported("sharding", f"{sharding} is DeepSpeed's and cannot be measured; fsdp can")
    if task == "inference":
        raise unsupported("data", "replicas of an inference do as one does: measure one, or tensor parallel")
    return Layout("fsdp" if sharding == "fsdp" else "ddp", ranks)


def unsupported(key: str, message: str) -> WorkerError:
    """The error for a key of ``scenario.parallel``."""
    return WorkerError("unsupported", f"{_FIELD}.{key}: {message}", f"{_FIELD}.{key}")
