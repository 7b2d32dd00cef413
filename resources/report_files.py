"""Writes reports to disk."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from planner.report.content import Chart, Part
from planner.report.write import html, markdown

SUFFIXES = (".md", ".html")


def write_report(parts: Sequence[Part], output: Path, title: str) -> None:
    """Write ``parts`` in the format of the suffix; Markdown's charts become SVG files beside it. Raises OSError."""
    if output.suffix.lower() == ".html":
        output.write_text(html(parts, title), encoding="utf-8")
        return
    output.write_text(markdown(parts, f"{output.stem}-{{}}.svg"), encoding="utf-8")
    for part in parts:
        if isinstance(part, Chart):
            (output.parent / f"{output.stem}-{part.name}.svg").write_text(part.svg, encoding="utf-8")
