"""A question asked again is answered as it was the first time."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import planner.predict
import planner.repeat
from planner.faults import Faults
from planner.predict import predict
from planner.repeat import fields_of
from planner.scenario import parse_scenario
from resources.plan import find_gpu, find_model

MODELS = (
    "meta-llama/Llama-3.1-8B",
    "google/gemma-3-1b-it",
    "Qwen/Qwen3-30B-A3B",
    "mistralai/Mistral-7B-v0.1",
    "openai/gpt-oss-20b",
    "deepseek-ai/DeepSeek-V2-Lite",
    "ibm-granite/granite-4.0-h-tiny",
)

workloads = st.one_of(
    st.tuples(
        st.just("inference"),
        st.fixed_dictionaries(
            {"engine": st.sampled_from(["transformers", "transformers", "vllm", "llama.cpp"]), "batch": st.integers(1, 64)},
            optional={
                "prompt_tokens": st.integers(1, 50_000),
                "new_tokens": st.integers(1, 600),
                "max_model_len": st.integers(1, 9000),
            },
        ),
    ),
    st.tuples(
        st.just("training"),
        st.fixed_dictionaries(
            {"batch": st.integers(1, 32), "checkpointing": st.sampled_from(["none", "full"])},
            optional={"sequence": st.integers(1, 9000), "gradient_accumulation": st.integers(1, 2)},
        ),
    ),
)


TARGETS = {"targets": ["all-linear"], "rank": 8}
FSDP = {"hardware": {"gpus": 8}, "parallel": {"data": 8, "sharding": "fsdp"}}
TRAININGS = (
    ("meta-llama/Llama-3.1-8B", {"method": "lora", "lora": TARGETS}, {}),
    ("meta-llama/Llama-3.1-8B", {"method": "qlora", "lora": TARGETS, "checkpointing": "full"}, {}),
    ("meta-llama/Llama-3.1-8B", {"engine": "fsdp", "checkpointing": "full"}, FSDP),
    ("mistralai/Mixtral-8x7B-v0.1", {"engine": "deepspeed"}, FSDP | {"parallel": {"data": 8, "sharding": "zero3"}}),
    ("deepseek-ai/DeepSeek-V3.2", {"checkpointing": "full"}, {}),
    ("google/gemma-2-9b", {"attention": "eager"}, {}),
    ("google-t5/t5-base", {"checkpointing": "full"}, {}),
    ("Qwen/Qwen3-30B-A3B", {"precision": "amp-bf16"}, {}),
)


def scenario_of(model: str, task: str, work: dict[str, object], capacity: int | None):
    hardware = {"gpu": "A100 SXM4 80GB", "capacity_bytes": capacity}
    return parse_scenario({"version": 1, "model": model, "task": task, task: work, "hardware": hardware})


@settings(max_examples=150)
@given(st.sampled_from(MODELS), workloads, st.one_of(st.none(), st.integers(2**30, 2**38)))
def test_programs_answer_as_the_arithmetic_itself(model, workload, capacity) -> None:
    """Whatever was asked before, an answer equals the one worked out from the scenario alone."""
    scenario = scenario_of(model, *workload, capacity)
    found, gpu = find_model(model, network=False), find_gpu("A100 SXM4 80GB")
    asked = scenario, found.architecture, gpu, found.native
    assert told(lambda: predict(*asked)) == told(lambda: planner.predict.answer_alone(*asked, "cuda"))


@settings(max_examples=20)
@given(st.sampled_from(TRAININGS), st.lists(st.tuples(st.integers(1, 32), st.integers(1, 9000)), min_size=3, max_size=5))
def test_programs_of_trainings_answer_as_the_arithmetic_itself(training, counts) -> None:
    """Experts, encoders, adapters and shards: whatever the counts before, an answer is the scenario's own."""
    model, work, rest = training
    found, gpu = find_model(model, network=False), find_gpu(None)
    for batch, sequence in counts:
        work = work | {"batch": batch, "sequence": sequence}
        scenario = parse_scenario({"model": model, "task": "training", "training": work} | rest)
        asked = scenario, found.architecture, gpu, found.native
        assert told(lambda asked=asked: predict(*asked)) == told(lambda asked=asked: planner.predict.answer_alone(*asked, "cuda"))


@pytest.mark.parametrize("training", TRAININGS, ids=lambda training: " ".join(map(str, (training[0], *training[1].values()))))
def test_a_training_has_few_programs(training) -> None:
    """Of counts that grow by turns a handful of programs answers most: not each count takes one of its own."""
    model, work, rest = training
    found, gpu = find_model(model, network=False), find_gpu(None)
    for number in range(24):
        counts = {"batch": 1 + number // 2, "sequence": 256 + 97 * (number // 2 + number % 2)}
        scenario = parse_scenario({"model": model, "task": "training", "training": work | counts} | rest)
        predict(scenario, found.architecture, gpu, found.native)
    names, _ = planner.repeat.counts_of(scenario)
    question = planner.repeat.question_of(scenario, names, found.architecture, gpu, found.native, "cuda")
    assert 1 <= len(question.programs) <= 7


def told(ask):
    try:
        found = ask()
        return fields_of(found), tuple(found.terms), dict(found.extra)
    except Faults as faults:
        return str(faults)


def test_the_third_answer_is_a_programs() -> None:
    found, gpu = find_model(MODELS[0], network=False), find_gpu("A100 SXM4 80GB")
    scenarios = [scenario_of(MODELS[0], "inference", {"batch": batch, "prompt_tokens": 777}, None) for batch in (3, 4, 5)]
    for scenario in scenarios:
        predict(scenario, found.architecture, gpu, found.native)
    names, values = planner.repeat.counts_of(scenarios[2])
    question = planner.repeat.question_of(scenarios[2], names, found.architecture, gpu, found.native, "cuda")
    assert question.programs
    assert question.programs[0].at(values) is not None


def test_questions_are_forgotten_in_the_order_they_came() -> None:
    found, gpu = find_model(MODELS[0], network=False), find_gpu("A100 SXM4 80GB")
    for rank in range(1, planner.repeat.REMEMBERED + 9):
        work = {"batch": 1, "prompt_tokens": 8, "lora": {"rank": rank}} | {"lora": {"rank": rank, "targets": ["q_proj"]}}
        del work["prompt_tokens"]
        predict(scenario_of(MODELS[0], "training", work, None), found.architecture, gpu, found.native)
    assert len(planner.repeat._questions) == planner.repeat.REMEMBERED


def test_threads_ask_side_by_side() -> None:
    """Whatever is learnt meanwhile by others, each thread gets the arithmetic's own answers."""
    found, gpu = find_model(MODELS[1], network=False), find_gpu("A100 SXM4 80GB")
    loads = [(batch, prompt) for batch in range(1, 40, 3) for prompt in range(1, 3000, 97)]
    asked = [scenario_of(MODELS[1], "inference", {"batch": batch, "prompt_tokens": prompt}, None) for batch, prompt in loads]
    rest = (found.architecture, gpu, found.native)
    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda scenario: predict(scenario, *rest), [*asked, *reversed(asked)]))
    for scenario, answer in zip(asked[::37], answers[: len(asked) : 37], strict=True):
        assert fields_of(answer) == fields_of(planner.predict.answer_alone(scenario, *rest, "cuda"))
    assert [one.gpus for one in answers[: len(asked)]] == [one.gpus for one in reversed(answers[len(asked) :])]
