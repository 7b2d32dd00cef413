"""Files the window opens and saves: what a file is, and plain words when it is not what it seems."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from planner.faults import Faults
from planner.scenario import ModelPath, Scenario, parse_scenario, to_json

_RECORDING_SUFFIX = ".jsonl"
_MODEL_SUFFIXES = (".gguf", ".safetensors")
_MAX_SCENARIO_BYTES = 16 * 2**20


class Unreadable(ValueError):
    """A file that cannot be opened; the message names it and says why."""


@dataclass(frozen=True, slots=True)
class RecordingFile:
    """A recording to replay."""

    path: Path


def read_any(path: Path) -> Scenario | RecordingFile | ModelPath:
    """What ``path`` holds. Raises :class:`Unreadable`."""
    if path.is_dir() or path.suffix in _MODEL_SUFFIXES:
        return ModelPath(str(path))
    if path.suffix == _RECORDING_SUFFIX:
        return RecordingFile(path)
    document = _read_json(path)
    if isinstance(document, dict) and "model_type" in document:
        return ModelPath(str(path))
    try:
        return parse_scenario(document)
    except Faults as faults:
        raise Unreadable(f"{path.name} is not a scenario: {'; '.join(str(fault) for fault in faults.faults)}") from faults


def save_scenario(scenario: Scenario, path: Path) -> str:
    """Write ``scenario``; returns what to tell the user, done or not."""
    try:
        path.write_text(json.dumps(to_json(scenario), indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        return f"{path} was not saved: {error.strerror or error}"
    return f"Saved {path}"


def _read_json(path: Path) -> object:
    try:
        if path.stat().st_size > _MAX_SCENARIO_BYTES:
            raise Unreadable(f"{path.name} is too large for a scenario or a config.json")
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise Unreadable(f"{path.name} cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise Unreadable(f"{path.name} is not JSON: {error}") from error
