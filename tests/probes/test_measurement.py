from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from probes.measurement import Measurement
from probes.recording import Recording, read_recording

SCENARIO = {"model": "org/model", "task": "training"}
CUDA = {"type": "cuda", "name": "NVIDIA H200", "index": 1, "total_bytes": 1_000_000, "capability": [9, 0]}
CPU = {"type": "cpu", "name": "a CPU", "index": None, "total_bytes": 64_000_000, "capability": None}
PREDICTION = {
    "gpus": [
        {
            "phases": [
                {"name": "load", "allocated": 100, "reserved": 200, "device": 400},
                {"name": "forward", "allocated": 1000, "reserved": 2000, "device": 0},
            ]
        }
    ]
}


def phase(name: str, state: str, t: float, step: int = 0, **more: object) -> dict[str, Any]:
    return {"event": "phase", "t": t, "name": name, "state": state, "step": step, "micro": 0, **more}


def ended(name: str, t: float, allocated: int, step: int = 0, **more: object) -> list[dict[str, Any]]:
    meters = {"allocated": allocated, "reserved": allocated * 2, "device": allocated * 4}
    return [phase(name, "begin", t, step), phase(name, "end", t + 0.5, step, **(meters | more))]


def measured(*events: dict[str, Any], device: dict[str, Any] = CUDA, prediction: Any = PREDICTION) -> Measurement:
    measurement = Measurement(SCENARIO, prediction)
    hello = {"event": "hello", "t": 0.1, "versions": {"torch": "2.13.0"}, "device": device}
    for event in ({"event": "environment", "t": 0.0, "driver": "580"}, hello, *events):
        measurement.add(event)
    return measurement


COMPLETED = [
    {"event": "result", "t": 9.0, "outcome": "completed", "parameters": 7, "trainable_parameters": 5, "weight_bytes": 14},
    {"event": "outcome", "t": 9.1, "kind": "completed", "text": "The run completed."},
]  # fmt: skip


def test_a_completed_run_has_the_shape_of_a_footprint() -> None:
    events = ended("load", 1.0, 110, components={"weights": 110}) + ended("forward", 2.0, 900)
    answer = measured(*events, *COMPLETED).footprint().to_json()
    assert (answer["level"], answer["outcome"], answer["verdict"]) == ("measure", "completed", "fits")
    assert (answer["parameters"], answer["trainable_parameters"], answer["weight_bytes"]) == (7, 5, 14)
    assert answer["gpus"] == [
        {
            "index": 1,
            "capacity_bytes": 1_000_000,
            "peak": {"phase": "forward", "allocated": 900, "reserved": 1800, "device": 3600},
            "phases": [
                {"name": "load", "allocated": 110, "reserved": 220, "device": 440, "components": {"weights": 110}},
                {"name": "forward", "allocated": 900, "reserved": 1800, "device": 3600, "components": {}},
            ],
        }
    ]
    assert answer["headroom_bytes"] == 1_000_000 - 3600
    assert answer["durations_s"] == {"load": 0.5, "forward": 0.5}
    environment = answer["environment"]
    assert isinstance(environment, dict)
    assert (environment["driver"], environment["versions"], environment["device"]) == ("580", {"torch": "2.13.0"}, CUDA)
    json.dumps(answer, allow_nan=False)


def test_the_error_is_signed_and_per_phase_and_meter() -> None:
    """error = measured / predicted − 1; a prediction of nothing does not compare."""
    error = measured(*ended("load", 1.0, 110), *ended("forward", 2.0, 900), *COMPLETED).error()
    assert error["load"] == pytest.approx({"allocated": 0.1, "reserved": 0.1, "device": 0.1})
    assert error["forward"]["allocated"] == pytest.approx(-0.1)
    assert error["forward"]["device"] is None


def test_on_a_cpu_only_allocated_compares() -> None:
    measurement = measured(*ended("load", 1.0, 110), *COMPLETED, device=CPU)
    assert measurement.error()["load"] == {"allocated": pytest.approx(0.1), "reserved": None, "device": None}
    answer = measurement.footprint()
    assert answer.gpus[0].capacity_bytes is None
    assert answer.verdict == "unknown"
    assert "CPU" in answer.notes[0]


