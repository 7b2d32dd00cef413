"""The launch line or config that realises a plan, for the engine it was made for and its version.

One function an engine turns a settled scenario (see :func:`planner.defaults.settle`) into one or more :class:`Command`.
What a plan asks for and the engine has no switch for is said in the command's notes, never left out silently.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from planner.commands.command import Command
from planner.commands.llama_cpp import llama_cpp
from planner.commands.serving import sglang, tensorrt_llm, tgi, vllm
from planner.commands.training import training
from planner.commands.transformers import generation

if TYPE_CHECKING:
    from collections.abc import Callable

    from planner.architecture.layers import Architecture
    from planner.gpu import Gpu
    from planner.scenario import Scenario

INFERENCE: dict[str, Callable[[Scenario], tuple[Command, ...]]] = {
    "vllm": vllm,
    "sglang": sglang,
    "tensorrt-llm": tensorrt_llm,
    "tgi": tgi,
    "llama.cpp": llama_cpp,
}
HALVED = ("vllm", "sglang", "tgi")
"""Servers that run bf16 as fp16 where the card has no bf16, and refuse it where it is forced."""


def commands_of(scenario: Scenario, architecture: Architecture | None = None, gpu: Gpu | None = None) -> tuple[Command, ...]:
    """Every command and file that runs ``scenario``, in the order in which they are used.

    ``architecture``: the model's, by which transformers is told which of its modules lie on the host. ``gpu``: the card, by which
    a server is told the dtype that it can run there.
    """
    if scenario.task == "training":
        return training(scenario)
    if scenario.inference.engine == "transformers":
        return generation(scenario, architecture)
    if gpu is not None and gpu.lacks_bf16 and scenario.weights == "bf16" and scenario.inference.engine in HALVED:
        scenario = replace(scenario, weights="fp16")
    return INFERENCE[scenario.inference.engine](scenario)


__all__ = ["Command", "commands_of"]
