"""What a process holds of a card beside what torch reserves."""

from __future__ import annotations

import numpy as np

from probes.rows import Floats


class OutsideBytes:
    """What a process holds of a card beside what torch reserves: CUDA context, libraries.

    From the driver's figure of the process, or of the card's growth where it lists no processes, at moments at which torch's
    counter stood still.
    """

    def __init__(self) -> None:
        self.bytes = 0
        self._reserved: int | None = None
        self._pending: int | None = None
        self._lists_processes = False

    def pause(self) -> None:
        """A phase begins or ends: what comes next is not beside what came before."""
        self._reserved = self._pending = None

    def take_reserved(self, reserved: int | None) -> None:
        """Torch's counter."""
        if self._pending is not None and reserved is not None and reserved == self._reserved:
            self.bytes = max(self.bytes, self._pending - reserved)
        self._reserved, self._pending = reserved, None

    def take_device(self, process: int | None, delta: int | None) -> None:
        """The driver's figures."""
        self._lists_processes = self._lists_processes or process is not None
        held = process if self._lists_processes else delta
        if held is not None and self._reserved is not None:
            self._pending = max(held, self._pending or 0)

    def take_columns(self, t: Floats, reserved: Floats, sampled_t: Floats, held: Floats) -> None:
        """The same for many at once."""
        after = np.searchsorted(t, sampled_t)
        inside = (after > 0) & (after < len(t)) & np.isfinite(held)
        still = reserved[after[inside] - 1] == reserved[after[inside]]
        outside = held[inside][still] - reserved[after[inside]][still]
        self.bytes = max(self.bytes, int(outside.max(initial=0)))
