"""What the why panel says of a point of the speed chart."""

from __future__ import annotations

from gui.fits.speeds import OpenedPace
from gui.page import HEAD, MUTED, ROW, SIZE, SMALL_PRINT, TITLE, Paragraph
from gui.translate import tr

_HOW = (
    "Each part takes as long as its arithmetic or its reading from memory, whichever is longer, at the share of the card's peak "
    "that is achieved (roofline, Williams et al. 2009). Parts follow one another."
)


def paced(opened: OpenedPace) -> list[Paragraph]:
    """How fast so many sequences run at once, and what a step is the sum of."""
    pace = opened.pace
    training = pace.scenario.task == "training"
    wait = (tr("{} ms a step") if training else tr("{} ms to each one's next token")).format(f"{1000 * pace.wait_s:,.3g}")
    bound = [Paragraph(MUTED, tr("Bound by {}").format(tr(opened.bound_by)))] if opened.bound_by else []
    return [
        Paragraph(TITLE, tr("Speed, {} at once").format(f"{pace.batch:,}")),
        Paragraph(SIZE, tr("{} tokens/s").format(f"{pace.tokens_per_s:,.0f}")),
        Paragraph(MUTED, wait),
        *bound,
        *_sum_of(opened),
    ]


def _sum_of(opened: OpenedPace) -> list[Paragraph]:
    if not opened.shares:
        return []
    rows = [Paragraph(ROW, f"{tr(share.name)}, {tr(share.bound_by)}\t{1000 * share.seconds:,.3g} ms") for share in opened.shares]
    return [Paragraph(HEAD, tr("ONE STEP IS THE SUM OF")), *rows, Paragraph(SMALL_PRINT, tr(_HOW))]
