"""Say what is here: Python, packages, GPU driver, display, and what is missing for which level."""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import os
import platform
import sys

from cli import exits
from cli.streams import console, print_json
from cli.system_packages import missing_packages, remedy
from cli.tables import table
from probes.drivers import Drivers
from probes.preflight import why_not
from probes.recording import recordings_folder

PACKAGES = (
    "highwater", "PySide6-Essentials", "pyqtgraph", "numpy", "nvidia-ml-py", "huggingface_hub", "torch", "transformers", "peft",
)  # fmt: skip


def add_options(parser: argparse.ArgumentParser) -> None:
    """Form of the answer."""
    parser.add_argument("--json", action="store_true", help="print as JSON")


def run(options: argparse.Namespace) -> int:
    """Print every finding with its remedy; 3 when the window or a measurement can't run here."""
    findings = _findings()
    if options.json:
        rows = [{"what": what, "state": state, "remedy": advice} for what, state, advice in findings]
        print_json(rows)
    else:
        made = table(["what", "state"])
        for what, state, _ in findings:
            made.add_row(what, state)
        out = console()
        out.print(made)
        for _, _, advice in findings:
            if advice:
                out.print(f"→ {advice}", soft_wrap=True)
    return exits.NOT_DONE_HERE if any(advice for _, _, advice in findings) else exits.DONE


def _findings() -> list[tuple[str, str, str]]:
    """What, state, remedy (empty when all is well)."""
    found = [("Python", platform.python_version(), "")]
    found += [(name, version(name), "") for name in PACKAGES]
    nvml = Drivers()
    state = nvml.open()
    found.append(("GPU driver", ", ".join(gpu.name for gpu in nvml.readings()) if state.available else str(state), ""))
    nvml.close()
    found.append(("display", os.environ.get("WAYLAND_DISPLAY") or os.environ.get("DISPLAY") or _no_display(), ""))
    missing = missing_packages()
    found.append(
        ("Qt's libraries", "complete" if not missing else f"missing: {' '.join(missing)}", remedy(missing) if missing else "")
    )
    problem = why_not()
    found.append(("measuring", "ready" if not problem else "not possible", problem))
    found.append(("recordings", str(recordings_folder()), ""))
    return found


def version(name: str) -> str:
    """Of an installed package, or that it is not."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _no_display() -> str:
    return "the desktop's" if sys.platform in ("win32", "darwin") else "none (verbs and --screenshot work without)"
