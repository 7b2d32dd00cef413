"""What changed between releases of TRL and moves the memory of its trainers' steps, each with the file it was read from."""

from __future__ import annotations

import re
from typing import Literal

from planner.faults import Fault, Faults
from planner.record import record

NEWEST = "1.16.0"
"""The release whose trainers are followed where the scenario names none."""
Scores = Literal["tiles", "logits"]
_NUMBER = re.compile(r"(\d+)\.(\d+)(?:\.(\d+))?")


@record
class TrlRelease:
    """One range of releases. ``scores``: log-probabilities of tokens from ``tiles`` of logits, or from all ``logits``."""

    since: tuple[int, int]
    scores: Scores
    source: str


TRL_RELEASES = (
    TrlRelease((0, 0), "logits", "TRL 1.14 trainer/dpo_trainer.py, selective_log_softmax of all logits"),
    TrlRelease((1, 15), "tiles", "TRL 1.16 kernels/chunked_logprob.py, ChunkedLogProbFunction"),
)
CASTS_BACK = (0, 27)
"""Before it the trainers cast embeddings and head back to bf16 after PEFT's preparation of a 4-bit model (TRL 0.26
models/utils.py, peft_module_casting_to_bf16); the norms stay fp32."""
WITHOUT_PPO = (1, 12)
TILE_TOKENS = 4096
"""TRL 1.16 kernels/chunked_logprob.py, TOKEN_CHUNK_SIZE."""
TILE_COLUMNS = 32768
"""TRL 1.16 trainer/utils.py, _CHUNKED_LOGPROB_CHUNK_SIZE: columns of the buffer, however small the vocabulary is."""
TILE_STATISTICS = 7
"""fp32 numbers of each token that a tile is folded into (ChunkedLogProbFunction.forward)."""


def trl_release(version: object) -> TrlRelease:
    """The entry of a release, by default the newest. Raises :class:`planner.faults.Faults` for what is no release."""
    number = _number(version or NEWEST)
    return max((release for release in TRL_RELEASES if release.since <= number), key=lambda release: release.since)


def casts_ends_back(version: object) -> bool:
    """Whether a release that a scenario names leaves embeddings and head in 16 bit beside prepared norms."""
    return bool(version) and _number(version) < CASTS_BACK


def dropped_ppo(version: object) -> bool:
    """Whether a release that a scenario names has no PPO trainer any more (TRL 1.12 ``experimental``)."""
    return bool(version) and _number(version) >= WITHOUT_PPO


def _number(version: object) -> tuple[int, int]:
    found = _NUMBER.match(str(version).removeprefix("v"))
    if found is None:
        message = f"{str(version)[:40]!r} is no release of TRL; write it like {NEWEST}"
        raise Faults([Fault("training.engine_options.trl_version", message)])
    return int(found[1]), int(found[2])
