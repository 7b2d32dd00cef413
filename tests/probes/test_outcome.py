from __future__ import annotations

import json
from typing import Any, get_args

import pytest

from probes.outcome import Facts, Kind, Outcome, judge, signal_name


def facts(status: int | None = 0, **more: Any) -> Facts:
    return Facts(**{"after_s": 3.25, "phase": "prefill", "exit_status": status, "oom_kills": 0, "stderr_tail": ""} | more)


RESULT = {"event": "result", "outcome": "completed"}
OUT_OF_MEMORY = {
    "event": "result", "outcome": "out_of_memory", "requested_bytes": 2**31, "free_bytes": 2**30, "phase": "backward",
}  # fmt: skip


@pytest.mark.parametrize("kind", get_args(Kind))
def test_every_kind_has_a_title_a_sentence_and_an_exit_code(kind: Kind) -> None:
    outcome = Outcome(kind, 1.5, "decode", limit_s=60.0, signal=9, exit_status=-9)
    assert outcome.title
    assert outcome.sentence.endswith(".")
    assert outcome.exit_code in (0, 1, 3, 130)
    assert json.loads(json.dumps(outcome.to_json(), allow_nan=False))["text"].startswith(outcome.sentence)


def test_what_the_worker_said_counts_more_than_how_it_died() -> None:
    assert judge(RESULT, None, facts(-9)).kind == "completed"
    assert judge(RESULT, "stopped", facts(-15)).kind == "completed"
    assert judge(OUT_OF_MEMORY, "timed_out", facts(0)).kind == "out_of_memory"


def test_out_of_memory_says_what_was_asked_what_was_free_and_where() -> None:
    outcome = judge(OUT_OF_MEMORY, None, facts())
    assert outcome.sentence == "Out of memory in backward: 2.00 GiB was asked for, 1.00 GiB was free."
    assert outcome.exit_code == 1


def test_out_of_memory_without_sizes_falls_back_to_the_message() -> None:
    told = {"event": "result", "outcome": "out_of_memory", "requested_bytes": None, "message": "not enough memory"}
    assert judge(told, None, facts()).sentence == "Out of memory in prefill: not enough memory."


@pytest.mark.parametrize(
    ("forced", "limit_s", "said"),
    [("stopped", None, "Stopped in prefill"), ("timed_out", 60.0, "limit of 60 s"), ("hung", 5.0, "nothing for 5 s")],
)
def test_an_end_that_was_brought_about_says_why(forced: Kind, limit_s: float | None, said: str) -> None:
    told = {"event": "error", "kind": "interrupted", "message": "interrupted"}
    outcome = judge(told, forced, facts(130), limit_s)
    assert outcome.kind == forced
    assert said in outcome.sentence
    assert "3.2 s after the start" in outcome.sentence


def test_the_workers_own_error_is_passed_on_with_its_exit_code() -> None:
    bad = judge({"event": "error", "kind": "bad_order", "message": "layers: must be…"}, None, facts(2))
    missing = judge({"event": "error", "kind": "missing_package", "message": "pip install x"}, None, facts(3))
    assert (bad.kind, bad.sentence, bad.exit_code) == ("failed", "layers: must be…", 2)
    assert (missing.sentence, missing.exit_code) == ("pip install x", 3)
    interrupted = judge({"event": "error", "kind": "interrupted", "message": "m"}, None, facts(130))
    assert (interrupted.kind, interrupted.exit_code) == ("stopped", 130)


def test_sigkill_hints_at_the_out_of_memory_killer_and_says_so_when_it_is_known() -> None:
    assert "possibly by the system's out-of-memory killer" in judge(None, None, facts(-9)).sentence
    assert "its out-of-memory killer was at work" in judge(None, None, facts(-9, oom_kills=1)).sentence
    assert "out-of-memory" not in judge(None, None, facts(-15)).text


@pytest.mark.parametrize(
    ("status", "kind", "said"),
    [
        (-11, "crashed", "SIGSEGV"),
        (-6, "crashed", "SIGABRT"),
        (1, "crashed", "exit status 1"),
        (0, "crashed", "without a result"),
        (-1, "killed", "SIGHUP"),
    ],
)
def test_a_death_without_words(status: int, kind: str, said: str) -> None:
    outcome = judge(None, None, facts(status))
    assert outcome.kind == kind
    assert said in outcome.sentence
    assert outcome.exit_code == 3


def test_sizes_that_are_none_are_not_believed() -> None:
    told = {"event": "result", "outcome": "out_of_memory", "requested_bytes": "lots", "free_bytes": -1}
    outcome = judge(told, None, facts())
    assert (outcome.requested_bytes, outcome.free_bytes) == (None, None)


def test_signals_without_a_name_keep_their_number() -> None:
    assert signal_name(1000) == "signal 1000"


def test_the_remedy_of_a_rehearsal_speaks_of_the_card_that_is_played() -> None:
    """A rehearsal takes no memory, so neither freeing some nor a budget would help."""
    measured, rehearsed = (judge(OUT_OF_MEMORY, None, facts(rehearsed=played)).remedy for played in (False, True))
    assert "budget" in measured
    assert "budget" not in rehearsed
    assert "larger card" in rehearsed
    assert "rehearse fewer layers" in judge(None, "timed_out", facts(130, rehearsed=True), 60.0).remedy
