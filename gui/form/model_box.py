"""The model box: completes from the catalog at once, from cache and Hub as they answer; takes dropped files."""

from __future__ import annotations

from pathlib import Path

from PySide6.QtCore import Qt, Signal, Slot
from PySide6.QtGui import QDragEnterEvent, QDragMoveEvent, QDropEvent, QFocusEvent, QHideEvent, QKeyEvent
from PySide6.QtWidgets import QWidget

from gui.form.editors import SearchField
from gui.form.model_search import ModelSearch, is_local
from gui.form.suggestions import Suggestion, SuggestionDelegate, SuggestionModel, merge
from gui.operations import Operations
from resources.catalog import find_models

MODEL_SUFFIXES = (".gguf", ".safetensors")
_POPUP_WIDTH = 400
_SEARCHING = "Searching cache and Hub …"


class ModelBox(SearchField):
    """A search field whose names come from three places. ``dropped`` with the path of a model that was dropped on it."""

    dropped = Signal(str)

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(_catalog_names, parent)
        self._search: ModelSearch | None = None
        self._text = ""
        self._groups: dict[str, list[Suggestion]] = {}
        self._note = ""
        self._rows = SuggestionModel(self)
        self._completer.setModel(self._rows)
        popup = self._completer.popup()
        popup.setItemDelegate(SuggestionDelegate(popup))
        popup.setMinimumWidth(_POPUP_WIDTH)
        self.setAcceptDrops(True)

    def search_with(self, operations: Operations) -> None:
        """Complete from the local cache and the Hub too, asked through ``operations``."""
        self._search = ModelSearch(operations, self)
        self._search.found.connect(self._found)
        self._search.told.connect(self._told)

    @property
    def suggestions(self) -> list[Suggestion]:
        """What is offered, the line on the search last."""
        return self._rows.rows

    @Slot(str)
    def _typed(self, text: str) -> None:
        wanted = text.strip()
        self._look_for(wanted)
        if wanted in (item.name for item in self._groups["catalog"]):
            self.edited.emit(wanted)

    @Slot()
    def _show_all(self) -> None:
        self.setFocus()
        self._look_for("")

    def _look_for(self, text: str) -> None:
        self._text = text
        self._groups = {"catalog": [Suggestion(model.id, "catalog", _tip(model.license)) for model in find_models(text)]}
        searching = self._search is not None and self._search.begin(text)
        self._note = _SEARCHING if searching else ""
        self._refill()

    @Slot(str, str, object)
    def _found(self, text: str, source: str, suggestions: list[Suggestion]) -> None:
        if self._awaits(text):
            self._groups[source] = suggestions
            self._refill()

    @Slot(str, str)
    def _told(self, text: str, line: str) -> None:
        if self._awaits(text):
            self._note = line
            self._refill()

    def _awaits(self, text: str) -> bool:
        return text == self._text and self._completer.popup().isVisible()

    def _refill(self) -> None:
        """List what is known by now; a row that was reached with the arrow keys stays chosen."""
        popup = self._completer.popup()
        chosen = self._chosen()
        rows = merge(self._groups.get(source, []) for source in ("catalog", "cache", "Hub"))
        self._rows.show_rows([*rows, Suggestion(self._note)] if self._note else rows)
        if not self._rows.rows:
            popup.hide()
            return
        self._completer.complete()
        if chosen is not None and chosen in (row.name for row in rows):
            at = [row.name for row in rows].index(chosen)
            popup.setCurrentIndex(popup.model().index(at, 0))

    def _chosen(self) -> str | None:
        """The name that the arrow keys reached. The list has a current row from the start; only a selected one was chosen."""
        popup = self._completer.popup()
        selected = popup.selectionModel().selectedIndexes() if popup.isVisible() else []
        return selected[0].data() if selected else None

    def keyPressEvent(self, event: QKeyEvent) -> None:
        """Return without a row chosen takes the first model offered, or the text where that names one by itself."""
        popup = self._completer.popup()
        if event.key() in (Qt.Key.Key_Return, Qt.Key.Key_Enter) and popup.isVisible() and self._chosen() is None:
            popup.hide()
            first = next((row.name for row in self._rows.rows if row.source), "")
            text = self.text().strip()
            if first and "/" not in text and not is_local(text):
                self._take(first)
                return
        super().keyPressEvent(event)

    @Slot(str)
    def _take(self, name: str) -> None:
        self._end_search()
        super()._take(name)

    @Slot()
    def _finished(self) -> None:
        if not self._completer.popup().isVisible():
            self._end_search()
        super()._finished()

    def _end_search(self) -> None:
        self._text = ""
        if self._search is not None:
            self._search.stop()

    def focusOutEvent(self, event: QFocusEvent) -> None:
        """Nobody reads the answers any more, unless the list itself took the focus."""
        if event.reason() != Qt.FocusReason.PopupFocusReason:
            self._end_search()
        super().focusOutEvent(event)

    def hideEvent(self, event: QHideEvent) -> None:
        """No search goes on out of sight."""
        self._end_search()
        super().hideEvent(event)

    def dragEnterEvent(self, event: QDragEnterEvent) -> None:
        """A model is welcome; anything else may be for the window."""
        self._welcome(event)

    def dragMoveEvent(self, event: QDragMoveEvent) -> None:
        """As on entering."""
        self._welcome(event)

    def dropEvent(self, event: QDropEvent) -> None:
        """Take the model that was dropped."""
        path = dropped_model(event)
        if path is None:
            event.ignore()
            return
        event.acceptProposedAction()
        self._completer.popup().hide()
        self._end_search()
        self.dropped.emit(str(path))

    def _welcome(self, event: QDragEnterEvent | QDragMoveEvent) -> None:
        if dropped_model(event) is not None:
            event.acceptProposedAction()
        else:
            event.ignore()


def dropped_model(event: QDropEvent) -> Path | None:
    """The first folder, ``config.json``, GGUF or safetensors file that is dragged."""
    paths = [Path(url.toLocalFile()) for url in event.mimeData().urls() if url.isLocalFile()]
    return next((path for path in paths if is_model(path)), None)


def is_model(path: Path) -> bool:
    """Whether ``path`` can hold a model, by its name."""
    return path.is_dir() or path.suffix.lower() in MODEL_SUFFIXES or path.name == "config.json"


def _catalog_names(text: str) -> list[str]:
    return [found.id for found in find_models(text)]


def _tip(license_name: str | None) -> str:
    return f"licence {license_name}" if license_name else ""
