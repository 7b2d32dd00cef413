"""The one state of the window: the scenario, its plan, what is wrong with it, and what is selected.

Views observe its signals and ask it to edit; nothing else holds a scenario. Every edit can be undone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import cache, lru_cache, partial
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Protocol
from weakref import WeakMethod

from PySide6.QtCore import QObject, QTimer, Signal, Slot
from PySide6.QtGui import QUndoCommand, QUndoStack

from gui.operations import Operation, Operations
from gui.translate import tr
from planner.architecture.config import UnknownArchitecture
from planner.faults import Fault, Faults
from planner.footprint import HOST, Footprint, GpuFootprint, Phase, Term
from planner.scenario import InlineConfig, Scenario, parse_scenario, to_json
from resources.catalog import UnknownModel, model_ids
from resources.hub_errors import HubError
from resources.plan import Plan, make_plan

if TYPE_CHECKING:
    from gui.fits.speeds import OpenedPace
    from probes.peaks import OpenedPeak

_UNDO_LIMIT = 500
_PAUSE_MS = 60
"""How long nothing must be edited before the formulas behind the plan are worked out: sizes first."""
_SECTIONS = tuple(item.name for item in dataclasses.fields(Scenario))


@dataclasses.dataclass(frozen=True, slots=True)
class Selection:
    """What the why panel explains: a component (None: the whole) in a phase (None: the peak) of one GPU.

    ``gpu``: its index, or :data:`planner.footprint.HOST`; None: the fullest. ``peak``: the rehearsed peak of the phase instead,
    opened. ``pace``: a point of the speed against concurrency instead.
    """

    component: str | None = None
    phase: str | None = None
    gpu: int | None = None
    peak: OpenedPeak | None = None
    pace: OpenedPace | None = None


class _Owner(Protocol):
    def restore(self, scenario: Scenario) -> None: ...


class State(QObject):
    """Scenario in, plan out. Known models are planned at once; others are read in the background first."""

    scenario_changed = Signal(object)
    plan_changed = Signal(object)
    faults_changed = Signal(object)
    told = Signal()
    """Every view has been told of an edit, or of its plan: time to lay out what has moved, once."""
    explained = Signal()
    """The terms of the plan on screen have been worked out."""
    selection_changed = Signal(object)
    busy_changed = Signal(bool)
    run_kept = Signal()
    """A run has ended and is in the history."""

    def __init__(self, scenario: Scenario, operations: Operations, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self.undo_stack = QUndoStack(self)
        self.undo_stack.setUndoLimit(_UNDO_LIMIT)
        self._operations = operations
        self._scenario = scenario
        self._plan: Plan | None = None
        self._terms: Sequence[Term] | None = None
        self._pause = QTimer(self, singleShot=True, interval=_PAUSE_MS)
        self._pause.timeout.connect(self._explain)
        self._settled = scenario
        self._faults: tuple[Fault, ...] = ()
        self._selection = Selection()
        self._busy = False
        self._strokes = 0
        self._recompute()
        if self._plan is not None:
            self._terms = tuple(self._plan.footprint.terms)
            self._pause.stop()

    @property
    def operations(self) -> Operations:
        """What runs work in the background."""
        return self._operations

    @property
    def scenario(self) -> Scenario:
        """The scenario as edited; :attr:`faults` says what is wrong with it."""
        return self._scenario

    @property
    def plan(self) -> Plan | None:
        """The last good plan. It is of :attr:`scenario` when there are no faults and nothing is being read."""
        return self._plan

    @property
    def settled(self) -> Scenario:
        """The scenario of the last good plan with every default filled in."""
        return self._settled

    @property
    def footprint(self) -> Footprint | None:
        """The last good plan's answer."""
        return self._plan.footprint if self._plan else None

    @property
    def terms(self) -> Sequence[Term] | None:
        """The terms of the last good plan; None while they are still to be worked out, a moment after an edit."""
        return self._terms

    @property
    def faults(self) -> tuple[Fault, ...]:
        """What is wrong with the scenario, each with the path of its field."""
        return self._faults

    @property
    def busy(self) -> bool:
        """Whether the model is being read in the background."""
        return self._busy

    @property
    def current(self) -> bool:
        """Whether the plan on screen answers the scenario on screen."""
        return self._plan is not None and not self._faults and not self._busy

    @property
    def trouble(self) -> str:
        """Why the plan on screen does not answer the scenario on screen, with the remedy; empty while it does."""
        if self._faults:
            older = tr(" What is shown is of the last plan that was sound.") if self._plan else ""
            return tr("Not planned: {}.").format("; ".join(map(str, self._faults)).rstrip(".")) + older
        return tr("Reading the model …") if self._busy else ""

    @property
    def selection(self) -> Selection:
        """What the why panel explains."""
        return self._selection

    def edit(self, path: str, value: object, text: str = "", *, typing: bool = False) -> None:
        """Set the field at ``path`` (``inference.batch``). Edits that are ``typing`` undo as one until :meth:`end_typing`."""
        changed = replace_at(self._scenario, path, value)
        if changed != self._scenario:
            key = f"{path} {self._strokes}" if typing else ""
            self.undo_stack.push(_Edit(self, self._scenario, changed, text or f"edit {path}", key))

    @Slot()
    def end_typing(self) -> None:
        """What is typed from now on is a step of its own to undo."""
        self._strokes += 1

    def open(self, scenario: Scenario, text: str) -> None:
        """Replace the whole scenario, as one edit."""
        if scenario != self._scenario:
            self.undo_stack.push(_Edit(self, self._scenario, scenario, text, ""))

    def select(self, selection: Selection) -> None:
        """Have the why panel explain ``selection``."""
        if selection != self._selection:
            self._selection = selection
            self.selection_changed.emit(selection)

    def leave_details(self) -> None:
        """Explain the plan again, and no more a peak or a point of another tab's chart."""
        if self._selection.peak is not None or self._selection.pace is not None:
            self.select(dataclasses.replace(self._selection, peak=None, pace=None))

    def restore(self, scenario: Scenario) -> None:
        """Take ``scenario`` without a new undo step (undo and redo come here)."""
        self._scenario = scenario
        self.leave_details()
        self.scenario_changed.emit(scenario)
        try:
            self._recompute()
        finally:
            self.told.emit()

    @Slot()
    def predict_anew(self) -> None:
        """The same scenario again: what is known of its card has changed."""
        self._recompute()

    def close(self) -> None:
        """Explain nothing any more."""
        self._pause.stop()

    @property
    def settling(self) -> bool:
        """Whether formulas are still to come."""
        return self._plan is not None and self._terms is None

    def shown_phase(self) -> tuple[GpuFootprint, Phase] | None:
        """The GPU and phase that the selection points at, the peak when it names none; None when none could be sized."""
        footprint = self.footprint
        if footprint is None or not footprint.gpus:
            return None
        if self._selection.gpu == HOST and footprint.host.phase:
            return GpuFootprint(HOST, None, (footprint.host.phase,)), footprint.host.phase
        asked = self._selection.gpu
        fullest = footprint.fullest or footprint.gpus[0]
        gpu = fullest if asked is None else footprint.gpus[min(max(asked, 0), len(footprint.gpus) - 1)]
        named = next((phase for phase in gpu.phases if phase.name == self._selection.phase), gpu.peak)
        return (gpu, named) if named else None

    def _recompute(self) -> None:
        self._operations.cancel("plan")
        try:
            scenario = parse_scenario(to_json(self._scenario))
        except Faults as faults:
            self._fail(faults.faults)
            return
        if _at_hand(scenario):
            self._take(_attempt(scenario))
        else:
            self._set_busy(busy=True)
            self._operations.start(Operation("plan", partial(_attempt, scenario), self._take, self._crash))

    @Slot(object)
    def _take(self, result: object) -> None:
        self._set_busy(busy=False)
        if isinstance(result, Plan):
            self._plan = result
            self._settled = result.settled
            self._set_faults(())
            self._terms = None
            self._pause.start()
            self.plan_changed.emit(result)
        elif isinstance(result, tuple):
            self._set_faults(result)
        self.told.emit()

    @Slot()
    def _explain(self) -> None:
        if self._plan is not None:
            self._operations.start(Operation("explain", partial(_terms_of, self._plan), self._take_terms, self._crash))

    @Slot(object)
    def _take_terms(self, found: tuple[Plan, Sequence[Term]]) -> None:
        plan, terms = found
        if plan is self._plan:
            self._terms = terms
            self.explained.emit()

    @Slot(object)
    def _crash(self, error: Exception) -> None:
        self._set_busy(busy=False)
        raise error

    def _fail(self, faults: tuple[Fault, ...]) -> None:
        self._set_busy(busy=False)
        self._set_faults(faults)

    def _set_busy(self, *, busy: bool) -> None:
        if busy != self._busy:
            self._busy = busy
            self.busy_changed.emit(busy)

    def _set_faults(self, faults: tuple[Fault, ...]) -> None:
        if faults != self._faults:
            self._faults = faults
            self.faults_changed.emit(faults)


