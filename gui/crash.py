"""Uncaught exceptions: logged, and shown once with details to copy. Hard crashes leave their stack for the next start."""

from __future__ import annotations

import faulthandler
import logging
import sys
import threading
import traceback
from pathlib import Path
from types import TracebackType

from PySide6.QtCore import QObject, Qt, Signal, Slot
from PySide6.QtWidgets import QApplication, QMessageBox

from gui.translate import tr

logger = logging.getLogger(__name__)


class CrashReporter(QObject):
    """Takes what no one caught, from any thread."""

    _caught = Signal(str, str)

    def __init__(self, folder: Path, parent: QObject) -> None:
        super().__init__(parent)
        self._dialog: QMessageBox | None = None
        self._folder = folder
        self._caught.connect(self._show, Qt.ConnectionType.QueuedConnection)

    def install(self) -> None:
        """Become the process's handler of uncaught exceptions."""
        sys.excepthook = self._excepthook
        threading.excepthook = self._thread_excepthook

    def uninstall(self) -> None:
        """Give Python its own handlers back."""
        sys.excepthook = sys.__excepthook__
        threading.excepthook = threading.__excepthook__

    def enable_faulthandler(self) -> str:
        """Write the stack of a hard crash to a file; returns what the last start left there."""
        path = self._folder / "crash.txt"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            left = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
            self._file = path.open("w", encoding="utf-8")
        except OSError as error:
            logger.warning("hard crashes will not be recorded: %s", error)
            return ""
        faulthandler.enable(self._file)
        return left

    def close(self) -> None:
        """Undo everything."""
        self.uninstall()
        if hasattr(self, "_file"):
            faulthandler.disable()
            self._file.close()

    def _excepthook(self, kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if issubclass(kind, KeyboardInterrupt):
            QApplication.quit()
            return
        logger.critical("uncaught exception", exc_info=(kind, error, trace))
        self._caught.emit(f"{kind.__name__}: {error}", "".join(traceback.format_exception(kind, error, trace)))

    def _thread_excepthook(self, args: threading.ExceptHookArgs) -> None:
        if args.exc_value is not None:
            self._excepthook(args.exc_type, args.exc_value, args.exc_traceback)

    @Slot(str, str)
    def _show(self, summary: str, details: str) -> None:
        if self._dialog is not None:
            return
        self._dialog = QMessageBox(QMessageBox.Icon.Warning, "Highwater", tr("Something went wrong that should not have."))
        self._dialog.setInformativeText(f"{summary}\n\n{tr('The window goes on; further errors are only logged.')}")
        self._dialog.setDetailedText(details)
        copy = self._dialog.addButton(tr("Copy details"), QMessageBox.ButtonRole.ActionRole)
        copy.clicked.disconnect()
        copy.clicked.connect(self._copy)
        self._dialog.addButton(QMessageBox.StandardButton.Close)
        self._dialog.setModal(False)
        self._dialog.show()

    @Slot()
    def _copy(self) -> None:
        if self._dialog is not None:
            QApplication.clipboard().setText(self._dialog.detailedText())
