from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.faults import Faults
from planner.scenario import (
    ARRANGEMENTS,
    OPTIMIZERS,
    PRECISIONS,
    InlineConfig,
    ModelPath,
    Scenario,
    parse_scenario,
    to_json,
)

MINIMAL = {"model": "meta-llama/Llama-3.1-8B", "task": "inference"}


def faults_of(document: object) -> list[str]:
    with pytest.raises(Faults) as caught:
        parse_scenario(document)
    return [str(fault) for fault in caught.value.faults]


def test_only_model_and_task_are_required() -> None:
    assert parse_scenario(MINIMAL) == Scenario("meta-llama/Llama-3.1-8B", "inference")


def test_all_faults_are_told_at_once_with_their_paths() -> None:
    document = MINIMAL | {
        "taks": 1,
        "inference": {"batch": 0, "engine": "vlm", "engine_options": {}, "prompt_tokens": 1.5},
        "hardware": {"gpus": True},
        "offload": {"weights": 1.5},
    }
    assert faults_of(document) == [
        "inference.engine: must be one of transformers, vllm, sglang, tensorrt-llm, tgi, llama.cpp; got 'vlm' (did you mean vllm?)",
        "inference.batch: must be at least 1, got 0",
        "inference.prompt_tokens: must be a whole number, got 1.5",
        "hardware.gpus: must be a whole number, got true",
        "offload.weights: must be between 0 and 1, got 1.5",
        "taks: unknown key (did you mean task?)",
    ]


@pytest.mark.parametrize(
    ("document", "fault"),
    [
        ([], ": must be an object, got a list of 0"),
        ({"task": "inference"}, 'model: is required: a model id, {"path": …} or {"config": {…}}'),
        (MINIMAL | {"version": 2}, "version: this program reads version 1, got 2"),
        ({"model": "a/b"}, "task: is required: one of inference, training"),
        (
            MINIMAL | {"model": {"path": "a", "config": {}}},
            "model.path: give either path or config, or the id of a model as a string in place of the object",
        ),
        (MINIMAL | {"model": {"config": 3}}, "model.config: must be an object: the contents of a config.json"),
        (MINIMAL | {"inference": []}, "inference: must be an object, got a list of 0"),
        (
            MINIMAL | {"inference": {"engine_options": {"block_size": 16}}},
            (
                "inference.engine_options.block_size: unknown key; known here: cache_backend, cache_implementation, "
                "cache_nbits, cache_q_group_size, cache_residual_length"
            ),
        ),
        (
            MINIMAL | {"inference": {"engine": "vllm", "engine_options": {"max_num_seq": 16}}},
            "inference.engine_options.max_num_seq: unknown key (did you mean max_num_seqs?)",
        ),
        (
            MINIMAL | {"inference": {"engine": "vllm", "engine_options": {"gpu_memory_utilization": float("nan")}}},
            "inference.engine_options.gpu_memory_utilization: must be a finite number, got nan",
        ),
        (
            {"model": "a/b", "task": "training", "training": {"lora": {"targets": []}}},
            "training.lora.targets: must be a list of names, got a list of 0",
        ),
    ],
)
def test_each_fault_names_its_field(document: object, fault: str) -> None:
    assert fault.removeprefix(": ") in faults_of(document)


def test_a_number_of_a_million_digits_is_refused_in_few_words() -> None:
    (fault,) = faults_of(MINIMAL | {"inference": {"batch": 10**5000}})
    assert len(fault) < 120


def test_models_by_path_and_by_config() -> None:
    assert parse_scenario(MINIMAL | {"model": {"path": "x.gguf"}}).model == ModelPath("x.gguf")
    assert parse_scenario(MINIMAL | {"model": {"config": {"model_type": "llama"}}}).model == InlineConfig({"model_type": "llama"})


scenarios = st.fixed_dictionaries(
    {"version": st.just(1), "task": st.sampled_from(["inference", "training"])}
    | {"model": st.one_of(st.just("a/b"), st.just({"path": "p"}), st.just({"config": {"model_type": "x"}}))},
    optional={
        "weights": st.sampled_from(["native", "bf16", "nf4"]),
        "inference": st.fixed_dictionaries(
            {"engine": st.just("vllm")},
            optional={
                "batch": st.integers(1, 4096),
                "prompt_tokens": st.one_of(st.none(), st.integers(1, 10**6)),
                "engine_options": st.fixed_dictionaries(
                    {}, optional={"block_size": st.integers(1, 64), "enforce_eager": st.booleans()}
                ),
            },
        ),
        "training": st.fixed_dictionaries(
            {},
            optional={
                "precision": st.sampled_from(PRECISIONS),
                "optimizer": st.sampled_from(OPTIMIZERS),
                "data": st.sampled_from(ARRANGEMENTS),
                "lengths": st.lists(st.integers(1, 10**6), min_size=1, max_size=5),
                "lora": st.fixed_dictionaries({"rank": st.integers(1, 512), "targets": st.lists(st.just("q_proj"), min_size=1)}),
            },
        ),
        "parallel": st.fixed_dictionaries({}, optional={"tensor": st.integers(1, 64)}),
        "offload": st.fixed_dictionaries({}, optional={"kv_cache": st.floats(0, 1), "to": st.sampled_from(["cpu", "nvme"])}),
    },
)


@given(scenarios)
def test_what_is_written_reads_back_the_same(document: dict[str, object]) -> None:
    """A scenario written as JSON and read again says the same (the workload of the other task is left out)."""
    scenario = parse_scenario(document)
    written = json.loads(json.dumps(to_json(scenario)))
    assert to_json(parse_scenario(written)) == written


json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=8), inner, max_size=3)),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from(["model", "task", "inference", "training", "hardware", "x", "weights"]), json_values))
def test_nonsense_is_refused_or_read_and_never_crashes(document: dict[str, object]) -> None:
    """Any JSON is either a scenario or a list of faults."""
    try:
        scenario = parse_scenario(document)
    except Faults as error:
        assert error.faults
    else:
        assert scenario.task in {"inference", "training"}
