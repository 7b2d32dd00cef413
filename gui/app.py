"""Starts the window, or renders it into a picture."""

from __future__ import annotations

import gc
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from PySide6.QtCore import QDeadlineTimer, QEventLoop, Qt, QTimer
from PySide6.QtGui import QGuiApplication
from PySide6.QtWidgets import QApplication

from gui.context import Context
from gui.crash import CrashReporter
from gui.documents import last_session
from gui.files import Unreadable, read_any
from gui.first import FIRST_SCENARIO, adopt_detected_gpu
from gui.machine import Machine
from gui.operations import Operations
from gui.pins import Pins
from gui.settings import THEME, ZOOM_PERCENT, Settings
from gui.state import State
from gui.theme import theme
from gui.translate import tr
from gui.warm_up import WarmUp
from gui.window import DEFAULT_SIZE, MainWindow
from planner.scenario import Scenario
from resources.home import highwater_home

logger = logging.getLogger(__name__)
_SETTLE_MS, _SETTLE_LIMIT_MS = 150, 8_000


def run(scenario: Scenario | None = None, paths: Sequence[Path] = ()) -> int:
    """Open the window, on ``scenario`` or the first plan, with ``paths`` opened in it; returns the exit status."""
    application = make_application()
    reporter = CrashReporter(highwater_home(), application)
    reporter.install()
    left = reporter.enable_faulthandler()
    window = make_window(scenario)
    theme().choose(window.context.settings.get(THEME))
    theme().zoom(window.context.settings.get(ZOOM_PERCENT))
    window.show()
    window.context.machine.start()
    WarmUp(window.context.operations, window)
    gc.freeze()  # the window stays: the collector need not look through it each time
    for path in paths:
        window.open_file(path)
    if left:
        logger.warning("the last start ended in a crash:\n%s", left)
        window.say(
            tr("The last start ended in a crash; its stack is in the log and was in {}").format(highwater_home() / "crash.txt")
        )
    status = application.exec()
    reporter.close()
    return status


def screenshot(
    file: Path,
    tab: str = "footprint",
    scenario: Path | None = None,
    scheme: str = "light",
    size: tuple[int, int] = DEFAULT_SIZE,
) -> None:
    """Render the window into a PNG. Raises :class:`gui.files.Unreadable` for a bad scenario, OSError when not saved."""
    if QApplication.instance() is None and not has_display():
        os.environ["QT_QPA_PLATFORM"] = "offscreen"
    application = make_application()
    with TemporaryDirectory() as folder:
        window = make_window(_scenario_of(scenario), Settings(Path(folder) / "settings.ini"))
        theme().choose(scheme)
        window.resize(*size)
        window.show()
        window.show_tab(tab)
        window.context.machine.start()
        _settle(application, window)
        saved = window.grab().save(str(file), "PNG")
        window.close()
    if not saved:
        raise OSError(f"{file} could not be written")


def make_application() -> QApplication:
    """The one QApplication, dressed."""
    existing = QApplication.instance()
    if isinstance(existing, QApplication):
        return existing
    QGuiApplication.setHighDpiScaleFactorRoundingPolicy(Qt.HighDpiScaleFactorRoundingPolicy.PassThrough)
    application = QApplication(sys.argv[:1])
    application.setApplicationName("highwater")
    application.setApplicationDisplayName("Highwater")
    application.setDesktopFileName("highwater")
    theme().choose("system")
    return application


def make_window(scenario: Scenario | None = None, settings: Settings | None = None) -> MainWindow:
    """A window with parts of its own. Without a scenario it goes on with the last session's.

    At the very first start it shows the first plan, on the GPU found here if any.
    """
    operations, machine, settings = Operations(), Machine(), settings or Settings()
    session = None if scenario else last_session(settings)
    state = State(scenario or session or FIRST_SCENARIO, operations)
    window = MainWindow(Context(state, machine, operations, settings, Pins(settings, operations)))
    if scenario is None and session is None:
        adopt_detected_gpu(state, machine)
    return window


def has_display() -> bool:
    """Whether a window could be seen: always on Windows and macOS, else with an X or Wayland server."""
    if sys.platform in ("win32", "darwin"):
        return True
    return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def _scenario_of(path: Path | None) -> Scenario | None:
    if path is None:
        return None
    found = read_any(path)
    if not isinstance(found, Scenario):
        raise Unreadable(f"{path.name} is not a scenario")
    return found


def _settle(application: QApplication, window: MainWindow) -> None:
    """Let layouts, the first reading of the GPUs and background work come in."""
    loop, waits = QEventLoop(), QTimer(interval=_SETTLE_MS)
    deadline = QDeadlineTimer(_SETTLE_LIMIT_MS)

    def settled() -> None:
        context = window.context
        known = context.machine.state is not None and context.operations.idle and not context.state.settling
        if known or deadline.hasExpired():
            loop.quit()

    waits.timeout.connect(settled)
    waits.start()
    loop.exec()
    waits.stop()
    application.processEvents()
