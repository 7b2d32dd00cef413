"""Plans kept to be compared: pinned from the form, remembered between starts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

from PySide6.QtCore import QObject, Signal, Slot

from gui.operations import Operation, Operations
from gui.settings import PINS, Settings
from gui.translate import tr
from planner.architecture import UnknownArchitecture
from planner.faults import Faults
from planner.scenario import Scenario, parse_scenario, to_json
from resources.catalog import UnknownModel
from resources.hub_errors import HubError
from resources.plan import Plan, make_plan

MOST = 3
"""Beside the plan in the form: four columns can be read."""


@dataclass(frozen=True, slots=True)
class Pin:
    """A named plan."""

    name: str
    plan: Plan


class Pins(QObject):
    """``changed`` when a plan is pinned, renamed or let go."""

    changed = Signal()

    def __init__(self, settings: Settings, operations: Operations, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self._settings, self._operations = settings, operations
        self._pins: tuple[Pin, ...] = ()
        self._loaded = False

    @property
    def pins(self) -> tuple[Pin, ...]:
        """The pinned plans, the oldest first."""
        return self._pins

    def pin(self, plan: Plan | None) -> str:
        """Keep ``plan``; returns what to tell."""
        if plan is None:
            return tr("There is no plan to pin")
        self.load()
        if any(one.plan.scenario == plan.scenario for one in self._pins):
            return tr("This plan is pinned already")
        if len(self._pins) >= MOST:
            return tr("Only {} plans can be pinned: remove one in the Compare tab first").format(MOST)
        self._set([*self._pins, Pin(self._free_name(plan.source.label.rsplit("/", 1)[-1]), plan)])
        return tr("Pinned: the Compare tab shows it beside the plan in the form")

    def add(self, named: Sequence[tuple[str, Scenario]]) -> str:
        """Plan and keep scenarios, in the background; returns what to tell."""
        self.load()
        room = MOST - len(self._pins)
        if room < len(named):
            return tr("Only {} plans can be pinned: remove one in the Compare tab first").format(MOST)
        stored = [json.dumps([name, to_json(scenario)]) for name, scenario in named]
        self._operations.start(Operation("pins add", partial(_plan_all, stored), self._take_more, self._lose))
        return tr("Pinned: the Compare tab shows it beside the plan in the form")

    def rename(self, index: int, name: str) -> None:
        """Call a pin something else; an empty name changes nothing."""
        if name.strip():
            self._set([replace(one, name=name.strip()[:60]) if at == index else one for at, one in enumerate(self._pins)])

    def remove(self, index: int) -> None:
        """Let a pin go."""
        self._set([one for at, one in enumerate(self._pins) if at != index])

    def load(self) -> None:
        """Plan what was pinned when the window was last open, in the background; those that can't be are let go."""
        if self._loaded:
            return
        self._loaded = True
        stored = self._settings.get(PINS)
        if stored:
            self._operations.start(Operation("pins", partial(_plan_all, stored[:MOST]), self._take, self._lose))

    @Slot(object)
    def _take(self, pins: object) -> None:
        if isinstance(pins, list):
            self._pins = tuple([*pins, *self._pins][:MOST])
            self.changed.emit()

    @Slot(object)
    def _take_more(self, pins: object) -> None:
        if isinstance(pins, list):
            for pin in pins:
                self._set([*self._pins, replace(pin, name=self._free_name(pin.name))])

    @Slot(object)
    def _lose(self, error: Exception) -> None:
        raise error

    def _set(self, pins: Sequence[Pin]) -> None:
        self._pins = tuple(pins)
        self._settings.set(PINS, [json.dumps([one.name, to_json(one.plan.scenario)]) for one in pins])
        self.changed.emit()

    def _free_name(self, wanted: str) -> str:
        base = wanted[:40]
        taken = {one.name for one in self._pins}
        return next(name for name in (base, *(f"{base} ({number})" for number in range(2, 99))) if name not in taken)


def _plan_all(stored: Sequence[str]) -> list[Pin]:
    return [pin for text in stored if (pin := _plan_one(text)) is not None]


def _plan_one(text: str) -> Pin | None:
    try:
        name, document = json.loads(text)
        scenario: Scenario = parse_scenario(document)
        return Pin(str(name), make_plan(scenario))
    except (ValueError, Faults, UnknownModel, UnknownArchitecture, HubError, OSError):
        return None
