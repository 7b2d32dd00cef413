"""What the model section offers beside its box: open a file or a folder, or edit the dimensions by hand."""

from __future__ import annotations

from pathlib import Path

from PySide6.QtCore import QObject, Signal, Slot
from PySide6.QtWidgets import QFileDialog, QMenu, QToolButton, QWidget

from gui.form.custom import CustomArchitecture
from gui.state import State
from gui.translate import tr
from planner.scenario import InlineConfig, ModelPath


class ModelMenu(QObject):
    """The menu of the folder button, and what its items do to the state's model."""

    file_asked = Signal()

    def __init__(self, state: State, button: QToolButton, parent: QWidget) -> None:
        super().__init__(parent)
        self._state, self._parent = state, parent
        self.menu = QMenu(button)
        self.menu.addAction(tr("Open &file …")).triggered.connect(self.file_asked)
        self.menu.addAction(tr("Open f&older …")).triggered.connect(self._open_folder)
        self.menu.addSeparator()
        self.custom = self.menu.addAction(tr("&Custom architecture …"))
        self.custom.triggered.connect(self.edit_dimensions)
        self.menu.aboutToShow.connect(self._enable)
        button.setMenu(self.menu)
        button.setPopupMode(QToolButton.ToolButtonPopupMode.InstantPopup)

    @Slot(str)
    def open_path(self, path: str) -> None:
        """Make the folder or file at ``path`` the model."""
        self._state.edit("model", ModelPath(path), f"open {Path(path).name}")

    @Slot()
    def edit_dimensions(self) -> None:
        """Have the dimensions of the model on screen edited by hand."""
        plan = self._state.plan
        if plan is None:
            return
        dialog = CustomArchitecture(plan.source.config, plan.source.label, self._parent.window())
        dialog.accepted.connect(self._take_custom)
        dialog.finished.connect(dialog.deleteLater)
        dialog.open()

    @Slot()
    def _take_custom(self) -> None:
        dialog = self.sender()
        if isinstance(dialog, CustomArchitecture):
            self._state.edit("model", InlineConfig(dialog.config), "custom architecture")

    @Slot()
    def _open_folder(self) -> None:
        path = QFileDialog.getExistingDirectory(self._parent, tr("Open model folder"))
        if path:
            self.open_path(path)

    @Slot()
    def _enable(self) -> None:
        self.custom.setEnabled(self._state.plan is not None)
