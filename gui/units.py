"""In which unit sizes are shown: GiB (2**30, the default), GB (10**9) or MiB (2**20). Bytes stay what they are."""

from __future__ import annotations

from functools import lru_cache

from PySide6.QtCore import QObject, Signal
from PySide6.QtWidgets import QApplication

import planner.units
from planner.units import BINARY, KIB, MIB, Ladder

_LADDERS: dict[str, Ladder] = {
    "GiB": BINARY,
    "GB": ((10**9, "GB", 2), (10**6, "MB", 1), (10**3, "kB", 1)),
    "MiB": ((MIB, "MiB", 1), (KIB, "KiB", 1)),
}
NAMES = tuple(_LADDERS)


class Units(QObject):
    """The choice; ``changed`` asks every view to write its sizes anew."""

    changed = Signal()

    def __init__(self, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self.name = NAMES[0]

    def choose(self, name: str) -> None:
        """One of :data:`NAMES`; anything else is the first."""
        name = name if name in NAMES else NAMES[0]
        if name != self.name:
            self.name = name
            self.changed.emit()

    @property
    def ladder(self) -> Ladder:
        """Unit, name and digits after the point, the largest first."""
        return _LADDERS[self.name]


@lru_cache(maxsize=1)
def units() -> Units:
    """The units of the running application."""
    return Units(QApplication.instance())


def format_bytes(size: float) -> str:
    """A size in the chosen unit: ``14.96 GiB``, ``16.06 GB``, ``15,319.0 MiB``; NaN is ``N/A``."""
    return planner.units.format_bytes(size, units().ladder)


def signed_percent(share: float) -> str:
    """``+1.2 %``, ``−0.4 %``; what rounds to nothing has no sign."""
    text = f"{share:+.1%}".replace("%", " %").replace("-", "−")
    return text[1:] if float(text[1:-2]) == 0 else text
