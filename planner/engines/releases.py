"""What changed between releases of transformers and moves the memory of a training step, each with the file it was read from.

A release takes the newest entry that is not newer than itself.
"""

from __future__ import annotations

import re
from typing import Literal

from planner.faults import Fault, Faults
from planner.record import record

LossCopies = Literal["labels", "logits", "widened_logits", "narrow_logits"]
_NUMBER = re.compile(r"(\d+)\.(\d+)(?:\.(\d+))?")


@record
class Release:
    """One range of releases. ``copies``: what is laid out anew to predict the next token.

    ``labels``: labels are shifted, logits stay as they are. ``logits``: all logits but the last, in fp32, beside the
    model's own. ``widened_logits``: the same, after the model has replaced its own logits by fp32 ones. ``narrow_logits``: all
    logits but the last in their own dtype, in which the loss is computed.
    """

    since: tuple[int, int]
    copies: LossCopies
    source: str


RELEASES = (
    Release((0, 0), "widened_logits", "transformers 4.45 modeling_llama.py, LlamaForCausalLM.forward"),
    Release((4, 46), "logits", "transformers 4.46 loss/loss_utils.py, ForCausalLMLoss"),
    Release((4, 50), "labels", "transformers 4.50 loss/loss_utils.py, ForCausalLMLoss"),
)
OWN_LOSS = {
    "gpt_bigcode": Release((0, 0), "narrow_logits", "transformers 4.48 modeling_gpt_bigcode.py, GPTBigCodeForCausalLM.forward"),
}
"""Families whose class computed its loss itself before :data:`SHARED_LOSS`."""
SHARED_LOSS = (4, 49)
"""Since then they call ``loss_utils.py`` as the others do."""


def release_of(version: object, model_type: str = "") -> Release:
    """The entry of a release for a family, by default the newest. Raises :class:`planner.faults.Faults` for what is no release."""
    if not version:
        return RELEASES[-1]
    found = _NUMBER.match(str(version).removeprefix("v"))
    if found is None:
        message = f"{str(version)[:40]!r} is no transformers release; write it like 4.48.1"
        raise Faults([Fault("training.engine_options.version", message)])
    number = int(found[1]), int(found[2])
    if number < SHARED_LOSS and model_type in OWN_LOSS:
        return OWN_LOSS[model_type]
    return max((release for release in RELEASES if release.since <= number), key=lambda release: release.since)
