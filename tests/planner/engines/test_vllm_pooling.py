"""Encoders behind vLLM: embedding servers hold weights and a step's values, and keep no cache."""

from __future__ import annotations

import pytest

from planner.architecture import parameter_count, read_config
from planner.engines.vllm.settings import settings_of
from planner.faults import Faults
from planner.formats import native_format
from planner.predict import predict
from planner.scenario import parse_scenario
from planner.units import MIB
from resources.catalog import catalog_model
from resources.gpus import gpu

BGE, CARD = "BAAI/bge-m3", "L4"


def answer(name: str = BGE, card: str = CARD, **work: object):
    ask = {"engine": "vllm", "prompt_tokens": 400, **work}
    document = {"model": name, "task": "inference", "inference": ask, "hardware": {"gpu": card}}
    config = dict(catalog_model(name).config)
    return predict(parse_scenario(document), read_config(config), gpu(card), native_format(config))


@pytest.mark.parametrize("name", [BGE, "answerdotai/ModernBERT-base", "google-bert/bert-base-uncased"])
def test_an_encoder_holds_its_weights_in_16_bit_and_no_cache(name) -> None:
    found = answer(name)
    phases = {phase.name: phase.components for phase in found.gpus[0].phases}
    assert found.verdict == "fits"
    assert set(phases) == {"load", "prefill"}
    assert "kv_cache" not in phases["prefill"]
    assert phases["load"]["weights"] == pytest.approx(2 * parameter_count(read_config(dict(catalog_model(name).config))), rel=0.01)
    assert (found.limits["max_batch"], found.limits["kv_tokens"]) == (256, 0)
    assert parse_scenario(found.scenario) == parse_scenario(found.scenario | {"version": 1})


def test_a_step_takes_a_whole_prompt() -> None:
    """Prompts of encoders are not cut: a step takes the longest, 8194 tokens, and values of qkv, gate and product of each."""
    activations = answer().gpus[0].phases[1].components["activations"]
    values = 8194 * 2 * (4 * 1024 + 3 * 1024 + 2 * 4096)
    assert values <= activations < values + 64 * MIB
    with pytest.raises(Faults, match="exceed max_num_batched_tokens"):
        answer(engine_options={"max_num_batched_tokens": 2048})


def test_requests_beyond_the_servers_sequences_wait() -> None:
    assert any("the rest wait" in note for note in answer(batch=300).notes)


@pytest.mark.parametrize(
    ("name", "words"), [("google/flan-t5-base", "vLLM serves no t5"), (BGE, "exceed max_model_len 100")]
)  # fmt: skip
def test_what_vllm_has_no_model_of_is_refused(name, words) -> None:
    with pytest.raises(Faults, match=words):
        answer(name, **({"max_model_len": 100} if name == BGE else {}))


def test_gb10_has_the_defaults_of_smaller_cards() -> None:
    card = gpu("DGX Spark / GB10")
    for version, tokens in (("0.24.0", 8192), ("0.33.0", 2048)):
        name = "meta-llama/Llama-3.1-8B"
        ask = {"engine": "vllm", "prompt_tokens": 100, "engine_options": {"version": version}}
        scenario = parse_scenario({"model": name, "task": "inference", "inference": ask, "hardware": {"gpu": card.name}})
        settled, _ = settings_of(scenario, read_config(dict(catalog_model(name).config)), card.name, card.capacity_bytes, 48)
        assert settled.batched_tokens == tokens
