"""Charts as PNG, SVG or a picture on the clipboard; tables as CSV or Markdown. Every chart and table offers it in its own menu."""

from __future__ import annotations

import csv
import io
from math import isnan
from pathlib import Path

from PySide6.QtCore import QPoint, QRect, Qt, Slot
from PySide6.QtGui import QAction, QGuiApplication, QPixmap, QRegion
from PySide6.QtSvg import QSvgGenerator
from PySide6.QtWidgets import QFileDialog, QTableView, QWidget

from gui.cells import CellModel
from gui.theme import theme
from gui.translate import tr

_SCALE = 2
"""A picture is drawn at twice the size, to stay sharp on a page."""
_CHART_FILES = "PNG (*.png);;SVG (*.svg)"


def picture(chart: QWidget) -> QPixmap:
    """The chart as it is, twice as fine."""
    pixmap = QPixmap(chart.size() * _SCALE)
    pixmap.setDevicePixelRatio(_SCALE)
    pixmap.fill(theme().colour("surface"))
    chart.render(pixmap, QPoint(), QRegion(), QWidget.RenderFlag.DrawChildren)
    return pixmap


def save_chart(chart: QWidget, path: Path) -> str:
    """Write the chart as SVG where the name says so, else as PNG; returns what to tell."""
    saved = _save_svg(chart, path) if path.suffix.lower() == ".svg" else picture(chart).save(str(path), "PNG")
    return tr("Saved {}").format(path) if saved else tr("{} could not be written").format(path)


def _save_svg(chart: QWidget, path: Path) -> bool:
    generator = QSvgGenerator()
    generator.setFileName(str(path))
    generator.setSize(chart.size())
    generator.setViewBox(QRect(0, 0, chart.width(), chart.height()))
    generator.setTitle(chart.accessibleName())
    try:
        path.touch()
    except OSError:
        return False
    chart.render(generator)
    return True


def csv_of(model: CellModel) -> str:
    """A row for each row, sizes as bytes, numbers as numbers."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(column.heading for column in model.columns)
    for row in range(model.rowCount()):
        writer.writerow(_plain(model, row, column) for column in range(model.columnCount()))
    return text.getvalue()


def markdown_of(model: CellModel) -> str:
    """The table as it is shown."""
    from planner.report.content import Table  # noqa: PLC0415  not needed for the first paint
    from planner.report.write import markdown_table  # noqa: PLC0415

    rows = tuple(
        tuple(model.cell(row, column).text for column in range(model.columnCount())) for row in range(model.rowCount())
    )  # fmt: skip
    figures = frozenset(index for index, column in enumerate(model.columns) if column.figures)
    return markdown_table(Table(tuple(column.heading for column in model.columns), rows, figures))


def _plain(model: CellModel, row: int, column: int) -> object:
    cell = model.cell(row, column)
    if not isinstance(cell.raw, int | float):
        return cell.text
    return "" if isnan(cell.raw) else cell.raw


def tell(widget: QWidget, text: str) -> None:
    """Say something in the status line of the widget's window."""
    say = getattr(widget.window(), "say", None)
    if say is not None:
        say(text)


class ChartMenu(QWidget):
    """The menu of a chart. It belongs to the chart and is never seen itself."""

    def __init__(self, chart: QWidget) -> None:
        super().__init__(chart, visible=False)
        self._chart = chart
        _offer(chart, ((tr("Save chart as …"), self.save), (tr("Copy chart"), self.copy)), self)

    @Slot()
    def copy(self) -> None:
        """Put the chart on the clipboard."""
        QGuiApplication.clipboard().setPixmap(picture(self._chart))
        tell(self._chart, tr("The chart is on the clipboard"))

    @Slot()
    def save(self) -> None:
        """Ask where to, and write."""
        path, _ = QFileDialog.getSaveFileName(self._chart, tr("Save chart"), "chart.png", _CHART_FILES)
        if path:
            tell(self._chart, save_chart(self._chart, Path(path)))


class TableMenu(QWidget):
    """The menu of a table. It belongs to the table and is never seen itself."""

    def __init__(self, table: QTableView, model: CellModel) -> None:
        super().__init__(table, visible=False)
        self._table, self._model = table, model
        entries = ((tr("Save table as CSV …"), self.save), (tr("Copy as Markdown"), self.copy), (tr("Copy as CSV"), self.copy_csv))
        _offer(table, entries, self)

    @Slot()
    def copy(self) -> None:
        """Put the table on the clipboard as Markdown."""
        QGuiApplication.clipboard().setText(markdown_of(self._model))
        tell(self._table, tr("The table is on the clipboard as Markdown"))

    @Slot()
    def copy_csv(self) -> None:
        """Put the table on the clipboard as CSV."""
        QGuiApplication.clipboard().setText(csv_of(self._model))
        tell(self._table, tr("The table is on the clipboard as CSV"))

    @Slot()
    def save(self) -> None:
        """Ask where to, and write."""
        name, _ = QFileDialog.getSaveFileName(self._table, tr("Save table"), "table.csv", "CSV (*.csv)")
        if not name:
            return
        try:
            Path(name).write_text(csv_of(self._model), encoding="utf-8")
        except OSError as error:
            tell(self._table, tr("{} was not saved: {}").format(name, error.strerror or error))
        else:
            tell(self._table, tr("Saved {}").format(name))


def _offer(widget: QWidget, entries: tuple[tuple[str, object], ...], owner: QWidget) -> None:
    for text, slot in entries:
        action = QAction(text, owner)
        action.triggered.connect(slot)
        widget.addAction(action)
    widget.setContextMenuPolicy(Qt.ContextMenuPolicy.ActionsContextMenu)
