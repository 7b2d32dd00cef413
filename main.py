"""Highwater's entry point: the window without arguments, a verb for everything that needs no screen."""

from __future__ import annotations

import sys
from collections.abc import Sequence

REMEDY = "Install it into an environment of its own with `make run`, or: pip install -c constraints.txt -e ."


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a verb, or open the window; returns the exit status (see ``python main.py --help``)."""
    try:
        from cli import parser  # noqa: PLC0415  an interrupt while it loads is one too

        return parser.run(list(sys.argv[1:] if arguments is None else arguments))
    except KeyboardInterrupt:
        return 130
    except ModuleNotFoundError as error:
        sys.stderr.write(f"highwater: this Python ({sys.executable}) lacks {error.name}. {REMEDY}\n")
        return 3


if __name__ == "__main__":
    sys.exit(main())
