"""What a sharding does around the parts of a training step on one rank: gathers before them, reduces after them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from planner.components.tape import Course, Span
from planner.components.trainable import Trainable

Moment = Literal[
    "forward", "layers", "head", "loss", "backward", "head backward", "layers backward", "embeddings backward", "end", "optimizer"
]  # fmt: skip
"""Before which part something happens. ``loss``: behind the loss, when the model's forward returns; ``end``: of the backward."""
Blocks = Sequence[tuple[Span, Sequence[int]]]
"""A span for each kind of layer, and the positions it stands at."""


class Around:
    """One rank alone: nothing happens around its step. ``holds_gradients``: what earlier micro-batches left is its own matter."""

    holds_gradients: bool = False
    waiting_bytes: int = 0
    """Of buffers that are given up while the card still reads them: the allocator takes as much anew."""

    def adds_gradients(self, *, accumulating: bool) -> bool:
        """Whether autograd's gradients are added (or copied) one by one to tensors that are there already."""
        return accumulating

    def owned(self, tensors: tuple[Trainable, ...]) -> tuple[Trainable, ...]:
        """The trained parameters as this rank's optimizer meets them."""
        return tensors

    def stored(self, tensors: tuple[Trainable, ...]) -> tuple[Trainable, ...]:
        """Adapters as they lie on this rank's card."""
        return tensors

    def at(self, moment: Moment, course: Course) -> None:
        """What happens before a part of the step."""

    def forward(self, blocks: Blocks) -> Blocks:
        """The forward of the layers with what happens around each."""
        return blocks

    def backward(self, blocks: Blocks) -> Blocks:
        """The backward of the layers with what happens around each."""
        return blocks


ALONE = Around()
