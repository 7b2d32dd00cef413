"""An embedding model beside the model that answers: whose memory it is, and what is left for the rest."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import pytest

from planner.architecture import read_config
from planner.architecture.counts import parameter_count
from planner.faults import Faults
from planner.formats import native_format
from planner.predict import predict
from planner.scenario import INFERENCE_ENGINES, parse_scenario, to_json
from planner.sweep import sweep
from resources.catalog import catalog_model
from resources.gpus import gpu

CARD = "H100 SXM5 80GB"
BGE = dict(catalog_model("BAAI/bge-m3").config)
BY_LAYERS = ("transformers", "llama.cpp")


@cache
def llama():
    config = dict(catalog_model("meta-llama/Llama-3.1-8B").config)
    return read_config(config), native_format(config)


def scenario(engine: str, gpus: int = 1, **work: Any):
    ask = {"engine": engine, "batch": 4, "prompt_tokens": 1500, "new_tokens": 100, "max_model_len": 4096, **work}
    spread = {"tensor": 1 if engine in BY_LAYERS else gpus}
    hardware = {"gpu": CARD, "gpus": gpus}
    return parse_scenario(
        {"model": "llama", "weights": "fp16", "task": "inference", "inference": ask, "hardware": hardware, "parallel": spread}
    )


def footprint(engine: str, gpus: int = 1, **work: Any):
    architecture, native = llama()
    return predict(scenario(engine, gpus, **work), architecture, gpu(CARD), native)


@pytest.mark.parametrize("engine", INFERENCE_ENGINES)
@pytest.mark.parametrize("gpus", [1, 2])
def test_it_lies_on_the_first_gpu_and_every_byte_has_a_term(engine, gpus) -> None:
    """Σ components = device = Σ terms of the last phase; other GPUs hold what they held."""
    plain, found = footprint(engine, gpus), footprint(engine, gpus, embedder={"config": BGE})
    for before, after in zip(plain.gpus, found.gpus, strict=True):
        phase = after.phases[-1]
        told = sum(term.bytes for term in found.terms if term.tells_of(phase.name, after.index))
        assert sum(phase.components.values()) == phase.device == told
        assert ("other_models" in phase.components) == (after.index == 0)
        outside = phase.components["cuda_context"] + phase.components.get("allocator_slack", 0)
        assert phase.allocated == phase.device - outside
        if after.index:
            assert phase.components["cuda_context"] == before.phases[-1].components["cuda_context"]


def test_its_weights_are_those_of_its_config_and_beside_a_server_its_process_is_there_too() -> None:
    weights = 2 * parameter_count(read_config(BGE))
    own, server = (footprint(engine, embedder={"config": BGE}).gpus[0].phases[-1] for engine in ("transformers", "vllm"))
    plain = footprint("vllm").gpus[0].phases[-1]
    assert weights <= own.components["other_models"] < 1.01 * weights
    assert server.components["other_models"] > own.components["other_models"]
    assert server.components["cuda_context"] - plain.components["cuda_context"] == 500 * 2**20


@pytest.mark.parametrize("engine", INFERENCE_ENGINES)
def test_it_leaves_no_more_room_and_without_one_nothing_changes(engine) -> None:
    plain, found = footprint(engine), footprint(engine, embedder={"parameters": 2 * 10**9})
    assert found.gpus[0].phases[-1].components["other_models"] == 4 * 10**9
    # vLLM takes its share of the card whatever others hold, as long as it is free.
    assert (found.limits["max_batch"] < plain.limits["max_batch"]) == (engine != "vllm")


def test_a_server_whose_share_is_no_longer_free_does_not_start() -> None:
    found = footprint("vllm", embedder={"parameters": 5 * 10**9})
    assert found.verdict == "does_not_fit"
    assert any("the server refuses to start" in note for note in found.notes)


def test_a_model_too_large_for_what_is_left_does_not_fit() -> None:
    for engine in BY_LAYERS:
        assert footprint(engine, embedder={"parameters": 35 * 10**9}).verdict == "does_not_fit"


@pytest.mark.parametrize("engine", ["transformers", "llama.cpp", "sglang"])
def test_a_grid_tells_what_its_points_tell(engine) -> None:
    architecture, native = llama()
    grid = sweep(scenario(engine, embedder={"config": BGE}), architecture, gpu(CARD), native, batch=[2, 6])
    for index, batch in enumerate((2, 6)):
        peak = footprint(engine, batch=batch, embedder={"config": BGE}).gpus[0].peak
        assert peak is not None
        assert (grid.allocated[index], grid.device[index]) == (peak.allocated, peak.device)


def test_it_survives_json_and_nonsense_is_named() -> None:
    asked = scenario("vllm", embedder={"config": {"model_type": "bert"}})
    assert parse_scenario(json.loads(json.dumps(to_json(asked)))) == asked
    for bad, path in (
        ({"config": 3}, "config"),
        ({"parameters": 0}, "parameters"),
        ({"config": {}, "parameters": 1}, "parameters"),
    ):
        with pytest.raises(Faults) as caught:
            scenario("vllm", embedder=bad)
        assert f"inference.embedder.{path}" in {fault.path for fault in caught.value.faults}


@pytest.mark.parametrize("engine", ["vllm", "sglang", "llama.cpp"])
@pytest.mark.parametrize("config", [{}, {"model_type": "llama", "hidden_size": -4}])
def test_a_config_of_no_model_is_named_by_its_field(engine, config) -> None:
    beside = {"embedder": {"config": config}}, {"speculation": {"method": "draft", "tokens": 2, "draft": config}}
    for asked, path in zip(beside, ("inference.embedder.config", "inference.speculation.draft"), strict=True):
        with pytest.raises(Faults) as caught:
            footprint(engine, **asked)
        assert all(fault.path.startswith(path) for fault in caught.value.faults)
        assert len(set(caught.value.faults)) == len(caught.value.faults)
