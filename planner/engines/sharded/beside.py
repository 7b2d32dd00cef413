"""Tensors that a way of spreading holds for some parts of a step, beside what shards the states."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from planner.architecture.layers import Architecture, Attention
from planner.components.tape import Course, Size
from planner.components.trainable import Trainable
from planner.engines.around import Around, Blocks, Moment
from planner.engines.sharded.layout import Ways
from planner.scenario import Training

FP32_BYTES = 4
Holds = Mapping[Moment, Sequence[tuple[str, str, Size, int]]]
"""Component, name, size and how many more (fewer) there are from a moment on."""


class Beside(Around):
    """What is held and given up at some moments, around what ``inner`` does."""

    def __init__(self, inner: Around, holds: Holds) -> None:
        self._inner, self._holds = inner, holds
        self.holds_gradients = inner.holds_gradients

    def adds_gradients(self, *, accumulating: bool) -> bool:
        """As the sharding does."""
        return self._inner.adds_gradients(accumulating=accumulating)

    def owned(self, tensors: tuple[Trainable, ...]) -> tuple[Trainable, ...]:
        """As the sharding does."""
        return self._inner.owned(tensors)

    def stored(self, tensors: tuple[Trainable, ...]) -> tuple[Trainable, ...]:
        """As the sharding does."""
        return self._inner.stored(tensors)

    def at(self, moment: Moment, course: Course) -> None:
        """What goes goes before the sharding's own turn, what comes comes behind it."""
        own = self._holds.get(moment, ())
        for component, name, size, count in own:
            if count < 0:
                course.hold(component, name, size, count)
        self._inner.at(moment, course)
        for component, name, size, count in own:
            if count > 0:
                course.hold(component, name, size, count, where="collectives")

    def forward(self, blocks: Blocks) -> Blocks:
        """As the sharding does."""
        return self._inner.forward(blocks)

    def backward(self, blocks: Blocks) -> Blocks:
        """As the sharding does."""
        return self._inner.backward(blocks)


def gathered_head(architecture: Architecture, ask: Training, ways: Ways, bytes_: int) -> Holds:
    """The rank's part of the logits, which stays beside the gathered ones until the model returns."""
    columns = -(-architecture.vocab_size // ways.tensor)
    size = Size(batch=ask.batch, sequence=(ask.sequence or 1) // ways.context, vocab_of_rank=columns, bytes=bytes_)
    return {"head": [("logits", "logits of the rank", size, 1)], "loss": [("logits", "logits of the rank", size, -1)]}


def gathered_keys(architecture: Architecture, ask: Training, ways: Ways, bytes_: int) -> Holds:
    """Keys and values of the whole sequence, gathered for the widest layer at hand, and gradients of a rank's on their way round.

    torch 2.13 ``tensor/experimental/_context_parallel/_attention.py``: the forward rotates by all-gather, which torchtitan and
    accelerate leave so; the backward passes fp32 gradients from rank to rank, two at once.
    """
    mixers = [mixer for layer in architecture.decoder.layers for mixer in layer.sequence if isinstance(mixer, Attention)]
    width = max((mixer.num_kv_heads * (mixer.head_dim + mixer.value_head_dim) for mixer in mixers), default=0)
    whole, own = ask.sequence or 1, (ask.sequence or 1) // ways.context
    gathered = Size(batch=ask.batch, whole_sequence=whole, keys_and_values=width, bytes=bytes_)
    passed = Size(batch=ask.batch, sequence=own, keys_and_values=width, fp32_bytes=FP32_BYTES)
    here, there = ("communication", "gathered keys and values", gathered), ("communication", "gradients passed round", passed)
    return {
        "layers": [(*here, 1)], "head": [(*here, -1)],
        "layers backward": [(*here, 1), (*there, 2)], "embeddings backward": [(*here, -1), (*there, -2)],
    }  # fmt: skip
