"""Machines whose host and GPU share one memory, and cards that an engine has no backend for."""

from __future__ import annotations

from functools import cache

import pytest

from planner.architecture import read_config
from planner.faults import Faults
from planner.formats import native_format
from planner.predict import predict
from planner.scenario import parse_scenario
from planner.solve import Asked, largest_batch
from planner.sweep import VERDICTS, gpu_matrix, sweep
from resources.catalog import catalog_model
from resources.gpus import gpu

SPARK, STUDIO = "DGX Spark / GB10", "Apple M3 Ultra 96GB"


@cache
def model(name: str):
    config = dict(catalog_model(name).config)
    return read_config(config), native_format(config)


def asked(engine: str, card: str = SPARK, name: str = "meta-llama/Llama-3.1-70B", weights: float = 0.0, **work: object):
    ask = {"engine": engine, "batch": 2, "prompt_tokens": 1000, "new_tokens": 100, "max_model_len": 4096, **work}
    document = {"model": name, "weights": "bf16", "task": "inference", "inference": ask, "hardware": {"gpu": card}}
    return parse_scenario({**document, "offload": {"weights": weights}})


def answered(engine: str, card: str = SPARK, name: str = "meta-llama/Llama-3.1-70B", **changed: object):
    return predict(asked(engine, card, name, **changed), model(name)[0], gpu(card), model(name)[1])


@pytest.mark.parametrize("engine", ["transformers", "vllm", "sglang", "llama.cpp"])
def test_what_lies_on_the_host_is_missing_on_the_gpu(engine) -> None:
    """140 GB of weights fit no memory of 120, whichever side they are laid on; beside a card of its own half of them does."""
    for share in (0.0, 0.5):
        assert answered(engine, weights=share).verdict == "does_not_fit"
    assert answered(engine, "H200 SXM 141GB", weights=0.5).verdict == "fits"


def test_the_headroom_is_of_both_together() -> None:
    found = answered("transformers", weights=0.5)
    peak = found.gpus[0].peak
    assert peak is not None
    assert found.headroom_bytes == gpu(SPARK).capacity_bytes - peak.device - found.host.bytes
    assert any("share one memory" in note for note in found.notes)


@pytest.mark.parametrize("engine", ["transformers", "llama.cpp"])
def test_one_more_sequence_does_not_fit_beside_what_the_host_holds(engine) -> None:
    name = "meta-llama/Llama-3.1-8B"
    scenario = asked(engine, STUDIO, name, weights=0.5)
    question = Asked(scenario, model(name)[0], gpu(STUDIO), model(name)[1])
    most = largest_batch(question)
    verdicts = [answered(engine, STUDIO, name, weights=0.5, batch=batch).verdict for batch in (most, most + 1)]
    assert (verdicts[0] != "does_not_fit", verdicts[1]) == (True, "does_not_fit")


@pytest.mark.parametrize("engine", ["transformers", "llama.cpp", "vllm"])
def test_grids_and_matrices_tell_what_points_tell(engine) -> None:
    name = "meta-llama/Llama-3.1-70B"
    cards = [gpu("RTX 4090 24GB"), gpu(SPARK), gpu("H200 SXM 141GB")]
    matrix = gpu_matrix(asked(engine, weights=0.5), *model(name), cards, (1,))
    points = [answered(engine, card.name, weights=0.5).verdict for card in cards]
    assert [VERDICTS[code] for code in matrix.verdict[:, 0]] == points
    grid = sweep(asked(engine, weights=0.5), model(name)[0], cards[1], model(name)[1], batch=[1, 2])
    assert VERDICTS[grid.verdict[1]] == points[1]


@pytest.mark.parametrize(
    ("engine", "card", "maker"),
    [("tensorrt-llm", "Instinct MI300X", "AMD"), *((engine, STUDIO, "Apple") for engine in ("vllm", "sglang", "tgi"))],
)
def test_cards_without_a_backend_are_refused(engine, card, maker) -> None:
    with pytest.raises(Faults, match=f"hardware.gpu: .* is of {maker}"):
        answered(engine, card, "meta-llama/Llama-3.1-8B")
