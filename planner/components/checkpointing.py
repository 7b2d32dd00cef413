"""Gradient checkpointing: which layers compute again in the backward, what they keep, and where.

transformers 5.23 ``activation_checkpointing_enable`` (layers, every n-th, inputs on the host), torch 2.13 ``utils/checkpoint.py``
(reentrant or not, operators that are not run again), and checkpoints around a part of each layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from planner.architecture.layers import Architecture, Layer, MixtureOfExperts
from planner.components.layer import Laid, layer_backward, layer_forward, layer_recomputed, layer_recomputed_whole
from planner.components.run import Run
from planner.components.tape import Span
from planner.engine_options import whole
from planner.modelled import NotModelled
from planner.record import record
from planner.scenario import Training

SELECTIVE_EVERY = 2
"""Selective checkpointing recomputes every second layer unless another option says what it recomputes."""
OPERATORS = ("mm", "mm/2", "attention")
"""Operators whose results selective checkpointing can keep; ``mm/2``: those of every second one, as torchtitan does."""


@record
class Checkpointing:
    """``every`` n-th layer computes again (0: none does as a whole), or the ``part`` of each.

    ``keeps``: operators whose results stay; ``offloads``: the layers' inputs are held in pinned host memory.
    """

    every: int = 0
    reentrant: bool = False
    part: str = ""
    keeps: tuple[str, ...] = ()
    offloads: bool = False

    def __bool__(self) -> bool:
        """Whether whole layers are checkpoints."""
        return self.every > 0

    def covers(self, index: int) -> bool:
        """Whether the layer at a position is a checkpoint."""
        return self.every > 0 and index % self.every == 0

    def parted(self, places: Sequence[int]) -> list[tuple[bool, tuple[int, ...]]]:
        """The positions that are checkpoints and those that are not, where there are some."""
        found = {covered: tuple(place for place in places if self.covers(place) is covered) for covered in (True, False)}
        return [(covered, places) for covered, places in found.items() if places]

    def forward(self, layer: Layer, run: Run, *, covered: bool) -> Laid:
        """One layer with autograd on."""
        if not covered:
            return layer_forward(layer, replace(run, recomputes=self.part) if self.part else run, saving=True)
        run = replace(run, keeps=self.keeps) if self.keeps else run
        return layer_forward(layer, run, saving=False, keeps_input=not self.offloads)

    def backward(self, layer: Layer, run: Run, laid: Laid, *, covered: bool) -> Span:
        """The layer's backward."""
        if not covered:
            return layer_backward(replace(run, recomputes=self.part) if self.part else run, laid)
        if self.reentrant:
            return layer_recomputed_whole(layer, run, offloaded=self.offloads)
        run = replace(run, keeps=self.keeps) if self.keeps else run
        return layer_recomputed(layer, run, laid, offloaded=self.offloads)

    def host_bytes(self, input_bytes: int, layers: int) -> int:
        """What is in pinned host memory: the input of every layer that is a checkpoint."""
        return -(-layers // self.every) * input_bytes if self.offloads else 0


def checkpointing_of(training: Training, architecture: Architecture | None = None) -> Checkpointing:
    """What a scenario asks for. Raises :class:`NotModelled` for what excludes each other, or is not derived for the model."""
    options = training.engine_options
    if training.checkpointing == "none":
        return Checkpointing()
    offloads, reentrant = bool(options.get("checkpoint_offload")), bool(options.get("use_reentrant"))
    if training.checkpointing == "full":
        return Checkpointing(1, reentrant, offloads=offloads)
    part = str(options.get("checkpoint_modules", "layers"))
    if part != "layers":
        if part == "mlp" and architecture is not None and any(map(_has_experts, architecture.decoder.layers)):
            raise NotModelled("training.engine_options.checkpoint_modules: experts alone are not derived; choose layers")
        if part == "attention" and architecture is not None and not all(map(_attends_alone, architecture.decoder.layers)):
            raise NotModelled(
                "training.engine_options.checkpoint_modules: attention beside another mixer is not derived; choose layers"
            )
        return Checkpointing(part=part)
    keeps = tuple(name.strip() for name in str(options.get("checkpoint_saves", "")).split(",") if name.strip())
    if keeps and reentrant:
        raise NotModelled("training.engine_options.checkpoint_saves: the reentrant implementation keeps no results; turn it off")
    if set(keeps) - set(OPERATORS):
        raise NotModelled(f"training.engine_options.checkpoint_saves: choose of {', '.join(OPERATORS)}")
    return Checkpointing(whole(options, "checkpoint_every", 1 if keeps else SELECTIVE_EVERY), reentrant, "", keeps, offloads)


def _attends_alone(layer: Layer) -> bool:
    return len(layer.sequence) == 1


def _has_experts(layer: Layer) -> bool:
    return any(isinstance(channel, MixtureOfExperts) for channel in layer.channel)
