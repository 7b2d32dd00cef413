"""Models already in the local Hugging Face cache, found by their snapshots; read only, nothing is fetched.

Layout: ``models--OWNER--NAME/refs/main`` names the commit, ``snapshots/COMMIT/`` holds links to the files
(huggingface.co/docs/huggingface_hub/guides/manage-cache).
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

MAX_REPOSITORIES = 10_000


@dataclass(frozen=True, slots=True)
class CachedModel:
    """One cached snapshot that has a ``config.json`` or a GGUF file."""

    id: str
    revision: str
    folder: Path


def cache_folder() -> Path:
    """Where huggingface_hub keeps its cache: ``HF_HUB_CACHE``, ``HF_HOME``/hub, or ``~/.cache/huggingface/hub``."""
    if named := os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE"):
        return Path(os.path.expandvars(named)).expanduser()
    home = os.environ.get("HF_HOME") or (os.environ.get("XDG_CACHE_HOME") or "~/.cache") + "/huggingface"
    return Path(os.path.expandvars(home)).expanduser() / "hub"


def cached_models(search: str = "") -> list[CachedModel]:
    """Cached models whose id has every word of ``search``, by name."""
    words = search.lower().split()
    try:
        folders = sorted(folder.name for folder in cache_folder().iterdir())[:MAX_REPOSITORIES]
    except OSError:
        return []
    ids = [_id(name) for name in folders if name.startswith("models--")]
    matching = [model for model in ids if all(word in model.lower() for word in words)]
    return [found for model in matching if (found := cached_model(model)) is not None]


def cached_model(model: str, revision: str | None = None) -> CachedModel | None:
    """The snapshot of ``revision`` (default: what ``refs/main`` points to, else the newest); None if not cached."""
    folder = cache_folder() / ("models--" + model.replace("/", "--"))
    for commit in _commits(folder, revision):
        snapshot = folder / "snapshots" / commit
        if _is_usable(snapshot):
            return CachedModel(model, commit, snapshot)
    return None


def _commits(folder: Path, revision: str | None) -> list[str]:
    wanted = revision or "main"
    if ".." in wanted or not re.fullmatch(r"[\w.\-/]{1,200}", wanted, re.ASCII):
        return []
    try:
        commits = [(folder / "refs" / wanted).read_text("utf-8", "replace")[:64].strip()]
    except OSError:
        commits = [] if revision is None else [revision]
    if revision is None:
        commits += _newest_first(folder / "snapshots")
    return [commit for commit in commits if re.fullmatch(r"[\w.\-]{1,64}", commit, re.ASCII)]


def _newest_first(snapshots: Path) -> list[str]:
    try:
        return [item.name for item in sorted(snapshots.iterdir(), key=lambda item: -item.stat().st_mtime)]
    except OSError:
        return []


def _is_usable(snapshot: Path) -> bool:
    try:
        return (snapshot / "config.json").is_file() or any(snapshot.glob("*.gguf"))
    except OSError:
        return False


def _id(folder_name: str) -> str:
    return "/".join(folder_name.split("--")[1:])
