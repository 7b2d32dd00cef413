"""The stacked bars of a footprint as SVG, in the colours and hatches of the window."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from planner.footprint import COMPONENTS, Footprint, Phase
from planner.palette import BACKWARD, CROSS, DIAGONAL, DOTS, FALLBACK, FILLS, HORIZONTAL, SOLID
from planner.units import GIB, format_bytes
from planner.words import COMPONENTS as WORDS
from planner.words import PHASES, word

_WIDTH, _LEFT, _RIGHT, _TOP, _ROW, _BAR = 760, 120, 110, 30, 38, 26
_LEGEND_COLUMNS, _LEGEND_ROW = 4, 20
_LETTER, _RED = 7.2, "#b3261e"
"""Pixels of a letter, rather more than less."""
_PAPER = '<rect width="100%" height="100%" rx="6" fill="#fff"/>'
"""Ink is dark, and what shows the report may be too."""
_HATCHES = {
    DIAGONAL: '<path d="M0 6L6 0" stroke="{ink}" stroke-width="1.2"/>',
    BACKWARD: '<path d="M0 0L6 6" stroke="{ink}" stroke-width="1.2"/>',
    CROSS: '<path d="M0 6L6 0M0 0L6 6" stroke="{ink}" stroke-width="1"/>',
    HORIZONTAL: '<path d="M0 3H6" stroke="{ink}" stroke-width="1.2"/>',
    DOTS: '<circle cx="3" cy="3" r="1.2" fill="{ink}"/>',
}


def footprint_chart(footprint: Footprint) -> str:
    """Bars of every phase (one GPU) or of every GPU's peak (several) against the capacity; empty where none is sized."""
    rows = _rows(footprint)
    if not rows:
        return ""
    limit = max(*(row.capacity_bytes for row in rows), *(row.phase.device for row in rows)) * 1.02
    scale = (_WIDTH - _LEFT - _RIGHT) / limit
    present = [name for name in COMPONENTS if any(row.phase.components.get(name) for row in rows)]
    bottom = _TOP + _ROW * len(rows)
    height = bottom + 34 + _LEGEND_ROW * -(-len(present) // _LEGEND_COLUMNS)
    parts = [*(_pattern(name) for name in present), _axis(limit, scale, bottom)]
    parts += [_painted(row, scale, _TOP + _ROW * index) for index, row in enumerate(rows)]
    parts += [*_capacities([row.capacity_bytes for row in rows], scale), _legend(present, bottom + 30)]
    style = "font-family:Inter,system-ui,sans-serif;font-size:12px;fill:#161b22"
    title = f"Memory by {'phase' if len(footprint.gpus) == 1 else 'GPU'} and component"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" height="{height}" role="img" '
        f'aria-label="{title}" style="{style}"><title>{title}</title>{_PAPER}{"".join(parts)}</svg>'
    )


@dataclass(frozen=True, slots=True)
class _Row:
    """One bar; ``capacity_bytes`` 0: of no card, or not known."""

    label: str
    phase: Phase
    capacity_bytes: int


def _rows(footprint: Footprint) -> list[_Row]:
    alone = footprint.gpus[0] if len(footprint.gpus) == 1 else None
    if alone:
        rows = [_Row(word(PHASES, phase.name).label, phase, alone.capacity_bytes or 0) for phase in alone.phases]
    else:
        rows = [_Row(f"GPU {gpu.index}", gpu.peak, gpu.capacity_bytes or 0) for gpu in footprint.gpus if gpu.peak]
    return [*rows, _Row("Host", footprint.host.phase, 0)] if rows and footprint.host.phase else rows


def _pattern(component: str) -> str:
    fill = FILLS.get(component, FALLBACK)
    if fill.hatch == SOLID:
        return ""
    lines = _HATCHES[fill.hatch].format(ink="rgba(0,0,0,.38)")
    return (
        f'<pattern id="p-{component}" width="6" height="6" patternUnits="userSpaceOnUse">'
        f'<rect width="6" height="6" fill="{fill.light}"/>{lines}</pattern>'
    )


