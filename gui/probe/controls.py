"""The row of controls above the plot: what to run, on which device, how much of it."""

from __future__ import annotations

from PySide6.QtCore import QSize, Signal, Slot
from PySide6.QtGui import QResizeEvent
from PySide6.QtWidgets import QBoxLayout, QHBoxLayout, QLabel, QPushButton, QWidget

from gui.form.editors import ChoiceField
from gui.form.numbers import NumberField
from gui.icons import icon
from gui.machine import Machine
from gui.theme import px, set_role, theme
from gui.translate import tr
from planner.units import GIB

_ONE_ROW, _TWO_ROWS = 940, 470


class Controls(QWidget):
    """Buttons ask; the tab does."""

    CARD = "card"
    """The device that stands for the plan's card when it is not here: it can be rehearsed."""

    measure_asked = Signal()
    rehearse_asked = Signal()
    stop_asked = Signal()
    changed = Signal()

    def __init__(self, machine: Machine, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._machine = machine
        self.measure = QPushButton(tr("Measure"), toolTip=tr("Run the load in a child process and draw its memory (Ctrl+R)"))
        self.rehearse = QPushButton(
            tr("Rehearse"), toolTip=tr("Run the model on fake tensors and open its peaks; needs no GPU (Ctrl+E)")
        )
        self.stop = QPushButton(tr("Stop"), toolTip=tr("End the run; what was recorded stays (Ctrl+.)"), enabled=False)
        self.device = ChoiceField([("cpu", "CPU")])
        self.layers = NumberField()
        self.new_tokens = NumberField(doubles=True)
        self.budget_gib = NumberField()
        self._card = ""
        self._choices: list[tuple[str, str]] = []
        self._new_tokens_label = QLabel(tr("New tokens"))
        self._widths: dict[QWidget, int] = {}
        self._lay_out()
        self._connect()
        self._list_devices()

    @property
    def budget_bytes(self) -> int | None:
        """The most the run may take."""
        value = self.budget_gib.value()
        return value * GIB if isinstance(value, int) else None

    def set_running(self, running: bool) -> None:  # noqa: FBT001  a setter
        """What can be pressed while a run is under way."""
        self.measure.setEnabled(not running)
        self.rehearse.setEnabled(not running)
        self.stop.setEnabled(running)
        for field in (self.device, self.layers, self.new_tokens, self.budget_gib):
            field.setEnabled(not running)

    @property
    def bad(self) -> list[str]:
        """The fields that hold no number of at least 1."""
        named = (("Layers", self.layers), ("New tokens", self.new_tokens), ("Budget", self.budget_gib))
        return [name for name, field in named if isinstance(field.value(), str) or field.value() == 0]

    def set_plan(self, task: str, card: str, layers: int, new_tokens: int | None) -> None:
        """Show the fields of the task and the plan's card; the plan's own values are the defaults."""
        self.layers.lineEdit().setPlaceholderText(tr("all {}").format(layers))
        self.new_tokens.set_placeholder(new_tokens)
        self.new_tokens.setVisible(task == "inference")
        self._new_tokens_label.setVisible(task == "inference")
        if card != self._card:
            self._card = card
            self._list()

    def _lay_out(self) -> None:
        set_role(self.measure, "primary")
        self._wrap = QBoxLayout(QBoxLayout.Direction.LeftToRight, self)
        self._wrap.setContentsMargins(0, 0, 0, 0)
        self._wrap.setSpacing(8)
        first, second = QHBoxLayout(), QHBoxLayout()
        self._wrap.addLayout(first)
        self._wrap.addLayout(second, 1)
        self.actions = QHBoxLayout()
        self.actions.setSpacing(8)
        for button in (self.measure, self.rehearse, self.stop):
            self.actions.addWidget(button)
        first.addLayout(self.actions)
        first.addSpacing(4)
        named = (
            ("", self.device, 158, "Where the load runs, or which card is rehearsed"),
            ("Layers", self.layers, 90, "Keep only so many layers; the prediction follows"),
            ("New tokens", self.new_tokens, 102, "Tokens to make; the prediction follows"),
            ("Budget", self.budget_gib, 74, "GiB the run may take; beyond it the run ends as out of memory"),
        )
        for name, field, width, tip in named:
            field.setAccessibleName(tr(name or "Device"))
            field.setToolTip(tr(tip))
            self._widths[field] = width
            row = first if field is self.device else second
            row.setSpacing(8)
            if name:
                label = self._new_tokens_label if field is self.new_tokens else QLabel(tr(name))
                set_role(label, "muted")
                label.setBuddy(field)
                row.addWidget(label)
            row.addWidget(field)
        first.addStretch(1)
        second.addStretch(1)
        self.budget_gib.lineEdit().setPlaceholderText(tr("GiB"))

    def resizeEvent(self, event: QResizeEvent) -> None:
        """One row while there is room, else two."""
        direction = QBoxLayout.Direction.LeftToRight if self.width() >= px(_ONE_ROW) else QBoxLayout.Direction.TopToBottom
        if direction != self._wrap.direction():
            self._wrap.setDirection(direction)
        super().resizeEvent(event)

    def minimumSizeHint(self) -> QSize:
        """As narrow as two rows are."""
        return QSize(px(_TWO_ROWS), self._wrap.minimumSize().height())

    def _connect(self) -> None:
        self.measure.clicked.connect(self.measure_asked)
        self.rehearse.clicked.connect(self.rehearse_asked)
        self.stop.clicked.connect(self.stop_asked)
        for field in (self.device, self.layers, self.new_tokens, self.budget_gib):
            field.edited.connect(self._changed)
        self._machine.changed.connect(self._list_devices)
        theme().changed.connect(self._restyle)
        self._restyle()

    @Slot()
    def _changed(self) -> None:
        self.changed.emit()

    @Slot()
    def _list_devices(self) -> None:
        if self._list():
            self.changed.emit()

    def _list(self) -> bool:
        """What a load can run on now; tells whether that is something else than before."""
        chosen = self.device.value()
        found = [(f"cuda:{reading.index}", f"cuda:{reading.index}  {reading.name}") for reading in self._machine.readings]
        choices = [*found, ("cpu", "CPU")]
        if self._card and not self._machine.has(self._card):
            choices.append((self.CARD, f"{self._card}  (rehearse)"))
        if choices == self._choices:
            return False
        self._choices = choices
        self.device.clear()
        for value, label in choices:
            self.device.addItem(label, value)
        if chosen in [value for value, _ in choices] and not (found and chosen == "cpu"):
            self.device.set_value(chosen)
        return True

    @Slot()
    def _restyle(self) -> None:
        self.measure.setIcon(icon("measure", "accent_text"))
        self.rehearse.setIcon(icon("rehearse", "text"))
        self.stop.setIcon(icon("stop", "muted"))
        for field, width in self._widths.items():
            field.setFixedWidth(px(width))
