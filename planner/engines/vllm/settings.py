"""The engine's settings as vLLM settles them: given, or its own default for the card at hand."""

from __future__ import annotations

from collections.abc import Mapping

from planner.architecture.layers import Architecture, Recurrent
from planner.engines.vllm.versions import Release, release_of, version_of
from planner.record import record
from planner.scenario import Scenario
from planner.units import GIB

LARGE_GPU_BYTES = 70 * 2**30
"""From here on (A100 excepted) vLLM's larger defaults hold (``EngineArgs.get_batch_defaults``)."""
WIDE_GPU_BYTES = 160 * 2**30
WIDE_SINCE = (0, 33, 0)
"""0.33.0 doubles the server's tokens a step on cards that large."""
UTILIZATION, UTILIZATION_BEFORE = 0.92, 0.9
UTILIZATION_SINCE = (0, 20, 0)
"""The default share of the card rose when CUDA graphs came to be subtracted from the pool."""
BLOCK_TOKENS = 16
V1_SINCE, V0_TOKENS, V0_SEQUENCES = (0, 8, 0), 2048, 256
"""Before V1 (0.6.4 ``config.py`` ``SchedulerConfig``)."""
SWAP_GIB = 4.0
"""Pinned for each GPU before V1, which recomputes what it preempts (0.6.4 ``config.py`` ``CacheConfig``)."""
STATES_CACHED_SINCE = (0, 33, 0)
"""The first release read in which hybrid models cache prefixes by default; 0.24.0 does not."""


@record
class Settings:
    """What the memory of a vLLM server depends on."""

    version: tuple[int, int, int]
    utilization: float
    batched_tokens: int
    sequences: int
    block_tokens: int
    eager: bool
    max_model_len: int
    prefix_caching: bool
    hybrid: bool
    capture_size: int
    multiprocessors: int
    kv_bytes: int | None
    swap_bytes: int = 0

    @property
    def release(self) -> Release:
        """The constants of the release."""
        return release_of(self.version)


def settings_of(
    scenario: Scenario, architecture: Architecture, gpu_name: str, capacity_bytes: int, sms: int
) -> tuple[Settings, list[str]]:
    """The settings, and in words the defaults taken."""
    ask, notes = scenario.inference, []
    options: Mapping[str, object] = ask.engine_options
    version = version_of(options.get("version"))
    limit = ask.max_model_len or architecture.max_context_tokens
    if limit is None:
        limit = (ask.prompt_tokens or 1) + (ask.new_tokens or 1)
    if ask.max_model_len is None:
        notes.append(f"inference.max_model_len: {limit}, the model's own limit, as vLLM takes it")
    batched, sequences = _batch_defaults(version, gpu_name, capacity_bytes, limit)
    if ask.chunked_prefill is False:
        batched = max(batched, limit)
    chosen_batched = _number(options, "max_num_batched_tokens", batched)
    chosen_sequences = min(_number(options, "max_num_seqs", sequences), chosen_batched)
    eager = options.get("enforce_eager") is True
    settings = Settings(
        version=version,
        utilization=_fraction(
            options, "gpu_memory_utilization", UTILIZATION if version >= UTILIZATION_SINCE else UTILIZATION_BEFORE
        ),
        batched_tokens=chosen_batched,
        sequences=chosen_sequences,
        block_tokens=_number(options, "block_size", BLOCK_TOKENS),
        eager=eager,
        max_model_len=limit,
        prefix_caching=_prefix_caching(options, architecture, version),
        hybrid=options.get("disable_hybrid_kv_cache_manager") is not True,
        capture_size=0 if eager else min(chosen_sequences * 2, 512, chosen_batched),
        multiprocessors=sms,
        kv_bytes=_optional(options, "kv_cache_memory_bytes"),
        swap_bytes=int(_fraction(options, "swap_space", SWAP_GIB) * GIB) if version < V1_SINCE else 0,
    )
    for name, value in (("max_num_batched_tokens", chosen_batched), ("max_num_seqs", chosen_sequences)):
        if name not in options:
            notes.append(f"inference.engine_options.{name}: {value}, vLLM's default for a server on this card")
    if "gpu_memory_utilization" not in options:
        notes.append(f"inference.engine_options.gpu_memory_utilization: {settings.utilization} by default")
    return settings, notes


def _prefix_caching(options: Mapping[str, object], architecture: Architecture, version: tuple[int, int, int]) -> bool:
    """As asked; by default on, beside recurrent states only in newer releases (``ModelConfig.is_prefix_caching_supported``)."""
    asked = options.get("enable_prefix_caching")
    if isinstance(asked, bool):
        return asked
    recurrent = any(isinstance(mixer, Recurrent) for layer in architecture.decoder.layers for mixer in layer.sequence)
    return not recurrent or version >= STATES_CACHED_SINCE


def _batch_defaults(version: tuple[int, int, int], gpu_name: str, capacity_bytes: int, max_model_len: int) -> tuple[int, int]:
    """(max_num_batched_tokens, max_num_seqs) of an OpenAI-compatible server; V0 without chunked prefill takes a whole prompt."""
    if version < V1_SINCE:
        return max(max_model_len, V0_TOKENS), V0_SEQUENCES
    if capacity_bytes < LARGE_GPU_BYTES or "a100" in gpu_name.lower():
        return 2048, 256
    return (16384 if version >= WIDE_SINCE and capacity_bytes >= WIDE_GPU_BYTES else 8192), 1024


def _number(options: Mapping[str, object], name: str, default: int) -> int:
    value = options.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) else default


def _optional(options: Mapping[str, object], name: str) -> int | None:
    value = options.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _fraction(options: Mapping[str, object], name: str, default: float) -> float:
    value = options.get(name)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else default
