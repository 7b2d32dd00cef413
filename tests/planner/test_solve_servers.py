"""Inverse answers of every engine, over splits that come out even and splits that don't: the neighbour does not fit."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.faults import Faults
from planner.predict import predict
from planner.scenario import INFERENCE_ENGINES, parse_scenario
from planner.solve import Asked, cheapest_layout, layouts, with_context, with_values
from planner.units import GIB
from resources.plan import find_gpu, find_model

SERVERS = ("vllm", "sglang", "tensorrt-llm", "tgi")
CARD = "A100 SXM4 80GB"
SPLITS = ((1, 1), (2, 1), (4, 1), (1, 2), (1, 3), (1, 5), (2, 3), (1, 7))
"""Tensor and pipeline ways: 28, 32 and 27 layers divide by few of them."""
MODELS = ("meta-llama/Llama-3.1-8B", "google/gemma-2-9b", "Qwen/Qwen2.5-7B", "deepseek-ai/DeepSeek-V2-Lite")


def ask(
    model: str, engine: str, capacity_bytes: int | None, split: tuple[int, int] = (1, 1), card: str = CARD, **work: int
) -> Asked:
    tensor, pipeline = split
    document = {
        "model": model,
        "task": "inference",
        "weights": "fp16" if engine == "llama.cpp" else "native",
        "inference": {"engine": engine, "max_model_len": 2048, "new_tokens": 64, **work},
        "hardware": {"gpu": card, "gpus": tensor * pipeline, "capacity_bytes": capacity_bytes},
        "parallel": {"tensor": tensor, "pipeline": pipeline},
    }
    found = find_model(model, network=False)
    return Asked(parse_scenario(document), found.architecture, find_gpu(card), found.native)


def limits(question: Asked) -> dict[str, int | None]:
    try:
        return dict(predict(question.scenario, question.architecture, question.gpu, question.native).limits)
    except Faults:
        return {}


asked = st.builds(
    ask, st.sampled_from(MODELS), st.sampled_from(SERVERS), st.integers(6 * GIB, 80 * GIB), st.sampled_from(SPLITS),
    batch=st.integers(1, 6), prompt_tokens=st.integers(16, 1500),
)  # fmt: skip


@settings(max_examples=25)
@given(asked)
def test_of_the_requests_a_server_states_all_fit_and_one_more_waits_or_is_preempted(question) -> None:
    batch = limits(question).get("max_batch")
    if batch is None:
        return
    assert batch == 0 or question.fits(with_values(question.scenario, batch=batch))
    more = with_values(question.scenario, batch=batch + 1)
    found = predict(more, question.architecture, question.gpu, question.native)
    assert found.verdict == "does_not_fit" or any("the rest wait" in note for note in found.notes)


@settings(max_examples=25)
@given(asked)
def test_the_longest_context_a_server_states_fits_and_the_next_does_not(question) -> None:
    """Requests as long as stated fit; one token more outgrows the pool or the server's own limit."""
    tokens = limits(question).get("max_context")
    if not tokens or tokens < 2 or not question.fits(question.scenario):
        return
    assert question.fits(with_context(question.scenario, tokens))
    assert not question.fits(with_context(question.scenario, tokens + 1))


@pytest.mark.parametrize("engine", INFERENCE_ENGINES)
@pytest.mark.parametrize("model", ["Qwen/Qwen2.5-32B", "Qwen/Qwen3-30B-A3B"])
def test_fewer_gpus_do_not_do_however_they_are_split(engine, model) -> None:
    """Three or four cards of 24 GiB for 60 GB: no layout of fewer fits, among them those whose stages differ."""
    question = ask(model, engine, None, card="RTX 4090 24GB", batch=1, prompt_tokens=500)
    found = cheapest_layout(question)
    assert found is not None
    assert found.hardware.gpus in (3, 4)
    assert question.fits(found)
    tried = [one for count in range(1, found.hardware.gpus) for one in layouts(question.scenario, count)]
    assert tried
    assert not any(question.fits(one) for one in tried)
