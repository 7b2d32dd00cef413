"""Names of modules: typed, or ticked in a list of the linear layers that the model has."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from PySide6.QtCore import QPoint, Qt, Slot
from PySide6.QtGui import QAction, QKeyEvent
from PySide6.QtWidgets import QFrame, QHBoxLayout, QLineEdit, QListWidget, QListWidgetItem, QPushButton, QVBoxLayout, QWidget

from gui.form.editors import NamesField
from gui.icons import icon
from gui.theme import set_role, theme
from gui.translate import tr
from planner.architecture.layers import Architecture
from planner.components.targets import adaptable

ALL_LINEAR = "all-linear"
_WIDTH, _ROW, _MOST_ROWS = 300, 24, 12


@dataclass(frozen=True, slots=True)
class Module:
    """Linear layers of one name: (out, in) of the first, how many there are, and whether they belong to an attention."""

    name: str
    shape: tuple[int, ...]
    count: int
    attends: bool

    @property
    def words(self) -> str:
        """``q_proj   4096 × 4096, 32 of them``."""
        return f"{self.name}   " + tr("{} × {}, {} of them").format(*self.shape, self.count)


def linear_modules(architecture: Architecture) -> tuple[Module, ...]:
    """What adapters can be put on, by its last name, in the order of the model."""
    found: dict[str, Module] = {}
    for path, weight, count in adaptable(architecture):
        name = path.rpartition(".")[2]
        known = found.get(name)
        attends = "attn" in path or "attention" in path
        found[name] = Module(name, known.shape if known else weight.shape, count + (known.count if known else 0), attends)
    return tuple(found.values())


class ModulesField(NamesField):
    """The arrow key or the chevron opens the list."""

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._find: Callable[[], tuple[Module, ...]] = tuple
        self._open = QAction(tr("Choose modules"), self)
        self._open.triggered.connect(self.open_list)
        self.addAction(self._open, QLineEdit.ActionPosition.TrailingPosition)
        self.list = ModuleList(self)
        theme().changed.connect(self._restyle)
        self._restyle()

    def offer(self, find: Callable[[], tuple[Module, ...]]) -> None:
        """Where the modules of the list come from."""
        self._find = find

    @Slot()
    def open_list(self) -> None:
        """Show the list below the field."""
        self.list.show_modules(self._find(), self.value())
        self.list.move(self.mapToGlobal(QPoint(0, self.height() + 2)))
        self.list.show()
        self.list.rows.setFocus()

    def keyPressEvent(self, event: QKeyEvent) -> None:
        """Down opens the list."""
        if event.key() == Qt.Key.Key_Down:
            self.open_list()
        else:
            super().keyPressEvent(event)

    def choose(self, names: tuple[str, ...]) -> None:
        """Take ``names`` as if they had been typed."""
        if names and names != self.value():
            self.set_value(names)
            self.edited.emit(names)

    @Slot()
    def _restyle(self) -> None:
        self._open.setIcon(icon("chevron-down", "muted"))


class ModuleList(QFrame):
    """Ticks, and the usual choices above them."""

    def __init__(self, field: ModulesField) -> None:
        super().__init__(field, Qt.WindowType.Popup)
        self._field, self._filling = field, False
        self._modules: tuple[Module, ...] = ()
        self.rows = QListWidget()
        self.rows.setAccessibleName(tr("Linear layers of the model"))
        self.rows.itemChanged.connect(self._ticked)
        self.presets = {
            "attention": QPushButton(tr("Attention")), "mlp": QPushButton(tr("MLP")), ALL_LINEAR: QPushButton(tr("All linear")),
        }  # fmt: skip
        set_role(self, "card")
        line = QHBoxLayout()
        for button in self.presets.values():
            set_role(button, "compact")
            button.clicked.connect(self._preset)
            line.addWidget(button)
        line.addStretch(1)
        column = QVBoxLayout(self)
        column.setContentsMargins(8, 8, 8, 8)
        column.addLayout(line)
        column.addWidget(self.rows)

    def show_modules(self, modules: tuple[Module, ...], chosen: object) -> None:
        """List ``modules`` with those in ``chosen`` ticked."""
        names = chosen if isinstance(chosen, tuple) else ()
        self._modules, self._filling = modules, True
        self.rows.clear()
        for module in modules:
            item = QListWidgetItem(module.words)
            item.setData(Qt.ItemDataRole.UserRole, module.name)
            ticked = module.name in names or ALL_LINEAR in names
            item.setCheckState(Qt.CheckState.Checked if ticked else Qt.CheckState.Unchecked)
            self.rows.addItem(item)
        self._filling = False
        self.resize(_WIDTH, 60 + _ROW * min(max(len(modules), 1), _MOST_ROWS))

    @property
    def ticked(self) -> tuple[str, ...]:
        """The names that are ticked."""
        items = (self.rows.item(row) for row in range(self.rows.count()))
        return tuple(str(item.data(Qt.ItemDataRole.UserRole)) for item in items if item.checkState() == Qt.CheckState.Checked)

    @Slot()
    def _ticked(self) -> None:
        if not self._filling:
            self._field.choose(self.ticked)

    @Slot()
    def _preset(self) -> None:
        name = next(name for name, button in self.presets.items() if button is self.sender())
        chosen: tuple[str, ...] = (ALL_LINEAR,)
        if name != ALL_LINEAR:
            chosen = tuple(module.name for module in self._modules if module.attends == (name == "attention"))
        self._field.choose(chosen)
        self.show_modules(self._modules, chosen)
