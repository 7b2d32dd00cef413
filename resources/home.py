"""Where this program keeps its files."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs


def highwater_home() -> Path:
    """``HIGHWATER_HOME``, else the user's data folder."""
    chosen = os.environ.get("HIGHWATER_HOME")
    # Path.expanduser raises for the home of a user that there is none of; a shell leaves such a name as it is.
    expanded = os.path.expanduser(chosen) if chosen else ""  # noqa: PTH111
    return Path(expanded or platformdirs.user_data_dir("highwater", appauthor=False))
