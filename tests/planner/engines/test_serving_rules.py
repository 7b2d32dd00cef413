"""Rules that the answer of every inference engine keeps, whatever is asked of it."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.architecture import read_config
from planner.faults import Faults
from planner.footprint import OUTSIDE_ALLOCATED
from planner.formats import parse_format
from planner.predict import answer_alone, predict
from planner.scenario import parse_scenario, to_json
from planner.sharding import Split, stage_weights
from resources.catalog import catalog_model
from resources.plan import find_gpu, find_model

SERVED = ("vllm", "sglang", "tensorrt-llm", "tgi")
ENGINES = ("transformers", *SERVED)
MODELS = (
    "meta-llama/Llama-3.1-8B", "google/gemma-3-1b-it", "Qwen/Qwen3-30B-A3B", "deepseek-ai/DeepSeek-V2-Lite", "openai/gpt-oss-20b",
    "ibm-granite/granite-4.0-h-tiny",
)  # fmt: skip
A_BLOCK = 2**24
"""A pool is whole blocks: less room may leave a smaller rest."""
CARD = "H100 SXM5 80GB"
concepts = st.fixed_dictionaries(
    {"batch": st.integers(1, 200), "prompt_tokens": st.integers(1, 3000), "new_tokens": st.integers(1, 500)},
    optional={
        "samples": st.integers(1, 4), "shared_prefix": st.sampled_from([0.0, 0.5, 1.0]), "max_model_len": st.integers(4000, 8192),
        "kv_cache": st.sampled_from(["auto", "fp8"]), "adapters": st.fixed_dictionaries({"count": st.integers(0, 3)}),
        "conversation": st.fixed_dictionaries({"turns": st.integers(1, 3), "kept_tokens": st.integers(0, 100)}),
    },
)  # fmt: skip
layouts = st.sampled_from([{}, {"tensor": 2}, {"pipeline": 2}, {"data": 2}, {"tensor": 4, "pipeline": 2}])


def asked(engine: str, model: str, work: dict[str, object], parallel: dict[str, int], **more: object):
    gpus = 1
    for ways in parallel.values():
        gpus *= ways
    document = {
        "version": 1, "model": model, "task": "inference", "inference": {"engine": engine, **work},
        "hardware": {"gpu": CARD, "gpus": gpus}, "parallel": {} if engine == "transformers" else parallel, **more,
    }  # fmt: skip
    found = find_model(model, network=False)
    return parse_scenario(document), found.architecture, find_gpu(CARD), found.native


def answered(*args: object, **more: object):
    """The answer worked out alone, None where the engine refuses."""
    try:
        return answer_alone(*asked(*args, **more), "cuda")  # type: ignore[arg-type]
    except Faults as faults:
        assert all(
            fault.path.split(".")[0] in ("inference", "parallel", "weights", "hardware", "offload") for fault in faults.faults
        )
        return None


@settings(max_examples=120)
@given(st.sampled_from(ENGINES), st.sampled_from(MODELS), concepts, layouts)
def test_nothing_is_negative_and_all_adds_up(engine, model, work, parallel) -> None:
    """Σ components = device, without what lies outside tensors = allocated ≤ reserved ≤ device; terms open every component."""
    found = answered(engine, model, work, parallel)
    for card in found.gpus if found else ():
        for phase in card.phases:
            assert all(size >= 0 for size in phase.components.values())
            assert sum(phase.components.values()) == phase.device
            inside = sum(size for name, size in phase.components.items() if name not in OUTSIDE_ALLOCATED)
            assert inside == phase.allocated <= phase.reserved <= phase.device
            told: Counter[str] = Counter()
            for term in found.terms:
                told[term.component] += term.bytes if term.tells_of(phase.name, card.index) else 0
            assert {name: told[name] for name in phase.components} == dict(phase.components)
    if found:
        assert all(size >= 0 for size in found.host.components.values())
        assert found.host.bytes == sum(found.host.components.values())
        assert found.uncertainty_bytes is None or found.uncertainty_bytes >= 0


@settings(max_examples=80)
@given(st.sampled_from(ENGINES), st.sampled_from(MODELS), concepts, layouts, st.integers(0, 20), st.integers(0, 200))
def test_more_is_never_less(engine, model, work, parallel, batch, tokens) -> None:
    """With more requests or longer ones nothing on any GPU shrinks and no more room is left.

    Samples and prefixes are shared by whole blocks, so that a longer prompt may fill, and share, one more: they stand aside.
    """
    work = {name: value for name, value in work.items() if name not in ("samples", "shared_prefix")}
    larger = work | {"batch": work["batch"] + batch, "prompt_tokens": work["prompt_tokens"] + tokens}
    small, large = answered(engine, model, work, parallel), answered(engine, model, larger, parallel)
    if small is None or large is None or "unknown" in (small.verdict, large.verdict):
        return
    for one, other in zip(small.gpus, large.gpus, strict=True):
        assert all(a.device <= b.device + A_BLOCK for a, b in zip(one.phases, other.phases, strict=True))
    assert large.headroom_bytes <= small.headroom_bytes


@cache
def cut(model: str, layers: int):
    """The model with its first layers alone."""
    config = dict(catalog_model(model).config)
    for name in ("layer_types", "mlp_layer_types"):
        if name in config:
            config[name] = config[name][:layers]
    return read_config(config | {"num_hidden_layers": layers})


@settings(max_examples=40)
@given(st.sampled_from(ENGINES), st.sampled_from(MODELS[:5]), st.integers(4, 16), st.integers(0, 6))
def test_more_layers_never_take_less(engine, model, layers, more) -> None:
    """The step given, since TGI's own follows the work of all layers."""
    steps = {"engine_options": {"max_batch_prefill_tokens": 4096}} if engine == "tgi" else {}
    work = {"prompt_tokens": 500, "new_tokens": 20, "batch": 3} | steps
    scenario, _, gpu, _ = asked(engine, model, work, {}, weights="bf16")
    small, large = (predict(scenario, cut(model, count), gpu) for count in (layers, layers + more))
    assert small.gpus[0].phases[0].allocated <= large.gpus[0].phases[0].allocated
    assert large.headroom_bytes <= small.headroom_bytes


