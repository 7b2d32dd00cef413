"""The footprint of a llama.cpp scenario: what the GPU holds, what the host holds, and terms for both."""

from __future__ import annotations

from collections import Counter

import pytest

from planner.faults import Faults
from planner.footprint import Footprint
from planner.predict import settled_of
from planner.scenario import parse_scenario
from planner.sweep import VERDICTS, context_grid
from resources.plan import make_plan


def footprint(layers_on_gpu: int = -1, gpu: str = "GeForce RTX 4090", weights: str = "gguf:Q4_K_M", **more: object) -> Footprint:
    options = {"n_ctx": 8192, "n_gpu_layers": layers_on_gpu, **more}
    document = {
        "version": 1, "model": "meta-llama/Llama-3.1-8B", "weights": weights, "task": "inference",
        "inference": {"engine": "llama.cpp", "engine_options": options}, "hardware": {"gpu": gpu},
    }  # fmt: skip
    return make_plan(parse_scenario(document), network=False).footprint


def test_the_cache_of_8192_cells_is_128_kib_a_cell() -> None:
    phases = {phase.name: phase for phase in footprint().gpus[0].phases}
    assert list(phases) == ["load", "decode"]
    assert phases["decode"].components["kv_cache"] == 8192 * 128 * 1024


@pytest.mark.parametrize("layers_on_gpu", [0, 1, 16, 33])
def test_what_leaves_the_gpu_is_on_the_host(layers_on_gpu: int) -> None:
    found = footprint(layers_on_gpu)
    held = found.host.components["weights"] + found.gpus[0].phases[0].components.get("weights", 0)
    cache = found.host.components.get("kv_cache", 0) + found.gpus[0].phases[1].components.get("kv_cache", 0)
    assert held == found.weight_bytes
    assert cache == 8192 * 128 * 1024


@pytest.mark.parametrize("layers_on_gpu", [0, 16, 33])
def test_terms_add_up_on_the_card_and_on_the_host(layers_on_gpu: int) -> None:
    found = footprint(layers_on_gpu)
    sums: Counter[tuple[str, str]] = Counter()
    for term in found.terms:
        sums[str(term.values["holder"]), term.component] += term.bytes
    card, host = found.gpus[0].phases[1].components, found.host.components
    assert {name: size for (holder, name), size in sums.items() if holder == "device 0" and size} == {
        k: v for k, v in card.items() if v
    }
    assert {name: size for (holder, name), size in sums.items() if holder == "host" and size} == {
        k: v for k, v in host.items() if v
    }


def test_a_small_card_does_not_hold_sixteen_bits() -> None:
    found = footprint(gpu="GeForce RTX 3060 12GB", weights="bf16")
    assert found.verdict == "does_not_fit"
    assert found.headroom_bytes is not None
    assert found.headroom_bytes < 0


def test_a_mapped_file_passes_through_the_hosts_memory() -> None:
    mapped, read = footprint(), footprint(use_mmap=False)
    assert mapped.host.load_bytes == mapped.host.bytes + mapped.gpus[0].phases[0].components["weights"]
    assert read.host.load_bytes == read.host.bytes + 4 * 2**20
    assert footprint(0, use_mmap=False).host.load_bytes == footprint(0).host.load_bytes


def asked(**inference: object) -> Footprint:
    document = {
        "version": 1, "model": "meta-llama/Llama-3.2-1B", "weights": "gguf:Q4_K_M", "task": "inference",
        "inference": {"engine": "llama.cpp", "prompt_tokens": 900, "new_tokens": 100, **inference},
        "hardware": {"gpu": "GeForce RTX 4090"},
    }  # fmt: skip
    return make_plan(parse_scenario(document), network=False).footprint


def test_a_request_longer_than_its_slot_is_refused() -> None:
    with pytest.raises(Faults, match="exceed max_model_len 512"):
        asked(max_model_len=512)


def test_each_sample_takes_a_slot() -> None:
    assert asked(batch=2, samples=3).gpus == asked(batch=6).gpus


def test_a_cache_type_it_does_not_have_is_named_once() -> None:
    with pytest.raises(Faults) as caught:
        asked(kv_cache="fp8")
    assert str(caught.value).count("no cache type") == 1


def test_a_grid_refuses_requests_longer_than_a_slot() -> None:
    """Cells are refused one by one, whatever the plan's own request."""
    document = {
        "version": 1, "model": "meta-llama/Llama-3.2-1B", "weights": "gguf:Q4_K_M", "task": "inference",
        "inference": {"engine": "llama.cpp", "prompt_tokens": 400, "new_tokens": 100, "max_model_len": 1024},
    }  # fmt: skip
    plan = make_plan(parse_scenario(document), network=False)
    settled, _ = settled_of(plan.scenario, plan.architecture, plan.model.native)
    grid = context_grid(settled, plan.architecture, plan.gpu, plan.model.native, (1, 2), (512, 1024, 2048))
    assert [[VERDICTS[one] for one in row] for row in grid.verdict] == [["fits"] * 2, ["fits"] * 2, ["unknown"] * 2]
