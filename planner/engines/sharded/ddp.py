"""DistributedDataParallel (torch/nn/parallel/distributed.py, torch/csrc/distributed/c10d/reducer.cpp).

Every rank holds everything, and a copy of all gradients in buckets that are made once and kept. Buckets are rebuilt after
the first backward in the order in which gradients came: the first closes at 1 MiB, the others at 25. With
``gradient_as_bucket_view`` gradients lie in the buckets: what autograd makes is copied into them and goes.
"""

from __future__ import annotations

from planner.components.tape import Level, Size, rounded
from planner.components.trainable import Trainable
from planner.engines.around import Around
from planner.memo import remember_by_identity
from planner.units import MIB

BUCKET_CAP_MIB = 25
FIRST_BUCKET_BYTES = MIB
"""``dist._DEFAULT_FIRST_BUCKET_BYTES``, where the cap was not set."""


class Replicated(Around):
    """DDP around a step: nothing comes or goes, the buckets stay."""

    def __init__(self, *, view: bool) -> None:
        self.holds_gradients = view

    def adds_gradients(self, *, accumulating: bool) -> bool:
        """Gradients that lie in the buckets are there always."""
        return accumulating or self.holds_gradients

    def hold(self, level: Level, tensors: tuple[Trainable, ...], cap_mib: int | None) -> None:
        """The buckets, from the wrapping on."""
        buckets = bucket_bytes(tensors, cap_mib)
        size = Size.stated(sum(buckets), "gradients · bytes, laid in buckets", bytes=sum(buckets), buckets=len(buckets))
        level.change("gradients" if self.holds_gradients else "communication", "gradient buckets", size, 1)


@remember_by_identity(64)
def bucket_bytes(tensors: tuple[Trainable, ...], cap_mib: int | None) -> list[int]:
    """Bytes of each bucket (``compute_bucket_assignment_by_size``): closed once it has reached its cap.

    ``tensors`` in the order of the forward; their gradients come in the reverse.
    """
    caps = [FIRST_BUCKET_BYTES, BUCKET_CAP_MIB * MIB] if cap_mib is None else [cap_mib * MIB] * 2
    found: list[int] = []
    size = 0
    for tensor in reversed(tensors):
        for _ in range(tensor.times):
            size += tensor.numel * tensor.dtype_bytes
            if size >= caps[min(len(found), 1)]:
                found.append(rounded(size))
                size = 0
    return [*found, rounded(size)] if size else found
