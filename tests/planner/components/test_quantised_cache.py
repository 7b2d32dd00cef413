"""A quantised cache answered again and again equals the answer alone."""

from __future__ import annotations

import pytest

from planner.components.quantised_cache import CacheQuantisation
from planner.faults import Faults
from planner.predict import answer_alone, predict
from planner.scenario import parse_scenario
from resources.plan import find_gpu, find_model

CARD, LLAMA = "A100 SXM4 80GB", "meta-llama/Llama-3.1-8B"


def asked(**work: object):
    document = {"version": 1, "model": LLAMA, "task": "inference", "inference": work, "hardware": {"gpu": CARD}}
    found = find_model(LLAMA, network=False)
    return parse_scenario(document), found.architecture, find_gpu(CARD), found.native


def test_a_program_of_it_answers_as_the_arithmetic_does() -> None:
    """Rule: other counts of a question that was traced give what asking alone gives, across every edge of the rest."""
    options = {"cache_residual_length": 16}
    for prompt, new in ((700, 5), (700, 15), (700, 16), (701, 17), (90, 40), (3000, 31), (3000, 32), (512, 100)):
        question = asked(prompt_tokens=prompt, new_tokens=new, batch=3, kv_cache="int4", engine_options=options)
        once, alone = predict(*question), answer_alone(*question, "cuda")
        assert [phase.to_json() for phase in once.gpus[0].phases] == [phase.to_json() for phase in alone.gpus[0].phases]


def test_fewer_bits_hold_less_and_all_less_than_sixteen() -> None:
    held = [
        answer_alone(*asked(prompt_tokens=9000, new_tokens=2, batch=4, kv_cache=name), "cuda")
        .gpus[0]
        .phases[2]
        .components["kv_cache"]
        for name in ("int2", "int4", "int8", "auto")
    ]
    assert held == sorted(held)
    assert len(set(held)) == 4


def test_waiting_tokens_are_quantised_when_there_are_enough() -> None:
    cache = CacheQuantisation(4, 64, 4, 100)
    assert [cache.residual(past) for past in range(100, 109)] == [0, 1, 2, 3, 0, 1, 2, 3, 0]
    assert [cache.is_full(past) for past in range(100, 105)] == [False, False, False, True, False]


def test_bits_that_a_backend_has_not_are_refused() -> None:
    with pytest.raises(Faults, match=r"cache_nbits: quanto has 2, 4, not 8"):
        answer_alone(*asked(kv_cache="int4", engine_options={"cache_nbits": 8}), "cuda")
