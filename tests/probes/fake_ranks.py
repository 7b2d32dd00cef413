"""Sharded training steps over a process group that moves nothing, their storages counted on the CPU."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch


class Unlabelled:
    """Every storage is a workspace: totals alone are compared."""

    def component_of(self, func: object, tensor: object, ident: int) -> int:
        return 7


@contextlib.contextmanager
def ranks(world: int, rank: int = 0) -> Iterator[None]:
    """A process group without processes: collectives return at once."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    torch.distributed.init_process_group("fake", store=FakeStore(), rank=rank, world_size=world)
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()


def two_steps(tracker: Any, model: Any, optimizer: Any, shape: tuple[int, int], micro: int = 1) -> dict[str, int]:
    """The most bytes held in each phase of the second of two steps, ``micro`` batches of ``shape`` in each."""
    found: dict[str, int] = {}
    for _ in range(2):
        for _ in range(micro):
            ids = torch.randint(0, model.config.vocab_size, shape)
            tracker.begin_phase()
            loss = model(input_ids=ids, labels=ids, use_cache=False).loss
            found["forward"] = tracker.peak
            tracker.begin_phase()
            loss.backward()
            del loss
            found["backward"] = tracker.peak
        tracker.begin_phase()
        optimizer.step()
        found["optimizer"] = tracker.peak
        optimizer.zero_grad()
    return found