def _paint(component: str) -> str:
    fill = FILLS.get(component, FALLBACK)
    return fill.light if fill.hatch == SOLID else f"url(#p-{component})"


def _painted(row: _Row, scale: float, top: float) -> str:
    x, parts = float(_LEFT), [f'<text x="{_LEFT - 12}" y="{top + 18}" text-anchor="end">{escape(row.label)}</text>']
    for name in COMPONENTS:
        size = row.phase.components.get(name, 0)
        if size > 0:
            tip = escape(f"{word(WORDS, name).label}: {format_bytes(size)}")
            box = f'x="{x:.1f}" y="{top}" width="{max(size * scale - 1, 0.5):.1f}" height="{_BAR}"'
            parts.append(f'<rect {box} fill="{_paint(name)}"><title>{tip}</title></rect>')
            x += size * scale
    told, line = format_bytes(row.phase.device), _LEFT + row.capacity_bytes * scale
    left = line + 8 if x + 4 < line < x + 12 + _LETTER * len(told) else x + 8
    parts.append(f'<rect x="{left - 2:.1f}" y="{top + 5}" width="{_LETTER * len(told):.1f}" height="16" fill="#fff"/>')
    parts.append(f'<text x="{left:.1f}" y="{top + 18}">{told}</text>')
    return "".join(parts)


def _axis(limit: float, scale: float, bottom: float) -> str:
    step = next((size for size in (1, 2, 5, 10, 20, 50, 100, 200, 500) if limit / GIB / size <= 9), 1000)
    parts, last = [], int(limit / GIB / step)
    for index in range(last + 1):
        x, unit = _LEFT + index * step * GIB * scale, " GiB" if index == last else ""
        parts.append(f'<path d="M{x:.1f} {_TOP - 4}V{bottom}" stroke="#e4e7ec"/>')
        parts.append(f'<text x="{x:.1f}" y="{bottom + 14}" text-anchor="middle" fill="#555f6d">{index * step}{unit}</text>')
    return "".join(parts)


def _capacities(capacities: Sequence[int], scale: float) -> list[str]:
    """One line over the bars of cards that are alike, a mark at each bar of cards that differ."""
    known = {capacity for capacity in capacities if capacity}
    if not known:
        return []
    if len(known) > 1:
        marks = [_mark(size, scale, _TOP + _ROW * index, _ROW - 8) for index, size in enumerate(capacities) if size]
        return [*marks, f'<text x="{_LEFT}" y="{_TOP - 12}" fill="{_RED}">The line is each card\'s capacity</text>']
    capacity = known.pop()
    x = _LEFT + capacity * scale
    anchor = "end" if x > _WIDTH - 160 else "middle"
    words = f'<text x="{x:.1f}" y="{_TOP - 12}" text-anchor="{anchor}" fill="{_RED}">Capacity {format_bytes(capacity)}</text>'
    return [_mark(capacity, scale, _TOP - 4, _ROW * sum(map(bool, capacities))), words]


def _mark(capacity: int, scale: float, top: float, height: float) -> str:
    return f'<path d="M{_LEFT + capacity * scale:.1f} {top - 4}v{height + 4}" stroke="{_RED}" stroke-width="1.5"/>'


def _legend(present: Sequence[str], top: float) -> str:
    parts = []
    for index, name in enumerate(present):
        x, y = 12 + index % _LEGEND_COLUMNS * 185, top + index // _LEGEND_COLUMNS * _LEGEND_ROW
        parts.append(f'<rect x="{x}" y="{y}" width="11" height="11" fill="{_paint(name)}"/>')
        parts.append(f'<text x="{x + 17}" y="{y + 10}">{escape(word(WORDS, name).label)}</text>')
    return "".join(parts)
