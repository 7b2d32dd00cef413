"""What the model is: parameters, its layers as a strip by kind, context limit, stored format, licence and gate."""

from __future__ import annotations

from typing import TYPE_CHECKING

from PySide6.QtCore import Qt, Slot
from PySide6.QtWidgets import QLabel, QToolButton, QVBoxLayout, QWidget

from gui.elided import FlowingLabel
from gui.form.layers import LayerStrip, runs_of
from gui.form.summary import count_words, token_words
from gui.icons import icon
from gui.theme import set_role, theme
from gui.translate import tr

if TYPE_CHECKING:
    from planner.describe import ModelDescription
    from resources.plan import Model
    from resources.sources import ModelSource

_ORIGINS = {
    "catalog": "bundled catalog", "hub": "Hub", "cache": "local Hub cache", "folder": "local folder", "file": "local file",
    "inline": "edited by hand",
}  # fmt: skip


class ModelCard(QWidget):
    """The summary below the model box."""

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent, autoFillBackground=True)
        self._model: Model | None = None
        self._status = QLabel(wordWrap=True, visible=False)
        self._size = FlowingLabel()
        self._strip = LayerStrip()
        self._facts = FlowingLabel()
        self._doubt = QLabel(wordWrap=True, visible=False)
        self._fold = QToolButton(checkable=True, visible=False)
        self._notes = FlowingLabel()
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.setSpacing(5)
        for part in (self._status, self._size, self._strip, self._facts, self._doubt, self._fold, self._notes):
            column.addWidget(part)
        for label, role in ((self._status, "small"), (self._facts, "small"), (self._doubt, "warning"), (self._notes, "small")):
            set_role(label, role)
        self._notes.hide()
        set_role(self._fold, "fold-small")
        self._fold.setToolButtonStyle(Qt.ToolButtonStyle.ToolButtonTextBesideIcon)
        self._fold.toggled.connect(self._unfold)
        theme().changed.connect(self._unfold)
        self._unfold()

    @property
    def strip(self) -> LayerStrip:
        """The layers."""
        return self._strip

    @property
    def text(self) -> str:
        """What the card says in words, without the layers."""
        labels = (self._status, self._size, self._facts, self._doubt, self._fold, self._notes)
        return "\n".join(label.text() for label in labels if not label.isHidden())

    def show_model(self, model: Model) -> bool:
        """Show ``model``, and tell whether it is another than the one that was shown."""
        self.show_status("")
        if model is self._model:
            return False
        self._model = model
        described = model.described
        self._size.setText(size_words(described))
        self._strip.show_layers(runs_of(model.architecture))
        self._facts.setText(fact_words(model, described))
        notes = [*model.source.notes, *described.notes]
        self._doubt.setText("" if described.verified else tr("Not verified: its type is not known, it was read by its keys."))
        self._doubt.setVisible(not described.verified)
        self._fold.setText(
            (tr("{} note on how it was read") if len(notes) == 1 else tr("{} notes on how it was read")).format(len(notes))
        )
        self._fold.setVisible(bool(notes))
        self._notes.setText("\n".join(notes))
        self._unfold()
        self._facts.setToolTip("\n".join(f"{part}: {where}" for part, where in (model.source.came_from or {}).items()))
        return True

    @Slot()
    def _unfold(self) -> None:
        """The notes, where they are asked for."""
        self._fold.setIcon(icon("chevron-down" if self._fold.isChecked() else "chevron-right", "muted"))
        self._notes.setVisible(self._fold.isChecked() and bool(self._notes.text()))

    def show_status(self, text: str) -> None:
        """Say above the summary that a model is being read, or that the summary is of an earlier one."""
        if text != self._status.text():
            self._status.setText(text)
            self._status.setVisible(bool(text))

    def show_unread(self) -> None:
        """The model asked for could not be read: say which one is still shown."""
        self.show_status(f"Still showing {self._model.source.label}:" if self._model else "")


def size_words(described: ModelDescription) -> str:
    """``30.53 B parameters, 3.35 B active``."""
    total = f"{count_words(described.parameters)} parameters"
    if described.active_parameters == described.parameters:
        return total
    return f"{total}, {count_words(described.active_parameters)} active"


def fact_words(model: Model, described: ModelDescription) -> str:
    """Sizes on one line, where it comes from and who may use it on the next."""
    architecture = model.architecture
    sizes = [f"{len(architecture.decoder.layers)} layers", f"hidden {architecture.hidden_size:,}"]
    if described.max_context_tokens:
        sizes.append(f"context {token_words(described.max_context_tokens)}")
    sizes.append(described.stored_as)
    return " · ".join(sizes) + "\n" + " · ".join(_rights(model.source))


def _rights(source: ModelSource) -> list[str]:
    words = [_ORIGINS[source.origin]]
    if source.license:
        words.append(f"licence {source.license}")
    if source.gated:
        words.append("gated: the publisher grants access")
    return words
