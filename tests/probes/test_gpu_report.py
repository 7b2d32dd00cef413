"""The report on a battery's recordings, on such as a card of known figures would have left."""

from __future__ import annotations

import gzip
import subprocess
import sys
from pathlib import Path

from planner.units import MIB
from tests.probes.fake_nvml import PROJECT
from tests.probes.test_calibration import battery


def test_errors_are_told_by_meter(tmp_path: Path) -> None:
    """allocated is as predicted, reserved and device are not, and calibration mends the device."""
    battery(tmp_path, context=712 * MIB, slack=1.6)
    for path in tmp_path.glob("*.jsonl"):
        (tmp_path / f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
    done = subprocess.run(
        [sys.executable, "tests/gpu/report.py", str(tmp_path)], cwd=PROJECT, capture_output=True, text=True, timeout=60, check=True
    )
    lines = {line.split()[0]: line.split() for line in done.stdout.splitlines()}
    assert lines["6"][1] == "recordings"
    assert lines["allocated"][2:4] == ["0.00%", "0.00%"]
    assert float(lines["reserved"][3].rstrip("%")) > 0
    assert "each run held out" in done.stdout
    before, after = (float(word.rstrip("%")) for word in done.stdout.split("held out:")[1].split() if word.endswith("%"))
    assert after < 0.3 < before
