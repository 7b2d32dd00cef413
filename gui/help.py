"""A short page of help for each tab, shown in a window of its own that stays beside the work."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from PySide6.QtCore import Qt
from PySide6.QtWidgets import QDialog, QDialogButtonBox, QVBoxLayout, QWidget

from gui.page import BODY, HEAD, ROW, TITLE, Page, Paragraph
from gui.translate import tr

_WIDTH, _HEIGHT = 440, 520
_FORM = (
    Paragraph(HEAD, "THE FORM"),
    Paragraph(BODY, "An empty field takes its default, which it shows in grey. 8k is 8192. The arrow keys step counts by one and "
                    "double or halve tokens. Every edit can be undone."),
)  # fmt: skip
HELP: Mapping[str, tuple[Paragraph, ...]] = {
    "footprint": (
        Paragraph(BODY, "How much memory the plan takes on each GPU, phase by phase, and what takes it."),
        Paragraph(HEAD, "THE VERDICT"),
        Paragraph(BODY, "Fits: at most 85 % of the memory. Tight: up to 97 %, or the error band crosses the limit. Beyond that it "
                        "does not fit. Unknown is an answer too: there is no closed form, and nothing is guessed."),
        Paragraph(HEAD, "THE BARS"),
        Paragraph(BODY, "One bar for each phase; with several GPUs one for each GPU; one for what the plan keeps in the host's "
                        "memory. The red line is the capacity, the hatched edge before it the last 3 %. Click a segment, or walk "
                        "with the arrow keys: the panel at the right opens "
                        "the formula, the numbers put in, and where they come from."),
        *_FORM,
    ),
    "fits": (
        Paragraph(BODY, "What fits: the same load on other cards and counts, and other loads on this card."),
        Paragraph(HEAD, "THE MAP"),
        Paragraph(BODY, "Context to the right, batch upwards; darker means fuller. The line is where it stops fitting. Click a "
                        "cell, or walk with the arrow keys and press Return, to adopt it. A cross: the engine refuses the load, "
                        "however full the card would be."),
        Paragraph(HEAD, "THE SPEED"),
        Paragraph(BODY, "Throughput of all sequences together, and how long each waits for its next token, up to the most that "
                        "fit. Click a point, or walk with the arrow keys: the panel at the right opens the parts a step is the sum "
                        "of. A double click or Return adopts it."),
        Paragraph(HEAD, "THE TABLE"),
        Paragraph(BODY, "Each card with one, two, four, eight of it. A mark and a word tell what fits; unknown stays unknown."),
    ),
    "advice": (
        Paragraph(BODY, "Changes to the plan that make it fit or give it room, each with what it saves and what it costs."),
        Paragraph(BODY, "Apply edits the form at once; Ctrl+Z takes it back. What an advice saves is the difference of two whole "
                        "predictions, with and without it."),
    ),
    "commands": (
        Paragraph(BODY, "What to type, or which config to write, to run the plan under its engine."),
        Paragraph(BODY, "Copy puts it on the clipboard. It says which version of the engine it was written for; what the plan "
                        "leaves to the engine is left out of the command too."),
    ),
    "probe": (
        Paragraph(BODY, "A real run beside the prediction."),
        Paragraph(HEAD, "REHEARSE"),
        Paragraph(BODY, "Runs the model itself on fake tensors, without weights and without a GPU, and replays every allocation "
                        "through a simulator of PyTorch's allocator, as the plan's card would see it."),
        Paragraph(HEAD, "MEASURE"),
        Paragraph(BODY, "Runs a short load in a child process and draws what it takes. A budget keeps it from hurting what else "
                        "runs on the card. On a CPU only allocated compares with a prediction."),
        Paragraph(HEAD, "THE PLOT"),
        Paragraph(BODY, "Solid lines are measured, dashed ones predicted, the filled area is rehearsed. Click a phase to open its "
                        "peak in the panel at the right."),
    ),
    "compare": (
        Paragraph(BODY, "Up to four pinned plans side by side, the one in the form first."),
        Paragraph(BODY, "Only inputs that differ are listed. Differences are against the first column. Pins stay until they are "
                        "removed, and are there again at the next start."),
    ),
    "history": (
        Paragraph(BODY, "Every run that was measured: what was predicted, what it took, and how far the two are apart."),
        Paragraph(BODY, "Type to filter by model, card, engine or tag. Tags are words of your own for the chosen runs. Keep in the "
                        "history (Ctrl+Shift+D) lists a plan without a run."),
        Paragraph(BODY, "Open shows the scenario again, Replay plays the recording into "
                        "the Probe tab, Delete forgets the run but keeps its recording."),
    ),
    "monitor": (
        Paragraph(BODY, "Every GPU of this machine and the machine itself, now and over the last minutes, and which processes hold "
                        "the memory of GPUs."),
        Paragraph(BODY, "A figure that the driver does not give is N/A, never zero."),
    ),
}  # fmt: skip


class HelpWindow(QDialog):
    """Shows the page of a tab."""

    def __init__(self, parent: QWidget) -> None:
        super().__init__(parent)
        self._page = Page()
        self._page.setAccessibleName(tr("Help"))
        buttons = QDialogButtonBox(QDialogButtonBox.StandardButton.Close)
        buttons.rejected.connect(self.close)
        column = QVBoxLayout(self)
        column.setContentsMargins(16, 14, 16, 12)
        column.addWidget(self._page, 1)
        column.addWidget(buttons)
        self.setAttribute(Qt.WidgetAttribute.WA_QuitOnClose, on=False)
        self.resize(_WIDTH, _HEIGHT)

    @property
    def text(self) -> str:
        """What is shown, without marks."""
        return self._page.toPlainText()

    def show_tab(self, name: str, title: str) -> None:
        """Show the page of the tab ``name``."""
        self._show(title, tuple(replace(one, text=tr(one.text)) for one in HELP.get(name, ())))

    def show_shortcuts(self, shortcuts: Mapping[str, str]) -> None:
        """Show every command that has a key."""
        rows = tuple(Paragraph(ROW, f"{name}\t{keys}") for name, keys in shortcuts.items())
        self._show(tr("Keyboard shortcuts"), rows)

    def _show(self, title: str, paragraphs: tuple[Paragraph, ...]) -> None:
        self.setWindowTitle(title)
        self.show()
        self._page.show_paragraphs([Paragraph(TITLE, title), *paragraphs])
        self.raise_()
