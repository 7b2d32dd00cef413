"""The verdict, readable from afar: an icon, one word, and the figures behind it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from PySide6.QtCore import QSize, Qt, Slot
from PySide6.QtWidgets import QFrame, QGraphicsOpacityEffect, QHBoxLayout, QLabel, QSizePolicy, QVBoxLayout, QWidget

from gui.icons import icon
from gui.theme import DISPLAY, font, set_role, theme
from gui.words import PHASES, VERDICTS, word
from planner.units import format_bytes

if TYPE_CHECKING:
    from planner.footprint import Footprint, GpuFootprint, Phase

ROLES = {"fits": "fits", "tight": "tight", "does_not_fit": "over", "unknown": "unknown"}


class VerdictCard(QFrame):
    """Shows one footprint's verdict."""

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._footprint: Footprint | None = None
        self._where = ""
        self._look: tuple[str, bool] | None = None
        self._icon = QLabel()
        self._word = QLabel()
        self._figures = QLabel(wordWrap=True)
        self._detail = QLabel(wordWrap=True)
        self._badge = QLabel("SIM", visible=False)
        self._badge.setToolTip("Simulated: this GPU is not in this machine; its figures come from the catalog.")
        self._build()
        theme().changed.connect(self._refresh)

    def _build(self) -> None:
        set_role(self, "card")
        set_role(self._detail, "muted")
        set_role(self._badge, "badge")
        self._word.setFont(font(DISPLAY, bold=True))
        self._figures.setFont(font(DISPLAY, tabular=True))
        self._figures.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Preferred)
        head = QHBoxLayout()
        head.setSpacing(10)
        for label in (self._icon, self._word, self._figures):
            head.addWidget(label)
        head.setStretch(2, 1)
        head.addWidget(self._badge, 0, Qt.AlignmentFlag.AlignVCenter)
        column = QVBoxLayout(self)
        column.setContentsMargins(16, 12, 16, 12)
        column.setSpacing(4)
        column.addLayout(head)
        column.addWidget(self._detail)

    def show_footprint(self, footprint: Footprint, where: str, *, simulated: bool) -> None:
        """Show ``footprint`` on the GPU called ``where``; ``simulated`` when that GPU is not in this machine."""
        self._footprint, self._where = footprint, where
        self._badge.setVisible(simulated)
        self._refresh()

    def set_dimmed(self, dimmed: bool) -> None:  # noqa: FBT001  a setter
        """Fade while the figures answer an older scenario."""
        effect = QGraphicsOpacityEffect(self) if dimmed else None
        if effect:
            effect.setOpacity(0.45)
        self.setGraphicsEffect(effect)  # type: ignore[arg-type]  None removes it

    @property
    def text(self) -> str:
        """The verdict line as one text."""
        return f"{self._word.text()} · {self._figures.text()}"

    @Slot()
    def _refresh(self) -> None:
        footprint = self._footprint
        if footprint is None:
            return
        role = ROLES[footprint.verdict]
        look = (footprint.verdict, theme().dark)
        if look != self._look:
            self._look = look
            self._icon.setPixmap(icon(footprint.verdict, role).pixmap(QSize(24, 24)))
            self._word.setText(word(VERDICTS, footprint.verdict).label)
            self._word.setToolTip(word(VERDICTS, footprint.verdict).meaning)
            self._word.setStyleSheet(f"color: {theme().colour(role).name()}")
        self._figures.setText(_figures(footprint))
        self._detail.setText(_detail(footprint, self._where))
        self.setAccessibleName(f"Verdict: {self.text}. {self._detail.text()}")


def _worst(footprint: Footprint) -> tuple[GpuFootprint, Phase] | None:
    sized = [(gpu, gpu.peak) for gpu in footprint.gpus if gpu.peak]
    return max(sized, key=lambda pair: pair[1].device, default=None)


def _figures(footprint: Footprint) -> str:
    worst = _worst(footprint)
    if worst is None:
        weights = footprint.weight_bytes
        return f"weights alone {format_bytes(weights)}" if weights else ""
    gpu, phase = worst
    peak = format_bytes(phase.device)
    if not gpu.capacity_bytes:
        return peak
    (number, unit), capacity = peak.split(), format_bytes(gpu.capacity_bytes)
    return f"{number} of {capacity}" if capacity.endswith(unit) else f"{peak} of {capacity}"


def _detail(footprint: Footprint, where: str) -> str:
    parts = [f"{len(footprint.gpus)} × {where}" if len(footprint.gpus) > 1 else where]
    worst = _worst(footprint)
    if worst is None:
        return "  ·  ".join([*parts, *(note for note in footprint.notes if note.startswith("unknown"))])
    parts.append(f"peak in {word(PHASES, worst[1].name).label.lower()}")
    if footprint.headroom_bytes is not None:
        short = footprint.headroom_bytes < 0
        parts.append(f"{'short by' if short else 'headroom'} {format_bytes(abs(footprint.headroom_bytes))}")
    if footprint.uncertainty_bytes:
        parts.append(f"± {format_bytes(footprint.uncertainty_bytes)}")
    return "  ·  ".join(parts)
