"""The house stands as drawn: imports point down, and what must stay pure is pure."""

from __future__ import annotations

import ast
import sys
import tomllib
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FLOORS = {"main": 6, "cli": 5, "gui": 5, "probes": 3, "resources": 2, "planner": 1}
MAY_NOT = {"cli": {"gui"}, "gui": {"cli"}}
"""Verbs and window stand side by side; only opening the window crosses (cli/window.py)."""
FOREIGN = {
    "planner": {"PySide6", "pyqtgraph", "torch", "transformers", "huggingface_hub", "pynvml", "psutil", "platformdirs", "rich"},
    "resources": {"PySide6", "pyqtgraph", "torch", "transformers", "pynvml"},
    "probes": {"PySide6", "pyqtgraph", "huggingface_hub"},
    "gui": {"torch", "transformers", "peft"},
    "cli": {"torch", "transformers", "PySide6", "pyqtgraph"},
}
IMPURE = {"os", "io", "pathlib", "time", "random", "socket", "subprocess", "threading", "sqlite3", "urllib", "tempfile", "datetime"}
WORKER = {"torch", "transformers", "peft", "bitsandbytes", "liger_kernel", "psutil"}
"""The last three only where they are installed: it has ways without them."""


def sources(room: str) -> list[Path]:
    return [ROOT / "main.py"] if room == "main" else sorted((ROOT / room).rglob("*.py"))


@cache
def nodes(path: Path) -> list[ast.AST]:
    """Imports and calls of a file."""
    found = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    return [node for node in found if isinstance(node, ast.Import | ast.ImportFrom | ast.Call)]


def imported(path: Path) -> set[str]:
    """Every module a file imports, at its top or inside a function."""
    found: set[str] = set()
    for node in nodes(path):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def rooms(names: set[str]) -> set[str]:
    return {name.split(".")[0] for name in names}


@pytest.mark.parametrize("room", FLOORS)
def test_imports_point_down(room: str) -> None:
    for path in sources(room):
        used = rooms(imported(path)) & FLOORS.keys() - {room}
        up = {other for other in used if FLOORS[other] > FLOORS[room]}
        if path.name != "window.py" or room != "cli":
            up |= used & MAY_NOT.get(room, set())
        assert not up, f"{path.relative_to(ROOT)} imports {up}"


@pytest.mark.parametrize("room", FOREIGN)
def test_heavy_packages_stay_in_their_rooms(room: str) -> None:
    for path in sources(room):
        if "worker" not in path.parts:
            assert not rooms(imported(path)) & FOREIGN[room], path.relative_to(ROOT)


def test_the_planner_reads_no_file_clock_or_dice() -> None:
    for path in sources("planner"):
        assert not rooms(imported(path)) & IMPURE, path.relative_to(ROOT)
        calls = {node.func.id for node in nodes(path) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
        assert not calls & {"open", "print", "input", "exec", "eval"}, path.relative_to(ROOT)


def test_the_worker_stands_alone() -> None:
    for path in sorted((ROOT / "probes" / "worker").rglob("*.py")):
        others = rooms(imported(path)) - WORKER - set(sys.stdlib_module_names)
        assert not others, f"{path.relative_to(ROOT)} imports {others}"


def test_the_top_level_holds_only_what_the_design_names() -> None:
    allowed = {*FLOORS, "tests", "docs"} - {"main"}
    found = {path.name for path in ROOT.iterdir() if path.is_dir() and (path / "__init__.py").exists()}
    assert found - {"tests"} <= allowed


def test_an_installed_copy_holds_all_that_a_checkout_does() -> None:
    """setuptools takes packages by their ``__init__.py``, and other files where ``package-data`` names them."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    taken = {path for room, globs in settings["package-data"].items() for glob in globs for path in (ROOT / room).glob(glob)}
    assert {*settings["py-modules"], *(name.rstrip("*") for name in settings["packages"]["find"]["include"])} == FLOORS.keys()
    for room in FLOORS.keys() - {"main"}:
        for path in (ROOT / room).rglob("*"):
            if path.is_dir() or "__pycache__" in path.parts or path.name.startswith("."):
                continue
            assert (path.parent / "__init__.py").exists() if path.suffix == ".py" else path in taken, path.relative_to(ROOT)
