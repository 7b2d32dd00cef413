"""transformers over several GPUs and with weights on the host: the rules their answers keep."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.faults import Faults
from planner.footprint import OUTSIDE_ALLOCATED
from planner.predict import answer_alone, predict
from planner.scenario import parse_scenario
from planner.solve import Asked, fewest_gpus
from planner.speed import speed
from planner.sweep import gpu_matrix
from resources.plan import find_gpu, find_model

CARD = "A100 SXM4 80GB"
LLAMA = "meta-llama/Llama-3.1-8B"
MODELS = (LLAMA, "google/gemma-3-1b-it", "Qwen/Qwen3-30B-A3B", "openai-community/gpt2", "ibm-granite/granite-4.0-h-tiny")


def asked(model: str, gpus: int = 1, offload: float = 0.0, weights: str = "native", **work: object):
    document = {
        "version": 1, "model": model, "task": "inference", "weights": weights, "inference": {"new_tokens": 9, **work},
        "hardware": {"gpu": CARD, "gpus": gpus}, "offload": {"weights": offload},
    }  # fmt: skip
    found = find_model(model, network=False)
    return parse_scenario(document), found.architecture, find_gpu(CARD), found.native


@settings(max_examples=40)
@given(st.sampled_from(MODELS), st.integers(2, 9), st.integers(1, 20), st.integers(1, 5000))
def test_the_gpus_hold_the_model_once(model, gpus, batch, prompt) -> None:
    """Weights and cache of all GPUs add up to those of one; no GPU holds more than one alone would."""
    one = answer_alone(*asked(model, batch=batch, prompt_tokens=prompt), "cuda").gpus[0]
    spread = answer_alone(*asked(model, gpus, batch=batch, prompt_tokens=prompt), "cuda").gpus
    assert len(spread) == gpus
    for number, phase in enumerate(one.phases):
        parts = [card.phases[number].components for card in spread]
        assert sum(part.get("weights", 0) for part in parts) == phase.components["weights"]
        # Each GPU's highest moment is in a layer of its own, whose cache has grown or not yet; under a window in a step of its own.
        if phase.name == "decode" and "gemma" not in model:
            for component in ("kv_cache", "recurrent_state"):
                held = phase.components.get(component, 0)
                assert sum(part.get(component, 0) for part in parts) == pytest.approx(held, rel=0.05, abs=2**20)
        assert all(card.phases[number].allocated <= phase.allocated + 2**20 for card in spread)


@settings(max_examples=30)
@given(
    st.sampled_from(MODELS), st.sampled_from([(2, 0.0), (5, 0.0), (1, 0.25), (1, 1.0)]), st.integers(1, 20), st.integers(1, 5000)
)
def test_components_and_terms_add_up_on_every_gpu(model, layout, batch, prompt) -> None:
    """Components add up to device, without what lies outside tensors to allocated; every component opens to terms."""
    gpus, offload = layout
    if offload and "granite" in model:
        return
    found = answer_alone(*asked(model, gpus, offload, batch=batch, prompt_tokens=prompt), "cuda")
    for card in found.gpus:
        for phase in card.phases:
            assert all(size >= 0 for size in phase.components.values())
            assert sum(phase.components.values()) == phase.device
            inside = sum(size for name, size in phase.components.items() if name not in OUTSIDE_ALLOCATED)
            assert inside == phase.allocated <= phase.reserved <= phase.device
            for component, size in phase.components.items():
                terms = [term for term in found.terms if (term.component, term.phase, term.gpu) == (
                    component, phase.name, card.index)]  # fmt: skip
                assert sum(term.bytes for term in terms) == size


@settings(max_examples=40)
@given(st.sampled_from(MODELS[:4]), st.floats(0.0, 1.0), st.floats(0.0, 1.0))
def test_more_on_the_host_is_less_on_the_gpu(model, one, other) -> None:
    """Weights are on the GPU or on the host, to the byte; what a larger fraction leaves on the GPU is no more."""
    whole = answer_alone(*asked(model), "cuda")
    less, more = (answer_alone(*asked(model, offload=share), "cuda") for share in sorted((one, other)))
    for found in (less, more):
        assert found.gpus[0].phases[0].components["weights"] + found.host.bytes == whole.weight_bytes
    assert more.gpus[0].phases[0].allocated <= less.gpus[0].phases[0].allocated
    assert less.host.bytes <= more.host.bytes
    assert more.host.bytes >= max(one, other) * whole.weight_bytes - 1


@settings(max_examples=30)
@given(st.sampled_from(MODELS), st.integers(2, 8), st.tuples(st.integers(1, 9), st.integers(1, 3000)), st.integers(0, 3))
def test_it_grows_with_batch_and_context(model, gpus, load, more) -> None:
    batch, prompt = load
    small = answer_alone(*asked(model, gpus, batch=batch, prompt_tokens=prompt), "cuda")
    large = answer_alone(*asked(model, gpus, batch=batch + more, prompt_tokens=prompt + 100 * more), "cuda")
    for one, other in zip(small.gpus, large.gpus, strict=True):
        assert all(a.device <= b.device for a, b in zip(one.phases, other.phases, strict=True))


def test_a_model_too_large_for_one_card_is_spread() -> None:
    scenario, architecture, gpu, native = asked("meta-llama/Llama-3.1-70B", prompt_tokens=2000)
    assert predict(scenario, architecture, gpu, native).verdict == "does_not_fit"
    assert fewest_gpus(Asked(scenario, architecture, gpu, native)) == 2
    matrix = gpu_matrix(scenario, architecture, native, [gpu], (1, 2, 3))
    assert (matrix.verdict[0] != 3).all()
    assert matrix.headroom[0, 0] < 0 < matrix.headroom[0, 2]


def test_gpus_that_follow_each_other_are_no_faster() -> None:
    one, two = (asked(LLAMA, gpus, prompt_tokens=2000) for gpus in (1, 2))
    native = find_model(LLAMA, network=False).native
    assert speed(one[0], one[1], native, one[2]) == speed(two[0], two[1], native, two[2])


@pytest.mark.parametrize(
    ("change", "path"),
    [
        ({"hardware": {"gpu": CARD, "gpus": 2, "nodes": 2}}, "hardware.nodes"),
        ({"hardware": {"gpu": CARD, "gpus": 2}, "offload": {"weights": 0.5}}, "offload.weights"),
    ],
)
def test_what_a_device_map_cannot_do_is_refused(change, path) -> None:
    found = find_model(LLAMA, network=False)
    document = {"version": 1, "model": LLAMA, "task": "inference"} | change
    with pytest.raises(Faults) as caught:
        predict(parse_scenario(document), found.architecture, find_gpu(CARD), found.native)
    assert [fault.path for fault in caught.value.faults] == [path]


@pytest.mark.parametrize(
    "change",
    [
        {"parallel": {"tensor": 2}, "hardware": {"gpu": CARD, "gpus": 2}},
        {"offload": {"weights": 0.5}, "weights": "nf4"},
        {"weights": "fp8", "hardware": {"gpu": CARD, "gpus": 2}},
    ],
)
def test_what_is_not_derived_is_unknown(change) -> None:
    found = find_model(LLAMA, network=False)
    document = {"version": 1, "model": LLAMA, "task": "inference"} | change
    answer = predict(parse_scenario(document), found.architecture, find_gpu(CARD), found.native)
    assert answer.verdict == "unknown"
    assert any(note.startswith("unknown: ") for note in answer.notes)
