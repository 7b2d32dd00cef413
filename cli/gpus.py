"""List the GPUs of the catalog."""

from __future__ import annotations

import argparse
import dataclasses

from cli import exits
from cli.streams import console, print_json
from cli.tables import table
from planner.gpu import Gpu
from planner.units import GIB
from resources.gpus import find_gpus


def add_options(parser: argparse.ArgumentParser) -> None:
    """What to search for."""
    parser.add_argument("search", nargs="*", help="words of the name, vendor or architecture")
    parser.add_argument("--json", action="store_true", help="print every field as JSON")


def run(options: argparse.Namespace) -> int:
    """Print the cards found."""
    search = " ".join(options.search)
    found = find_gpus(search)
    if options.json:
        print_json([_json(gpu) for gpu in found])
        return exits.DONE
    if not found:
        return exits.fail(exits.BAD_INPUT, f"no GPU of the catalog matches {search!r}; without a search all are listed")
    made = table(["name", "architecture", "GiB", "GB/s", "bf16 TFLOP/s", "link", "confidence"], numeric=(2, 3, 4))
    for gpu in found:
        speed = gpu.flops_for("bf16") or gpu.flops_for("fp16")
        made.add_row(
            gpu.name,
            gpu.arch,
            f"{gpu.capacity_bytes / GIB:.1f}",
            _number(gpu.bandwidth_bytes_per_s, 1e9),
            _number(speed, 1e12),
            gpu.link or "–",
            gpu.confidence,
        )
    console().print(made)
    return exits.DONE


def _json(gpu: Gpu) -> dict[str, object]:
    return dataclasses.asdict(gpu) | {"capacity_bytes": gpu.capacity_bytes, "capacity_basis": gpu.capacity_basis}


def _number(value: float | None, unit: float) -> str:
    return "N/A" if value is None else f"{value / unit:,.0f}"
