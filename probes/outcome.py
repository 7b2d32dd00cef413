"""How a probe ended, and every word that is said about it. Knows nothing of processes."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Literal

from planner.units import format_bytes

Kind = Literal[
    "completed",
    "out_of_memory",
    "stopped",
    "timed_out",
    "hung",
    "killed",
    "crashed",
    "failed",
    "could_not_start",
    "disconnected",
]

Hung = Literal["silent", "suspended", "stalled"]
"""How a probe hangs: without a word; stopped by a signal; answering, but with nothing done any more."""

_TITLES: dict[Kind, str] = {
    "completed": "Completed",
    "out_of_memory": "Out of memory",
    "stopped": "Stopped",
    "timed_out": "Time limit reached",
    "hung": "No sign of life",
    "killed": "Killed",
    "crashed": "Crashed",
    "failed": "Could not be done",
    "could_not_start": "Could not start",
    "disconnected": "Connection lost",
}
_OWN_DOING = frozenset({4, 6, 7, 8, 11})
"""SIGILL, SIGABRT, SIGBUS, SIGFPE, SIGSEGV: signals that a program brings upon itself."""
_ASK_FOR_LESS = "Free memory, raise the budget, or ask for less: a smaller batch, fewer tokens, fewer layers."
_ASK_FOR_LESS_OF_A_CARD = "Choose a larger card, or ask for less of this one: a smaller batch, fewer tokens, smaller weights."
_HUNG: dict[str, tuple[str, str]] = {
    "silent": (
        "the probe said nothing for {limit} s",
        "If the machine is only slow, raise the silence limit; else look at the system's log.",
    ),
    "suspended": (
        "the probe was stopped by a signal or a debugger and said nothing for {limit} s",
        "Let it run: SIGSTOP and Ctrl-Z stop a process until SIGCONT comes.",
    ),
    "stalled": (
        "nothing was begun or finished for {limit} s though the probe answered",
        "The device hangs, or one step takes that long: look at the system's log, or measure fewer layers or tokens.",
    ),
}
_BAD_INPUT = ("bad_order", "bad_config")


@dataclass(frozen=True, slots=True)
class Outcome:
    """The end of a probe. Fields that do not apply to ``kind`` keep their defaults; sizes the framework did not say are None.

    ``after_s`` counts from the start of the run, ``limit_s`` is the limit that was met (time or silence), ``signal`` and
    ``exit_status`` are those of the process, ``oom_kills`` how many processes the kernel's out-of-memory killer ended
    meanwhile, ``message`` and ``error_kind`` the worker's own. ``rehearsed``: on a simulated card. ``rank``: of several, the one
    whose end it was; None for the worker itself. Of one that hung ``error_kind`` is how (:data:`Hung`).
    """

    kind: Kind
    after_s: float = 0.0
    phase: str = ""
    message: str = ""
    error_kind: str = ""
    requested_bytes: int | None = None
    free_bytes: int | None = None
    limit_s: float | None = None
    signal: int | None = None
    exit_status: int | None = None
    oom_kills: int = 0
    stderr_tail: str = ""
    rehearsed: bool = False
    rank: int | None = None

    @property
    def title(self) -> str:
        """Two or three words."""
        return _TITLES[self.kind]

    @property
    def exit_code(self) -> int:
        """The exit status of the verb: 0 ran, 1 out of memory, 2 bad input, 3 not done here, 130 interrupted."""
        if self.kind == "failed" and self.error_kind in _BAD_INPUT:
            return 2
        return {"completed": 0, "out_of_memory": 1, "stopped": 130}.get(self.kind, 3)

    @property
    def sentence(self) -> str:  # noqa: PLR0911  one return for each kind reads best
        """What happened."""
        match self.kind:
            case "completed":
                return f"The run completed in {self.after_s:.1f} s."
            case "out_of_memory":
                return self._out_of_memory()
            case "stopped":
                return f"Stopped {self._where()}."
            case "timed_out":
                return f"Ended at its time limit of {self.limit_s:g} s, {self._where()}."
            case "hung":
                return f"Ended because {self._hung()[0].format(limit=f'{self.limit_s:g}')}, {self._where()}."
            case "killed":
                return self._killed()
            case "crashed":
                return f"The probe crashed {self._where()} ({self._status()})."
            case "disconnected":
                return f"The SSH connection was lost {self._where()}. What had arrived by then is kept."
            case "failed" | "could_not_start":
                return self.message or "The probe could not do it and did not say why."

    @property
    def remedy(self) -> str:
        """What helps, or nothing."""
        verb = "rehearse" if self.rehearsed else "measure"
        return {
            "out_of_memory": _ASK_FOR_LESS_OF_A_CARD if self.rehearsed else _ASK_FOR_LESS,
            "timed_out": f"Raise the time limit, or {verb} fewer layers or tokens.",
            "hung": self._hung()[1],
            "killed": f"Leave more memory free, or {verb} fewer layers." if self._maybe_oom_killer() else "",
            "disconnected": "The probe there ended with its connection; once the host answers again, repeat the run.",
            "crashed": "The last lines of its error output say more; report them if they name no cause.",
        }.get(self.kind, "")

    @property
    def text(self) -> str:
        """Sentence and remedy in one."""
        return f"{self.sentence} {self.remedy}".strip()

    def to_json(self) -> dict[str, object]:
        """JSON-ready data, with the words."""
        return {**asdict(self), "title": self.title, "text": self.text}

    def _hung(self) -> tuple[str, str]:
        return _HUNG.get(self.error_kind, _HUNG["silent"])

    def _where(self) -> str:
        phase = f"in {self.phase}, " if self.phase else ""
        return f"{phase}{self.after_s:.1f} s after the start"

    def _out_of_memory(self) -> str:
        place = f" in {self.phase}" if self.phase else ""
        place += "" if self.rank is None else f" on rank {self.rank}"
        asked = "" if self.requested_bytes is None else f"{format_bytes(self.requested_bytes)} was asked for"
        free = "" if self.free_bytes is None else f"{format_bytes(self.free_bytes)} was free"
        sizes = ", ".join(filter(None, (asked, free))) or self.message
        return f"Out of memory{place}: {sizes}." if sizes else f"Out of memory{place}."

    def _maybe_oom_killer(self) -> bool:
        return self.signal == getattr(signal, "SIGKILL", 9)

    def _killed(self) -> str:
        who = "The probe" if self.rank is None else f"Rank {self.rank} of the probe"
        told = f"{who} was killed by {signal_name(self.signal)} {self._where()}"
        if not self._maybe_oom_killer():
            return f"{told}."
        if self.oom_kills:
            return f"{told}: the system ran out of memory and its out-of-memory killer was at work."
        return f"{told}, possibly by the system's out-of-memory killer."

    def _status(self) -> str:
        if self.signal is not None:
            return signal_name(self.signal)
        if self.exit_status == 0:
            return "it ended without a result"
        return f"exit status {self.exit_status}"


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of a process that has ended; ``exit_status`` is minus the signal that ended it."""

    after_s: float
    phase: str
    exit_status: int | None
    oom_kills: int
    stderr_tail: str
    rehearsed: bool = False
    hung: Hung | None = None


