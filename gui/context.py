"""What every part of the window is given: the state, the machine, background work and settings."""

from __future__ import annotations

from dataclasses import dataclass

from gui.machine import Machine
from gui.operations import Operations
from gui.pins import Pins
from gui.settings import Settings
from gui.state import State


@dataclass(frozen=True, slots=True)
class Context:
    """One of each, for the whole life of a window."""

    state: State
    machine: Machine
    operations: Operations
    settings: Settings
    pins: Pins
