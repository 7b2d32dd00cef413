"""What the window asks of the probes, away from its thread, and the answers as it shows them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import nan
from pathlib import Path

from gui.cells import Cell, Column
from gui.translate import tr
from gui.units import format_bytes
from probes.calibration import Fit, fit, gather, recordings
from probes.figures import Figure
from resources import calibration as store

COLUMNS = (
    Column("Figure"), Column("Measured", figures=True), Column("±", figures=True), Column("Runs", figures=True),
    Column("Error without", figures=True), Column("with it", figures=True), Column("Judgement"),
)  # fmt: skip
NO_RECORDING = "No recording of a run on a GPU of this machine was found. Run the battery, or measure some plans first."


@dataclass(frozen=True, slots=True)
class Kept:
    """The calibration of a card that counts, and how many there are of it."""

    card: str
    source: str
    count: int


def fits_of(paths: Sequence[Path] = ()) -> tuple[Fit, ...]:
    """What the recordings come to, by card; without ``paths`` all of this machine's."""
    found = gather(recordings(paths))
    return tuple(fit(evidence) for evidence in found.values())


def kept() -> tuple[Kept, ...]:
    """Every card that is calibrated. Raises :class:`resources.calibration.CalibrationError`."""
    histories = ((card, store.history_of(card)) for card in store.cards())
    return tuple(Kept(card, held[-1].source, len(held)) for card, held in histories)


def use(found: Fit) -> tuple[Kept, ...]:
    """Let predictions use it from now on."""
    store.save(found.card, found.calibration)
    return kept()


def take_back(card: str) -> tuple[Kept, ...]:
    """Go back to the calibration before it, or to the catalog."""
    store.undo(card)
    return kept()


def reset() -> tuple[Kept, ...]:
    """Go back to the catalog for every card."""
    store.reset()
    return kept()


def export(path: Path) -> str:
    """Write everything that is kept; what to tell."""
    path.write_text(store.export(), encoding="utf-8")
    return tr("Saved {}").format(path)


def cells_of(found: Fit) -> list[list[Cell]]:
    """The figures as rows."""
    return [_row(figure) for figure in found.figures]


def _row(figure: Figure) -> list[Cell]:
    value, band = figure.told(format_bytes)
    mark, ink = ("✔", "fits") if figure.accepted else ("–", "muted")
    return [
        Cell(figure.name.capitalize(), figure.name),
        Cell(value, figure.value),
        Cell(band, figure.band, ink="muted"),
        Cell(f"{figure.runs}", figure.runs, ink="muted"),
        _percent(figure.error_before),
        _percent(figure.error_after),
        Cell(f"{mark} {figure.why}", figure.why, figure.why, ink),
    ]


def _percent(error: float | None) -> Cell:
    return Cell(tr("N/A"), nan, ink="muted") if error is None else Cell(f"{100 * error:.2f} %", error)
