"""The bundled catalog of models: configs with licence, source and published parameter counts."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

DATA = Path(__file__).parent / "data" / "models.json"
_NUMBER = re.compile(r"(\d+(?:\.\d+)?)")


class UnknownModel(LookupError):
    """No model of the catalog has an id; ``close`` holds the nearest ones."""

    def __init__(self, model: str, close: tuple[str, ...]) -> None:
        self.model, self.close = model, close
        hint = f"; did you mean {', '.join(close)}?" if close else ""
        super().__init__(f"model: {model[:120]!r} is not in the catalog{hint} (python main.py models lists it)")


@dataclass(frozen=True, slots=True)
class CatalogModel:
    """One bundled model. ``gated`` None: not known; ``published_note`` says why a published count differs."""

    id: str
    config: Mapping[str, Any]
    license: str | None
    gated: bool | None
    provenance: str
    url: str | None
    edited: str | None
    published_parameters: int | None
    published_note: str | None
    hf_quant_config: Mapping[str, Any] | None = None


def model_ids() -> tuple[str, ...]:
    """Every id, sorted without regard to case."""
    return tuple(_rows())


def catalog_model(model: str) -> CatalogModel:
    """The model of that id (case does not matter). Raises :class:`UnknownModel` with the nearest ids."""
    found = _folded().get(model.lower())
    if found is None:
        raise UnknownModel(model, close_ids(model))
    return _read(found)


def find_models(search: str = "") -> list[CatalogModel]:
    """Models whose id, ``model_type`` or licence has every word of ``search``; ids that start with it come first.

    Otherwise they stand as people count: 4B before 30B.
    """
    words = search.lower().split()
    found = [name for name, row in _rows().items() if all(word in _searched(name, row) for word in words)]
    start = search.lower().strip()
    begun = {name for name in found if name.lower().startswith(start) or name.split("/")[-1].lower().startswith(start)}
    found.sort(key=lambda name: (name not in begun, *_counted(name)))
    return [_read(name) for name in found]


@cache
def _counted(name: str) -> tuple[str | float, ...]:
    """Words and numbers by turns, beginning with a word."""
    parts = _NUMBER.split(name.lower())
    return tuple(float(part) if index % 2 else part for index, part in enumerate(parts))


def close_ids(model: str) -> tuple[str, ...]:
    """Up to three ids that look like ``model``, by whole id or by the name after the slash."""
    wanted = model[:200].lower()
    found = difflib.get_close_matches(wanted, list(_folded()), n=3, cutoff=0.6)
    short = {name.split("/")[-1]: name for name in _folded()}
    found += [short[name] for name in difflib.get_close_matches(wanted.split("/")[-1], list(short), n=3, cutoff=0.6)]
    return tuple(_folded()[name] for name in dict.fromkeys(found))[:3]


@lru_cache(maxsize=1)
def _rows() -> dict[str, dict[str, Any]]:
    rows: dict[str, dict[str, Any]] = json.loads(DATA.read_text(encoding="utf-8"))
    return rows


@lru_cache(maxsize=1)
def _folded() -> dict[str, str]:
    return {name.lower(): name for name in _rows()}


def _searched(name: str, row: dict[str, Any]) -> str:
    return f"{name} {row['config'].get('model_type', '')} {row['license'] or ''}".lower()


def _read(name: str) -> CatalogModel:
    row = _rows()[name]
    source = row["source"]
    return CatalogModel(
        id=name,
        config=row["config"],
        license=row["license"],
        gated=row["gated"],
        provenance=source["provenance"],
        url=source["url"],
        edited=source.get("edited"),
        published_parameters=row["published_parameters"],
        published_note=row["published_note"],
        hf_quant_config=row.get("hf_quant_config"),
    )
