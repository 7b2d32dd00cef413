"""Coverage-guided fuzzing of every reader of foreign input, for a bounded time: ``python tests/fuzz/run.py --seconds 60``.

Each target runs in a process of its own under libFuzzer (atheris). It fails on any exception that is not the reader's
typed refusal, on an input that takes more than 2 s, and on more than the memory allowed over an empty run.
"""

from __future__ import annotations

import argparse
import contextlib
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SECONDS_AN_INPUT = 2.0
STALL_S = 60
"""Of wall time, for an input that waits instead of computing; a busy machine stretches it, so it is generous."""
MEMORY_MB = 200
BASE_MB = 60
"""What Python with the readers and libFuzzer's own tables takes before the first input, rounded up."""
NAMES = ("safetensors", "gguf", "json", "config")


def fuzz_one(name: str, seconds: int, folder: Path) -> None:
    """Fuzzes one target in this process; libFuzzer ends it."""
    import atheris

    sys.path.insert(0, str(ROOT))
    with atheris.instrument_imports(include=["resources", "planner"]):
        from tests.fuzz.targets import TARGETS
    target = TARGETS[name]
    corpus = folder / "corpus"
    corpus.mkdir()
    for number, seed in enumerate(target.seeds()):
        (corpus / f"seed{number}").write_bytes(seed)

    def one(data: bytes) -> None:
        start = time.process_time()
        with contextlib.suppress(*target.allowed):
            target.run(data)
        if time.process_time() - start > SECONDS_AN_INPUT:
            raise TimeoutError(f"one input took {time.process_time() - start:.1f} s of processor time")

    flags = [f"-max_total_time={seconds}", f"-timeout={STALL_S}", f"-rss_limit_mb={BASE_MB + MEMORY_MB}"]
    flags += ["-max_len=65536", "-print_final_stats=1", f"-artifact_prefix={folder}/"]
    atheris.Setup([name, *flags, str(corpus)], one)
    atheris.Fuzz()


def run_child(name: str, seconds: int) -> bool:
    """Fuzzes one target in a child; prints what it did, and the input if one broke it. True when it held."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "--target", name, "--seconds", str(seconds), "--folder", folder]
        ran = subprocess.run(command, capture_output=True, text=True, timeout=seconds * 3 + 120, check=False)
        lines = (ran.stdout + ran.stderr).splitlines()
        told = [line.split(":")[-1].strip() for line in lines if "number_of_executed_units" in line or "peak_rss_mb" in line]
        if ran.returncode == 0:
            print(f"{name}: held, {told[0] if told else '?'} inputs, peak {told[-1] if told else '?'} MB", flush=True)
            return True
        print(f"{name}: FAILED", *lines[-60:], sep="\n")
        for found in Path(folder).glob("*-*"):
            print(f"input ({found.name}): {found.read_bytes()[:4096]!r}")
        return False


def main() -> int:
    """0: all held; 1: one broke; 3: atheris is not installed here."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=60, help="for all targets together")
    parser.add_argument("--target", choices=NAMES)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.folder is not None:
        fuzz_one(arguments.target, arguments.seconds, arguments.folder)
        return 0
    try:
        import atheris  # noqa: F401
    except ImportError:
        print("atheris is not installed here (it has no build for this platform or Python): pip install atheris")
        return 3
    names = (arguments.target,) if arguments.target else NAMES
    each = -(-arguments.seconds // len(names))
    return 0 if sum([not run_child(name, each) for name in names]) == 0 else 1


if __name__ == "__main__":
    sys.exit(main())
