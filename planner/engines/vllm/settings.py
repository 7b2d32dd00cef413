"""The engine's settings as vLLM settles them: given, or its own default for the card at hand."""

from __future__ import annotations

from collections.abc import Mapping

from planner.architecture.layers import Architecture, Attention, MixtureOfExperts, Recurrent
from planner.engines.served_weights import has_latent
from planner.engines.vllm.versions import Release, Sampler, release_of, version_of
from planner.record import record
from planner.scenario import Inference, Scenario
from planner.symbolic.amount import largest, smallest
from planner.units import GIB

LARGE_GPU_BYTES = 70 * 2**30
"""From here on (A100 excepted) vLLM's larger defaults hold (``EngineArgs.get_batch_defaults``)."""
WIDE_GPU_BYTES = 160 * 2**30
WIDE_SINCE = (0, 28, 0)
"""The first release read that doubles the server's tokens a step on cards that large; 0.26 does not."""
UTILIZATION, UTILIZATION_BEFORE = 0.92, 0.9
UTILIZATION_SINCE = (0, 20, 0)
"""The default share of the card rose when CUDA graphs came to be subtracted from the pool."""
MOST_CAPTURED, CAPTURED = 512, {"gpt_oss": 1024}
BLOCK_TOKENS = 16
MOST_EXPANDED_TOKENS = 65536
V1_SINCE, V0_TOKENS, V0_SEQUENCES = (0, 8, 0), 2048, 256
"""Before V1 (0.6.4 ``config.py`` ``SchedulerConfig``)."""
V0_TOWER_TOKENS, V0_LONG_TOKENS = 5120, 32768
"""The least step of a model with a tower, and the length beyond which V0 cuts prompts (``_set_default_args_v0``)."""
V0_CHUNKS_SINCE, V0_CHUNK_TOKENS, V0_CHUNK_TOKENS_BEFORE = (0, 6, 5), 2048, 512
"""Tokens of such a chunk, raised by pull request 10544."""
BY_MEMORY_SINCE, BUT_A100_SINCE = (0, 8, 5), (0, 9, 0)
"""The larger defaults went to H100 and H200 by name, then to all large cards (pull request 17073), then to all but A100 (17885)."""
SPARK, BUT_SPARK_SINCE = "gb10", (0, 33, 0)
"""The first release read that counts GB10 among smaller cards, whatever its memory (``get_batch_defaults``)."""
LARGE_BY_NAME = ("h100", "h200")
HYBRID_SINCE, HYBRID_CHUNKS_SINCE = (0, 9, 1), (0, 14, 0)
"""Groups of layers that cache differently; those with attention in chunks among them
(``VLLM_ALLOW_CHUNKED_LOCAL_ATTN_WITH_HYBRID_KV_CACHE`` is on by default). Before, every layer caches as if it saw everything."""
SWAP_GIB = 4.0
"""Pinned for each GPU before V1, which recomputes what it preempts (0.6.4 ``config.py`` ``CacheConfig``)."""
SECOND_DENSE_SINCE, SECOND_ALL_SINCE, SECOND_WARMED_SINCE = (0, 25, 0), (0, 29, 0), (0, 33, 0)
"""Since when the second model runner (``v1/worker/gpu``) runs dense models without recurrent states beside the classes named, and
all models; the last: since when its profile run samples with every parameter in use, and not greedily alone."""
SECOND_SINCE = {
    "Qwen3ForCausalLM": (0, 22, 0), "LlamaForCausalLM": (0, 23, 0), "MistralForCausalLM": (0, 23, 0),
    "DeepseekV2ForCausalLM": (0, 24, 0), "Qwen2MoeForCausalLM": (0, 24, 0), "GraniteMoeForCausalLM": (0, 24, 0),
}  # fmt: skip
"""``DEFAULT_V2_MODEL_RUNNER_ARCHITECTURES``."""
SECOND_PROPOSES = {"draft": (0, 31, 0), "ngram": (0, 32, 0)}
"""Since when it proposes by other ways than heads and prediction modules."""
IN_FLIGHT_SINCE = (0, 26, 0)
"""The first release read that keeps blocks behind a window until every step in flight is done (``max_in_flight_tokens``)."""
STATES_CACHED_SINCE = (0, 26, 0)
"""Since when hybrid models cache prefixes by default; models without attention do not (``is_prefix_caching_supported``)."""


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
    steps_in_flight: int = 1
    """Steps that are scheduled ahead of what is done."""
    second_runner: bool = False
    """Whether the second model runner runs the model; it counts each sequence's tokens for penalties on the GPU."""

    @property
    def scheduled_tokens(self) -> int:
        """Tokens of a sequence that may be scheduled and not done, so that their window is kept (``SlidingWindowSpec``)."""
        return self.batched_tokens * self.steps_in_flight

    @property
    def expanded_tokens(self) -> int:
        """Tokens whose latent entries are expanded at once: eight requests or four blocks of each, 65536 at most.

        ``MLACommonMetadataBuilder.determine_chunked_prefill_workspace_size``.
        """
        one_block = self.sequences * self.block_tokens
        found: int = largest(smallest(largest(8 * self.max_model_len, 4 * one_block), MOST_EXPANDED_TOKENS), one_block)
        return found

    @property
    def sampler(self) -> Sampler:
        """How the profile run samples."""
        return "plain" if self.second_runner and self.version < SECOND_WARMED_SINCE else self.release.sampler

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
    batched, sequences = _batch_defaults(version, gpu_name, capacity_bytes, ask, architecture, limit)
    if ask.chunked_prefill is False:
        batched = max(batched, limit)
    chosen_batched = _number(options, "max_num_batched_tokens", batched)
    chosen_sequences = min(_number(options, "max_num_seqs", sequences), chosen_batched)
    eager, second = options.get("enforce_eager") is True, _is_second(ask, architecture, version)
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
        hybrid=options.get("disable_hybrid_kv_cache_manager") is not True and _groups(architecture, version),
        capture_size=0 if eager else _captured(architecture, chosen_sequences, chosen_batched),
        multiprocessors=sms,
        kv_bytes=_optional(options, "kv_cache_memory_bytes"),
        swap_bytes=int(_fraction(options, "swap_space", SWAP_GIB) * GIB) if version < V1_SINCE else 0,
        steps_in_flight=_in_flight(scenario.parallel.pipeline, version, second=second),
        second_runner=second,
    )
    for name, value in (("max_num_batched_tokens", chosen_batched), ("max_num_seqs", chosen_sequences)):
        if name not in options:
            notes.append(f"inference.engine_options.{name}: {value}, vLLM's default for a server on this card")
    if "gpu_memory_utilization" not in options:
        notes.append(f"inference.engine_options.gpu_memory_utilization: {settings.utilization} by default")
    return settings, notes


