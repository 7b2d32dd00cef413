"""What changed between vLLM releases and moves memory, each with the file it was read from.

A release takes the newest entry that is not newer than itself.
"""

from __future__ import annotations

import re
from typing import Literal

from planner.faults import Fault, Faults
from planner.record import record

Sampler = Literal["v0", "sort", "triton", "flashinfer", "plain"]
DEFAULT_VERSION = "0.33.0"
"""Assumed where ``engine_options.version`` is not given: the newest release read."""
_NUMBER = re.compile(r"(\d+)\.(\d+)(?:\.(\d+))?")


@record
class Release:
    """The constants of one range of releases."""

    since: tuple[int, int, int]
    sampler: Sampler
    subtracts_graphs: bool
    """Whether the profiled memory of CUDA graphs comes off the pool (``VLLM_MEMORY_PROFILER_ESTIMATE_CUDAGRAPHS``)."""
    tokens_by_concurrency: bool
    """Whether "GPU KV cache size" is maximum concurrency · max_model_len, or blocks · block size over the groups."""
    non_torch_bytes: int
    """Context growth and libraries' own memory on one GPU (``non_torch_increase``)."""
    collective_bytes: int
    """The same on each of several tensor-parallel GPUs."""
    source: str


_GIB = 2**30
RELEASES: tuple[Release, ...] = (
    Release(
        (0, 0, 0), "v0", False, False, int(1.79 * _GIB), int(3.58 * _GIB),
        "vLLM 0.6.4 worker/worker.py; memory as its pull request 10511 prints it, one H100",
    ),
    Release(
        (0, 8, 0), "sort", False, False, int(0.13 * _GIB), int(0.55 * _GIB),
        "vLLM 0.11.0 v1/sample/ops/topk_topp_sampler.py; memory as logged by 0.11.0 on H100, NCCL counted before the snapshot",
    ),
    Release(
        (0, 17, 0), "triton", False, False, int(0.25 * _GIB), int(2.1 * _GIB),
        "vLLM 0.17.0 v1/sample/ops/topk_topp_triton.py; memory as logged by 0.19.0 on H100",
    ),
    Release(
        (0, 20, 0), "triton", True, False, int(0.25 * _GIB), int(2.1 * _GIB),
        "vLLM 0.20.0 envs.py: CUDA graph memory is profiled and subtracted; other memory as logged by 0.19.0",
    ),
    Release(
        (0, 21, 0), "flashinfer", True, True, int(0.25 * _GIB), int(2.1 * _GIB),
        "vLLM 0.21.0 envs.py VLLM_USE_FLASHINFER_SAMPLER, v1/core/kv_cache_utils.py; other memory as logged by 0.19.0",
    ),
)  # fmt: skip
PIPELINE_NON_TORCH_BYTES = int(0.07 * _GIB)
"""On a stage that doesn't sample (0.19.0, H100)."""
NON_TORCH_BAND_BYTES = int(0.15 * _GIB)
"""Spread of published non-torch memory around these figures on one GPU; several GPUs spread more with NCCL's channels."""
COLLECTIVE_BAND_BYTES = int(1.0 * _GIB)


def version_of(given: object) -> tuple[int, int, int]:
    """A release as numbers, ``0.19.0`` → (0, 19, 0). Raises :class:`planner.faults.Faults` when it is none."""
    found = _NUMBER.match(str(given or DEFAULT_VERSION).removeprefix("v"))
    if found is None:
        message = f"{str(given)[:40]!r} is no vLLM release; write it like {DEFAULT_VERSION}"
        raise Faults([Fault("inference.engine_options.version", message)])
    return int(found[1]), int(found[2]), int(found[3] or 0)


def release_of(version: tuple[int, int, int]) -> Release:
    """The constants of a release."""
    return max((release for release in RELEASES if release.since <= version), key=lambda release: release.since)
