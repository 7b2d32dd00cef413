"""The bundled catalog of GPUs, found by the names people and drivers use.

``find_gpus`` lists what a search matches; ``gpu`` settles on one or raises :class:`UnknownGpu` with the nearest names.
"""

from __future__ import annotations

import difflib
import json
import re
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from planner.gpu import Gpu, MigProfile

DATA = Path(__file__).parent / "data" / "gpus.json"
NOISE = frozenset({
    "nvidia", "amd", "intel", "geforce", "tesla", "instinct", "radeon", "gpu", "graphics", "generation", "edition", "per",
    "r", "tm", "ac",
})  # fmt: skip
"""Words that don't tell one card from another."""
VARIANTS = frozenset({
    "ti", "super", "laptop", "mobile", "max", "q", "d", "sff", "ada", "ultra", "pro", "ws", "nvl", "pcie", "nano",
})  # fmt: skip
"""Words that name another card: not to be added to what was asked for where there is a choice."""
MIG = re.compile(r"(?:(\d+)x)?(\d+)g\.(\d+)gb")


class UnknownGpu(LookupError):
    """No GPU of the catalog answers to a name; ``close`` holds the nearest ones."""

    def __init__(self, name: str, close: tuple[str, ...]) -> None:
        self.name, self.close = name, close
        hint = f"; did you mean {', '.join(close)}?" if close else ""
        super().__init__(f"hardware.gpu: no GPU is called {name[:80]!r}{hint} (python main.py gpus lists them)")


def gpu_names() -> tuple[str, ...]:
    """Every name of the catalog, in its order (by vendor and generation)."""
    return tuple(_catalog())


def find_gpus(search: str = "") -> list[Gpu]:
    """The GPUs whose name, maker, architecture or memory type has every word of ``search``; all for an empty one."""
    words = _words(search)
    return [entry for entry in _catalog().values() if all(_has(word, entry) for word in words)]


def gpu(name: str, total_bytes: int | None = None) -> Gpu:
    """The GPU called ``name``: a catalog name, a shorthand (``h100``, ``4090``) or the driver's own (``NVIDIA H100 80GB HBM3``).

    ``total_bytes``, as the driver reports it (of unified memory: the machine's), decides between sizes of one card.
    Raises :class:`UnknownGpu`.
    """
    if total_bytes is None and name in _catalog():
        return _catalog()[name]
    words = _words(name)
    exact = [entry for entry in _catalog().values() if words and words in _spellings(entry)]
    names_a_model = any(character.isdigit() for character in name)
    subset = [entry for entry in _catalog().values() if names_a_model and words <= _tokens(entry)]
    found = exact if exact and total_bytes is None else _closest_kind(words, [*exact, *subset])
    if not found:
        raise UnknownGpu(name, _close(name))
    if total_bytes is None:
        return found[0]
    return min(found, key=lambda entry: abs((entry.nvml_total_bytes or entry.memory_bytes * 2**30 // 10**9) - total_bytes))


def corrections() -> list[dict[str, Any]]:
    """What was changed in the published figures, and why."""
    return list(json.loads(DATA.read_text(encoding="utf-8"))["corrections"])


@lru_cache(maxsize=1)
def _catalog() -> dict[str, Gpu]:
    rows = json.loads(DATA.read_text(encoding="utf-8"))["gpus"]
    return {row["name"]: _read(row) for row in rows}


def _read(row: dict[str, Any]) -> Gpu:
    capability = row.pop("compute_capability")
    mig = tuple(_mig(text) for text in row.pop("mig"))
    aliases = tuple(row.pop("aliases"))
    return Gpu(compute_capability=tuple(capability) if capability else None, mig=mig, aliases=aliases, **row)


def _mig(text: str) -> MigProfile:
    found = MIG.fullmatch(text)
    if found is None:
        raise ValueError(f"{DATA.name}: not a MIG profile: {text}")
    count, slices, memory = found.groups()
    return MigProfile(f"{slices}g.{memory}gb", int(slices), int(memory) * 10**9, int(count) if count else None)


def _words(text: str) -> frozenset[str]:
    """``NVIDIA A100-SXM4-80GB`` -> {a100, sxm4, 80gb}: what tells one card from another, in one spelling."""
    spaced = re.sub(r"\b([rg]?tx|rx)(?=\d)", r"\1 ", text[:200].lower())
    parts = re.findall(r"[a-z0-9.]+", re.sub(r"(\d)\s+gi?b\b", r"\1gb", spaced))
    return frozenset(re.sub(r"^(\d+)gi?b?$", r"\1gb", part) for part in parts) - NOISE


@cache
def _tokens(entry: Gpu) -> frozenset[str]:
    size = f"{round(entry.memory_bytes / 1e9)}gb"
    every = _words(f"{entry.name} {entry.form} {entry.memory_type} {entry.arch} {size} {' '.join(entry.aliases)}")
    return every | {re.sub(r"(?<=sxm)\d$", "", word) for word in every}


@cache
def _spellings(entry: Gpu) -> frozenset[frozenset[str]]:
    return frozenset(_words(name) for name in (entry.name, *entry.aliases))


def _closest_kind(words: frozenset[str], found: list[Gpu]) -> list[Gpu]:
    """Those with the fewest words that would name another card (Ti, Laptop, …) and were not asked for."""
    extra = {entry.name: len((_words(entry.name) - words) & VARIANTS) for entry in found}
    least = min(extra.values(), default=0)
    return [entry for entry in found if extra[entry.name] == least]


def _has(word: str, entry: Gpu) -> bool:
    return any(word in token for token in _tokens(entry) | {entry.vendor.lower()})


def _close(name: str) -> tuple[str, ...]:
    folded = {" ".join(sorted(_words(known))): known for known in gpu_names()}
    wanted = " ".join(sorted(_words(name)))
    found = [folded[key] for key in difflib.get_close_matches(wanted, list(folded), n=3, cutoff=0.5)]
    return tuple(found or difflib.get_close_matches(name[:200], gpu_names(), n=3, cutoff=0.5))
