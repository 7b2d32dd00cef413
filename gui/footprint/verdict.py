"""The verdict, readable from afar: an icon, one word, and the figures behind it. Painted, so that an edit moves nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from PySide6.QtCore import QEvent, QRect, QRectF, QSize, Qt, Slot
from PySide6.QtGui import QHelpEvent, QPainter, QPaintEvent, QPen, QResizeEvent
from PySide6.QtWidgets import QFrame, QSizePolicy, QToolTip, QWidget

from gui.icons import icon
from gui.text import CENTRE, width_of, wrapped, write
from gui.theme import DISPLAY, NORMAL, SMALL, px, set_role, theme
from gui.translate import tr
from gui.units import format_bytes
from gui.words import word
from planner.room import room_of
from planner.words import PHASES, VERDICTS

if TYPE_CHECKING:
    from gui.machine import Now
    from planner.footprint import Footprint, GpuFootprint, Host, Phase
    from planner.room import Room

ROLES = {"fits": "fits", "tight": "tight", "does_not_fit": "over", "unknown": "unknown"}
_MARGIN, _EDGE, _ICON, _SPACE = 16, 12, 24, 10
_HEAD, _LINE, _GAP = 28, 17, 4
_BADGE = QSize(36, 18)
GOOD = ("fits", "tight")
_SIM = "Simulated: this GPU is not in this machine; its figures come from the catalog."
_MOST_LINES = 6
_SEPARATOR = "  ·  "


class VerdictCard(QFrame):
    """Shows one footprint's verdict."""

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._verdict = "unknown"
        self._figures = ""
        self._detail = ""
        self._aside = ""
        """Told only where a line has room for it."""
        self._lines: tuple[str, ...] = ("",)
        self._simulated = False
        self._dimmed = False
        self._trouble, self._ink = "", "muted"
        self._planned = False
        set_role(self, "card")
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
        theme().changed.connect(self._restyle)

    def show_footprint(self, footprint: Footprint, cards: str, *, simulated: bool, now: Now | None = None) -> None:
        """Show ``footprint`` on ``cards``; ``simulated`` when they are not in this machine.

        ``now``: what is free of it at the moment.
        """
        shown = (footprint.verdict, _figures(footprint), _detail(footprint, cards, now), _aside(footprint), simulated)
        if shown != (self._verdict, self._figures, self._detail, self._aside, self._simulated) or not self._planned:
            self._planned = True
            self._verdict, self._figures, self._detail, self._aside, self._simulated = shown
            self._wrap()
            self.setAccessibleName(
                tr("Verdict: {}. {}").format(self.text, _SEPARATOR.join(filter(None, (self._detail, self._aside))))
            )
            self.update()

    def set_trouble(self, trouble: str, ink: str = "over") -> None:
        """Fade while the figures answer an older scenario, and say why."""
        if trouble != self._trouble:
            self._trouble, self._dimmed, self._ink = trouble, bool(trouble), ink if trouble else "muted"
            self.setAccessibleDescription(trouble)
            self._wrap()
            self.update()

    @Slot()
    def _restyle(self) -> None:
        self._wrap()
        self.updateGeometry()
        self.update()

    @property
    def dimmed(self) -> bool:
        """Whether the figures answer an older scenario."""
        return self._dimmed

    @property
    def text(self) -> str:
        """The verdict line as one text."""
        return f"{self._label} · {self._figures}"

    @property
    def _whole(self) -> str:
        return _SEPARATOR.join(filter(None, (self._detail, self._aside)))

    @property
    def _label(self) -> str:
        return word(VERDICTS, self._verdict).label if self._planned else tr("No plan yet")

    def sizeHint(self) -> QSize:
        """One line of figures, and as many of detail as it takes."""
        return QSize(300, 2 * px(_EDGE) + px(_HEAD) + px(_GAP) + len(self._lines) * px(_LINE))

    def minimumSizeHint(self) -> QSize:
        """The width gives way."""
        return QSize(200, self.sizeHint().height())

    def resizeEvent(self, event: QResizeEvent) -> None:
        """The detail flows anew."""
        self._wrap()
        super().resizeEvent(event)

    def event(self, event: QEvent) -> bool:
        """Tool tips: what the badge says, what the verdict means."""
        if event.type() == QEvent.Type.ToolTip and isinstance(event, QHelpEvent):
            over_badge = self._simulated and self._badge().contains(event.pos())
            QToolTip.showText(event.globalPos(), tr(_SIM) if over_badge else word(VERDICTS, self._verdict).meaning, self)
            return True
        return super().event(event)

    def paintEvent(self, event: QPaintEvent) -> None:
        """Icon, word, figures, badge; below them the detail."""
        super().paintEvent(event)
        painter = QPainter(self)
        if self._dimmed:
            painter.setOpacity(0.45)
        colour, label = theme().colour(ROLES[self._verdict]), self._label
        icon(self._verdict, ROLES[self._verdict]).paint(painter, px(_MARGIN), px(_EDGE) + 2, px(_ICON), px(_ICON))
        left, right = (
            px(_MARGIN) + px(_ICON) + px(_SPACE),
            self._badge().left() - px(_SPACE) if self._simulated else self.width() - px(_MARGIN),
        )
        write(painter, QRect(left, px(_EDGE), right - left, px(_HEAD)), label, colour, DISPLAY, bold=True)
        left += round(width_of(label, DISPLAY, bold=True)) + px(_SPACE)
        ways = (self._figures, self._figures.removeprefix(tr("weights alone ")))
        figures = ways[width_of(ways[0], DISPLAY, tabular=True) > right - left]
        write(painter, QRect(left, px(_EDGE), right - left, px(_HEAD)), figures, theme().colour("text"), DISPLAY, tabular=True)
        painter.setOpacity(1.0)
        for number, line in enumerate(self._lines):
            room = QRect(
                px(_MARGIN), px(_EDGE) + px(_HEAD) + px(_GAP) + number * px(_LINE), self.width() - 2 * px(_MARGIN), px(_LINE)
            )
            write(painter, room, line, theme().colour(self._ink), NORMAL)
        if self._simulated:
            self._paint_badge(painter)
        painter.end()

    def _paint_badge(self, painter: QPainter) -> None:
        badge = self._badge()
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        painter.setPen(QPen(theme().colour("tight"), 1))
        painter.setBrush(Qt.BrushStyle.NoBrush)
        painter.drawRoundedRect(QRectF(badge).adjusted(0.5, 0.5, -0.5, -0.5), 4, 4)
        write(painter, badge, tr("SIM"), theme().colour("tight"), SMALL, bold=True, align=CENTRE)

    def _badge(self) -> QRect:
        width, height = px(_BADGE.width()), px(_BADGE.height())
        return QRect(self.width() - px(_MARGIN) - width, px(_EDGE) + (px(_HEAD) - height) // 2, width, height)

    @Slot()
    def _wrap(self) -> None:
        """Break the detail into lines; the card grows only when their number changes."""
        room = self.width() - 2 * px(_MARGIN)
        told = self._trouble or (self._whole if width_of(self._whole, NORMAL) <= room else self._detail)
        lines = (wrapped(told, room, NORMAL) if self._trouble else _flowed(told, room))[:_MOST_LINES]
        grown = len(lines) != len(self._lines)
        self._lines = lines
        if grown:
            self.updateGeometry()


def _flowed(text: str, room: int) -> tuple[str, ...]:
    """Parts of a detail in lines; none is broken that has room in a line of its own, and no line begins or ends with a dot."""
    lines: list[str] = []
    for part in text.split(_SEPARATOR):
        longer = _SEPARATOR.join([*lines[-1:], part])
        if width_of(longer, NORMAL) <= room:
            lines[-1:] = [longer]
        else:
            lines += wrapped(part, room, NORMAL)
    return tuple(lines)


def _worst(footprint: Footprint) -> tuple[GpuFootprint, Phase] | None:
    gpu = footprint.fullest
    return (gpu, gpu.peak) if gpu and gpu.peak else None


def _figures(footprint: Footprint) -> str:
    worst = _worst(footprint)
    if worst is None:
        weights = footprint.weight_bytes
        return tr("weights alone {}").format(format_bytes(weights)) if weights else ""
    gpu, phase = worst
    peak = format_bytes(phase.device)
    if not gpu.capacity_bytes:
        return peak
    (number, unit), capacity = peak.split(), format_bytes(gpu.capacity_bytes)
    return tr("{} of {}").format(number if capacity.endswith(unit) else peak, capacity)


def _detail(footprint: Footprint, cards: str, now: Now | None) -> str:
    parts = [cards]
    worst = _worst(footprint)
    if worst is None:
        return _SEPARATOR.join([*parts, *(note for note in footprint.notes if note.startswith("unknown"))])
    parts.append(tr("peak in {}").format(word(PHASES, worst[1].name).label.lower()))
    room = room_of(footprint)
    if room is not None:
        parts.append(_room_words(room))
    if footprint.uncertainty_bytes:
        parts.append(f"± {format_bytes(footprint.uncertainty_bytes)}")
    parts += _host_words(footprint.host)
    if now is not None:
        parts.append(_now_words(now, worst[1].device if footprint.verdict in GOOD else 0))
    return _SEPARATOR.join(parts)


def _room_words(room: Room) -> str:
    """What is left, or what is missing; an engine that takes a share of the card for its cache can lack room in that alone."""
    size = format_bytes(abs(room.bytes))
    if room.bytes == 0:
        return tr("its cache is full") if room.of_cache else tr("no headroom")
    if room.of_cache:
        return (tr("its cache is short by {}") if room.bytes < 0 else tr("{} of its cache to spare")).format(size)
    return (tr("short by {}") if room.bytes < 0 else tr("headroom {}")).format(size)


def _host_words(host: Host) -> list[str]:
    """What the plan takes of the host's memory, where it keeps something there, and the peak while loading."""
    if not host.bytes:
        return []
    words = [tr("host {}").format(format_bytes(host.bytes))]
    if host.load_bytes and host.load_bytes > host.bytes:
        words.append(tr("{} while loading").format(format_bytes(host.load_bytes)))
    return words


def _aside(footprint: Footprint) -> str:
    """What loading takes of the host, where nothing stays there."""
    host = footprint.host
    return tr("host {} while loading").format(format_bytes(host.load_bytes)) if host.load_bytes and not host.bytes else ""


def _now_words(now: Now, needed_bytes: int) -> str:
    """What is free, who holds the rest, and what that means for a plan that would fit."""
    held = tr("; {} holds {}").format(now.holder, format_bytes(now.held_bytes)) if now.holder else ""
    where = "" if now.index is None else tr(" on GPU {}").format(now.index)
    free = tr("free now {}").format(format_bytes(now.free_bytes)) + where + held
    if needed_bytes <= now.free_bytes:
        return free
    short = tr("; {} too little at the moment").format(format_bytes(needed_bytes - now.free_bytes))
    index, most = now.idle or (None, 0)
    other = tr("; GPU {} has {} free").format(index, format_bytes(most)) if most >= needed_bytes else ""
    return free + short + other
