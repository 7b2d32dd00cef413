"""Two ranks on the CPU (gloo), under torchrun, through the session: a footprint for each."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest

from probes.measurement import Measurement
from probes.orders import measure_order
from probes.outcome import Outcome
from probes.recording import read_recording
from probes.session import Limits, ProbeSession
from tests.probes.test_worker_session import CONFIG, PARAMETERS, scenario
from tests.timing import eventually

pytestmark = pytest.mark.skipif(
    sys.platform == "win32" or any(importlib.util.find_spec(name) is None for name in ("torch", "transformers")),
    reason="needs torch and transformers, which the extra `probe` installs, on Linux or macOS",
)
WEIGHT_BYTES = PARAMETERS * 4
NORMS = 5 * 64 * 4
EMBEDDING = 256 * 64 * 4


class Run:
    """Two ranks of a task, with every process that said its id."""

    def __init__(self, folder: Path, task: str, parallel: Mapping[str, int | str]) -> None:
        asked = scenario(task) | {"parallel": parallel}
        self.measurement, self.path = Measurement(asked), folder / "r.jsonl"
        self.pids: dict[int, int] = {}
        order = measure_order(asked, CONFIG, ranks=2)
        self.session = ProbeSession(order, self._take, recording_path=self.path, limits=Limits(time_s=180))

    def _take(self, event: dict[str, Any]) -> None:
        told = event["of"] if event["event"] == "rank" else event
        if told["event"] == "hello":
            self.pids[told["rank"]] = told["pid"]
        self.measurement.add(event)

    def until(self, condition: Callable[[], bool]) -> None:
        assert eventually(lambda: condition() or self.session.outcome)
        assert self.session.outcome is None, self.session.outcome

    def finish(self) -> Outcome:
        """The outcome; the recording tells the same answer, and no rank is left."""
        outcome = self.session.wait(200)
        assert outcome is not None
        recorded = Measurement.of_recording(read_recording(self.path))
        assert recorded.footprint().to_json() == self.measurement.footprint().to_json()
        assert sorted(self.pids) == [0, 1]
        assert not [pid for pid in self.pids.values() if psutil.pid_exists(pid)]
        return outcome


def measure(folder: Path, task: str, **parallel: Any) -> tuple[Measurement, list[dict[str, int]]]:
    """The measurement, and by rank the allocated peak of each phase."""
    run = Run(folder, task, parallel)
    with run.session:
        outcome = run.finish()
    assert outcome.kind == "completed", outcome.text + outcome.stderr_tail
    assert [told["rank"] for told in run.measurement.result["ranks"]] == [0, 1]
    answer = run.measurement.footprint()
    return run.measurement, [{phase.name: phase.allocated for phase in gpu.phases} for gpu in answer.gpus]


def test_ddp_holds_everything_on_every_rank(tmp_path: Path) -> None:
    """And its buckets beside the gradients (DistributedDataParallel, gradient_as_bucket_view=False)."""
    measurement, ranks = measure(tmp_path, "training", data=2)
    assert len(ranks) == 2
    for phases in ranks:
        # Weights, gradients, buckets and Adam's two moments.
        assert phases["optimizer"] == pytest.approx(5 * WEIGHT_BYTES, rel=0.03)
    components = measurement.footprint().gpus[1].phases[-1].components
    assert components["communication"] == pytest.approx(WEIGHT_BYTES, rel=0.01)


def test_fsdp_holds_a_half_on_each_of_two(tmp_path: Path) -> None:
    """Parameters, gradients and states are sharded; what a forward gathers is given back (FSDP2, fully_shard)."""
    measurement, ranks = measure(tmp_path, "training", data=2, sharding="fsdp")
    assert len(ranks) == 2
    for gpu, phases in zip(measurement.footprint().gpus, ranks, strict=True):
        components = next(phase for phase in gpu.phases if phase.name == "optimizer").components
        kept = {"weights": 1, "gradients": 1, "optimizer_state": 2}
        for name, times in kept.items():
            assert components[name] == pytest.approx(times * WEIGHT_BYTES / 2, rel=0.05), name
        # Gloo's own thread lets go of what it carried a moment after the backward: at most a collective of the root's parts.
        assert phases["optimizer"] - sum(components[name] for name in kept) <= 2 * EMBEDDING + NORMS
        assert phases["forward"] < 4 * WEIGHT_BYTES


def test_tensor_parallel_splits_the_projections(tmp_path: Path) -> None:
    """By transformers' plan: all but embedding and norms (the head's columns too)."""
    measurement, ranks = measure(tmp_path, "inference", tensor=2)
    assert len(ranks) == 2
    whole = EMBEDDING + NORMS
    for gpu in measurement.footprint().gpus:
        decode = next(phase for phase in gpu.phases if phase.name == "decode")
        assert decode.components["weights"] == pytest.approx(whole + (WEIGHT_BYTES - whole) / 2, rel=0.02)


def test_a_rank_that_is_killed_ends_all_of_them(tmp_path: Path) -> None:
    """It is told with its number and its signal, and what was measured until then is kept."""
    run = Run(tmp_path, "training", {"data": 2})
    with run.session:
        run.until(lambda: len(run.pids) == 2 and 1 in run.measurement.ranks)
        psutil.Process(run.pids[1]).kill()
        outcome = run.finish()
    assert (outcome.kind, outcome.rank, outcome.signal, outcome.exit_code) == ("killed", 1, 9, 3), outcome
    assert outcome.text.startswith("Rank 1 of the probe was killed by SIGKILL")