def test_without_a_prediction_there_is_no_error() -> None:
    assert measured(*ended("load", 1.0, 110), prediction=None).error() == {}
    assert measured(*ended("load", 1.0, 110), prediction={"gpus": []}).error() == {}


def test_the_steady_step_is_compared_and_the_first_reported() -> None:
    events = ended("load", 1.0, 100) + ended("forward", 2.0, 500, 1) + ended("forward", 3.0, 1100, 2)
    measurement = measured(*events, *COMPLETED)
    assert [(step.name, step.step) for step in measurement.phases] == [("load", 0), ("forward", 2)]
    assert measurement.error()["forward"]["allocated"] == pytest.approx(0.1)
    first = measurement.footprint().to_json()["first_step"]
    assert isinstance(first, list)
    assert [(step["name"], step["step"], step["allocated"]) for step in first] == [("forward", 1, 500)]


def test_micro_batches_of_one_step_keep_the_highest_with_its_components() -> None:
    events = (
        ended("forward", 1.0, 300, 1, components={"weights": 3})
        + ended("forward", 2.0, 700, 1, components={"weights": 7})
        + ended("forward", 3.0, 500, 1, components={"weights": 5}, device=9000)
    )
    (step,) = measured(*events).phases
    assert step.meters == {"allocated": 700, "reserved": 1400, "device": 9000}
    assert step.components == {"weights": 7}


def test_a_second_step_that_did_not_end_does_not_displace_the_first() -> None:
    events = [*ended("forward", 2.0, 500, 1), phase("forward", "begin", 3.0, 2)]
    memory = {"event": "memory", "t": 3.1, "allocated": 50, "reserved": 50, "device": 50, "phase": "forward"}
    measurement = measured(*events, memory, {"event": "outcome", "kind": "killed", "text": "Killed."})
    assert [(step.step, step.ended) for step in measurement.phases] == [(1, True)]


def test_a_run_cut_short_shows_the_samples_it_had() -> None:
    memory = [
        {"event": "memory", "t": t, "allocated": size, "reserved": size, "device": size, "phase": "forward"}
        for t, size in ((2.1, 40), (2.2, 90), (2.3, 60))
    ]
    events = [*ended("load", 1.0, 110), phase("forward", "begin", 2.0, 1), *memory]
    measurement = measured(*events, {"event": "outcome", "t": 3.0, "kind": "killed", "text": "Killed."})
    answer = measurement.footprint()
    assert answer.gpus[0].phases[1].allocated == 90
    assert answer.verdict == "unknown"
    assert "forward did not end" in answer.notes[0]
    assert "forward" not in measurement.error()


def test_out_of_memory_does_not_fit() -> None:
    outcome = {
        "event": "outcome", "t": 3.0, "kind": "out_of_memory", "text": "Out of memory.", "phase": "forward",
        "requested_bytes": 512, "free_bytes": 100, "message": "m",
    }  # fmt: skip
    answer = measured(*ended("load", 1.0, 110), outcome).footprint().to_json()
    assert (answer["verdict"], answer["outcome"]) == ("does_not_fit", "out_of_memory")
    assert answer["out_of_memory"] == {
        "phase": "forward", "requested_bytes": 512, "free_bytes": 100, "message": "m",
    }  # fmt: skip


def test_nothing_yet_is_an_answer_too() -> None:
    answer = Measurement(SCENARIO).footprint().to_json()
    assert (answer["gpus"], answer["verdict"], answer["outcome"]) == ([], "unknown", None)


def test_timeline_and_samples() -> None:
    events = [
        phase("load", "begin", 1.0),
        {"event": "memory", "t": 1.1, "allocated": 1, "reserved": 2, "device": None, "phase": "load"},
        {"event": "sample", "t": 1.2, "rss": 5, "gpus": [{"index": 0, "mig_index": None, "used": 7, "delta": None}]},
        {"event": "sample", "t": 1.3, "rss": 6, "gpus": [{"index": 0, "mig_index": 2, "used": 8}]},
    ]
    answer = measured(*events).footprint().to_json()
    assert answer["timeline"] == [(1.1, "allocated", 1, "load"), (1.1, "reserved", 2, "load")]
    assert answer["samples"] == {
        "t": [1.2, 1.3], "phase": ["load", "load"], "rss": [5, 6],
        "gpu0.used": [7, None], "gpu0.delta": [None, None], "gpu0.2.used": [None, 8],
    }  # fmt: skip


