"""Inverse answers are exact: what they name fits, its neighbour does not."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.defaults import settle
from planner.formats import parse_format
from planner.predict import predict
from planner.scenario import parse_scenario
from planner.solve import (
    GOOD,
    Asked,
    cheapest_layout,
    context_of,
    fewest_gpus,
    largest_batch,
    largest_count,
    largest_format,
    layouts,
    longest_context,
    with_context,
    with_values,
)
from planner.units import GIB
from resources.plan import find_gpu, find_model

MODELS = ("meta-llama/Llama-3.1-8B", "google/gemma-3-1b-it", "Qwen/Qwen3-0.6B", "mistralai/Mistral-7B-v0.1")
ENGINES = ("transformers", "vllm", "sglang", "llama.cpp", "training")


def ask(model: str, engine: str, capacity_bytes: int | None = None, card: str = "A100 SXM4 80GB", **work: object) -> Asked:
    task = "training" if engine == "training" else "inference"
    work = work if task == "training" else {"engine": engine, "new_tokens": 64, **work}
    weights = "fp16" if engine == "llama.cpp" else "native"
    hardware = {"gpu": card, "capacity_bytes": capacity_bytes}
    document = {"version": 1, "model": model, "task": task, "weights": weights, task: work, "hardware": hardware}
    found = find_model(model, network=False)
    scenario, _ = settle(parse_scenario(document), found.architecture, found.architecture.dtype)
    return Asked(scenario, found.architecture, find_gpu(card), found.native)


@given(st.integers(0, 3000), st.integers(0, 3000))
def test_the_largest_count_is_found(edge, most) -> None:
    """Of a monotone question the last count that fits is found, in a few dozen tries."""
    tried = []

    def fits(count: int) -> bool:
        tried.append(count)
        return count <= edge

    assert largest_count(fits, most) == min(edge, most)
    assert len(tried) <= 2 * most.bit_length() + 2


asked = st.builds(
    ask,
    st.sampled_from(MODELS),
    st.sampled_from(ENGINES),
    st.integers(4 * GIB, 90 * GIB),
    batch=st.integers(1, 8),
)


@settings(max_examples=40)
@given(asked)
def test_one_more_sequence_does_not_fit(question) -> None:
    batch = largest_batch(question)
    assert batch == 0 or question.fits(with_values(question.scenario, batch=batch))
    assert not question.fits(with_values(question.scenario, batch=batch + 1))


@settings(max_examples=40)
@given(asked)
def test_one_more_token_does_not_fit_or_is_beyond_the_model(question) -> None:
    tokens = longest_context(question)
    least = 1 if question.scenario.task == "training" else 2
    if tokens:
        longest = with_context(question.scenario, tokens)
        assert context_of(longest) == tokens
        assert question.fits(longest)
    if tokens < question.architecture.max_context_tokens:
        assert not question.fits(with_context(question.scenario, max(tokens + 1, least)))


@settings(max_examples=40)
@given(asked, st.integers(1, 40), st.integers(0, 40), st.integers(2, 9000), st.integers(0, 9000))
def test_what_fits_fits_with_less(question, batch, more, tokens, further) -> None:
    """Searches for counts are sound: no verdict gets better with a larger batch or a longer context."""
    small = with_context(with_values(question.scenario, batch=batch), tokens)
    large = with_context(with_values(question.scenario, batch=batch + more), tokens + further)
    assert question.fits(small) or not question.fits(large)


def test_the_fewest_gpus_and_their_layout() -> None:
    question = ask("meta-llama/Llama-3.1-70B", "vllm", prompt_tokens=4096)
    found = cheapest_layout(question)
    assert found is not None
    assert fewest_gpus(question) == found.hardware.gpus == found.parallel.tensor * found.parallel.pipeline
    assert question.fits(found)
    for count in range(1, found.hardware.gpus):
        assert not any(question.fits(one) for one in layouts(question.scenario, count))
    assert fewest_gpus(question, most=1) is None


def test_the_format_gives_up_no_more_than_it_must() -> None:
    question = ask(MODELS[0], "vllm", 16 * GIB, prompt_tokens=1024, max_model_len=2048)
    formats = [parse_format(name) for name in ("bf16", "fp8", "gptq-int4-g128", "nf4")]
    found = largest_format(question, formats)
    assert found is not None
    assert found.name == "fp8"
    assert largest_format(ask(MODELS[0], "vllm", 2 * GIB), formats) is None


@pytest.mark.parametrize("engine", ENGINES)
def test_a_footprint_states_its_limits(engine) -> None:
    question = ask(MODELS[0], engine, batch=2)
    found = predict(question.scenario, question.architecture, question.gpu, question.native)
    assert found.verdict in (*GOOD, "does_not_fit")
    assert set(found.limits) >= {"max_batch", "max_context", "kv_tokens", "max_concurrency", "min_gpus"}
    assert found.limits["max_batch"] == largest_batch(question) or engine in ("vllm", "sglang")
    assert (found.limits["kv_tokens"] is None) == (engine == "training")
