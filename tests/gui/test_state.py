"""The one state of the window."""

from __future__ import annotations

import gc
import weakref

from gui.first import FIRST_SCENARIO
from gui.operations import Operations
from gui.state import State


def test_steps_that_can_be_undone_hold_no_state(qapp):
    """Qt's stack owns the steps and the state the stack: a cycle through it would end the program when it is collected."""
    gc.disable()
    try:
        operations = Operations()
        state = State(FIRST_SCENARIO, operations)
        for batch in (2, 3, 4):
            state.edit("inference.batch", batch)
        state.undo_stack.undo()
        operations.close()
        gone = weakref.ref(state)
        del state
        assert gone() is None
    finally:
        gc.enable()
