"""How long the planner takes: reading a config, one plan. Run with ``make bench``."""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import replace
from itertools import count as itertools_count
from pathlib import Path

import pytest

from planner.architecture import parameter_count, read_config
from planner.predict import answer_alone, predict
from planner.scenario import Scenario, parse_scenario
from planner.sweep import context_grid, gpu_matrix
from resources.catalog import catalog_model
from resources.gpus import find_gpus
from resources.plan import find_gpu, find_model

ROOT = Path(__file__).resolve().parents[2]
MODEL = "meta-llama/Llama-3.1-8B"
ENGINES = ("transformers", "vllm", "sglang", "tensorrt-llm", "tgi", "llama.cpp")
PLANS = {
    "inference": {"model": "meta-llama/Llama-3.1-8B", "task": "inference", "inference": {"batch": 4, "prompt_tokens": 4096}},
    "training": {"model": "meta-llama/Llama-3.1-8B", "task": "training", "training": {"batch": 1, "sequence": 2048}},
}

SPREAD = {"fsdp": {"data": 8, "sharding": "fsdp"}, "deepspeed": {"data": 8, "sharding": "zero3"}}
LOW_RANK = {"rank": 16, "targets": ["all-linear"]}
TRAININGS = {
    "dense": (MODEL, {}),
    "dense-checkpointed": (MODEL, {"checkpointing": "full"}),
    "lora": (MODEL, {"method": "lora", "lora": LOW_RANK}),
    "qlora": (MODEL, {"method": "qlora", "lora": LOW_RANK, "checkpointing": "full"}),
    "soft-capped": ("google/gemma-2-9b", {"checkpointing": "full"}),
    "experts": ("mistralai/Mixtral-8x7B-v0.1", {}),
    "experts-latent": ("deepseek-ai/DeepSeek-V3.2", {"checkpointing": "full"}),
    "encoder-decoder": ("google-t5/t5-base", {}),
    "fsdp": (MODEL, {"engine": "fsdp", "checkpointing": "full"}),
    "zero3": (MODEL, {"engine": "deepspeed"}),
    "dpo": (MODEL, {"objective": "dpo"}),
    "grpo": (MODEL, {"objective": "grpo"}),
}


@pytest.mark.parametrize("model", ["deepseek-ai/DeepSeek-V3", "Qwen/Qwen3.5-397B-A17B", "nvidia/Nemotron-H-56B-Base-8K"])
def test_reading_a_config_and_counting_its_parameters(benchmark, model: str) -> None:
    """Bar: 2 ms median for the largest model."""
    config = catalog_model(model).config
    assert benchmark(lambda: parameter_count(read_config(config))) > 10**10


@pytest.mark.parametrize("model", ["meta-llama/Llama-3.1-8B", "meta-llama/Llama-3.1-70B"])
@pytest.mark.parametrize("task", PLANS)
def test_one_plan(benchmark, task: str, model: str) -> None:
    """Bar: 300 µs median for inference, 500 µs for training, another batch every time."""
    scenario = replace(parse_scenario(PLANS[task]), model=model)
    found, gpu, work = find_model(model, network=False), find_gpu(None), getattr(scenario, task)
    fresh = (replace(scenario, **{task: replace(work, batch=1 + number % 97)}) for number in itertools_count())
    benchmark(lambda: predict(next(fresh), found.architecture, gpu, found.native))


def training(name: str) -> Scenario:
    model, work = TRAININGS[name]
    spread = SPREAD.get(work.get("engine", ""))
    hardware = {"hardware": {"gpus": 8}, "parallel": spread} if spread else {}
    return parse_scenario({"model": model, "task": "training", "training": {"batch": 1, "sequence": 512} | work} | hardware)


@pytest.mark.parametrize("count", ["batch", "sequence"])
@pytest.mark.parametrize("name", TRAININGS)
def test_one_training(benchmark, name: str, count: str) -> None:
    """Bar: 500 µs median while one count changes, never asked twice in a row."""
    scenario, gpu = training(name), find_gpu(None)
    found = find_model(scenario.model, network=False)
    values = {"batch": lambda number: 1 + number % 31, "sequence": lambda number: 512 + 7 * (number % 997)}[count]
    fresh = (replace(scenario, training=replace(scenario.training, **{count: values(number)})) for number in itertools_count())
    footprint = benchmark(lambda: predict(next(fresh), found.architecture, gpu, found.native))
    assert footprint.gpus[0].phases


@pytest.mark.parametrize("name", TRAININGS)
def test_the_first_answer_of_a_training(benchmark, name: str) -> None:
    """Nothing is known of the question."""
    scenario, gpu = training(name), find_gpu(None)
    found = find_model(scenario.model, network=False)
    ask = (scenario, found.architecture, gpu, found.native, "cuda")
    assert benchmark(lambda: answer_alone(*ask)).gpus[0].phases


@pytest.mark.parametrize("task", PLANS)
def test_a_grid_of_ten_thousand_cells(benchmark, task: str) -> None:
    """Bar: 100 ms."""
    scenario, found, gpu = parse_scenario(PLANS[task]), find_model(MODEL, network=False), find_gpu(None)
    contexts = range(512, 128 * 1024, 1310)
    grid = benchmark(lambda: context_grid(scenario, found.architecture, gpu, found.native, range(1, 101), contexts[:100]))
    assert grid.device.size == 10_000


@pytest.mark.parametrize("engine", ENGINES)
def test_the_whole_matrix_of_gpus(benchmark, engine: str) -> None:
    """Bar: 50 ms for every GPU of the catalog in counts of one to eight."""
    plan = PLANS["inference"] | {"inference": {"engine": engine, "batch": 4, "prompt_tokens": 4096}}
    scenario, found, gpus = parse_scenario(plan), find_model(MODEL, network=False), find_gpus("")
    matrix = benchmark(lambda: gpu_matrix(scenario, found.architecture, found.native, gpus, range(1, 9)))
    assert matrix.device.shape == (len(gpus), 8)


def test_against_accelerates_estimate() -> None:
    """One prediction, from a config on, takes less than building the model's skeleton and summing it up (accelerate)."""
    modeling = pytest.importorskip("accelerate.utils.modeling")
    transformers = pytest.importorskip("transformers")
    from accelerate import init_empty_weights

    config = catalog_model(MODEL).config
    scenario, gpu = parse_scenario(PLANS["inference"]), find_gpu(None)
    begun = time.perf_counter()
    predict(scenario, read_config(config), gpu)
    ours = time.perf_counter() - begun
    begun = time.perf_counter()
    with init_empty_weights():
        model = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(**config))
    modeling.calculate_maximum_sizes(model)
    theirs = time.perf_counter() - begun
    print(f"ours {1000 * ours:.1f} ms, accelerate's {1000 * theirs:.1f} ms: {theirs / ours:.0f} times")
    assert ours < theirs


def test_importing_the_planner(benchmark) -> None:
    """Bar: 60 ms beyond an empty interpreter, in a process of its own."""
    code = "import time, sys; t = time.process_time(); import planner.predict; sys.exit(0 if time.process_time() > t else 1)"
    benchmark.pedantic(lambda: subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True), rounds=5)
