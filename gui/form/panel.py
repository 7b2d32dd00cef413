"""The form at the left: fields by section, the seldom-used ones folded, faults at their fields."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from PySide6.QtCore import QEvent, Qt, Signal, Slot
from PySide6.QtWidgets import QFrame, QHBoxLayout, QLabel, QScrollArea, QToolButton, QVBoxLayout, QWidget

from gui.form.card import ModelCard
from gui.form.field import Field, QuietLabel
from gui.form.fields import FIELDS, SECTIONS, FieldSpec, Section
from gui.form.manners import LeaveUndo
from gui.form.model_box import ModelBox
from gui.form.model_menu import ModelMenu
from gui.form.modules import Module, ModulesField, linear_modules
from gui.icons import icon
from gui.quiet_bar import QuietBar
from gui.state import State, value_at
from gui.theme import px, set_role, theme
from gui.translate import tr
from planner.scenario import InlineConfig, ModelPath, Scenario

if TYPE_CHECKING:
    from planner.faults import Fault
    from resources.plan import Plan

WIDTH = 292
_SPACING = 7


class FormPanel(QScrollArea):
    """Edits the state's scenario and shows it; the state is the only holder of values."""

    open_model_asked = Signal()

    def __init__(self, state: State, *, advanced: bool = False, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._state = state
        self._body = QWidget()
        self.setWidget(self._body)
        self.fields = {spec.path: Field(spec, self._body) for spec in FIELDS}
        self.card = ModelCard()
        self._general = QLabel(wordWrap=True, visible=False)
        self._fold = QToolButton(text=tr("Advanced"), checkable=True, checked=advanced)
        self._groups: list[tuple[FieldSpec, QWidget]] = []
        self._moved = False
        """Whether something must be laid out as soon as all that an edit changes is known."""
        self._folded_headings: list[QLabel] = []
        self._build()
        self._connect()
        self._show_scenario(state.scenario)
        self._show_faults(state.faults)
        if state.plan is not None:
            self._show_plan(state.plan)
        self._settle()

    @property
    def advanced(self) -> bool:
        """Whether the seldom-used fields are unfolded."""
        return self._fold.isChecked()

    def go_to(self, path: str) -> None:
        """Put the keyboard into the field at ``path``, unfolding what it is folded under."""
        field = self.fields[path]
        self._fold.setChecked(self._fold.isChecked() or field.spec.advanced)
        self.ensureWidgetVisible(field)
        field.focus_editor()

    def _build(self) -> None:
        self.setFrameShape(QFrame.Shape.NoFrame)
        self.setWidgetResizable(True)
        self.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.setVerticalScrollBar(QuietBar(Qt.Orientation.Vertical))
        self.setVerticalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOn)
        self.setMinimumWidth(WIDTH)
        self.setFocusPolicy(Qt.FocusPolicy.NoFocus)
        body = self._body
        body.setAttribute(Qt.WidgetAttribute.WA_StaticContents)
        set_role(self._general, "fault")
        column = QVBoxLayout(body)
        column.setContentsMargins(14, 10, 14, 12)
        column.setSpacing(_SPACING)
        for section in SECTIONS:
            self._add_section(column, section)
        column.addWidget(self._general)
        self._add_fold(column)
        column.addStretch(1)

    def _add_section(self, column: QVBoxLayout, section: Section) -> None:
        if column.count():
            column.addSpacing(6)
        column.addWidget(self._heading(section))
        specs = [spec for spec in FIELDS if spec.section == section and not spec.advanced]
        self._add_groups(column, specs)
        if section == "Model":
            column.addWidget(self.card)

    def _add_groups(self, column: QVBoxLayout, specs: list[FieldSpec]) -> None:
        """Neighbours that are shown and hidden together stand in one widget: a change of task moves few things."""
        for _, members in groupby(specs, key=lambda spec: (spec.task, spec.advanced, spec.when)):
            group = QWidget(self._body, autoFillBackground=True)  # nothing is painted behind what is opaque
            rows = QVBoxLayout(group)
            rows.setContentsMargins(0, 0, 0, 0)
            rows.setSpacing(_SPACING)
            together = list(members)
            for spec in together:
                rows.addWidget(self.fields[spec.path])
            column.addWidget(group)
            self._groups.append((together[0], group))

    def _heading(self, section: Section) -> QWidget:
        label = QuietLabel(tr(section).upper(), autoFillBackground=True)
        set_role(label, "section")
        if section != "Model":
            return label
        row, line = QWidget(), QHBoxLayout()
        line.setContentsMargins(0, 0, 0, 0)
        self._open = QToolButton(toolTip=tr("Open a model's folder, config.json, .gguf or .safetensors, or edit its dimensions"))
        self._open.setAccessibleName(tr("Open or edit a model"))
        self.menu = ModelMenu(self._state, self._open, self)
        set_role(self._open, "link")
        line.addWidget(label)
        line.addStretch(1)
        line.addWidget(self._open)
        row.setLayout(line)
        return row

    def _add_fold(self, column: QVBoxLayout) -> None:
        set_role(self._fold, "fold")
        self._fold.setToolButtonStyle(Qt.ToolButtonStyle.ToolButtonTextBesideIcon)
        self._fold.setAccessibleName(tr("Advanced fields"))
        column.addSpacing(4)
        column.addWidget(self._fold)
        for section in SECTIONS:
            specs = sorted(
                (spec for spec in FIELDS if spec.advanced and spec.section == section), key=lambda spec: spec.task or "~"
            )
            if specs:
                self._add_folded_heading(column, section)
                self._add_groups(column, specs)

    def _add_folded_heading(self, column: QVBoxLayout, section: Section) -> None:
        """Folded fields stand under the same headings as the others; of each section some are there in every task."""
        heading = QLabel(tr(section))
        set_role(heading, "small")
        column.addWidget(heading)
        self._folded_headings.append(heading)

    def _connect(self) -> None:
        for field in self.fields.values():
            field.edited.connect(self._edit)
            field.ended.connect(self._state.end_typing)
        self._fold.toggled.connect(self._turn_fold)
        self.menu.file_asked.connect(self.open_model_asked)
        box = self.fields["model"].editor
        if isinstance(box, ModelBox):
            box.search_with(self._state.operations)
            box.dropped.connect(self.menu.open_path)
        for field in self.fields.values():
            if isinstance(field.editor, ModulesField):
                field.editor.offer(self._modules)
        self._state.scenario_changed.connect(self._show_scenario)
        self._state.plan_changed.connect(self._show_plan)
        self._state.faults_changed.connect(self._show_faults)
        self._state.busy_changed.connect(self._show_busy)
        self._state.told.connect(self._settle)
        theme().changed.connect(self._restyle)
        LeaveUndo(self)
        self._restyle()

    def _modules(self) -> tuple[Module, ...]:
        plan = self._state.plan
        return linear_modules(plan.architecture) if plan else ()

    @Slot(str, object, str, bool)
    def _edit(self, path: str, value: object, text: str, typing: bool) -> None:  # noqa: FBT001  a signal's arguments
        if path == "model":
            value = _model_of(str(value), self._state.scenario)
        if path == "hardware.gpu":
            value = value or None
        self._state.edit(path, value, text, typing=typing)

    @Slot(object)
    def _show_scenario(self, scenario: Scenario) -> None:
        for path, field in self.fields.items():
            if field.spec.suits(scenario):
                field.set_value(_shown(value_at(scenario, path)))
        self._count_folded(scenario)
        self._arrange()

    def _count_folded(self, scenario: Scenario) -> None:
        """What is folded away and not as it is by default is counted, so that nothing works unseen."""
        usual = Scenario("", scenario.task)
        folded = (spec for spec in FIELDS if spec.advanced and spec.suits(scenario))
        changed = sum(value_at(scenario, spec.path) != value_at(usual, spec.path) for spec in folded)
        text = tr("Advanced · {} set").format(changed) if changed else tr("Advanced")
        if self._fold.text() != text:
            self._fold.setText(text)
            self._fold.setAccessibleName(tr("Advanced fields, {} set").format(changed) if changed else tr("Advanced fields"))

    @Slot()
    def _arrange(self) -> None:
        """Show the fields of the task at hand, and the folded ones when unfolded."""
        scenario, unfolded = self._state.scenario, self._fold.isChecked()
        shown = [(spec.suits(scenario) and (unfolded or not spec.advanced), group) for spec, group in self._groups]
        shown += [(unfolded, heading) for heading in self._folded_headings]
        changed = [(wanted, group) for wanted, group in shown if group.isHidden() == wanted]
        if changed:
            self._body.layout().setEnabled(False)
            self._moved = True
        for wanted, group in changed:
            group.setVisible(wanted)

    @Slot()
    def _settle(self) -> None:
        """Lay out once what an edit has moved: left to itself, Qt goes outwards a level at a time, and squeezes in between."""
        if not self._moved:
            return
        self._moved = False
        layout = self._body.layout()
        layout.setEnabled(True)
        layout.invalidate()
        self.card.updateGeometry()
        self._fit()
        layout.activate()

    def _fit(self) -> None:
        """Give the body the height that it needs: in another every field would be squeezed, then moved and painted once more."""
        room = self.viewport().size()
        self._body.resize(room.width(), max(room.height(), self._body.heightForWidth(room.width())))

    def viewportEvent(self, event: QEvent) -> bool:
        """The body asks for another height: that alone is given. Qt would lay out the frame and the scroll bars as well."""
        if event.type() == QEvent.Type.LayoutRequest:
            self._fit()
            return True
        return super().viewportEvent(event)

    @Slot()
    def _turn_fold(self) -> None:
        self._fold.setIcon(icon("chevron-down" if self._fold.isChecked() else "chevron-right", "muted"))
        self._arrange()
        self._settle()

    @Slot(object)
    def _show_plan(self, plan: Plan) -> None:
        self._moved |= self.card.show_model(plan.model)
        settled = self._state.settled
        for path, field in self.fields.items():
            if field.spec.suits(settled):
                field.set_default(_shown(value_at(settled, path)))
        self.fields["hardware.capacity_bytes"].set_default(plan.gpu.capacity_bytes)

    @Slot(object)
    def _show_faults(self, faults: tuple[Fault, ...]) -> None:
        elsewhere = []
        messages: dict[str, str] = {}
        for fault in faults:
            path = self._nearest(fault.path)
            if path is None:
                elsewhere.append(str(fault))
            else:
                inner = fault.path.removeprefix(path).removeprefix(".")
                message = f"{inner}: {fault.message}" if inner else fault.message
                messages[path] = f"{messages[path]}\n{message}" if path in messages else message
        for path, field in self.fields.items():
            field.set_fault(messages.get(path, ""))
        self._general.setText("\n".join(elsewhere))
        self._general.setVisible(bool(elsewhere))

    def _nearest(self, path: str) -> str | None:
        """The visible field that a fault's path points into."""
        for known, field in self.fields.items():
            if (path == known or path.startswith(f"{known}.")) and self._within_reach(field):
                return known
        return None

    def _within_reach(self, field: Field) -> bool:
        return not field.parentWidget().isHidden()

    @Slot(bool)
    def _show_busy(self, busy: bool) -> None:  # noqa: FBT001  a signal's argument
        if busy:
            self.card.show_status("Reading the model …")
        elif self._state.plan is not None and self._state.plan.scenario.model != self._state.scenario.model:
            self.card.show_unread()

    @Slot()
    def _restyle(self) -> None:
        self.setMinimumWidth(px(WIDTH))
        self._open.setIcon(icon("folder", "muted"))
        self._turn_fold()


def _shown(value: object) -> object:
    if isinstance(value, ModelPath):
        return value.path
    if isinstance(value, InlineConfig):
        return f"custom architecture ({value.config.get('model_type', 'unknown type')})"
    return value


def _model_of(text: str, scenario: Scenario) -> object:
    """A typed model: a path when there is such a file, else an id; the same text keeps the model it stands for."""
    if text == _shown(scenario.model):
        return scenario.model
    looks_local = text.startswith((".", "/", "~")) or (len(text) > 1 and text[1] == ":")
    return ModelPath(str(Path(text).expanduser())) if looks_local else text
