"""The layers of a model as a thin strip, one cell for each, and the kinds that its colours stand for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise

from PySide6.QtCore import QEvent, QRect, QRectF, QSize, Slot
from PySide6.QtGui import QHelpEvent, QPainter, QPaintEvent, QResizeEvent
from PySide6.QtWidgets import QSizePolicy, QToolTip, QWidget

from gui.painting import paint_component
from gui.text import wrapped, write
from gui.theme import SMALL, px, theme
from planner.architecture.layers import Architecture, Stack
from planner.describe import layer_kind

PALETTE = (
    "weights", "kv_cache", "activations", "gradients", "communication", "optimizer_state", "cuda_graphs", "master_weights",
    "logits", "adapters", "recurrent_state", "workspace",
)  # fmt: skip
"""Fills of the theme that can be told apart, in the order in which kinds take them; more kinds begin anew."""
_BAR, _ROW, _SWATCH, _GAP, _SPLIT = 14, 17, 9, 6, 4
_MIN_CELL = 3.0
"""Narrower cells are not parted by a line: the lines would hide the colours."""


@dataclass(frozen=True, slots=True)
class Run:
    """Neighbouring layers of one kind. ``fill``: the theme's fill it is painted with."""

    stack: str
    kind: str
    count: int
    fill: str


@dataclass(frozen=True, slots=True)
class Kind:
    """All layers of one kind in one stack, in words."""

    fill: str
    text: str


def runs_of(architecture: Architecture) -> tuple[Run, ...]:
    """The layers of every stack in order, neighbours of one kind as one run."""
    fills: dict[tuple[str, str], str] = {}
    runs = []
    for stack in (architecture.decoder, *architecture.towers, *architecture.unbuilt):
        for kind, members in groupby(map(layer_kind, stack.layers)):
            fill = fills.setdefault((stack.name, kind), PALETTE[len(fills) % len(PALETTE)])
            runs.append(Run(_stack_words(stack, architecture.decoder), kind, len(list(members)), fill))
    return tuple(runs)


def kinds_of(runs: Sequence[Run]) -> tuple[Kind, ...]:
    """Each kind once, as ``32 × GQA 32/8 × 128 + gated MLP 14336``, in order of first appearance."""
    counts: dict[tuple[str, str, str], int] = {}
    for run in runs:
        key = (run.fill, run.stack, run.kind)
        counts[key] = counts.get(key, 0) + run.count
    return tuple(Kind(fill, _words(stack, kind, count)) for (fill, stack, kind), count in counts.items())


class LayerStrip(QWidget):
    """The strip with its legend below; both say the whole kind in a tool tip."""

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._runs: tuple[Run, ...] = ()
        self._kinds: tuple[Kind, ...] = ()
        policy = QSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
        policy.setHeightForWidth(True)
        self.setSizePolicy(policy)
        theme().changed.connect(self._restyle)

    @Slot()
    def _restyle(self) -> None:
        self.updateGeometry()
        self.update()

    @property
    def runs(self) -> tuple[Run, ...]:
        """What the strip shows."""
        return self._runs

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """What the legend shows."""
        return self._kinds

    def show_layers(self, runs: tuple[Run, ...]) -> None:
        """Show ``runs`` from left to right."""
        if runs == self._runs:
            return
        self._runs, self._kinds = runs, kinds_of(runs)
        self.setAccessibleName("Layers: " + "; ".join(kind.text for kind in self._kinds))
        self.updateGeometry()
        self.update()

    def sizeHint(self) -> QSize:
        """A bar, and for each kind as many rows as it takes."""
        return QSize(200, self.heightForWidth(max(self.width(), 200)))

    def resizeEvent(self, event: QResizeEvent) -> None:
        """Layouts keep the height of the first width, which was a guess."""
        super().resizeEvent(event)
        if event.size().width() != event.oldSize().width():
            self.updateGeometry()

    def hasHeightForWidth(self) -> bool:
        """The words flow."""
        return True

    def heightForWidth(self, width: int) -> int:
        """Rows needed at ``width``."""
        return px(_BAR) + px(_GAP) + px(_ROW) * len(self._lines(width))

    def _lines(self, width: int) -> list[tuple[Kind, int, str]]:
        """Each row of the legend: its kind, the how manieth row of that kind it is, and its words."""
        room = width - px(_SWATCH) - px(_GAP)
        return [
            (kind, number, line)
            for kind in self._kinds
            for number, line in enumerate(wrapped(kind.text, room, SMALL, tabular=True))
        ]

    def tip_at(self, x: float, y: float) -> str:
        """What stands there, in full; empty where nothing does."""
        row, lines = int((y - px(_BAR) - px(_GAP)) // px(_ROW)), self._lines(self.width())
        if y > px(_BAR):
            return lines[row][0].text if 0 <= row < len(lines) else ""
        found = [run for run, left, width in self._laid() if left <= x < left + width]
        return _words(found[0].stack, found[0].kind, found[0].count) if found else ""

    def event(self, event: QEvent) -> bool:
        """Tool tips depend on the place."""
        if event.type() == QEvent.Type.ToolTip and isinstance(event, QHelpEvent):
            QToolTip.showText(event.globalPos(), self.tip_at(event.pos().x(), event.pos().y()), self)
            return True
        return super().event(event)

    def paintEvent(self, _event: QPaintEvent) -> None:
        """Bar and legend."""
        painter = QPainter(self)
        for run, left, width in self._laid():
            paint_component(painter, QRectF(left, 0, width, px(_BAR)), run.fill)
            self._part(painter, left, width, run.count)
        swatch, height = px(_SWATCH), px(_ROW)
        for row, (kind, number, line) in enumerate(self._lines(self.width())):
            top, left = px(_BAR) + px(_GAP) + row * height, swatch + px(_GAP)
            if number == 0:
                paint_component(painter, QRectF(0, top + (height - swatch) // 2, swatch, swatch), kind.fill)
            write(painter, QRect(left, top, self.width() - left, height), line, theme().colour("muted"), SMALL, tabular=True)
        painter.end()

    def _part(self, painter: QPainter, left: float, width: float, count: int) -> None:
        """A line at the right of each cell, so that layers can be counted."""
        cell = width / count
        if cell >= _MIN_CELL:
            for index in range(1, count + 1):
                painter.fillRect(QRectF(left + index * cell - 1, 0, 1, px(_BAR)), theme().colour("window"))

    def _laid(self) -> list[tuple[Run, float, float]]:
        """Each run with its left edge and width; stacks stand a little apart."""
        if not self._runs:
            return []
        parted = sum(before.stack != after.stack for before, after in pairwise(self._runs))
        cell = (self.width() - _SPLIT * parted) / sum(run.count for run in self._runs)
        laid, left, stack = [], 0.0, self._runs[0].stack
        for run in self._runs:
            left += _SPLIT if run.stack != stack else 0
            laid.append((run, left, run.count * cell))
            left, stack = left + run.count * cell, run.stack
        return laid


def _stack_words(stack: Stack, decoder: Stack) -> str:
    """What a stack is called before its layers; the decoder's need no name."""
    return "" if stack is decoder else {"mtp": "token prediction"}.get(stack.kind, stack.kind)


def _words(stack: str, kind: str, count: int) -> str:
    return f"{stack}: {count} × {kind}" if stack else f"{count} × {kind}"
