"""Whether a probe can run here, told without importing what it needs."""

from __future__ import annotations

import importlib.util
import sys

NEEDED = ("torch", "transformers")


def missing_packages() -> tuple[str, ...]:
    """The packages the worker needs that this interpreter does not find."""
    return tuple(name for name in NEEDED if importlib.util.find_spec(name) is None)


def why_not() -> str:
    """Why the worker cannot be started here, with the remedy; empty when it can."""
    if not sys.executable:
        return "This Python does not know its own program file, so it cannot start a child. Start Highwater with `python main.py`."
    missing = missing_packages()
    if not missing:
        return ""
    verb = "is" if len(missing) == 1 else "are"
    return f'{" and ".join(missing)} {verb} not installed. Rehearsing and measuring need them: pip install "highwater[probe]"'
