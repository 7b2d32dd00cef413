"""What the battery's recordings say of predictions and rehearsals, as a table.

    python tests/gpu/report.py FOLDER [--rehearse]

Errors are predicted (or rehearsed) against measured, of every phase that ended: median and mean of the absolute, 95th
percentile, signed mean, and the share of phases that took more than was said.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, median

sys.path.insert(0, str(Path(__file__).parents[2]))

from planner.footprint import METERS
from probes.calibration import fit, gather, uncalibrated
from probes.measurement import Measurement
from probes.recording import Recorded, read_recording
from resources.gpus import UnknownGpu, gpu
from tests.gpu.rehearsed import rehearse
from tests.gpu.scenarios import SCENARIOS

Errors = dict[str, list[float]]


def read(folder: Path) -> list[tuple[str, Recorded]]:
    """The recordings by scenario name."""
    return [(path.name.removesuffix(".jsonl.gz"), read_recording(path)) for path in sorted(folder.glob("*.jsonl.gz"))]


def predicted_errors(recordings: Sequence[tuple[str, Recorded]]) -> Errors:
    """Of the closed form with the catalog's figures, by meter."""
    errors: Errors = {meter: [] for meter in METERS}
    for _, recorded in recordings:
        run = Measurement.of_recording(recorded)
        device = run.environment.get("device") or {}
        try:
            said = uncalibrated(recorded.header, gpu(str(device.get("name")), device.get("total_bytes")))
        except UnknownGpu:
            continue
        for step in run.phases:
            if step.ended and step.name in said:
                for meter in METERS:
                    if step.meters[meter]:
                        errors[meter].append(said[step.name].meter(meter) / step.meters[meter] - 1)
    return errors


def rehearsed_errors(recordings: Sequence[tuple[str, Recorded]]) -> Errors:
    """Of a rehearsal on this machine, by meter; takes some seconds a recording."""
    scenarios = {scenario.name: scenario for scenario in SCENARIOS}
    errors: Errors = {"allocated": [], "reserved": []}
    for name, recorded in recordings:
        run = Measurement.of_recording(recorded)
        device, versions = run.environment.get("device") or {}, run.environment.get("versions") or {}
        if name not in scenarios or not device.get("capability"):
            continue
        torch_version = str(versions.get("torch")).split("+")[0]
        peaks = rehearse(scenarios[name], device["capability"], torch_version, device.get("total_bytes"))
        for step in run.steps.values():
            found = peaks.get((step.name, step.step))
            if step.ended and found and step.meters["allocated"]:
                errors["allocated"].append(found[0] / step.meters["allocated"] - 1)
                errors["reserved"].append(found[1] / step.meters["reserved"] - 1)
    return errors


def table(title: str, errors: Mapping[str, Sequence[float]]) -> str:
    """A line for each meter."""
    lines = [f"{title:24} {'phases':>7} {'median':>8} {'mean':>8} {'95 %':>8} {'bias':>8} {'too low':>8}"]
    for meter, signed in errors.items():
        if signed:
            sizes = sorted(abs(error) for error in signed)
            tail = sizes[min(len(sizes) - 1, int(0.95 * len(sizes)))]
            low = sum(error < 0 for error in signed) / len(signed)
            cells = " ".join(f"{100 * figure:7.2f}%" for figure in (median(sizes), fmean(sizes), tail, fmean(signed), low))
            lines.append(f"  {meter:22} {len(signed):7d} {cells}")
    return "\n".join(lines)


def main() -> int:
    """Print the tables, and what calibration makes of the device figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rehearse", action="store_true")
    options = parser.parse_args()
    recordings = read(options.folder)
    print(f"{len(recordings)} recordings in {options.folder}")
    print(table("predicted", predicted_errors(recordings)))
    for evidence in gather(recordings).values():
        fitted = fit(evidence)
        if fitted.error_before is not None and fitted.error_after is not None:
            before, after = 100 * fitted.error_before, 100 * fitted.error_after
            print(f"device on {fitted.card}, each run held out: {before:.2f}% as it is, {after:.2f}% calibrated on the others")
    if options.rehearse:
        print(table("rehearsed", rehearsed_errors(recordings)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
