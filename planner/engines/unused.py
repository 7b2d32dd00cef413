"""Fields of a scenario that an engine makes nothing of, said in words: no field is passed over in silence."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from planner.architecture.layers import Architecture, Attention, MixtureOfExperts, Recurrent
from planner.engines.served import SERVED
from planner.scenario import Inference, Scenario

NAMES = {"vllm": "vLLM", "sglang": "SGLang", "tensorrt-llm": "TensorRT-LLM", "tgi": "TGI"}
CACHE_OPTIONS = ("cache_backend", "cache_nbits", "cache_q_group_size", "cache_residual_length")
DRAFT_OPTIONS = ("n_gpu_layers_draft", "type_k_draft", "type_v_draft")
SPLIT_OPTIONS = ("split_mode", "tensor_split", "main_gpu")
SWAPS_BEFORE = "since its V1 engine vLLM recomputes preempted requests and swaps nothing"


def unused(scenario: Scenario, architecture: Architecture) -> tuple[str, ...]:
    """What is asked of an inference and changes nothing, each with the reason. ``scenario``: as it was asked."""
    if scenario.task != "inference":
        return ()
    by_engine = {"transformers": _transformers, "llama.cpp": _llama_cpp, "vllm": _vllm, "sglang": _sglang}.get(scenario.engine)
    found = [*_workload(scenario.inference), *_offload(scenario)]
    if scenario.engine in SERVED:
        found += _served(scenario)
    return (*found, *(by_engine(scenario, architecture) if by_engine else ()))


def _workload(ask: Inference) -> Iterator[str]:
    speculation, talk = ask.speculation, ask.conversation
    if speculation.method == "none" and speculation.tokens:
        yield f"inference.speculation.tokens: no method proposes the {speculation.tokens} tokens; choose one"
    if speculation.method != "none" and not speculation.tokens:
        yield "inference.speculation.tokens: 0: nothing is proposed; each proposed token takes a place of a sequence's cache"
    if speculation.method in ("none", "ngram", "mtp"):
        given = "draft" if speculation.draft is not None else "draft_parameters" if speculation.draft_parameters else ""
        if given:
            yield f"inference.speculation.{given}: method {speculation.method} takes no draft model"
    if speculation.method != "none":
        yield "inference.speculation: speed as if nothing were proposed; how many proposals are accepted is not known beforehand"
    if talk.turns == 1 and (talk.history != "keep" or talk.kept_tokens):
        yield "inference.conversation: one turn has no history to keep; raise turns"
    elif talk.history == "keep" and talk.kept_tokens:
        yield "inference.conversation.kept_tokens: history keep keeps everything"


def _offload(scenario: Scenario) -> Iterator[str]:
    offload = scenario.offload
    if offload.to == "nvme" and not offload.weights and not offload.kv_cache:
        yield "offload.to: nothing is offloaded"


def _served(scenario: Scenario) -> Iterator[str]:
    ask, spread, name = scenario.inference, scenario.parallel, NAMES[scenario.engine]
    if ask.attention not in ("auto", "sdpa"):
        yield f"inference.attention: {name} attends by kernels of its own over pages; {ask.attention} changes nothing"
    used, cards = spread.tensor * spread.pipeline * spread.data, scenario.hardware.gpus * scenario.hardware.nodes
    if used < cards:
        yield f"{used} of {cards} GPUs are used: parallel.tensor, pipeline or data spread the model"


def _vllm(scenario: Scenario, architecture: Architecture) -> Iterator[str]:
    from planner.engines.vllm.settings import V1_SINCE  # noqa: PLC0415  loaded for those who ask
    from planner.engines.vllm.versions import version_of  # noqa: PLC0415  loaded for those who ask

    options = scenario.inference.engine_options
    if options.get("swap_space") and version_of(options.get("version")) >= V1_SINCE:
        yield f"inference.engine_options.swap_space: {SWAPS_BEFORE}"
    if options.get("disable_hybrid_kv_cache_manager") is True and not _mixed(architecture):
        yield "inference.engine_options.disable_hybrid_kv_cache_manager: every layer of this model is cached alike"
    if scenario.inference.shared_prefix and options.get("enable_prefix_caching") is False:
        yield "inference.shared_prefix: enable_prefix_caching is off: every request holds its prefix itself"


def _sglang(scenario: Scenario, architecture: Architecture) -> Iterator[str]:
    from planner.engines.sglang.releases import release_of, version_of  # noqa: PLC0415  loaded for those who ask

    options = scenario.inference.engine_options
    release = release_of(version_of(options.get("version")))
    if "swa_full_tokens_ratio" in options and architecture.model_type not in release.windows:
        yield "inference.engine_options.swa_full_tokens_ratio: this release caches every layer of this model alike"
    given = [name for name in ("mamba_full_memory_ratio", "max_mamba_cache_size") if name in options]
    if given and not _has_states(architecture):
        yield f"inference.engine_options.{', '.join(given)}: the model has no recurrent states"


def _has_states(architecture: Architecture) -> bool:
    return any(isinstance(mixer, Recurrent) for layer in architecture.decoder.layers for mixer in layer.sequence)


def _mixed(architecture: Architecture) -> bool:
    return _has_windows(architecture) or _has_states(architecture)


def _has_windows(architecture: Architecture) -> bool:
    mixers = (mixer for layer in architecture.decoder.layers for mixer in layer.sequence)
    return any(isinstance(mixer, Attention) and (mixer.window_tokens or mixer.chunk_tokens) for mixer in mixers)


def _has_experts(architecture: Architecture) -> bool:
    return any(isinstance(mixer, MixtureOfExperts) for layer in architecture.decoder.layers for mixer in layer.channel)


def _transformers(scenario: Scenario, _: Architecture) -> Iterator[str]:
    ask, options = scenario.inference, scenario.inference.engine_options
    if ask.max_model_len is not None:
        yield "inference.max_model_len: generate takes no limit; the cache grows with the prompt and the new tokens"
    if ask.attention == "flash":
        yield "inference.attention: flash holds what sdpa holds, whose kernels on a GPU are fused too"
    quantised = options.get("cache_implementation") == "quantized" or ask.kv_cache in ("int2", "int4", "int8", "fp8")
    given = [name for name in CACHE_OPTIONS if name in options]
    if given and not quantised:
        yield f"inference.engine_options.{', '.join(given)}: only a quantised cache has them: cache_implementation quantized"


def _llama_cpp(scenario: Scenario, architecture: Architecture) -> Iterator[str]:
    ask, options = scenario.inference, scenario.inference.engine_options
    if ask.attention in ("flash", "paged"):
        yield f"inference.attention: llama.cpp has fused attention (flash_attn) or none; {ask.attention} is taken as fused"
    if ask.chunked_prefill is not None:
        yield "inference.chunked_prefill: llama.cpp cuts every prompt into n_ubatch tokens; set that option"
    if options.get("version"):
        yield "inference.engine_options.version: one release was read; its buffers stand for every other"
    yield from _pointless(options, architecture, scenario)
    yield from _files(options, scenario)


def _pointless(options: Mapping[str, object], architecture: Architecture, scenario: Scenario) -> Iterator[str]:
    """Options that this model or this machine gives nothing to do."""
    checks = {
        "the model has no experts": (("n_cpu_moe", "cpu_moe"), not _has_experts(architecture)),
        "no layer has a sliding window": (("swa_full",), not _has_windows(architecture)),
        "there is one GPU": (SPLIT_OPTIONS, scenario.hardware.gpus * scenario.hardware.nodes == 1),
        "no draft model is asked for": (DRAFT_OPTIONS, scenario.inference.speculation.method != "draft"),
    }
    for reason, (names, holds) in checks.items():
        given = [name for name in names if options.get(name) not in (None, False, "")]
        if given and holds:
            yield f"inference.engine_options.{', '.join(given)}: {reason}"


def _files(options: Mapping[str, object], scenario: Scenario) -> Iterator[str]:
    mapped = options.get("use_mmap", True) is not False
    if scenario.offload.to == "nvme" and scenario.offload.weights and mapped:
        yield (
            "offload.to: llama.cpp maps the file: weights off the GPU are counted as the host's and are read from the disk again "
            "where memory runs short"
        )
    if scenario.offload.to == "nvme" and (scenario.offload.kv_cache or (scenario.offload.weights and not mapped)):
        yield "offload.to: llama.cpp keeps caches, and weights that it does not map, in the host's memory"
    if options.get("use_mlock") is True:
        yield "inference.engine_options.use_mlock: what the host holds is kept from being swapped; it is not more"
