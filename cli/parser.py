"""The command line: which verb, which window."""

from __future__ import annotations

import argparse
import contextlib
import difflib
import re
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

from cli import exits, streams
from cli.inputs import refuse

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
    streams.prepare()
    try:
        if arguments and arguments[0] in VERBS:
            with _ended_gently():
                status = _run_verb(arguments)
        else:
            status = _run_window(_window_parser().parse_args(arguments))
        streams.flush()
    except KeyboardInterrupt:
        return exits.INTERRUPTED
    except BrokenPipeError:
        streams.abandon()
        return exits.DONE
    except OSError as error:
        streams.abandon()
        return refuse(error)
    return status


@contextlib.contextmanager
def _ended_gently() -> Iterator[None]:
    """``kill`` and a terminal that closes count as Ctrl-C, so that nothing that a verb started outlives it."""
    names = [name for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    numbers = [number for name in names if signal.getsignal(number := getattr(signal, name)) == signal.SIG_DFL]
    if threading.current_thread() is not threading.main_thread():
        numbers = []
    for number in numbers:
        signal.signal(number, signal.default_int_handler)
    try:
        yield
    finally:
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)


def _run_verb(arguments: Sequence[str]) -> int:
    import importlib  # noqa: PLC0415  a verb loads only what it needs

    verb = importlib.import_module(f"cli.{arguments[0]}")
    parser = argparse.ArgumentParser(
        prog=f"{_program()} {arguments[0]}", description=(verb.__doc__ or "").replace("``", ""), epilog=EPILOG
    )
    verb.add_options(parser)
    words, command = list(arguments[1:]), None
    if getattr(verb, "TAKES_COMMAND", False) and "--" in words:
        words, command = words[: words.index("--")], words[words.index("--") + 1 :]
    options = parser.parse_args(words)
    options.command = command
    return int(verb.run(options))


def _program() -> str:
    """What was started: ``main.py``, or ``highwater`` where it is installed."""
    return Path(sys.argv[0]).name or "main.py"


def _window_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=_program(),
        description="Open the window; or, without a screen, one of the verbs: " + ", ".join(VERBS) + ".",
        epilog=EPILOG,
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and end")
    parser.add_argument("paths", nargs="*", type=Path, metavar="FILE", help="scenario, recording or model to open in the window")
    parser.add_argument("--screenshot", type=Path, metavar="FILE", help="render the window to a PNG and end")
    parser.add_argument("--tab", default="footprint", help="tab to show in the screenshot")
    parser.add_argument("--scenario", type=Path, metavar="FILE", help="scenario to show")
    parser.add_argument("--theme", choices=("light", "dark"), default="light")
    parser.add_argument("--size", type=_size, default=(1400, 900), metavar="WxH")
    return parser


class _Version(argparse.Action):
    """Looked up only when it is asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from cli.doctor import version  # noqa: PLC0415  a verb loads only what it needs

        sys.stdout.write(f"highwater {version('highwater')}\n")
        parser.exit()


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
        close = difflib.get_close_matches(names, VERBS, 1)
        meant = f"did you mean {close[0]}? " if close else ""
        return exits.fail(exits.BAD_INPUT, f"{names}: no such file, and no verb; {meant}Verbs: {', '.join(VERBS)}")
    return window.screenshot(options) if options.screenshot else window.show(options)
