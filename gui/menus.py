"""Which action stands in which menu."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from PySide6.QtGui import QAction
from PySide6.QtWidgets import QMenu, QMenuBar

from gui.actions import THEMES, UNITS, Act
from gui.translate import tr

Entry = Act | str | tuple[str, tuple[object, ...]] | None
"""An action, the name of a part the window brings, a submenu with its entries, or a line between groups."""
MENUS: tuple[tuple[str, tuple[Entry, ...]], ...] = (
    ("&File", (
        Act.OPEN_SCENARIO, "recent", "examples", Act.OPEN_LINK, None, Act.SAVE_SCENARIO, Act.SAVE_SCENARIO_AS, None,
        Act.OPEN_MODEL_FILE, Act.OPEN_MODEL_FOLDER, Act.OPEN_RECORDING, None,
        ("&Export", (Act.EXPORT_REPORT, Act.EXPORT_CHART, Act.EXPORT_TABLE)), None, Act.QUIT,
    )),
    ("&Edit", (
        "undo", "redo", None, Act.COPY_LINK, Act.COPY_MARKDOWN, Act.COPY_ANSWER, Act.COPY_CHART, Act.COPY_TABLE, None,
        Act.PIN, Act.KEEP, None, Act.FOCUS_MODEL, Act.PALETTE,
    )),
    ("&View", ("tabs", None, ("&Theme", THEMES), ("&Units", UNITS), None, Act.ZOOM_IN, Act.ZOOM_OUT, Act.ZOOM_RESET, None,
               Act.NEXT_PANE)),
    ("&Probe", (Act.MEASURE, Act.REHEARSE, Act.STOP, None, Act.WATCH, None, Act.CALIBRATE)),
    ("&Help", (Act.HELP, Act.SHORTCUTS, Act.ABOUT)),
)  # fmt: skip


Listed = list[tuple[str, QAction | QMenu]]
"""What stands in the menus, each with the name of its menu; a menu that the window brings stands for what it has when asked."""


def fill_menus(bar: QMenuBar, actions: Mapping[Act, QAction], parts: Mapping[str, QMenu | Sequence[QAction]]) -> Listed:
    """Build every menu; ``parts`` are the submenus and actions that the window brings by name."""
    listed: Listed = []
    for title, entries in MENUS:
        _fill(bar.addMenu(tr(title)), entries, actions, parts, listed)
    return listed


def _fill(
    menu: QMenu, entries: Sequence[object], actions: Mapping[Act, QAction], parts: Mapping[str, QMenu | Sequence[QAction]],
    listed: Listed,
) -> None:  # fmt: skip
    path = menu.title().replace("&", "")
    for entry in entries:
        if entry is None:
            menu.addSeparator()
        elif isinstance(entry, tuple):
            _fill(menu.addMenu(tr(entry[0])), entry[1], actions, parts, listed)
        elif isinstance(part := actions[entry] if isinstance(entry, Act) else parts[str(entry)], QMenu):
            menu.addMenu(part)
            listed.append((part.title().replace("&", ""), part))
        else:
            members = [part] if isinstance(part, QAction) else list(part)
            menu.addActions(members)
            listed += [(path, member) for member in members]
