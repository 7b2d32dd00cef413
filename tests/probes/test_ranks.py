"""Two ranks on the CPU (gloo), under torchrun, through the session: a footprint for each."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from probes.measurement import Measurement
from probes.orders import measure_order
from probes.recording import read_recording
from probes.session import Limits, ProbeSession
from tests.probes.test_worker_session import CONFIG, PARAMETERS, scenario

pytestmark = pytest.mark.skipif(
    sys.platform == "win32" or any(importlib.util.find_spec(name) is None for name in ("torch", "transformers")),
    reason="needs torch and transformers, which the extra `probe` installs, on Linux or macOS",
)
WEIGHT_BYTES = PARAMETERS * 4
NORMS = 5 * 64 * 4
EMBEDDING = 256 * 64 * 4


def measure(folder: Path, task: str, **parallel: Any) -> tuple[Measurement, list[dict[str, int]]]:
    """The measurement, and by rank the allocated peak of each phase."""
    asked = scenario(task) | {"parallel": parallel}
    measurement, path = Measurement(asked), folder / "r.jsonl"
    order = measure_order(asked, CONFIG, ranks=2)
    with ProbeSession(order, measurement.add, recording_path=path, limits=Limits(time_s=180)) as session:
        outcome = session.wait(200)
    assert outcome is not None
    assert outcome.kind == "completed", outcome.text + outcome.stderr_tail
    answer = measurement.footprint()
    assert Measurement.of_recording(read_recording(path)).footprint().to_json() == answer.to_json()
    assert not [process for process in psutil.process_iter(["cmdline"]) if "HIGHWATER_RANKS" in str(process.info["cmdline"])]
    assert [told["rank"] for told in measurement.result["ranks"]] == [0, 1]
    return measurement, [{phase.name: phase.allocated for phase in gpu.phases} for gpu in answer.gpus]


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
    _, ranks = measure(tmp_path, "training", data=2, sharding="fsdp")
    assert len(ranks) == 2
    for phases in ranks:
        assert phases["optimizer"] == pytest.approx(4 * WEIGHT_BYTES / 2, rel=0.05)
        assert phases["forward"] < 4 * WEIGHT_BYTES


def test_tensor_parallel_splits_the_projections(tmp_path: Path) -> None:
    """By transformers' plan: all but embedding and norms (the head's columns too)."""
    measurement, ranks = measure(tmp_path, "inference", tensor=2)
    assert len(ranks) == 2
    whole = EMBEDDING + NORMS
    for gpu in measurement.footprint().gpus:
        decode = next(phase for phase in gpu.phases if phase.name == "decode")
        assert decode.components["weights"] == pytest.approx(whole + (WEIGHT_BYTES - whole) / 2, rel=0.02)
