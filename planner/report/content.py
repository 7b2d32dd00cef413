"""What a report says: headings, paragraphs, tables and charts, before it is written in any format."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from planner.footprint import COMPONENTS, METERS, Footprint, Host, Phase, Term
from planner.report.chart import footprint_chart
from planner.room import Room, room_of
from planner.scenario import Scenario, to_json
from planner.units import format_bytes
from planner.words import CERTAINTIES, VERDICTS, word
from planner.words import COMPONENTS as WORDS
from planner.words import METERS as METER_WORDS
from planner.words import PHASES as PHASE_WORDS

if TYPE_CHECKING:
    from planner.advise import Advice

_LEAST_SHARE = 0.001
_ADAPTING = ("lora", "qlora", "dora", "ia3", "vera", "loha", "lokr")
_SELDOM = ("virtual_tokens", "data", "objective", "reference", "samples", "shared_prefix", "loss")
"""Fields of the workload that are worth a line only where they were set."""

Levels = Mapping[str, Mapping[str, float | None]]
"""Bytes by phase and meter."""


@dataclass(frozen=True, slots=True)
class Heading:
    """A heading of a level, 1 the title."""

    text: str
    level: int = 2


@dataclass(frozen=True, slots=True)
class Text:
    """A paragraph; ``strong`` stands before it."""

    text: str
    strong: str = ""


@dataclass(frozen=True, slots=True)
class Items:
    """A list of lines."""

    lines: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Table:
    """Rows under headings; the columns in ``figures`` are numbers."""

    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    figures: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Chart:
    """A picture as SVG, and what it shows in words."""

    name: str
    caption: str
    svg: str


Part = Heading | Text | Items | Table | Chart


def report_of(footprint: Footprint, title: str, measured: Levels | None = None, advice: Sequence[Advice] = ()) -> tuple[Part, ...]:
    """The report of a plan, beside ``measured`` (bytes by phase and meter of a real run) when there is one.

    ``advice``: what would make it fit or give it room, listed where it lacks any.
    """
    parts: list[Part] = [Heading(title, 1), Text(_headline(footprint), word(VERDICTS, footprint.verdict).label + ".")]
    chart = footprint_chart(footprint)
    if chart:
        parts.append(Chart("footprint", "Memory by phase and component against the capacity", chart))
    if advice and footprint.verdict in ("does_not_fit", "tight"):
        heading = "What would make it fit" if footprint.verdict == "does_not_fit" else "What would give it room"
        parts += [Heading(heading), _advice(advice)]
    parts += [Heading("Phases"), *_phases(footprint)]
    if measured:
        parts += [Heading("Measured"), _comparison(footprint, measured)]
    parts += [Heading("Where the bytes go"), *_terms(footprint)]
    parts += [Heading("Scenario"), Items(tuple(_inputs(_set(footprint.scenario))))]
    if footprint.notes:
        parts += [Heading("Defaults and notes"), Items(footprint.notes)]
    return tuple(parts)


def _headline(footprint: Footprint) -> str:
    gpu, room = footprint.fullest, room_of(footprint)
    peak = gpu.peak if gpu else None
    if gpu is None or peak is None:
        weights = footprint.weight_bytes
        return f"No phase could be sized{f'; the weights take {format_bytes(weights)}' if weights else ''}."
    said = [f"{format_bytes(peak.device)} at the peak, in {word(PHASE_WORDS, peak.name).label.lower()}"]
    if gpu.capacity_bytes:
        said[0] += f", against {format_bytes(gpu.capacity_bytes)}"
    if room is not None:
        said.append(f"({_room_words(room)})")
    if footprint.uncertainty_bytes:
        said.append(f"± {format_bytes(footprint.uncertainty_bytes)}")
    where = f", on each of {footprint.cards} GPUs at most" if footprint.cards > 1 else ""
    return " ".join(said) + where + "."


def _room_words(room: Room) -> str:
    size = format_bytes(abs(room.bytes))
    if room.of_cache:
        return f"its cache is short by {size}" if room.bytes < 0 else f"{size} of its cache to spare"
    return f"short by {size}" if room.bytes < 0 else f"headroom {size}"


def _phases(footprint: Footprint) -> list[Part]:
    parts: list[Part] = []
    for gpu in footprint.gpus:
        if not gpu.phases:
            continue
        if len(footprint.gpus) > 1:
            parts.append(Heading(f"GPU {gpu.index}", 3))
        parts.append(_phase_table(gpu.phases))
    host = footprint.host
    if host.phase:
        parts += [Heading("Host", 3), _host_table(host)]
    elif parts and host.load_bytes:
        parts.append(Text(f"{format_bytes(host.load_bytes)} of the host's memory while loading."))
    return parts or [Text("There is no closed form for this choice.")]


def _host_table(host: Host) -> Table:
    rows = [(word(WORDS, name).label, format_bytes(host.components[name])) for name in COMPONENTS if host.components.get(name)]
    rows.append(("In all", format_bytes(host.bytes)))
    if host.load_bytes:
        rows.append(("While loading", format_bytes(host.load_bytes)))
    return Table(("", "Size"), tuple(rows), frozenset({1}))


def _phase_table(phases: Sequence[Phase]) -> Table:
    present = [name for name in COMPONENTS if any(phase.components.get(name) for phase in phases)]
    rows = [(word(WORDS, name).label, *(_size(phase.components.get(name, 0)) for phase in phases)) for name in present]
    rows += [(word(METER_WORDS, meter).label, *(format_bytes(phase.meter(meter)) for phase in phases)) for meter in METERS]
    headings = ("", *(word(PHASE_WORDS, phase.name).label for phase in phases))
    return Table(headings, tuple(rows), frozenset(range(1, len(headings))))


def _advice(advice: Sequence[Advice]) -> Table:
    rows = [
        (one.title, format_bytes(one.gain_bytes), format_bytes(one.device_bytes), word(VERDICTS, one.verdict).label, one.cost)
        for one in advice
    ]
    return Table(("Change", "Saves", "Then takes", "Verdict", "What it costs"), tuple(rows), frozenset({1, 2}))


def _comparison(footprint: Footprint, measured: Levels) -> Table:
    predicted = {phase.name: phase for gpu in footprint.gpus[:1] for phase in gpu.phases}
    rows = []
    for name, meters in measured.items():
        for meter in METERS:
            real = meters.get(meter)
            if real is None:
                continue
            plan = predicted[name].meter(meter) if name in predicted else None
            error = f"{(real - plan) / plan:+.1%}".replace("%", " %").replace("-", "−") if plan else "N/A"
            labels = word(PHASE_WORDS, name).label, word(METER_WORDS, meter).label
            rows.append((*labels, format_bytes(plan) if plan is not None else "N/A", format_bytes(real), error))
    return Table(("Phase", "Meter", "Predicted", "Measured", "Error"), tuple(rows), frozenset({2, 3, 4}))


def _terms(footprint: Footprint) -> list[Part]:
    """Every term once, with the phases in which it holds; those that hardly count in a table of their own."""
    sized = [term for term in footprint.terms if term.bytes]
    if not sized:
        return [Text("There is no closed form for this choice.")]
    least = _LEAST_SHARE * max((gpu.peak.device for gpu in footprint.gpus if gpu.peak), default=0)
    parts: list[Part] = [_term_table([term for term in sized if term.bytes >= least])]
    small = [term for term in sized if term.bytes < least]
    if small:
        parts += [Heading(f"Terms below {_LEAST_SHARE:.1%} of the peak".replace("%", " %"), 3), _term_table(small)]
    return parts


def _term_table(terms: Sequence[Term]) -> Table:
    phases: dict[tuple[str, ...], list[str]] = {}
    for term in sorted(terms, key=lambda term: (COMPONENTS.index(term.component), -term.bytes)):
        named = phases.setdefault(_cells(term), [])
        label = word(PHASE_WORDS, term.phase).label if term.phase else "all"
        if label not in named:
            named.append(label)
    rows = tuple((cells[0], ", ".join(named), *cells[1:]) for cells, named in phases.items())
    headings = ("Component", "Phases", "Size", "Certainty", "Formula", "With", "Because")
    return Table(headings, rows, frozenset({2}))


def _cells(term: Term) -> tuple[str, ...]:
    numbers = ((name.replace("_", " "), value) for name, value in term.values.items())
    return (
        word(WORDS, term.component).label,
        format_bytes(term.bytes),
        word(CERTAINTIES, term.certainty).label,
        term.formula,
        ", ".join(f"{name} = {value:,}" if isinstance(value, int) else f"{name} = {value}" for name, value in numbers),
        term.because,
    )


def _set(scenario: Mapping[str, object]) -> dict[str, object]:
    """Without the version of the format, and of groups within the workload only what differs from what they are by default."""
    task = str(scenario.get("task"))
    usual = to_json(Scenario("", "training" if task == "training" else "inference")).get(task)
    work, found = scenario.get(task), {name: value for name, value in scenario.items() if name != "version"}
    if isinstance(work, Mapping) and isinstance(usual, Mapping):
        adapts = work.get("method") in _ADAPTING
        kept = {"lora"} if adapts else set()
        found[task] = {
            name: value for name, value in work.items()
            if name in kept or value != usual.get(name) or not (isinstance(value, Mapping) or name in _SELDOM)
        }  # fmt: skip
    return found


def _inputs(scenario: Mapping[str, object], prefix: str = "") -> list[str]:
    """Every field with its value; what is left out, zero or one by default is not worth a line."""
    lines = []
    for name, value in scenario.items():
        if isinstance(value, Mapping):
            inner = f"{len(value)} keys of a config.json" if name == "config" else ""
            lines += [f"{prefix}{name}: {inner}"] if inner else _inputs(value, f"{prefix}{name}.")
        elif value not in (None, 0.0, "none") and not (prefix == "parallel." and value == 1):
            shown = ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
            lines.append(f"{prefix}{name}: {shown}")
    return lines


def _size(size: int) -> str:
    return format_bytes(size) if size else "–"
