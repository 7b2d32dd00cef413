"""Every cell of a grid is the prediction of its point."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.faults import Faults
from planner.predict import answer_alone, predict
from planner.scenario import parse_scenario
from planner.solve import GOOD, Asked, on_card
from planner.sweep import VERDICTS, context_grid, gpu_matrix, on_gpus, smallest_gpu, speed_curve, sweep
from resources.gpus import find_gpus
from resources.plan import find_gpu, find_model

CARD = "A100 SXM4 80GB"
MODELS = (
    "meta-llama/Llama-3.1-8B",
    "google/gemma-3-1b-it",
    "Qwen/Qwen3-30B-A3B",
    "mistralai/Mistral-7B-v0.1",
    "openai/gpt-oss-20b",
    "deepseek-ai/DeepSeek-V2-Lite",
    "ibm-granite/granite-4.0-h-tiny",
)
ENGINES = ("transformers", "vllm", "sglang", "tensorrt-llm", "tgi", "training")


def asked(model: str, engine: str):
    task = "training" if engine == "training" else "inference"
    work = {"checkpointing": "full"} if task == "training" else {"engine": engine, "new_tokens": 100}
    scenario = parse_scenario({"version": 1, "model": model, "task": task, task: work, "hardware": {"gpu": CARD}})
    found = find_model(model, network=False)
    return scenario, found.architecture, find_gpu(CARD), found.native


@settings(max_examples=60)
@given(
    st.sampled_from(MODELS),
    st.sampled_from(ENGINES),
    st.lists(st.integers(1, 500), min_size=1, max_size=5),
    st.lists(st.integers(2, 140_000), min_size=1, max_size=5),
)
def test_a_cell_is_its_point(model, engine, batches, contexts) -> None:
    """Each figure of each cell equals the one worked out for that cell alone."""
    scenario, architecture, gpu, native = asked(model, engine)
    grid = context_grid(scenario, architecture, gpu, native, batches, contexts)
    for row, context in enumerate(contexts):
        for column, batch in enumerate(batches):
            if engine == "training":
                point = replace(scenario, training=replace(scenario.training, batch=batch, sequence=context))
            else:
                new = min(100, context - 1)
                work = replace(scenario.inference, batch=batch, prompt_tokens=context - new, new_tokens=new)
                point = replace(scenario, inference=work)
            at = (row, column)
            try:
                alone = answer_alone(point, architecture, gpu, native, "cuda")
            except Faults:
                assert VERDICTS[grid.verdict[at]] == "unknown"
                continue
            phases = [phase for card in alone.gpus for phase in card.phases]
            figures = (grid.allocated[at], grid.reserved[at], grid.device[at])
            assert figures == tuple(
                max((phase.meter(name) for phase in phases), default=-1) for name in ("allocated", "reserved", "device")
            )
            assert grid.headroom[at] == (-1 if alone.headroom_bytes is None else alone.headroom_bytes)
            assert VERDICTS[grid.verdict[at]] == alone.verdict


def test_numbers_beyond_64_bits_are_answered_one_by_one() -> None:
    """A million sequences of two billion tokens each: no figure wraps around."""
    scenario, architecture, gpu, native = asked(MODELS[0], "transformers")
    with pytest.raises(OverflowError):
        sweep(scenario, architecture, gpu, native, batch=[1, 10**6], prompt_tokens=[100, 2**40])


def test_axes_are_broadcast_against_each_other() -> None:
    found = sweep(*asked(MODELS[0], "transformers"), batch=np.arange(1, 4)[:, None], prompt_tokens=[10, 20])
    assert found.device.shape == (3, 2)
    assert (np.diff(found.device, axis=0) >= 0).all()


@pytest.mark.parametrize("engine", ["transformers", "vllm", "sglang", "tensorrt-llm", "tgi"])
def test_the_matrix_of_gpus_is_made_of_predictions(engine) -> None:
    scenario, architecture, _, native = asked(MODELS[0], engine)
    gpus, counts = find_gpus("")[::4], (1, 2, 3)
    matrix = gpu_matrix(scenario, architecture, native, gpus, counts)
    for row, gpu in enumerate(gpus):
        for column, count in enumerate(counts):
            verdict = VERDICTS[matrix.verdict[row, column]]
            try:
                alone = answer_alone(on_gpus(scenario, gpu, count), architecture, gpu, native, "cuda")
            except Faults:
                assert verdict == "unknown"
                continue
            assert verdict == alone.verdict
            assert matrix.headroom[row, column] == (-1 if alone.headroom_bytes is None else alone.headroom_bytes)


@pytest.mark.parametrize("engine", ["transformers", "vllm", "llama.cpp", "training"])
def test_the_smallest_card_is_the_smallest_that_fits(engine) -> None:
    scenario, architecture, gpu, native = asked(MODELS[0], engine)
    question, cards = Asked(scenario, architecture, gpu, native), find_gpus("")
    found = smallest_gpu(scenario, architecture, native, cards)
    assert found is not None
    assert question.verdict(on_card(scenario, found), found) in GOOD
    smaller = [card for card in cards if card.capacity_bytes < found.capacity_bytes]
    assert smaller
    assert not [card.name for card in smaller[::3] if question.fits(on_card(scenario, card), card)]
    fits_on_none = asked("deepseek-ai/DeepSeek-V3", engine)
    assert smallest_gpu(fits_on_none[0], fits_on_none[1], fits_on_none[3], cards) is None


@pytest.mark.parametrize("engine", ["transformers", "llama.cpp"])
def test_layers_are_laid_over_every_card_of_a_machine(engine) -> None:
    """No answer of the matrix is refused for its layout, and each further card leaves less on the fullest."""
    scenario, architecture, gpu, native = asked(MODELS[0], engine)
    matrix = gpu_matrix(scenario, architecture, native, [gpu], (1, 2, 4, 8))
    assert (np.diff(matrix.device[0]) < 0).all()
    assert {VERDICTS[verdict] for verdict in matrix.verdict[0]} == {"fits"}


@pytest.mark.parametrize("engine", ["transformers", "vllm", "llama.cpp"])
def test_the_curve_of_speed_ends_where_the_next_sequence_does_not_fit(engine) -> None:
    """More sequences at once give more tokens a second, and each waits longer for its own."""
    scenario, architecture, gpu, native = asked(MODELS[0], engine)
    curve = speed_curve(scenario, architecture, gpu, native)
    assert curve.concurrency[0] == 1
    assert (np.diff(curve.concurrency) > 0).all()
    assert (np.diff(curve.tokens_per_s) > 0).all()
    assert (np.diff(curve.time_per_token_s) > 0).all()
    limits = predict(scenario, architecture, gpu, native).limits
    assert curve.concurrency[-1] == limits["max_batch"]
    one = predict(scenario, architecture, gpu, native).speed
    assert curve.time_per_token_s[0] == pytest.approx(one["time_per_token_s"])


def test_what_has_no_speed_has_no_curve() -> None:
    assert speed_curve(*asked(MODELS[0], "training")) is None
    scenario, architecture, _, native = asked("meta-llama/Llama-3.1-70B", "transformers")
    assert speed_curve(scenario, architecture, find_gpu("T4"), native) is None
