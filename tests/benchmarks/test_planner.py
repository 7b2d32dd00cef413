"""How long the planner takes: reading a config, one plan. Run with ``make bench``."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from planner.architecture import parameter_count, read_config
from planner.predict import predict
from planner.scenario import parse_scenario
from resources.catalog import catalog_model
from resources.plan import find_gpu, find_model

ROOT = Path(__file__).resolve().parents[2]
PLANS = {
    "inference": {"model": "meta-llama/Llama-3.1-8B", "task": "inference", "inference": {"batch": 4, "prompt_tokens": 4096}},
    "training": {"model": "meta-llama/Llama-3.1-8B", "task": "training", "training": {"batch": 1, "sequence": 2048}},
}


@pytest.mark.parametrize("model", ["deepseek-ai/DeepSeek-V3", "Qwen/Qwen3.5-397B-A17B", "nvidia/Nemotron-H-56B-Base-8K"])
def test_reading_a_config_and_counting_its_parameters(benchmark, model: str) -> None:
    """Bar: 2 ms median for the largest model."""
    config = catalog_model(model).config
    assert benchmark(lambda: parameter_count(read_config(config))) > 10**10


@pytest.mark.parametrize("plan", PLANS)
def test_one_plan(benchmark, plan: str) -> None:
    scenario = parse_scenario(PLANS[plan])
    model, gpu = find_model(scenario.model, network=False), find_gpu(None)
    found = benchmark(lambda: predict(scenario, model.architecture, gpu, model.native))
    assert found.verdict == "fits"


def test_importing_the_planner(benchmark) -> None:
    """Bar: 60 ms beyond an empty interpreter, in a process of its own."""
    code = "import time, sys; t = time.process_time(); import planner.predict; sys.exit(0 if time.process_time() > t else 1)"
    benchmark.pedantic(lambda: subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True), rounds=5)
