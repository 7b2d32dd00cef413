"""The calibrations of this machine's cards, in one JSON file: the latest of each card counts, those before can be taken back."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from planner.calibration import Calibration
from planner.gpu import Gpu
from resources.home import highwater_home

logger = logging.getLogger(__name__)

VERSION = 1
_KEPT = 20


class CalibrationError(Exception):
    """The file of calibrations can't be read or written; the text says why and what helps."""


def calibration_path() -> Path:
    """Where calibrations are kept."""
    return highwater_home() / "calibration.json"


def with_calibration(gpu: Gpu) -> Gpu:
    """The card with its calibration; the same object as long as that does not change. A broken file is logged and left out."""
    path = calibration_path()
    try:
        stamp = path.stat().st_mtime_ns
    except OSError:
        return gpu
    return _calibrated(gpu.name, str(path), stamp, _Held(gpu))


class _Held:
    """A card as an argument that is told apart by its name alone."""

    def __init__(self, gpu: Gpu) -> None:
        self.gpu = gpu

    def __hash__(self) -> int:
        return hash(self.gpu.name)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Held) and other.gpu.name == self.gpu.name


@lru_cache(maxsize=64)
def _calibrated(name: str, path: str, _stamp: int, held: _Held) -> Gpu:
    try:
        found = history_of(name, Path(path))
    except CalibrationError as error:
        logger.warning("%s", error)
        return held.gpu
    return replace(held.gpu, calibration=found[-1]) if found else held.gpu


def history_of(name: str, path: Path | None = None) -> list[Calibration]:
    """Every calibration of a card, the one that counts last. Raises :class:`CalibrationError`."""
    return [_read(entry, name) for entry in _load(path or calibration_path()).get(name, [])]


def cards(path: Path | None = None) -> list[str]:
    """The cards that are calibrated. Raises :class:`CalibrationError`."""
    return sorted(name for name, entries in _load(path or calibration_path()).items() if entries)


def save(name: str, calibration: Calibration, path: Path | None = None) -> None:
    """Let this count from now on. Raises :class:`CalibrationError`."""
    target = path or calibration_path()
    kept = _load(target)
    kept[name] = [*kept.get(name, []), _to_json(calibration)][-_KEPT:]
    _store(target, kept)


def undo(name: str, path: Path | None = None) -> bool:
    """Take back the latest of a card; whether there was one. Raises :class:`CalibrationError`."""
    target = path or calibration_path()
    kept = _load(target)
    if not kept.get(name):
        return False
    kept[name].pop()
    _store(target, kept)
    return True


def reset(name: str | None = None, path: Path | None = None) -> int:
    """Forget the calibrations of a card, or of all; how many cards had one. A broken file is forgotten too."""
    target = path or calibration_path()
    try:
        kept = _load(target)
    except CalibrationError:
        kept = {}
    gone = [card for card, entries in kept.items() if entries and name in (None, card)]
    _store(target, {card: entries for card, entries in kept.items() if card not in gone})
    return len(gone)


def export(path: Path | None = None) -> str:
    """Everything that is kept, as JSON. Raises :class:`CalibrationError`."""
    return json.dumps({"highwater_calibration": VERSION, "cards": _load(path or calibration_path())}, indent=1)


def _to_json(calibration: Calibration) -> dict[str, Any]:
    return {**asdict(calibration), "flops_fractions": dict(calibration.flops_fractions)}


def _load(path: Path) -> dict[str, list[dict[str, Any]]]:
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise CalibrationError(f"{path} can't be read ({error}); `calibrate reset` begins anew") from error
    held = value.get("cards") if isinstance(value, dict) and value.get("highwater_calibration") == VERSION else None
    if not isinstance(held, dict) or not all(isinstance(entries, list) for entries in held.values()):
        raise CalibrationError(f"{path} is no file of calibrations of version {VERSION}; `calibrate reset` begins anew")
    return held


def _read(entry: Mapping[str, Any], name: str) -> Calibration:
    known = {field.name for field in fields(Calibration)}
    try:
        values = {key: value for key, value in entry.items() if key in known}
        fractions = tuple(sorted((str(dtype), float(share)) for dtype, share in dict(values.pop("flops_fractions", {})).items()))
        calibration = Calibration(**values, flops_fractions=fractions)
    except (TypeError, ValueError):
        calibration = None
    if calibration is None or not all(value is None or isinstance(value, int | float | str) for value in values.values()):
        raise CalibrationError(f"the calibration of {name} makes no sense; `calibrate undo {name}` takes it back")
    return calibration


def _store(path: Path, kept: Mapping[str, object]) -> None:
    fresh = path.with_suffix(".new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh.write_text(json.dumps({"highwater_calibration": VERSION, "cards": kept}, indent=1), encoding="utf-8")
        fresh.replace(path)
    except OSError as error:
        raise CalibrationError(
            f"{path} can't be written: {error.strerror or error}; set HIGHWATER_HOME to another folder"
        ) from error
