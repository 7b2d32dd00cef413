"""Where this program keeps its files."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs


def highwater_home() -> Path:
    """``HIGHWATER_HOME``, else the user's data folder."""
    chosen = os.environ.get("HIGHWATER_HOME")
    return Path(chosen).expanduser() if chosen else Path(platformdirs.user_data_dir("highwater", appauthor=False))
