"""List the models of the catalog, or show what one is: layers, parameters, formats, cache."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from cli import exits
from cli.inputs import ERRORS, refuse
from cli.streams import console, print_json
from cli.tables import table
from planner.architecture import UnknownArchitecture, parameter_count, read_config
from planner.describe import ModelDescription
from planner.faults import Faults
from planner.scenario import ModelPath
from planner.units import format_bytes
from resources.catalog import CatalogModel, find_models
from resources.plan import find_model


def add_options(parser: argparse.ArgumentParser) -> None:
    """What to search for, or ``show`` and one model."""
    parser.add_argument("search", nargs="*", help="words of the id, model_type or licence; or: show ID|PATH")
    parser.add_argument("--json", action="store_true", help="print as JSON")
    parser.add_argument("--ids", action="store_true", help="print only the ids, one a line (for shell completion)")
    parser.add_argument("--offline", action="store_true", help="do not ask the Hugging Face Hub")


def run(options: argparse.Namespace) -> int:
    """Print the list, or one model."""
    if options.search[:1] == ["show"]:
        return _show(options)
    found = find_models(" ".join(options.search))
    if options.ids:
        sys.stdout.writelines(f"{model.id}\n" for model in found)
    elif options.json:
        print_json([_row_json(model) for model in found])
    elif not found:
        return exits.fail(exits.BAD_INPUT, f"no bundled model matches {' '.join(options.search)!r}; show ID asks the Hub")
    else:
        _print_list(found)
    return exits.DONE


def _print_list(found: list[CatalogModel]) -> None:
    made = table(["id", "type", "parameters", "licence", "gated"], numeric=(2,))
    for model in found:
        count = _count(model)
        gated = {True: "gated", False: "", None: "?"}[model.gated]
        made.add_row(
            model.id, str(model.config.get("model_type", "?")), "?" if count is None else f"{count:,}", model.license or "?", gated
        )
    console().print(made)


def _row_json(model: CatalogModel) -> dict[str, object]:
    return {
        "id": model.id, "model_type": model.config.get("model_type"), "parameters": _count(model),
        "license": model.license, "gated": model.gated, "source": model.url,
    }  # fmt: skip


def _count(model: CatalogModel) -> int | None:
    try:
        return parameter_count(read_config(model.config))
    except (Faults, UnknownArchitecture):
        return None


def _show(options: argparse.Namespace) -> int:
    if len(options.search) != 2:
        return exits.fail(exits.BAD_INPUT, "models show takes one id or path")
    name = options.search[1]
    reference = ModelPath(name) if Path(name).exists() else name
    try:
        model = find_model(reference, network=not options.offline)
    except ERRORS as error:
        return refuse(error)
    shown = model.described
    source = model.source
    if options.json:
        provenance = {
            "id": source.label, "origin": source.origin, "license": source.license, "gated": source.gated,
            "revision": source.revision, "came_from": dict(source.came_from or {}), "source_notes": list(source.notes),
        }  # fmt: skip
        print_json(provenance | shown.to_json())
    else:
        _print_model(source.label, source.origin, shown, source.notes)
    return exits.DONE


def _print_model(label: str, origin: str, shown: ModelDescription, notes: tuple[str, ...]) -> None:
    out = console()
    verified = "" if shown.verified else " · read by its keys, not verified"
    out.print(f"[bold]{label}[/bold] · {shown.model_class} · from {origin}{verified}", soft_wrap=True)
    rows = table(["", ""], numeric=())
    rows.show_header = False
    rows.add_row(
        "parameters", f"{shown.parameters:,} total, {shown.active_parameters:,} active, {shown.embedding_parameters:,} embedding"
    )
    size = format_bytes(shown.weight_bytes) if shown.weight_bytes is not None else "unknown"
    rows.add_row("as stored", f"{shown.stored_as}, {size}")
    rows.add_row("context limit", f"{shown.max_context_tokens:,} tokens" if shown.max_context_tokens else "not stated")
    cache = "unknown" if shown.cache_bytes_per_token is None else f"{shown.cache_bytes_per_token:,} bytes per token and sequence"
    rows.add_row("cache", f"{cache}; {format_bytes(shown.state_bytes_per_sequence or 0)} constant per sequence")
    for name, count, kind in shown.layers:
        rows.add_row(name, f"{count} × {kind}")
    out.print(rows)
    for note in (*shown.notes, *notes):
        out.print(f"· {note}", soft_wrap=True)