def test_values_nobody_could_have_measured_are_passed_over() -> None:
    events = [
        phase("load", "begin", 1.0),
        phase("load", "end", 1.5, allocated="lots", reserved=-5, device=True, components={"weights": "x", "logits": 4}),
        {"event": "result", "parameters": 1.5, "notes": "text"},
        {"event": "of the future"},
        {"event": "sample", "t": 2.0, "gpus": "none"},
    ]
    answer = measured(*events).footprint()
    (load,) = answer.gpus[0].phases
    assert (load.allocated, load.reserved, load.device) == (0, 0, 0)
    assert answer.parameters is None


def test_a_recording_gives_the_same_answer(tmp_path: Path) -> None:
    events = ended("load", 1.0, 110) + ended("forward", 2.0, 900) + COMPLETED
    live = measured(*events)
    with Recording({"scenario": SCENARIO, "prediction": PREDICTION}, tmp_path / "r.jsonl") as recording:
        recording.append({"event": "environment", "t": 0.0, "driver": "580"})
        recording.append({"event": "hello", "t": 0.1, "versions": {"torch": "2.13.0"}, "device": CUDA})
        for event in events:
            recording.append(event)
    replayed = Measurement.of_recording(read_recording(tmp_path / "r.jsonl"))
    assert replayed.footprint().to_json() == live.footprint().to_json()


def test_a_rehearsals_recording_keeps_its_level(tmp_path: Path) -> None:
    with Recording({"scenario": SCENARIO, "order": {"mode": "rehearse"}}, tmp_path / "r.jsonl"):
        pass
    assert Measurement.of_recording(read_recording(tmp_path / "r.jsonl")).footprint().level == "rehearse"


def test_columns_say_what_events_say(tmp_path: Path) -> None:
    """Rows of two GPUs, one of them in two MIG instances, with slow readings between: folded whole or one by one alike."""
    events = [
        {"event": "hello", "t": 0.0, "device": CUDA},
        phase("load", "begin", 0.1),
        {"event": "memory", "t": 0.2, "allocated": 5, "reserved": 6, "device": None, "phase": "load"},
        {"event": "sample", "t": 0.2, "rss": 10, "gpus": [gpu(0, None, 7), gpu(1, 3, 8), gpu(1, 4, 9, power_watts=117.25)]},
        {"event": "sample", "t": 0.3, "rss": None, "pss": 11},
        {"event": "memory", "t": 0.4, "allocated": 4, "reserved": 7, "device": 9, "phase": "load"},
        {"event": "memory", "t": 0.5, "allocated": 99, "reserved": 99, "device": 99, "phase": "other"},
        {"event": "sample", "t": 0.6, "rss": 12, "gpus": [gpu(1, 3, 18)]},
    ]
    said = [
        {"event": "rank", "t": round(event["t"] + 0.01, 6), "rank": rank, "of": event}
        for rank in (1, 2)
        for event in events[::rank]
    ]
    events = sorted([*events, *said], key=lambda event: event["t"])
    with Recording({"scenario": SCENARIO}, tmp_path / "r.jsonl") as recording:
        for event in events:
            recording.append(event)
    whole = Measurement.of_recording(read_recording(tmp_path / "r.jsonl"))
    single = Measurement(SCENARIO)
    for event in events:
        single.add(event)
    assert whole.steps == single.steps
    assert whole.steps["load", 0].meters == {"allocated": 5, "reserved": 7, "device": 9}
    assert sorted(whole.ranks) == sorted(single.ranks) == [1, 2]
    for rank in (0, 1, 2):
        read, told = (each if rank == 0 else each.ranks[rank] for each in (whole, single))
        assert read.steps == told.steps
        for one, other in ((read.timeline, told.timeline), (read.samples, told.samples)):
            assert (one.t, one.labels, one.columns) == (other.t, other.labels, other.columns)
    lines = (tmp_path / "r.jsonl").read_text().splitlines()
    assert sum(line.startswith("[") for line in lines) == sum(
        event.get("of", event)["event"] in ("memory", "sample") for event in events
    )


