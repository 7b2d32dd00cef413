"""What leaves the window: links, reports, charts, tables; and the link that comes in."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PySide6.QtCore import QObject, Slot
from PySide6.QtGui import QGuiApplication
from PySide6.QtWidgets import QFileDialog

from gui.actions import Act
from gui.export import ChartMenu, TableMenu
from gui.operations import Operation
from gui.translate import tr
from planner.faults import Faults
from planner.scenario import ModelPath

if TYPE_CHECKING:
    from gui.window import MainWindow
    from planner.footprint import Footprint
    from planner.report.content import Levels, Part
    from resources.plan import Plan

_REPORTS = "HTML (*.html);;Markdown (*.md)"


class Sharing(QObject):
    """The actions of sharing; says in the status line what it did."""

    def __init__(self, window: MainWindow) -> None:
        super().__init__(window)
        self._window, self._state = window, window.context.state
        self.slots = {
            Act.COPY_LINK: self.copy_link, Act.OPEN_LINK: self.open_link, Act.COPY_ANSWER: self.copy_answer,
            Act.COPY_MARKDOWN: self.copy_markdown, Act.EXPORT_REPORT: self.export_report, Act.EXPORT_CHART: self.export_chart,
            Act.COPY_CHART: self.copy_chart, Act.EXPORT_TABLE: self.export_table, Act.COPY_TABLE: self.copy_table,
        }  # fmt: skip

    @Slot()
    def copy_link(self) -> None:
        """The scenario as a line of text."""
        from planner.link import link_of  # noqa: PLC0415  not needed for the first paint, like the others below

        scenario, plan = self._state.scenario, self._state.plan
        config = (
            plan.source.whole_config
            if plan and isinstance(scenario.model, ModelPath) and plan.scenario.model == scenario.model
            else None
        )
        try:
            self._put(link_of(scenario, config), tr("The link is on the clipboard; Open link from clipboard opens it"))
        except Faults as faults:
            self._window.say(str(faults.faults[0]))

    @Slot()
    def open_link(self) -> None:
        """The scenario of the link on the clipboard."""
        from planner.link import scenario_of  # noqa: PLC0415

        try:
            self._state.open(scenario_of(QGuiApplication.clipboard().text()), tr("open link"))
        except Faults as faults:
            self._window.say(tr("The clipboard holds no plan: {}").format("; ".join(map(str, faults.faults))))

    @Slot()
    def copy_answer(self) -> None:
        """What ``predict --json`` prints. Its limits take long to be worked out."""
        footprint = self._state.footprint
        if footprint is not None:
            self._window.say(tr("Working the limits out …"))
            self._away("copy answer", partial(_json_of, footprint), self._copied_answer)

    @Slot(object)
    def _copied_answer(self, text: str) -> None:
        self._put(text, tr("The answer is on the clipboard as JSON"))

    def _away(self, key: str, work: Callable[[], object], then: Callable[[Any], None], *, lasting: bool = False) -> None:
        """Work that takes longer than a frame."""
        self._window.context.operations.start(Operation(key, work, then, self._failed, lasting))

    @Slot(object)
    def _failed(self, error: Exception) -> None:
        self._window.say(str(error) or repr(error))

    @Slot()
    def copy_markdown(self) -> None:
        """The report without its chart."""
        from planner.report.write import markdown  # noqa: PLC0415

        plan = self._state.plan
        if plan is not None:
            title, measured = self._title(plan), self._window.measured_of(plan)
            self._away("copy report", lambda: markdown(_report(plan, title, measured)), self._copied_report)

    @Slot(object)
    def _copied_report(self, text: str) -> None:
        self._put(text, tr("The plan is on the clipboard as Markdown"))

    @Slot()
    def export_report(self) -> None:
        """Ask where to, and write the report."""
        from resources.report_files import write_report  # noqa: PLC0415

        plan = self._state.plan
        path, kind = QFileDialog.getSaveFileName(self._window, tr("Save report"), "report.html", _REPORTS)
        if not path or plan is None:
            return
        output = Path(path)
        if output.suffix.lower() not in (".md", ".html"):
            output = output.with_name(output.name + (".md" if "md" in kind else ".html"))
        title, measured = self._title(plan), self._window.measured_of(plan)

        def write() -> str:
            try:
                write_report(_report(plan, title, measured), output, title)
            except OSError as error:
                return tr("{} was not saved: {}").format(output, error.strerror or error)
            return tr("Saved {}").format(output)

        self._away("report", write, self._window.say, lasting=True)

    @Slot()
    def export_chart(self) -> None:
        """The chart in front, to a file."""
        self._with(ChartMenu, "save", tr("This tab has no chart"))

    @Slot()
    def copy_chart(self) -> None:
        """The chart in front, to the clipboard."""
        self._with(ChartMenu, "copy", tr("This tab has no chart"))

    @Slot()
    def export_table(self) -> None:
        """The table in front, to a file."""
        self._with(TableMenu, "save", tr("This tab has no table"))

    @Slot()
    def copy_table(self) -> None:
        """The table in front, to the clipboard."""
        self._with(TableMenu, "copy", tr("This tab has no table"))

    def _with(self, kind: type[ChartMenu | TableMenu], method: str, otherwise: str) -> None:
        found = [menu for menu in self._window.current_tab().findChildren(kind) if menu.parentWidget().isVisible()]
        if found:
            getattr(found[0], method)()
        else:
            self._window.say(otherwise)

    def _title(self, plan: Plan) -> str:
        return plan.title

    def _put(self, text: str, words: str) -> None:
        QGuiApplication.clipboard().setText(text)
        self._window.say(words)


def _json_of(footprint: Footprint) -> str:
    return json.dumps(footprint.to_json(), indent=2)


def _report(plan: Plan, title: str, measured: Levels | None) -> tuple[Part, ...]:
    from planner.advise import advise  # noqa: PLC0415
    from planner.predict import predict  # noqa: PLC0415
    from planner.report.content import report_of  # noqa: PLC0415

    settled = plan.settled
    advice = advise(settled, plan.architecture, lambda changed: predict(changed, plan.architecture, plan.gpu, plan.model.native))
    return report_of(plan.footprint, title, measured, advice)
