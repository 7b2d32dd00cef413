"""What is on screen at the first start: a real model, on the GPU that is here or on one that many have."""

from __future__ import annotations

from PySide6.QtCore import QObject, Slot

from gui.machine import Machine
from gui.state import State, replace_at
from planner.scenario import Hardware, Scenario
from resources.gpus import gpu_names

FIRST_SCENARIO = Scenario("meta-llama/Llama-3.1-8B", "inference", hardware=Hardware("H100 SXM5 80GB"))


class _Adoption(QObject):
    """Puts the first plan on the detected GPU, unless the user has begun to edit."""

    def __init__(self, state: State, machine: Machine) -> None:
        super().__init__(state)
        self._state, self._machine = state, machine
        machine.changed.connect(self._adopt)

    @Slot()
    def _adopt(self) -> None:
        known = [name for name in self._machine.names if name in gpu_names()]
        if known and self._state.undo_stack.count() == 0:
            self._state.restore(replace_at(self._state.scenario, "hardware.gpu", known[0]))


def adopt_detected_gpu(state: State, machine: Machine) -> None:
    """Plan on the first GPU found in this machine, once it is known."""
    _Adoption(state, machine)
