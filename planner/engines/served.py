"""Which module answers for which serving engine, loaded for those who ask."""

from __future__ import annotations

import importlib
from collections.abc import Callable

from planner.footprint import Footprint

Answer = Callable[..., Footprint]
"""(scenario, architecture, fmt, gpu, machine, capacity_bytes, notes) → the footprint."""
SERVED = {
    "vllm": ("planner.engines.vllm.answer", "vllm_answer"),
    "sglang": ("planner.engines.sglang.answer", "sglang_answer"),
    "tensorrt-llm": ("planner.engines.tensorrt_llm", "tensorrt_llm_answer"),
    "tgi": ("planner.engines.tgi", "tgi_answer"),
}


def serving_answer(engine: str) -> Answer:
    """The function that answers for a serving engine."""
    module, name = SERVED[engine]
    answer: Answer = getattr(importlib.import_module(module), name)
    return answer


def told_apart(gpu_name: str) -> tuple[object, ...]:
    """What the memory of servers depends on of a card's name."""
    from planner.engines.tgi_launcher import CARD_TERAFLOPS  # noqa: PLC0415  loaded for those who ask
    from planner.engines.vllm.answer import multiprocessors  # noqa: PLC0415  loaded for those who ask
    from planner.engines.vllm.settings import LARGE_BY_NAME, SPARK  # noqa: PLC0415  loaded for those who ask

    name = gpu_name.lower()
    known = next((teraflops for card, teraflops in CARD_TERAFLOPS if gpu_name.startswith(card)), 0)
    return multiprocessors(gpu_name), known, *(part in name for part in ("a100", SPARK, *LARGE_BY_NAME))