def judge(told: Mapping[str, object] | None, forced: Kind | None, facts: Facts, limit_s: float | None = None) -> Outcome:
    """How a probe ended.

    What the worker said last (a ``result`` or ``error`` event) counts most, then why it was ended (``forced``), then how
    it died.
    """
    status = facts.exit_status
    died_of = -status if status is not None and status < 0 else None
    base = Outcome(
        forced or ("killed" if died_of is not None and died_of not in _OWN_DOING else "crashed"),
        facts.after_s, facts.phase, limit_s=limit_s, signal=died_of, exit_status=status,
        oom_kills=facts.oom_kills, stderr_tail=facts.stderr_tail, rehearsed=facts.rehearsed,
        error_kind=facts.hung or "",
    )  # fmt: skip
    if told is not None and told.get("event") == "result":
        return _with_result(base, told)
    if told is not None and told.get("event") == "error" and forced is None:
        return _with_error(base, told)
    return base


def _with_result(base: Outcome, told: Mapping[str, object]) -> Outcome:
    if told.get("outcome") != "out_of_memory":
        return replace(base, kind="completed", error_kind="")
    return replace(
        base, kind="out_of_memory", error_kind="",
        phase=str(told.get("phase") or base.phase), message=str(told.get("message") or ""),
        requested_bytes=_size(told.get("requested_bytes")), free_bytes=_size(told.get("free_bytes")), rank=_size(told.get("rank")),
    )  # fmt: skip


def _with_error(base: Outcome, told: Mapping[str, object]) -> Outcome:
    error_kind, message = str(told.get("kind") or ""), str(told.get("message") or "")
    rank, number = _size(told.get("rank")), _size(told.get("signal"))
    base = replace(base, message=message, error_kind=error_kind, rank=rank)
    if error_kind == "rank_ended" and number:
        return replace(base, kind="killed", signal=number, exit_status=None)
    return replace(base, kind="stopped" if error_kind == "interrupted" else "failed")


def _size(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def signal_name(number: int | None) -> str:
    """``SIGKILL`` for 9."""
    try:
        return signal.Signals(number or 0).name
    except ValueError:
        return f"signal {number}"
