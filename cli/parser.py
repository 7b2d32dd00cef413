"""The command line: which verb, which window."""

from __future__ import annotations

import argparse
import contextlib
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from cli import exits

VERBS = (
    "predict", "report", "advise", "commands", "rehearse", "measure", "monitor", "history", "replay", "calibrate",
    "models", "gpus", "doctor",
)  # fmt: skip
EPILOG = (
    "exit status: 0 fits or ran, 1 does not fit or ran out of memory, 2 bad input, "
    "3 could not be done here (no GPU, no torch, no network), 130 interrupted"
)


def run(arguments: list[str]) -> int:
    """Parse and run; every failure becomes one clear message on standard error and its exit status."""
    try:
        if arguments and arguments[0] in VERBS:
            return _run_verb(arguments)
        return _run_window(_window_parser().parse_args(arguments))
    except KeyboardInterrupt:
        return exits.INTERRUPTED
    except BrokenPipeError:
        with contextlib.suppress(OSError):
            sys.stdout.close()
        return exits.DONE


def _run_verb(arguments: Sequence[str]) -> int:
    import importlib  # noqa: PLC0415  a verb loads only what it needs

    verb = importlib.import_module(f"cli.{arguments[0]}")
    parser = argparse.ArgumentParser(prog=f"main.py {arguments[0]}", description=verb.__doc__, epilog=EPILOG)
    verb.add_options(parser)
    words, command = list(arguments[1:]), None
    if getattr(verb, "TAKES_COMMAND", False) and "--" in words:
        words, command = words[: words.index("--")], words[words.index("--") + 1 :]
    options = parser.parse_args(words)
    options.command = command
    return int(verb.run(options))


def _window_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="main.py",
        description="Open the window; or, without a screen, one of the verbs: " + ", ".join(VERBS) + ".",
        epilog=EPILOG,
    )
    parser.add_argument("paths", nargs="*", type=Path, metavar="FILE", help="scenario, recording or model to open in the window")
    parser.add_argument("--screenshot", type=Path, metavar="FILE", help="render the window to a PNG and end")
    parser.add_argument("--tab", default="footprint", help="tab to show in the screenshot")
    parser.add_argument("--scenario", type=Path, metavar="FILE", help="scenario to show")
    parser.add_argument("--theme", choices=("light", "dark"), default="light")
    parser.add_argument("--size", type=_size, default=(1400, 900), metavar="WxH")
    return parser


def _size(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d{3,5})x(\d{3,5})", text)
    if found is None:
        raise argparse.ArgumentTypeError(f"must be WIDTHxHEIGHT in pixels, 1400x900 for example, got {text!r}")
    return int(found[1]), int(found[2])


def _run_window(options: argparse.Namespace) -> int:
    from cli import window  # noqa: PLC0415

    unknown = [path for path in options.paths if not path.exists()]
    if unknown:
        names = ", ".join(str(path) for path in unknown)
        return exits.fail(exits.BAD_INPUT, f"{names}: no such file, and no verb. Verbs: {', '.join(VERBS)}")
    return window.screenshot(options) if options.screenshot else window.show(options)