def _is_second(ask: Inference, architecture: Architecture, version: tuple[int, int, int]) -> bool:
    """Whether the second model runner runs a generating model (``VllmConfig.use_v2_model_runner``)."""
    if architecture.kind != "decoder" or version < SECOND_PROPOSES.get(ask.speculation.method, (0, 0, 0)):
        return False
    named = SECOND_SINCE.get(architecture.model_class)
    mixers = [mixer for layer in architecture.decoder.layers for mixer in (*layer.sequence, *layer.channel)]
    dense = not any(isinstance(mixer, Recurrent | MixtureOfExperts) for mixer in mixers)
    return version >= SECOND_ALL_SINCE or (named is not None and version >= named) or (dense and version >= SECOND_DENSE_SINCE)


def _in_flight(stages: int, version: tuple[int, int, int], *, second: bool) -> int:
    """Steps in flight: one for each stage, and one more as scheduling is asynchronous, which the first runner is on one stage."""
    if version < IN_FLIGHT_SINCE:
        return 1
    return stages + 1 if second or stages == 1 else stages


def _captured(architecture: Architecture, sequences: int, batched_tokens: int) -> int:
    """The largest batch that is captured; gpt-oss asks for twice as many as others (``GptOssForCausalLMConfig``)."""
    most: int = smallest(2 * sequences, MOST_CAPTURED)
    asked = CAPTURED.get(architecture.model_type, most)
    captured: int = smallest(asked, batched_tokens)
    return captured


