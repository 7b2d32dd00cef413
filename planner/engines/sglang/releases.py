"""What changed between SGLang releases and moves memory, read from the wheels of each; the newest that is not newer holds.

``srt/server_args.py`` and ``srt/arg_groups/memory_hook.py`` (``handle_gpu_memory_settings``), ``srt/configs/model_config.py``
(``is_hybrid_swa_model``), ``srt/model_executor/model_runner.py`` and what it became: ``model_runner_kv_cache_mixin.py``,
``pool_configurator.py``, ``srt/mem_cache/kv_cache_configurator.py``.
"""

from __future__ import annotations

import re
from typing import Literal

from planner.faults import Fault, Faults
from planner.record import record

DEFAULT_VERSION = "0.5.23"
"""Assumed where ``engine_options.version`` is not given: the newest release read."""
GRAPH_FLAGS_SINCE = (0, 5, 14)
"""``--cuda-graph-max-bs`` became a flag for each phase."""
_NUMBER = re.compile(r"v?(\d+)\.(\d+)(?:\.(\d+))?")
Tier = tuple[int, int, int, int]
"""(GiB below, ``chunked_prefill_size``, largest captured batch below four GPUs, from four on)."""


@record
class Release:
    """The constants of one range of releases."""

    since: tuple[int, int, int]
    tiers: tuple[Tier, ...]
    fixed: bool = False
    """Whether the default share goes by the number of GPUs alone."""
    draft_mib: int = 0
    """Kept free for a draft model and its graphs; it is loaded after the pool was taken."""
    head_mib: int = 0
    """The same for an EAGLE head or prediction modules."""
    counts_drafts: bool = False
    """Whether the draft's weights and cache are counted before the pool is taken."""
    prefill_graphs: Literal["none", "piecewise", "breakable"] = "none"
    latent_graphs: bool = False
    """Whether prefills of latent attention are captured too."""
    windows: tuple[str, ...] = ()
    """Types whose windowed layers have a pool of their own; others cache windows like full attention."""
    states: Literal["slots", "ratio"] = "ratio"
    """Whether recurrent states have a fixed number of slots, or a share of the memory."""
    slots_a_request: int = 3
    """Slots of states that a running request takes, with those its prefix is kept in."""
    padding_slots: int = 0
    tower_mib: int = 0
    """Kept of the pool for the embeddings of images."""
    sparse_fp8: bool = False
    """Whether Blackwell caches sparse latent attention in fp8 by default."""


def _tiers(small: tuple[int, int, int]) -> tuple[Tier, ...]:
    """``small``: of cards from 20 to 35 GiB."""
    return (
        (20, 2048, 8, 8), (35, *small), (60, 4096, 32, 160), (90, 8192, 256, 512), (160, 8192, 256, 512),
        (1 << 20, 16384, 512, 512),
    )  # fmt: skip


_WINDOWS = ("llama4", "gpt_oss")
_MORE_WINDOWS = (*_WINDOWS, "gemma4", "gemma4_text")
RELEASES: tuple[Release, ...] = (
    Release((0, 0, 0), _tiers((2048, 16, 80)), fixed=True, states="slots"),
    Release((0, 5, 0), _tiers((2048, 16, 80)), draft_mib=6144, head_mib=2048, states="slots"),
    Release((0, 5, 4), _tiers((2048, 16, 80)), draft_mib=6144, head_mib=2048),
    Release((0, 5, 5), _tiers((2048, 24, 80)), draft_mib=6144, head_mib=2048),
    Release((0, 5, 6), _tiers((2048, 24, 80)), draft_mib=6144, head_mib=2048, sparse_fp8=True),
    Release((0, 5, 8), _tiers((2048, 24, 80)), draft_mib=6144, head_mib=2048, sparse_fp8=True, windows=_WINDOWS),
    Release(
        (0, 5, 10), _tiers((2048, 24, 80)), draft_mib=6144, head_mib=4096, sparse_fp8=True, windows=_WINDOWS,
        prefill_graphs="piecewise", latent_graphs=True,
    ),
    Release(
        (0, 5, 11), _tiers((2048, 24, 80)), draft_mib=6144, head_mib=4096, sparse_fp8=True, windows=_MORE_WINDOWS,
        prefill_graphs="piecewise", latent_graphs=True,
    ),
    Release(
        (0, 5, 14), _tiers((2048, 24, 80)), counts_drafts=True, sparse_fp8=True, windows=_MORE_WINDOWS,
        prefill_graphs="piecewise", latent_graphs=True, slots_a_request=5,
    ),
    Release(
        (0, 5, 15), _tiers((2048, 24, 80)), counts_drafts=True, sparse_fp8=True, windows=_MORE_WINDOWS,
        prefill_graphs="breakable", slots_a_request=5,
    ),
    Release(
        (0, 5, 18), _tiers((2048, 24, 80)), counts_drafts=True, sparse_fp8=True, windows=_MORE_WINDOWS,
        prefill_graphs="breakable", latent_graphs=True, slots_a_request=5, padding_slots=1, tower_mib=100,
    ),
    Release(
        (0, 5, 20), _tiers((4096, 48, 160)), counts_drafts=True, sparse_fp8=True, windows=_MORE_WINDOWS,
        prefill_graphs="breakable", latent_graphs=True, slots_a_request=5, padding_slots=1, tower_mib=100,
    ),
)  # fmt: skip


def version_of(given: object) -> tuple[int, int, int]:
    """A release as numbers, ``v0.5.3.post1`` → (0, 5, 3). Raises :class:`planner.faults.Faults` when it is none."""
    found = _NUMBER.match(str(given or DEFAULT_VERSION))
    if found is None:
        message = f"{str(given)[:40]!r} is no SGLang release; write it like {DEFAULT_VERSION}"
        raise Faults([Fault("inference.engine_options.version", message)])
    return int(found[1]), int(found[2]), int(found[3] or 0)


def release_of(version: tuple[int, int, int]) -> Release:
    """The constants of a release."""
    return max((release for release in RELEASES if release.since <= version), key=lambda release: release.since)
