"""Footprints and lists as aligned tables."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from cli.streams import console
from planner.footprint import COMPONENTS, METERS, Footprint, Phase
from planner.units import format_bytes

VERDICT_WORDS = {"fits": "✔ fits", "tight": "▲ tight", "does_not_fit": "✘ does not fit", "unknown": "? unknown"}


def table(headings: Sequence[str], numeric: Sequence[int] = ()) -> Table:
    """A light table; the columns in ``numeric`` are right-aligned. In a narrow terminal words are folded, not cut."""
    made = Table(box=None, pad_edge=False, header_style="bold")
    for index, heading in enumerate(headings):
        if index in numeric:
            made.add_column(heading, justify="right", no_wrap=True)
        else:
            made.add_column(heading, overflow="fold")
    return made


def signed_percent(error: float | None) -> str:
    """``+0.42 %``; ``N/A`` where there is nothing to compare."""
    return "N/A" if error is None else f"{100 * error:+.2f} %"


def print_footprint(footprint: Footprint, title: str) -> None:
    """Verdict, phases by component, notes."""
    out = console()
    out.print(f"[bold]{title}[/bold]", soft_wrap=True)
    out.print(headline(footprint), soft_wrap=True)
    for gpu in footprint.gpus:
        if gpu.phases:
            out.print()
            if footprint.cards > 1:
                out.print(f"[bold]GPU {gpu.index}[/bold]")
            out.print(phase_table(gpu.phases))
    told = [line for line in (host_line(footprint), limits_line(footprint), speed_line(footprint)) if line]
    if told:
        out.print()
    for line in told:
        out.print(line, soft_wrap=True)
    if footprint.notes:
        out.print()
    for note in footprint.notes:
        out.print(f"· {note}", soft_wrap=True)


def host_line(footprint: Footprint) -> str:
    """What lies in the host's memory, of what, and the peak while loading; empty where neither is known."""
    host = footprint.host
    held = ", ".join(f"{name.replace('_', ' ')} {format_bytes(size)}" for name, size in host.components.items() if size)
    said = [f"{format_bytes(host.bytes)} ({held})"] if host.bytes else []
    if host.load_bytes:
        said.append(f"{format_bytes(host.load_bytes)} while loading")
    return f"host: {'; '.join(said)}" if said else ""


LIMIT_WORDS = {
    "max_batch": "largest batch", "max_context": "longest context", "kv_tokens": "tokens of cache",
    "max_concurrency": "sequences at once", "min_gpus": "fewest GPUs",
}  # fmt: skip
BOUND_WORDS = {
    "compute": "arithmetic",
    "bandwidth": "memory bandwidth",
    "link": "the link between GPUs",
    "host": "the link to the host",
}


def limits_line(footprint: Footprint) -> str:
    """``limits: largest batch 29 · longest context 131,072 · …``; empty when none is known."""
    known = [f"{words} {footprint.limits[name]:,}" for name, words in LIMIT_WORDS.items() if footprint.limits.get(name) is not None]
    return f"limits: {' · '.join(known)}" if known else ""


def speed_line(footprint: Footprint) -> str:
    """``speed: first token after 0.68 s · 11.0 ms a token · 91 tokens/s · bound by memory bandwidth``; empty when unknown."""
    speed = footprint.speed
    if not speed:
        return ""
    parts = []
    for name, words in (("prefill_s", "first token after {}"), ("time_per_token_s", "{} a token"), ("step_s", "{} a step")):
        seconds = speed.get(name)
        if isinstance(seconds, float):
            parts.append(words.format(f"{seconds:.2f} s" if seconds >= 0.1 else f"{1000 * seconds:.1f} ms"))
    rate = speed.get("tokens_per_s")
    if isinstance(rate, float):
        parts.append(f"{rate:,.0f} tokens/s")
    parts.append(f"bound by {BOUND_WORDS.get(str(speed.get('bound_by')), 'what is not known')}")
    return "speed: " + " · ".join(parts)


def headline(footprint: Footprint) -> str:
    """``✔ fits: 19.8 of 79.2 GiB at the peak (prefill), 59.4 GiB to spare``."""
    words = VERDICT_WORDS[footprint.verdict]
    gpu = footprint.fullest
    if gpu is None or gpu.peak is None or gpu.capacity_bytes is None:
        known = f"; weights {format_bytes(footprint.weight_bytes)}" if footprint.weight_bytes is not None else ""
        return f"{words}{known}"
    band = f" ± {format_bytes(footprint.uncertainty_bytes)}" if footprint.uncertainty_bytes else ""
    spare = gpu.capacity_bytes - gpu.peak.device
    rest = f"{format_bytes(spare)} to spare" if spare >= 0 else f"{format_bytes(-spare)} too much"
    peak = f"{format_bytes(gpu.peak.device)}{band} of {format_bytes(gpu.capacity_bytes)} at the peak ({gpu.peak.name})"
    return f"{words}: {peak}, {rest}"


def phase_table(phases: Sequence[Phase]) -> Table:
    """Components down, phases across, the three meters below."""
    made = table(["", *(phase.name for phase in phases)], numeric=range(1, len(phases) + 1))
    for component in COMPONENTS:
        sizes = [phase.components.get(component, 0) for phase in phases]
        if any(sizes):
            made.add_row(component, *(format_bytes(size) if size else "–" for size in sizes))
    made.add_section()
    for meter in METERS:
        made.add_row(f"[bold]{meter}[/bold]", *(f"[bold]{format_bytes(phase.meter(meter))}[/bold]" for phase in phases))
    return made
