"""Whether a probe still gets on: what is made of its silence, and of a pulse without anything done."""

from __future__ import annotations

import time

import psutil

from probes.outcome import Hung
from probes.recording import Event

QUIET_S = 15.0
"""A probe that is measured speaks twenty times a second; so long without a word it is worth a note."""
STILL_S = 60.0
"""Nothing begun or finished for so long is worth a note too."""
_PULSE = ("memory", "sample", "environment")
"""Told by threads beside the work: they go on while it hangs."""


class Liveness:
    """Told of every byte and event of one process.

    ``silence_s`` and ``stall_s`` are when it is given up, None never. ``local``: its state can be looked up here.
    """

    def __init__(self, silence_s: float | None, stall_s: float | None, *, local: bool = True) -> None:
        self.silence_s, self.stall_s, self.local = silence_s, stall_s, local
        self._heard_at = self._moved_at = time.monotonic()
        self._has_pulse = False
        self._told: set[str] = set()

    def hear(self) -> None:
        """Bytes have come."""
        self._heard_at = time.monotonic()
        self._told -= {"quiet", "suspended"}

    def take(self, event: Event) -> None:
        """An event has come, of the probe or wrapped of one of its ranks."""
        inner = event.get("of")
        name = inner.get("event") if isinstance(inner, dict) else event["event"]
        if name in _PULSE:
            self._has_pulse = True
        else:
            self._moved_at = time.monotonic()
            self._told.discard("still")

    def given_up(self, pid: int) -> Hung | None:
        """Why it is to be ended, None while there is hope."""
        now = time.monotonic()
        if self.silence_s is not None and now - self._heard_at > self.silence_s:
            return "suspended" if self._is_suspended(pid) else "silent"
        if self.stall_s is not None and self._has_pulse and now - self._moved_at > self.stall_s:
            return "stalled"
        return None

    def news(self, pid: int, phase: str) -> str:
        """What the user should know now and was not told yet; mostly nothing."""
        quiet_s, still_s = time.monotonic() - self._heard_at, time.monotonic() - self._moved_at
        where = f" in {phase}" if phase else ""
        until = "" if self.silence_s is None else f" It is ended after {self.silence_s:g} s."
        if quiet_s > min(QUIET_S, (self.silence_s or QUIET_S) / 3) and self._is_suspended(pid) and self._is_first("suspended"):
            return f"The probe is stopped{where}, by a signal or a debugger: `kill -CONT {pid}` lets it go on.{until}"
        if self._has_pulse and quiet_s > QUIET_S and self._is_first("quiet"):
            return f"The probe has said nothing for {quiet_s:.0f} s{where}.{until}"
        if self._has_pulse and still_s > STILL_S and quiet_s < QUIET_S and self._is_first("still"):
            until = "" if self.stall_s is None else f" After {self.stall_s:g} s it is taken to hang."
            pulse = "though the probe answers: a long step, or it hangs."
            return f"Nothing was begun or finished for {still_s:.0f} s{where}, {pulse}{until}"
        return ""

    def _is_first(self, what: str) -> bool:
        is_first = what not in self._told
        self._told.add(what)
        return is_first

    def _is_suspended(self, pid: int) -> bool:
        try:
            return self.local and psutil.Process(pid).status() in (psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP)
        except psutil.Error:
            return False
