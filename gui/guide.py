"""What leads through the window: the command palette, help on the tab in front, the list of shortcuts."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from PySide6.QtCore import QObject, QPoint, Qt, Slot
from PySide6.QtGui import QAction, QKeySequence
from PySide6.QtWidgets import QMenu, QMessageBox

from gui.actions import Act
from gui.tabs import TABS
from gui.translate import tr

if TYPE_CHECKING:
    from gui.help import HelpWindow
    from gui.palette import Command, Palette
    from gui.window import MainWindow

ABOUT = """<b>Highwater</b><p>How much GPU memory a model takes, before it takes it: predicted from its config, measured
on the real device, each number with its formula.</p><p>Apache-2.0. The typeface is Inter (SIL Open Font License 1.1).</p>"""
_BELOW_TOP = 70


class Guide(QObject):
    """Makes its windows when they are first asked for."""

    def __init__(self, window: MainWindow) -> None:
        super().__init__(window)
        self._window = window
        self._help: HelpWindow | None = None
        self.slots = {
            Act.PALETTE: self.open_palette, Act.HELP: self.open_help, Act.SHORTCUTS: self.open_shortcuts,
            Act.ABOUT: self.open_about,
        }  # fmt: skip

    @Slot()
    def open_palette(self) -> Palette:
        """Offer every command, field and example by its name."""
        from gui.palette import Palette  # noqa: PLC0415  not needed for the first paint

        palette = Palette([*self.commands(), *self._fields()], self._window)
        palette.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
        left = (self._window.width() - palette.width()) // 2
        palette.move(self._window.mapToGlobal(QPoint(left, _BELOW_TOP)))
        palette.show()
        palette.field.setFocus()
        return palette

    @Slot()
    def open_help(self) -> HelpWindow:
        """Show the page of the tab in front."""
        title = next(tab.title for tab in TABS if tab.name == self._window.tab_name)
        self._window_of_help().show_tab(self._window.tab_name, tr(title))
        return self._window_of_help()

    @Slot()
    def open_shortcuts(self) -> HelpWindow:
        """Show every command that has a key."""
        keys = {action.text().replace("&", ""): _keys(action) for _, action in self._actions() if _keys(action)}
        self._window_of_help().show_shortcuts(keys)
        return self._window_of_help()

    @Slot()
    def open_about(self) -> None:
        """Say what this is."""
        QMessageBox.about(self._window, tr("About Highwater"), tr(ABOUT))

    def commands(self) -> list[Command]:
        """Every action that can be run now, with the menu and the key it is found under."""
        from gui.palette import Command  # noqa: PLC0415  as above

        enabled = ((path, action) for path, action in self._actions() if action.isEnabled())
        return [
            Command(
                action.text().replace("&", ""), " · ".join(filter(None, (path, _keys(action)))), action.trigger, action.statusTip()
            )
            for path, action in enabled
        ]  # fmt: skip

    def _fields(self) -> list[Command]:
        from gui.palette import Command  # noqa: PLC0415  as above

        form, scenario = self._window.form, self._window.context.state.scenario
        specs = (field.spec for field in form.fields.values() if field.spec.suits(scenario))
        return [
            Command(
                tr(spec.label).replace("&", ""), tr("{} field").format(tr(spec.section)), partial(form.go_to, spec.path),
                f"{spec.path} {tr(spec.tip)}",
            )
            for spec in specs
        ]  # fmt: skip

    def _actions(self) -> list[tuple[str, QAction]]:
        """The actions of all menus, each with the name of its menu."""
        return [
            (path, action)
            for path, part in self._window.listed
            for action in (part.actions() if isinstance(part, QMenu) else [part])
        ]  # fmt: skip

    def _window_of_help(self) -> HelpWindow:
        if self._help is None:
            from gui.help import HelpWindow  # noqa: PLC0415  as above

            self._help = HelpWindow(self._window)
        return self._help


def _keys(action: QAction) -> str:
    return action.shortcut().toString(QKeySequence.SequenceFormat.NativeText)
