"""Predictions against what is published, and the rules every footprint keeps."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.architecture import read_config
from planner.faults import Faults
from planner.footprint import OUTSIDE_ALLOCATED, Footprint
from planner.predict import predict
from planner.scenario import LOSSES, OPTIMIZERS, parse_scenario, to_json
from planner.units import GIB
from resources.catalog import catalog_model
from resources.gpus import gpu
from resources.plan import make_plan

A100 = "A100 SXM4 80GB"
MODELS = (
    "meta-llama/Llama-3.1-8B",
    "Qwen/Qwen3-0.6B",
    "Qwen/Qwen2.5-7B",
    "HuggingFaceTB/SmolLM2-135M",
    "mistralai/Mistral-7B-v0.1",
)


def footprint(model: str, task: str, device: str = "cuda", **work: object) -> Footprint:
    document = {"version": 1, "model": model, "task": task, task: work, "hardware": {"gpu": A100}}
    return make_plan(parse_scenario(document), network=False, device=device).footprint


def phase(found: Footprint, name: str):
    return next(phase for phase in found.gpus[0].phases if phase.name == name)


def test_llama_inference_as_the_design_states_it() -> None:
    found = footprint("meta-llama/Llama-3.1-8B", "inference", batch=4, prompt_tokens=4096)
    tokens = 4096 + found.scenario["inference"]["new_tokens"]
    assert found.parameters == 8030261248
    assert found.weight_bytes == 16060522496
    assert phase(found, "decode").components["kv_cache"] == 2 * 32 * 8 * 128 * tokens * 2 * 4
    assert phase(found, "prefill").allocated == pytest.approx(18.77 * GIB, rel=0.02)


@pytest.mark.parametrize(
    ("model", "batch", "measured"),
    [
        ("mistralai/Mistral-7B-v0.1", 4, 72_434_837_504),
        ("mistralai/Mistral-7B-v0.1", 8, 72_435_230_720),
        ("meta-llama/Meta-Llama-3-8B", 4, 80_318_097_408),
    ],
)
def test_full_fine_tuning_as_measured_on_an_a100(model: str, batch: int, measured: int) -> None:
    """Peak allocated of the published runs: fms-acceleration, A100 80 GB, bf16, full checkpointing, foreach AdamW."""
    found = footprint(model, "training", batch=batch, sequence=4096, checkpointing="full", optimizer="adamw_foreach")
    assert found.gpus[0].peak.allocated == pytest.approx(measured, rel=0.005)


works = st.one_of(
    st.fixed_dictionaries(
        {
            "task": st.just("inference"), "batch": st.integers(1, 8), "prompt_tokens": st.integers(1, 6000),
            "new_tokens": st.integers(1, 300),
        }
    ),
    st.fixed_dictionaries(
        {
            "task": st.just("training"), "batch": st.integers(1, 4), "sequence": st.integers(1, 5000),
            "checkpointing": st.sampled_from(["none", "full"]), "precision": st.sampled_from(["bf16", "fp32"]),
            "optimizer": st.sampled_from(OPTIMIZERS), "gradient_accumulation": st.integers(1, 2), "loss": st.sampled_from(LOSSES),
        }
    ),
)  # fmt: skip


@settings(max_examples=60)
@given(st.sampled_from(MODELS), works, st.sampled_from(["cuda", "cpu"]))
def test_every_byte_has_a_term(model: str, work: dict[str, object], device: str) -> None:
    """Terms of a phase add up to its components, components to the device figure, and without what is outside it to allocated."""
    found = footprint(model, work.pop("task"), device, **work)
    for step in found.gpus[0].phases:
        terms: Counter[str] = Counter()
        for term in found.terms:
            if term.phase == step.name:
                terms[term.component] += term.bytes
        assert {name: size for name, size in terms.items() if size} == {
            name: size for name, size in step.components.items() if size
        }
        assert min(step.components.values()) >= 0
        assert sum(size for name, size in step.components.items() if name not in OUTSIDE_ALLOCATED) == step.allocated
        assert sum(step.components.values()) == step.device
        assert step.allocated <= step.reserved <= step.device
    json.dumps(replace(found, limits={}, speed={}).to_json(), allow_nan=False)


GROWING = ("batch", "prompt_tokens", "new_tokens", "sequence")


@settings(max_examples=60)
@given(st.sampled_from(MODELS), works, st.data())
def test_more_work_never_takes_less(model: str, work: dict[str, object], data: st.DataObject) -> None:
    """Allocated is monotone in batch, prompt, new tokens and sequence; of a training so is what is reserved."""
    task = work.pop("task")
    name = data.draw(st.sampled_from([name for name in GROWING if name in work]))
    more = work | {name: work[name] + data.draw(st.integers(1, 500))}
    for small, large in zip(
        footprint(model, task, **work).gpus[0].phases, footprint(model, task, **more).gpus[0].phases, strict=True
    ):
        assert large.allocated >= small.allocated
        assert large.reserved >= small.reserved or task == "inference"


@pytest.mark.parametrize("optimizer", ["adamw_fused", "adamw_foreach"])
def test_checkpointing_never_raises_the_live_bytes_of_the_forward(optimizer: str) -> None:
    with_, without = (
        phase(
            footprint("Qwen/Qwen3-0.6B", "training", batch=2, sequence=2048, checkpointing=kind, optimizer=optimizer), "forward"
        ).allocated
        for kind in ("full", "none")
    )
    assert with_ < without


def test_foreach_takes_a_copy_of_the_parameters_that_fused_does_not() -> None:
    foreach, fused = (
        phase(footprint("Qwen/Qwen2.5-7B", "training", batch=1, sequence=128, optimizer=kind), "optimizer").components["workspace"]
        for kind in ("adamw_foreach", "adamw_fused")
    )
    assert foreach - fused == pytest.approx(2 * 7615616512, rel=1e-4)


@pytest.mark.parametrize(
    "work",
    [
        {"kv_cache": "fp8"}, {"kv_cache": "int4", "engine_options": {"cache_q_group_size": 96}},
    ],
)  # fmt: skip
def test_what_has_no_derivation_is_unknown_and_says_why(work: dict[str, object]) -> None:
    found = footprint("meta-llama/Llama-3.1-8B", "inference", **work)
    assert found.verdict == "unknown"
    assert found.weight_bytes == 16060522496
    assert any(note.startswith("unknown: ") for note in found.notes)


def test_weights_beyond_the_card_do_not_fit_whatever_else_is_unknown() -> None:
    found = footprint("meta-llama/Llama-3.1-70B", "inference", kv_cache="fp8")
    assert found.verdict == "does_not_fit"


def test_weights_that_cannot_be_trained_are_refused_with_a_way_out() -> None:
    document = {"version": 1, "model": "Qwen/Qwen3-0.6B", "task": "training", "weights": "gptq-int4-g128"}
    with pytest.raises(Faults, match=r"weights: .*qlora"):
        make_plan(parse_scenario(document), network=False)


def test_an_unknown_format_and_an_unknown_card_name_their_fields() -> None:
    for change, path in (({"weights": "bf61"}, "weights: "), ({"hardware": {"gpu": "H999"}}, "hardware.gpu: ")):
        document = {"version": 1, "model": "Qwen/Qwen3-0.6B", "task": "inference"} | change
        with pytest.raises(Faults) as caught:
            make_plan(parse_scenario(document), network=False)
        assert str(caught.value).startswith(path)


def test_a_capacity_set_by_hand_decides() -> None:
    document = {"version": 1, "model": "Qwen/Qwen3-0.6B", "task": "inference", "hardware": {"gpu": A100, "capacity_bytes": 2**30}}
    found = make_plan(parse_scenario(document), network=False).footprint
    assert (found.verdict, found.gpus[0].capacity_bytes) == ("does_not_fit", 2**30)


def test_defaults_are_told() -> None:
    document = {"version": 1, "model": "Qwen/Qwen3-0.6B", "task": "inference"}
    notes = make_plan(parse_scenario(document), network=False).footprint.notes
    for field in ("hardware.gpu", "inference.new_tokens", "inference.prompt_tokens"):
        assert any(note.startswith(field) for note in notes)


def test_the_settled_scenario_asks_the_same_again() -> None:
    first = footprint("Qwen/Qwen3-0.6B", "training", batch=3)
    again = make_plan(parse_scenario(json.loads(json.dumps(first.scenario))), network=False).footprint
    assert again.gpus == first.gpus


def test_one_layer_less_is_one_layers_weights_less() -> None:
    config = dict(catalog_model("meta-llama/Llama-3.1-8B").config)
    scenario = parse_scenario({"version": 1, "model": "x/y", "task": "inference"})
    whole = predict(scenario, read_config(config), gpu(A100))
    cut = predict(scenario, read_config(config | {"num_hidden_layers": 31}), gpu(A100))
    assert whole.weight_bytes - cut.weight_bytes == 2 * (2 * 4096 * 4096 + 2 * 1024 * 4096 + 3 * 4096 * 14336 + 2 * 4096)
    assert replace(whole, gpus=()) != replace(cut, gpus=())


@settings(max_examples=40)
@given(st.sampled_from(MODELS), works, st.integers(1, 5), st.integers(1, 5))
def test_more_layers_never_take_less(model: str, work: dict[str, object], layers: int, more: int) -> None:
    """Every phase of a model with more of the same layers holds and reserves at least as much."""
    config = dict(catalog_model(model).config)
    card, task = gpu(A100), work.pop("task")
    scenario = parse_scenario({"version": 1, "model": model, "task": task, task: work})
    small, large = (
        predict(scenario, read_config({**config, "num_hidden_layers": count} | cut(config, count)), card)
        for count in (layers, layers + more)
    )
    for less, rest in zip(small.gpus[0].phases, large.gpus[0].phases, strict=True):
        assert less.allocated <= rest.allocated
        assert less.device <= rest.device
    assert small.parameters < large.parameters


def cut(config: dict[str, object], layers: int) -> dict[str, object]:
    """What a config says layer by layer, for so many layers."""
    return {"layer_types": config["layer_types"][:layers]} if "layer_types" in config else {}


@settings(max_examples=30)
@given(st.sampled_from(MODELS), works)
def test_an_answer_survives_json(model: str, work: dict[str, object]) -> None:
    """What is printed reads back as the same data, and its scenario as the same scenario."""
    found = footprint(model, work.pop("task"), **work)
    document = replace(found, limits={}).to_json()
    assert json.loads(json.dumps(document, allow_nan=False)) == document
    again = parse_scenario(document["scenario"])
    assert parse_scenario(to_json(again)) == again
