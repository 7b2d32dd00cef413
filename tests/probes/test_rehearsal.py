"""Rehearsals: folded from events by hand, and run by the real worker."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from planner.faults import Faults
from planner.footprint import COMPONENTS
from planner.machine import overheads
from planner.scenario import parse_scenario
from planner.units import GIB, MIB
from probes.outcome import Outcome
from probes.recording import Recording, read_recording
from probes.rehearsal import TIMELINE_POINTS, Rehearsal
from probes.rehearsal_order import rehearse_request
from probes.session import Limits, ProbeSession
from probes.worker.order import parse_order
from resources.plan import Plan, find_gpu, make_plan

needs_libraries = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("torch", "transformers")),
    reason="needs torch and transformers, which the extra `probe` installs",
)

TINY = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 64, "intermediate_size": 128,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 256,
    "max_position_embeddings": 4096, "tie_word_embeddings": False,
}  # fmt: skip
A100 = "A100 SXM4 80GB"
CONTEXT_BYTES = overheads(find_gpu(A100)).context_bytes


def plan_for(model: object, task: str, gpu: str = A100, capacity_bytes: int | None = None, **workload: object) -> Plan:
    document = {
        "version": 1, "model": model, "weights": "bf16", "task": task, task: workload,
        "hardware": {"gpu": gpu, "capacity_bytes": capacity_bytes},
    }  # fmt: skip
    return make_plan(parse_scenario(document))


# -- by hand

STRINGS = ["weights", "activations", "load", "forward", "backward", "", "empty_strided", "model.layers.0", "mm"]
PREDICTION = {"gpus": [{"phases": [{"name": "forward", "allocated": 20 * MIB, "reserved": 40 * MIB, "device": 2 * CONTEXT_BYTES}]}]}


def phase(name: str, state: str, step: int = 0) -> dict[str, Any]:
    wire = {"allocated": 1, "reserved": 1, "device": 1, "components": {"weights": 1}} if state == "end" else {}
    return {"event": "phase", "t": 1.0, "name": name, "state": state, "step": step, "micro": 0, **wire}


def storage(*batch: list[Any], strings: list[str] | None = None) -> dict[str, Any]:
    return {"event": "storage", "t": 1.0, "strings": strings or [], "batch": list(batch)}


EVENTS = [
    {"event": "hello", "t": 0.1, "versions": {"torch": "2.13.0"}, "device": {"type": "cpu", "total_bytes": 5}},
    phase("load", "begin"),
    storage(["p", 2, "begin", 0], ["a", 0, 16 * MIB, 0, 5, 6], ["p", 2, "end", 0], strings=STRINGS),
    phase("load", "end"),
    phase("forward", "begin", 1),
    storage(["p", 3, "begin", 1], ["a", 1, 12 * MIB, 1, 7, 8]),
    storage(["f", 1], ["a", 2, 6 * MIB, 1, 7, 8], ["f", 2], ["p", 3, "end", 1]),
    phase("forward", "end", 1),
]
COMPLETED = [
    {"event": "result", "t": 2.0, "outcome": "completed", "parameters": 7, "weight_bytes": 14, "notes": ["one"]},
    {"event": "outcome", "t": 2.1, "kind": "completed", "after_s": 2.1, "text": "The run completed."},
]


def order(**card: object) -> dict[str, Any]:
    told = {"gpu": A100, "capacity_bytes": GIB, "outside_bytes": CONTEXT_BYTES, "torch_version": "2.13.0", "conf": "", **card}
    return {"scenario": {"model": "org/model", "task": "training"}, "personality": "cuda", "card": told}


def rehearsed(asked: dict[str, Any], *more: dict[str, Any]) -> Rehearsal:
    rehearsal = Rehearsal(asked, PREDICTION)
    for event in [*EVENTS, *more, *COMPLETED]:
        rehearsal.add(event)
    return rehearsal


def test_meters_come_from_the_simulated_allocator() -> None:
    """16 and 12 MiB have segments of their own; 6 MiB fits where the 12 MiB were. Device adds the context."""
    rehearsal = rehearsed(order())
    load, forward = rehearsal.footprint().gpus[0].phases
    assert (load.allocated, load.reserved, load.device) == (16 * MIB, 16 * MIB, 16 * MIB + CONTEXT_BYTES)
    assert (forward.allocated, forward.reserved, forward.device) == (28 * MIB, 28 * MIB, 28 * MIB + CONTEXT_BYTES)
    assert forward.components == {
        "weights": 16 * MIB, "activations": 12 * MIB, "cuda_context": CONTEXT_BYTES, "allocator_slack": 0,
    }  # fmt: skip


def test_the_answer_has_the_shape_of_a_footprint() -> None:
    answer = rehearsed(order(not_covered=["two"])).footprint().to_json()
    assert (answer["level"], answer["outcome"], answer["verdict"], answer["parameters"]) == ("rehearse", "completed", "fits", 7)
    assert answer["gpus"][0]["capacity_bytes"] == GIB  # type: ignore[index]
    assert answer["notes"] == ["one", "two"]
    assert answer["error"]["forward"]["allocated"] == pytest.approx(0.4)  # type: ignore[index]
    assert answer["error"]["forward"]["device"] == pytest.approx((28 * MIB + CONTEXT_BYTES) / (2 * CONTEXT_BYTES) - 1)  # type: ignore[index]
    assert answer["timeline_axis"] == "event"
    assert answer["timeline"][:3] == [  # type: ignore[index]
        (0, "allocated", 16 * MIB, "load"), (0, "reserved", 16 * MIB, "load"), (0, "device", 16 * MIB + CONTEXT_BYTES, "load"),
    ]  # fmt: skip
    (load, forward) = answer["peaks"]  # type: ignore[misc]
    assert (load["phase"], forward["module"], forward["op"]) == ("load", "model.layers.0", "mm")
    json.dumps(answer, allow_nan=False)


def test_out_of_memory_is_a_result_with_what_it_would_take() -> None:
    rehearsal = rehearsed(order(capacity_bytes=CONTEXT_BYTES + 20 * MIB))
    answer = rehearsal.footprint()
    assert (answer.verdict, answer.extra["outcome"]) == ("does_not_fit", "out_of_memory")
    told = answer.extra["out_of_memory"]
    assert isinstance(told, dict)
    assert (told["phase"], told["module"], told["op"], told["event"]) == ("forward", "model.layers.0", "mm", 1)
    assert (told["requested_bytes"], told["free_bytes"], told["allocated_bytes"]) == (12 * MIB, 4 * MIB, 16 * MIB)
    assert "tried to allocate 12.00 MiB" in told["message"]
    assert answer.gpus[0].phases[1].reserved == 28 * MIB
    assert answer.headroom_bytes == -8 * MIB
    ended = rehearsal.outcome_of(Outcome("completed", 2.1))
    assert (ended.kind, ended.exit_code, ended.free_bytes) == ("out_of_memory", 1, 4 * MIB)
    assert rehearsal.outcome_of(Outcome("stopped")).kind == "stopped"


def test_a_card_filled_to_the_brim_is_tight_not_too_small() -> None:
    assert rehearsed(order(capacity_bytes=CONTEXT_BYTES + 28 * MIB)).footprint().verdict == "tight"


def test_on_the_cpu_there_is_no_cache_and_only_allocated_compares() -> None:
    rehearsal = rehearsed({**order(), "personality": "cpu"})
    (_, forward) = rehearsal.footprint().gpus[0].phases
    assert (forward.allocated, forward.reserved, forward.device) == (28 * MIB,) * 3
    assert rehearsal.error()["forward"] == {"allocated": pytest.approx(0.4), "reserved": None, "device": None}


def test_settings_of_the_allocator_change_what_is_reserved() -> None:
    """Expandable segments map pages of 20 MiB; of 28 MiB two are needed."""
    assert rehearsed(order(conf="expandable_segments:True")).footprint().gpus[0].phases[1].reserved == 40 * MIB


def test_micro_batches_keep_the_highest() -> None:
    again = [
        phase("forward", "begin", 1),
        storage(["p", 3, "begin", 1], ["a", 5, 30 * MIB, 1, 5, 8], ["f", 5], ["p", 3, "end", 1]),
        phase("forward", "end", 1),
    ]
    rehearsal = rehearsed(order(), *again)
    assert [(step.name, step.meters["allocated"]) for step in rehearsal.phases] == [("load", 16 * MIB), ("forward", 46 * MIB)]
    assert rehearsal.peaks()[1].module == ""


def test_the_timeline_is_short_and_keeps_the_peak() -> None:
    batch = [entry for number in range(10, 9000) for entry in (["a", number, number * 512, 1, 7, 8], ["f", number])]
    rehearsal = rehearsed(order(), storage(*batch))
    points = rehearsal.timeline_points()
    assert len(points) <= TIMELINE_POINTS < len(rehearsal.timeline_points(limit=None))
    assert max(point[2] for point in points) == max(point[2] for point in rehearsal.timeline_points(limit=None))


def test_a_short_phase_keeps_its_course_beside_a_long_one() -> None:
    steps = [["a", number, 512 * number, 1, 7, 8] for number in range(10, 60)]
    ticks = [entry for number in range(100, 9000) for entry in (["a", number, 512, 1, 7, 8], ["f", number])]
    short = [phase("forward", "begin", 2), storage(["p", 3, "begin", 2], *steps, ["p", 3, "end", 2]), phase("forward", "end", 2)]
    long = [phase("backward", "begin", 2), storage(["p", 4, "begin", 2], *ticks, ["p", 4, "end", 2]), phase("backward", "end", 2)]
    points = rehearsed(order(), *short, *long).timeline_points()
    assert len(points) <= TIMELINE_POINTS
    assert sum(point[1] == "forward" for point in points) >= len(steps)


def test_nonsense_on_the_wire_is_told() -> None:
    answer = rehearsed(order(), storage(["f", 77], ["q"])).footprint()
    assert any("2 entries of the trace" in note for note in answer.notes)


def test_a_recording_gives_the_same_answer(tmp_path: Path) -> None:
    asked, path = order(capacity_bytes=CONTEXT_BYTES + 20 * MIB), tmp_path / "r.jsonl"
    live = rehearsed(asked)
    header = {"scenario": asked["scenario"], "order": {k: v for k, v in asked.items() if k != "scenario"}, "prediction": PREDICTION}
    with Recording(header, path) as recording:
        for event in [*EVENTS, *COMPLETED]:
            recording.append(event)
    assert Rehearsal.of_recording(read_recording(path)).footprint().to_json() == live.footprint().to_json()


def test_the_order_is_one_the_worker_reads() -> None:
    asked = rehearse_request(plan_for({"config": TINY}, "training", "H100 SXM5 80GB", sequence=32), layers=1)
    read = parse_order(json.loads(json.dumps(asked.order)))
    assert (read.mode, read.layers, read.personality, read.compute_capability) == ("rehearse", 1, "cuda", (9, 0))
    assert read.training.sequence == 32
    assert asked.order["card"]["capacity_bytes"] == find_gpu("H100 SXM5 80GB").capacity_bytes
    assert asked.prediction.parameters == 2 * 256 * 64 + (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 128 + 2 * 64) + 64


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (
            {
                "inference": {"engine": "vllm"},
                "hardware": {"gpu": "H100 SXM5 80GB", "gpus": 2},
                "parallel": {"tensor": 2},
                "offload": {"weights": 0.5},
            },
            ("vllm", "sharding", "offloading"),
        ),
        ({"hardware": {"gpu": "Apple M2 Max 96GB"}}, ("Apple M2 Max 96GB is rehearsed as a CUDA card",)),
    ],
)
def test_what_is_not_rehearsed_is_said(asked: dict[str, Any], words: tuple[str, ...]) -> None:
    plan = make_plan(parse_scenario({"model": {"config": TINY}, "task": "inference", **asked}))
    notes = " ".join(rehearse_request(plan).order["card"]["not_covered"])
    assert [word for word in words if word not in notes] == []


def test_bad_settings_are_refused() -> None:
    plan = plan_for({"config": TINY}, "inference")
    with pytest.raises(Faults, match="max_split_size_mb"):
        rehearse_request(plan, conf="max_split_size_mb:1")
    with pytest.raises(ValueError, match="layers: must be at least 1"):
        rehearse_request(plan, layers=0)


# -- by the worker


def by_worker(plan: Plan, **options: Any) -> Rehearsal:
    asked = rehearse_request(plan, **options)
    rehearsal = Rehearsal(asked.order, asked.prediction.to_json())
    with ProbeSession(asked.order, rehearsal.add, limits=Limits(time_s=280)) as session:
        outcome = session.wait(290)
    assert outcome is not None
    assert outcome.kind == "completed", outcome.text + outcome.stderr_tail
    return rehearsal


@pytest.fixture(autouse=True)
def _recordings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HIGHWATER_HOME", str(tmp_path))


@pytest.fixture(scope="module")
def tiny_training(run_here: Any) -> Rehearsal:
    asked = rehearse_request(plan_for({"config": TINY}, "training", batch=2, sequence=64))
    rehearsal = Rehearsal(asked.order, asked.prediction.to_json())
    run_here(asked.order, rehearsal.add)
    return rehearsal


@needs_libraries
def test_training_of_a_tiny_model(tiny_training: Rehearsal) -> None:
    rehearsal = tiny_training
    answer = rehearsal.footprint()
    phases = answer.gpus[0].phases
    assert [found.name for found in phases] == ["load", "forward", "backward", "optimizer"]
    assert rehearsal.trace.faults == 0
    for found in phases:
        assert found.allocated <= found.reserved <= found.device == found.reserved + CONTEXT_BYTES
        assert sum(found.components.values()) == found.device
        assert found.components.keys() <= set(COMPONENTS)
    optimizer = phases[-1].components
    # A gradient for every parameter; of the weights' storages only the rotary frequencies, twice 512 B, are buffers.
    assert optimizer["gradients"] == optimizer["weights"] - 2 * 512
    # AdamW keeps two states in the weights' dtype, and fused its step on the device (torch/optim/adam.py); 21 parameters.
    assert optimizer["optimizer_state"] == 2 * optimizer["gradients"] + 21 * 512


@needs_libraries
def test_the_opened_peaks_add_up_and_name_the_layers(tiny_training: Rehearsal) -> None:
    peaks = {peak.phase: peak for peak in tiny_training.peaks()}
    for peak in peaks.values():
        assert sum(group.bytes for group in peak.groups) == peak.allocated_bytes
    modules = {group.module for group in peaks["forward"].groups if group.component == "activations"}
    assert any(module.startswith("model.layers.0-1.") for module in modules)


@needs_libraries
def test_small_model_within_the_prediction() -> None:
    """A dense model's closed form and its trace agree, but for the tails that the allocator leaves in its blocks."""
    rehearsal = by_worker(plan_for("HuggingFaceTB/SmolLM2-135M", "inference", batch=2, prompt_tokens=512, new_tokens=1))
    errors = rehearsal.error()
    assert abs(errors["load"]["allocated"] or 0) < 1e-4
    assert all(abs(errors[name]["allocated"] or 1) < 0.01 for name in ("prefill", "decode"))
    kv_bytes = rehearsal.footprint().gpus[0].phases[2].components["kv_cache"]
    # 30 layers, keys and values of 3 heads of 64 in bf16; the layer at hand holds its old and its new cache.
    assert kv_bytes >= 30 * 2 * 3 * 64 * 2 * 2 * 513
    assert rehearsal.environment["versions"]["transformers"]


@needs_libraries
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("model", "batch", "measured_bytes"),
    [
        ("mistralai/Mistral-7B-v0.1", 4, 72_434_837_504),
        ("mistralai/Mistral-7B-v0.1", 8, 72_435_230_720),
        ("meta-llama/Meta-Llama-3-8B", 4, 80_318_097_408),
    ],
)
def test_published_a100_runs(run_here: Any, model: str, batch: int, measured_bytes: int) -> None:
    """Peak allocated of full fine-tuning in bf16 with checkpointing, as fms-acceleration published it (refs/a100_80gb.csv).

    HF Trainer, adamw_torch (foreach), packed sequences of 4096; it ran flash attention 2, here SDPA chooses the same kernel.
    """
    plan = plan_for(model, "training", batch=batch, sequence=4096, optimizer="adamw_foreach", checkpointing="full")
    asked = rehearse_request(plan)
    rehearsal = Rehearsal(asked.order, asked.prediction.to_json())
    run_here(asked.order, rehearsal.add)
    peak = max(step.meters["allocated"] for step in rehearsal.phases)
    assert peak == pytest.approx(measured_bytes, rel=0.0005)