@settings(max_examples=60)
@given(st.sampled_from(ENGINES), st.sampled_from(MODELS), concepts, layouts)
def test_an_answer_and_its_question_survive_json(engine, model, work, parallel) -> None:
    scenario = asked(engine, model, work, parallel)[0]
    assert parse_scenario(json.loads(json.dumps(to_json(scenario)))) == scenario
    found = answered(engine, model, work, parallel)
    if found is not None:
        told = json.loads(json.dumps(found.to_json()))
        assert parse_scenario(told["scenario"]) == parse_scenario(dict(found.scenario))
        assert len(told["gpus"]) == len(found.gpus)


@settings(max_examples=60)
@given(
    st.sampled_from(MODELS[:4]), st.sampled_from([1, 2, 4, 8]), st.integers(1, 4), st.sampled_from(["bf16", "fp8", "awq-int4-g128"])
)
def test_shares_of_the_ranks_add_up_to_the_model(model, tensor, pipeline, weights) -> None:
    """Σ ranks − copies beyond the first = the whole, but for heads and vocabularies that are padded to divide."""
    architecture = find_model(model, network=False).architecture
    whole = stage_weights(architecture, parse_format(weights), Split())[0].whole_bytes
    stages = stage_weights(architecture, parse_format(weights), Split(tensor, pipeline))
    held = sum(stage.rank_bytes * tensor - stage.copied_bytes * (tensor - 1) for stage in stages)
    twice = stages[-1].whole_bytes + sum(stage.whole_bytes for stage in stages[:-1]) - whole
    assert twice >= 0
    assert whole + twice <= held * (1 + 1e-9) + 1
    assert held <= (whole + twice) * 1.25


def test_transformers_computes_every_sample_and_the_whole_conversation() -> None:
    """Samples are sequences of their own from the prompt on; kept history is part of the last turn's prompt."""
    model, work = MODELS[0], {"batch": 2, "prompt_tokens": 300, "new_tokens": 50}
    plain = answered("transformers", model, work | {"batch": 6}, {})
    samples = answered("transformers", model, work | {"samples": 3}, {})
    assert samples.gpus == plain.gpus
    talked = answered("transformers", model, work | {"conversation": {"turns": 4}}, {})
    assert talked.gpus == answered("transformers", model, work | {"prompt_tokens": 4 * 350 - 50}, {}).gpus
    shared = answered("transformers", model, work | {"shared_prefix": 0.9}, {})
    assert shared.gpus == answered("transformers", model, work, {}).gpus
    assert any("saves nothing" in note for note in shared.notes)


@pytest.mark.parametrize(
    "work",
    [
        {"speculation": {"method": "ngram", "tokens": 4}},
        {"adapters": {"count": 2}},
        {"chunked_prefill": True},
        {"kv_cache": "fp32"},
    ],
)
def test_what_transformers_does_otherwise_is_unknown(work) -> None:
    found = answered("transformers", MODELS[0], work, {})
    assert found.verdict == "unknown"
    assert any(note.startswith(f"unknown: inference.{next(iter(work))}") for note in found.notes)


@pytest.mark.parametrize("engine", SERVED)
def test_equal_questions_share_one_answer(engine) -> None:
    """What is left out is what the engine takes by default: asking for it by name changes nothing but the notes."""
    scenario, architecture, gpu, native = asked(engine, MODELS[0], {"prompt_tokens": 500, "new_tokens": 20}, {})
    plain = predict(scenario, architecture, gpu, native)
    named = replace(scenario, inference=replace(scenario.inference, max_model_len=architecture.max_context_tokens))
    assert predict(named, architecture, gpu, native).gpus == plain.gpus
