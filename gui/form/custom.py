"""The editor of a custom architecture: a model's dimensions by hand, read again with every change."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import groupby

from PySide6.QtCore import Qt, Slot
from PySide6.QtGui import QShowEvent
from PySide6.QtWidgets import QDialog, QDialogButtonBox, QGridLayout, QLabel, QPushButton, QScrollArea, QVBoxLayout, QWidget

from gui.form.card import ModelCard
from gui.form.dimensions import Dimension, dimensions_of, with_dimension
from gui.form.editors import ChoiceField
from gui.form.numbers import NumberField
from gui.theme import set_role
from gui.translate import tr
from planner.architecture.config import UnknownArchitecture
from planner.faults import Fault, Faults
from planner.scenario import InlineConfig
from resources.plan import find_model

_FLAGS = {"yes": True, "no": False, "default": None}
_WIDTH, _COLUMNS = 524, 2
_BESIDES = 330
"""Height kept for what stands around the fields."""
_HINT = "An empty field takes the default of the model's type. Lists with one entry for each layer follow the number of layers."


class CustomArchitecture(QDialog):
    """Starts from ``config``; :attr:`config` is what it has become."""

    def __init__(self, config: Mapping[str, object], label: str, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._config = dict(config)
        self.fields = {found.path: _DimensionField(found) for found in dimensions_of(config)}
        self.card = ModelCard()
        self._general = QLabel(wordWrap=True, visible=False)
        self._buttons = QDialogButtonBox(QDialogButtonBox.StandardButton.Cancel)
        self.use = QPushButton(tr("Use this architecture"), default=True)
        self._build(label)
        for field in self.fields.values():
            field.editor.edited.connect(self._changed)
        self._read()

    @property
    def config(self) -> dict[str, object]:
        """The config as edited."""
        return self._config

    @property
    def general(self) -> str:
        """What is wrong with no single field."""
        return self._general.text()

    def _build(self, label: str) -> None:
        self.setWindowTitle(tr("Custom architecture"))
        title, hint = QLabel(tr("Starting from {}").format(label), wordWrap=True), QLabel(tr(_HINT), wordWrap=True)
        set_role(title, "title")
        set_role(hint, "small")
        set_role(self._general, "fault")
        set_role(self.use, "primary")
        self._buttons.addButton(self.use, QDialogButtonBox.ButtonRole.AcceptRole)
        self._buttons.accepted.connect(self.accept)
        self._buttons.rejected.connect(self.reject)
        column = QVBoxLayout(self)
        column.setSizeConstraint(QVBoxLayout.SizeConstraint.SetMinimumSize)
        column.setContentsMargins(18, 16, 18, 14)
        column.setSpacing(8)
        for part in (title, hint):
            column.addWidget(part)
        column.addWidget(self._grid(), 1)
        for part in (self._general, self.card, self._buttons):
            column.addWidget(part)

    def _grid(self) -> QWidget:
        """The fields by group, two beside each other; scrolls on a low screen."""
        body, grid, row = QWidget(), QGridLayout(), 0
        grid.setContentsMargins(0, 0, 10, 0)
        grid.setHorizontalSpacing(18)
        grid.setVerticalSpacing(6)
        for group, members in groupby(self.fields.values(), key=lambda field: field.dimension.group):
            heading = QLabel(group.upper())
            set_role(heading, "section")
            grid.addWidget(heading, row, 0, 1, _COLUMNS)
            for index, field in enumerate(members):
                grid.addWidget(field, row + 1 + index // _COLUMNS, index % _COLUMNS, Qt.AlignmentFlag.AlignTop)
                last = row + 1 + index // _COLUMNS
            row = last + 1
        for at in range(_COLUMNS):
            grid.setColumnStretch(at, 1)
        grid.setRowStretch(row, 1)
        body.setLayout(grid)
        set_role(body, "side")
        scroll = QScrollArea(widgetResizable=True, horizontalScrollBarPolicy=Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        scroll.setWidget(body)
        scroll.setFocusPolicy(Qt.FocusPolicy.NoFocus)
        scroll.setMinimumWidth(_WIDTH)
        scroll.setMinimumHeight(min(body.sizeHint().height() + 4, self.screen().availableGeometry().height() - _BESIDES))
        return scroll

    @Slot(object)
    def _changed(self, _value: object) -> None:
        for path, field in self.fields.items():
            if field.value() != field.shown:
                field.shown = field.value()
                self._config = with_dimension(self._config, path, field.shown)
        self._read()

    def _read(self) -> None:
        """Read the config as it now is: its summary, or what is wrong at the fields."""
        faults: tuple[Fault, ...] = ()
        try:
            self.card.show_model(find_model(InlineConfig(self._config)))
        except Faults as found:
            faults = found.faults
        except UnknownArchitecture as error:
            faults = (Fault("", error.reason),)
        self.card.setEnabled(not faults)
        self.use.setEnabled(not faults)
        self._show_faults(faults)
        self._grow()

    def _grow(self) -> None:
        """Wrapped lines need height that a dialog does not keep for them by itself."""
        needed = self.layout().totalHeightForWidth(max(self.width(), self.layout().minimumSize().width()))
        if self.height() < needed:
            self.resize(self.width(), needed)

    def showEvent(self, event: QShowEvent) -> None:
        """Take the height the fields need, once the fonts are known."""
        super().showEvent(event)
        self._grow()

    def _show_faults(self, faults: tuple[Fault, ...]) -> None:
        at = {fault.path.removeprefix("model.config."): fault.message for fault in faults}
        for path, field in self.fields.items():
            field.set_fault(at.pop(path, ""))
        self._general.setText("\n".join(f"{path}: {message}" if path else message for path, message in at.items()))
        self._general.setVisible(bool(at))


class _DimensionField(QWidget):
    """Label and editor of one dimension, and below them what is wrong with it."""

    def __init__(self, dimension: Dimension) -> None:
        super().__init__()
        self.dimension = dimension
        self.shown = dimension.value
        self.editor = ChoiceField([(name, name) for name in _FLAGS]) if dimension.flag else NumberField()
        self._fault = QLabel(wordWrap=True, visible=False)
        set_role(self._fault, "fault")
        if isinstance(self.editor, NumberField):
            self.editor.set_value(dimension.value)
            self.editor.lineEdit().setPlaceholderText("default")
        else:
            self.editor.set_value(next(name for name, flag in _FLAGS.items() if flag is dimension.value))
        label = QLabel(dimension.label)
        label.setBuddy(self.editor)
        label.setFixedWidth(88)
        for widget in (label, self.editor):
            widget.setToolTip(dimension.path)
        self.editor.setObjectName(dimension.path)
        self.editor.setAccessibleName(dimension.label)
        grid = QGridLayout(self)
        grid.setContentsMargins(0, 0, 0, 0)
        grid.setVerticalSpacing(2)
        grid.setColumnStretch(1, 1)
        grid.addWidget(label, 0, 0)
        grid.addWidget(self.editor, 0, 1)
        grid.addWidget(self._fault, 1, 0, 1, 2)

    def value(self) -> object:
        """What the config is to hold: a number, a flag, or None to leave the key out."""
        found = self.editor.value()
        return _FLAGS[str(found)] if self.dimension.flag else found

    @property
    def fault(self) -> str:
        """What is shown to be wrong."""
        return self._fault.text()

    def set_fault(self, message: str) -> None:
        """Show what is wrong; empty when nothing is."""
        if message != self._fault.text():
            self._fault.setText(message)
            self._fault.setVisible(bool(message))
            set_role(self.editor, "bad" if message else "")