def _prefix_caching(options: Mapping[str, object], architecture: Architecture, version: tuple[int, int, int]) -> bool:
    """As asked; by default on, beside recurrent states only in newer releases (``ModelConfig.is_prefix_caching_supported``)."""
    asked = options.get("enable_prefix_caching")
    if isinstance(asked, bool):
        return asked
    recurrent = any(isinstance(mixer, Recurrent) for layer in architecture.decoder.layers for mixer in layer.sequence)
    return not recurrent or (version >= STATES_CACHED_SINCE and bool(_attention(architecture) or has_latent(architecture)))


def _groups(architecture: Architecture, version: tuple[int, int, int]) -> bool:
    """Whether the release lets layers that cache differently share the pool."""
    return version >= (HYBRID_CHUNKS_SINCE if any(mixer.chunk_tokens for mixer in _attention(architecture)) else HYBRID_SINCE)


def _attention(architecture: Architecture) -> list[Attention]:
    return [mixer for layer in architecture.decoder.layers for mixer in layer.sequence if isinstance(mixer, Attention)]


def _batch_defaults(
    version: tuple[int, int, int],
    gpu_name: str,
    capacity_bytes: int,
    ask: Inference,
    architecture: Architecture,
    max_model_len: int,
) -> tuple[int, int]:
    """(max_num_batched_tokens, max_num_seqs) of an OpenAI-compatible server."""
    if version < V1_SINCE:
        return _v0_tokens(version, ask, architecture, max_model_len), V0_SEQUENCES
    if not _is_large(version, gpu_name.lower(), capacity_bytes):
        return 2048, 256
    return (16384 if version >= WIDE_SINCE and capacity_bytes >= WIDE_GPU_BYTES else 8192), 1024


def _is_large(version: tuple[int, int, int], gpu_name: str, capacity_bytes: int) -> bool:
    if version < BY_MEMORY_SINCE:
        return any(part in gpu_name for part in LARGE_BY_NAME)
    slower = ("a100" in gpu_name and version >= BUT_A100_SINCE) or (SPARK in gpu_name and version >= BUT_SPARK_SINCE)
    return capacity_bytes >= LARGE_GPU_BYTES and not slower


def _v0_tokens(version: tuple[int, int, int], ask: Inference, architecture: Architecture, max_model_len: int) -> int:
    """A whole prompt, or a chunk: V0 cuts long prompts of plain text models (``_set_default_args_v0``, 0.8 as before)."""
    chunked = ask.chunked_prefill
    if chunked is None:
        kept_whole = (
            architecture.towers
            or ask.speculation.method != "none"
            or ask.adapters.count
            or has_latent(architecture)
            or any(mixer.window_tokens for mixer in _attention(architecture))
        )
        chunked = max_model_len > V0_LONG_TOKENS and not kept_whole
    if chunked:
        return V0_CHUNK_TOKENS if version >= V0_CHUNKS_SINCE else V0_CHUNK_TOKENS_BEFORE
    least: int = largest(max_model_len, V0_TOWER_TOKENS if architecture.towers else V0_TOKENS)
    return least


def _number(options: Mapping[str, object], name: str, default: int) -> int:
    value = options.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) else default


def _optional(options: Mapping[str, object], name: str) -> int | None:
    value = options.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _fraction(options: Mapping[str, object], name: str, default: float) -> float:
    value = options.get(name)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else default
