"""Models that match what is typed: the local Hub cache and the Hub, asked in the background once typing pauses."""

from __future__ import annotations

from functools import partial

from PySide6.QtCore import QObject, QTimer, Signal, Slot

from gui.form.suggestions import Suggestion
from gui.libraries import load_hub
from gui.operations import Operation, Operations
from resources.hub_cache import cached_models
from resources.hub_errors import HubError, RateLimited, Slow

DEBOUNCE_MS = 275
MIN_CHARACTERS = 2
_LIMIT = 20


class ModelSearch(QObject):
    """``found`` with (text, source, suggestions), ``told`` with (text, one line on the search; empty when it is done).

    At most one request is on its way to the Hub, however fast one types: what was typed last is asked next.
    """

    found = Signal(str, str, object)
    told = Signal(str, str)

    def __init__(self, operations: Operations, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self._operations = operations
        self._wanted = ""
        self._asked = ""
        self._pause = QTimer(self, singleShot=True, interval=DEBOUNCE_MS)
        self._pause.timeout.connect(self._start)

    def begin(self, text: str) -> bool:
        """Look for ``text`` when no more is typed for a moment; returns whether it is long enough to look for."""
        self.stop()
        if len(text) < MIN_CHARACTERS or is_local(text):
            return False
        self._wanted = text
        self._pause.start()
        return True

    def stop(self) -> None:
        """Nobody waits for answers any more."""
        self._pause.stop()
        self._wanted = ""
        self._operations.cancel("model cache")

    @Slot()
    def _start(self) -> None:
        text = self._wanted
        found = partial(self._take_cached, text)
        self._operations.start(Operation("model cache", partial(_cached, text), found, self._lost_cache))
        if not self._asked:
            self._ask_hub(text)

    def _ask_hub(self, text: str) -> None:
        self._asked = text
        self._operations.start(Operation("model hub", partial(_on_hub, text), self._take_hub, self._lost_hub))

    def _take_cached(self, text: str, result: object) -> None:
        if text == self._wanted:
            self.found.emit(text, "cache", result)

    @Slot(object)
    def _lost_cache(self, error: Exception) -> None:
        self.told.emit(self._wanted, f"The local cache cannot be read: {error}")

    @Slot(object)
    def _take_hub(self, result: object) -> None:
        if self._is_last():
            self.found.emit(self._wanted, "Hub", result)
            self.told.emit(self._wanted, "" if result else "Nothing on the Hub")

    @Slot(object)
    def _lost_hub(self, error: Exception) -> None:
        last = self._is_last()
        if not isinstance(error, HubError):
            raise error
        if last:
            self.told.emit(self._wanted, hub_line(error))

    def _is_last(self) -> bool:
        """Whether the answer is to what was typed last; if not, that is asked now unless typing goes on."""
        asked, self._asked = self._asked, ""
        if self._wanted and asked != self._wanted and not self._pause.isActive():
            self._ask_hub(self._wanted)
        return bool(self._wanted) and asked == self._wanted


def hub_line(error: HubError) -> str:
    """A failed search in a few quiet words."""
    if isinstance(error, RateLimited):
        return f"Hub: {error.message}. {error.remedy.partition(';')[0]}"
    if isinstance(error, Slow):
        return "Hub: no answer in time"
    return f"Hub: {error.message}"


def is_local(text: str) -> bool:
    """Whether ``text`` is the path of a file or folder, and not the name of a model."""
    return text.startswith((".", "/", "~", "\\")) or text[1:2] == ":"


def _cached(text: str) -> list[Suggestion]:
    return [Suggestion(model.id, "cache", str(model.folder)) for model in cached_models(text)[:_LIMIT]]


def _on_hub(text: str) -> list[Suggestion]:
    load_hub()
    from resources import hub  # noqa: PLC0415  huggingface_hub takes a quarter second to import

    return [Suggestion(model.id, "Hub", _tip(model.license, gated=model.gated)) for model in hub.search(text, _LIMIT)]


def _tip(license_name: str | None, *, gated: bool) -> str:
    return " · ".join([f"licence {license_name}" if license_name else "licence not said", *(["gated"] if gated else [])])