def replace_at(value: Any, path: str, new: object) -> Any:
    """A copy of a frozen value with the field at the dotted ``path`` replaced."""
    head, _, rest = path.partition(".")
    return dataclasses.replace(value, **{head: replace_at(getattr(value, head), rest, new) if rest else new})


def value_at(value: Any, path: str) -> Any:
    """The field at the dotted ``path``."""
    return _getter(path)(value)


_getter = cache(attrgetter)


def _attempt(scenario: Scenario) -> Plan | tuple[Fault, ...]:
    try:
        return make_plan(scenario)
    except Faults as faults:
        return faults.faults
    except (UnknownArchitecture, UnknownModel, HubError, OSError) as error:
        return (_fault_of(str(error)),)


def _terms_of(plan: Plan) -> tuple[Plan, Sequence[Term]]:
    return plan, tuple(plan.footprint.terms)


def _fault_of(text: str) -> Fault:
    """Errors of resources start with the path of their field: ``hardware.gpu: no GPU is called …``."""
    path, colon, message = text.partition(": ")
    known = colon and path.partition(".")[0] in _SECTIONS
    return Fault(path, message) if known else Fault("model", text)


def _at_hand(scenario: Scenario) -> bool:
    """Whether the model needs neither disk nor network: given inline, or bundled."""
    if isinstance(scenario.model, str):
        return scenario.model.lower() in _bundled()
    return isinstance(scenario.model, InlineConfig)


@lru_cache(maxsize=1)
def _bundled() -> frozenset[str]:
    return frozenset(name.lower() for name in model_ids())


class _Edit(QUndoCommand):
    """One step between two scenarios; steps of typing into one field become one."""

    def __init__(self, owner: _Owner, before: Scenario, after: Scenario, text: str, merge_key: str) -> None:
        super().__init__(text)
        # Weak: cycles through a stack of Qt's are collected in an order that it does not survive.
        self._restore = WeakMethod(owner.restore)
        self.before, self.after, self.merge_key = before, after, merge_key

    def id(self) -> int:
        return 1 if self.merge_key else -1

    def mergeWith(self, other: QUndoCommand) -> bool:
        if not isinstance(other, _Edit) or other.merge_key != self.merge_key:
            return False
        self.after = other.after
        self.setObsolete(self.before == self.after)
        return True

    def undo(self) -> None:
        self._put_back(self.before)

    def redo(self) -> None:
        self._put_back(self.after)

    def _put_back(self, scenario: Scenario) -> None:
        if restore := self._restore():
            restore(scenario)