def gpu(index: int, mig_index: int | None, used: int, **more: object) -> dict[str, Any]:
    return {"index": index, "mig_index": mig_index, "used": used, "free": None, **more}


def test_the_device_holds_what_the_driver_sees_beside_what_torch_reserves(tmp_path: Path) -> None:
    """700 beside 2000 reserved; a reading taken while torch's counter moved does not count."""
    events = [
        phase("forward", "begin", 1.0),
        *({"event": "memory", "t": 1.0 + t / 10, "reserved": reserved, "phase": "forward"}
          for t, reserved in enumerate([1000, 1000, 2000, 2000])),
        phase("forward", "end", 2.0, allocated=900, reserved=2000, device=2000),
    ]  # fmt: skip
    sampled = {1.05: 1650, 1.15: 2700, 1.25: 2700}
    for t, held in sampled.items():
        index = next(place for place, event in enumerate(events) if event["t"] > t)
        events.insert(
            index, {"event": "sample", "t": t, "rss": 1, "gpus": [gpu(0, None, held + 50, delta=held), gpu(1, None, 1, delta=9000)]}
        )
    device = CUDA | {"index": 0}
    live = measured(*events, device=device)
    assert live.phases[0].meters == {"allocated": 900, "reserved": 2000, "device": 2700}
    with Recording({"scenario": SCENARIO}, tmp_path / "r.jsonl") as recording:
        for event in [{"event": "hello", "t": 0.1, "device": device}, *events]:
            recording.append(event)
    assert Measurement.of_recording(read_recording(tmp_path / "r.jsonl")).steps == live.steps
    assert measured(*events, device=CPU).phases[0].meters["device"] == 2000


@pytest.mark.parametrize(
    ("identity", "outside"),
    [
        ({"uuid": "6d1f8f0e-0000-4000-8000-00000000000b"}, 500),
        ({"uuid": "GPU-6d1f8f0e-0000-4000-8000-00000000000B"}, 500),
        ({"uuid": "hip's own", "pci_bus_id": "0000:C3:00.0"}, 500),
        ({"uuid": None}, 70),
    ],
    ids=["torch's", "the driver's", "by its place on the bus", "not told"],
)
def test_a_renumbered_gpu_is_found(tmp_path: Path, identity: dict[str, str | None], outside: int) -> None:
    """Under CUDA_VISIBLE_DEVICES=1, or with the fastest first, torch's cuda:0 is the driver's GPU 1."""
    gpus = [
        {
            "index": n, "mig_index": None, "uuid": f"GPU-6d1f8f0e-0000-4000-8000-00000000000{'ab'[n]}",
            "pci_bus_id": f"00000000:{('19', 'c3')[n]}:00.0",
        }
        for n in (0, 1)
    ]  # fmt: skip
    device = {"type": "cuda", "index": 0, "total_bytes": 10**6, **identity}
    events: list[dict[str, Any]] = [
        {"event": "environment", "t": 0.0, "gpus": gpus},
        {"event": "hello", "t": 0.0, "device": device},
        {"event": "memory", "t": 1.0, "allocated": 900, "reserved": 1000, "device": 1000, "phase": "load"},
        {"event": "sample", "t": 1.1, "rss": 5, "gpus": [
            {"index": 0, "mig_index": None, "used": 2000, "free": 1, "delta": 1070},
            {"index": 1, "mig_index": None, "used": 2000, "free": 1, "delta": 1500},
        ]},
        {"event": "memory", "t": 1.2, "allocated": 900, "reserved": 1000, "device": 1000, "phase": "load"},
    ]  # fmt: skip
    measurement = Measurement({})
    with Recording({}, tmp_path / "r.jsonl") as recording:
        for event in events:
            measurement.add(event)
            recording.append(event)
    assert measurement.outside_bytes == outside
    assert Measurement.of_recording(read_recording(tmp_path / "r.jsonl")).outside_bytes == outside
