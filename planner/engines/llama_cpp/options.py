"""llama.cpp's options as a scenario sets them, defaults filled in; and what llama.cpp itself refuses.

Source: llama.cpp ``src/llama-context.cpp`` (``llama_init_from_model``), ``tools/server/server-context.cpp``, ``common/arg.cpp``,
0.5.0-dev.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal, InvalidOperation
from fractions import Fraction

from planner.architecture.layers import Architecture, Attention, LatentAttention
from planner.engines.llama_cpp.placement import Split
from planner.faults import Fault, Faults
from planner.formats import GGML_TYPES
from planner.memo import remember_by_identity
from planner.modelled import NotModelled
from planner.scenario import Inference, Scenario

OPTIONS = "inference.engine_options."
MOST_SEQUENCES = 256
"""``LLAMA_MAX_SEQ``."""
MOST_DEVICES = 16
"""``GGML_CUDA_MAX_DEVICES``."""
CACHE_NAMES = {"fp32": "f32", "fp16": "f16", "bf16": "bf16", "auto": "f16"}
CACHE_TYPES = ("f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "iq4_nl", "q5_0", "q5_1")
"""``kv_cache_types`` of ``common/arg.cpp``."""
UNMODELLED_SPECULATIONS = {"mtp": "the graph of multi-token-prediction modules", "eagle": "the graph of an EAGLE head"}


def options_of(scenario: Scenario, architecture: Architecture, notes: list[str]) -> dict[str, object]:
    """The options set, and for the rest what the workload asks for, in words among the notes."""
    ask = scenario.inference
    options: dict[str, object] = dict(ask.engine_options)
    cache = CACHE_NAMES.get(ask.kv_cache, ask.kv_cache)
    slots = ask.batch * ask.samples
    sequences = integer(options, "n_seq_max", slots)
    proposed = ask.speculation.proposed
    defaults: dict[str, object] = {
        "n_seq_max": slots,
        "n_ctx": _context_tokens(ask, architecture, sequences),
        "flash_attn": ask.attention != "eager",
        "type_k": cache,
        "type_v": cache,
        "n_outputs_max": sequences * (1 + proposed),
    }
    if scenario.offload.kv_cache:
        defaults["offload_kqv"] = False
    taken = {name: value for name, value in defaults.items() if name not in options}
    if "n_ctx" in taken:
        notes.append(f"inference.engine_options.n_ctx: {taken['n_ctx']}, the prompt and new tokens of {sequences} slots")
    if ask.samples > 1 and "n_seq_max" in taken:
        notes.append(f"inference.engine_options.n_seq_max: {slots}, a slot for each of {ask.samples} samples of a request")
    if ask.shared_prefix:
        notes.append("llama-server keeps each slot's prompt itself: inference.shared_prefix saves nothing")
    if "n_outputs_max" in taken:
        each = f"{1 + proposed} tokens" if proposed else "one token"
        notes.append(f"inference.engine_options.n_outputs_max: {taken['n_outputs_max']}, {each} a slot, as llama-server sets it")
    return taken | options


def draft_options(options: Mapping[str, object]) -> dict[str, object]:
    """The options of a draft model's context: the target's, but caches, offloaded layers and outputs of its own."""
    own = {"type_k": "f16", "type_v": "f16", "n_gpu_layers": -1}
    given = {name: options[f"{name}_draft"] for name in own if f"{name}_draft" in options}
    return (
        dict(options)
        | own
        | given
        | {"n_outputs_max": integer(options, "n_seq_max", 1), "n_cpu_moe": 0, "cpu_moe": False, "override_tensor": ""}
    )


def split_of(options: Mapping[str, object]) -> Split:
    """How the options spread a model over devices."""
    shares = _shares(str(options.get("tensor_split", "")))
    return Split(str(options.get("split_mode", "layer")), shares or (), integer(options, "main_gpu", 0))


def gpu_layers(scenario: Scenario, options: Mapping[str, object], architecture: Architecture) -> int:
    """``n_gpu_layers``, from the share of offloaded weights where only that is given."""
    share = scenario.offload.weights
    if "n_gpu_layers" in options or not share:
        return integer(options, "n_gpu_layers", -1)
    return round((1 - share) * (len(architecture.decoder.layers) + 1))


def cpu_expert_layers(options: Mapping[str, object], architecture: Architecture) -> int:
    """Layers whose routed experts stay on the host."""
    return len(architecture.decoder.layers) if options.get("cpu_moe") else integer(options, "n_cpu_moe", 0)


def refuse(scenario: Scenario, architecture: Architecture, options: Mapping[str, object], devices: int) -> None:
    """Raise what llama.cpp refuses, all at once."""
    faults = cache_type_faults(architecture, options)
    if integer(options, "n_seq_max", 1) > MOST_SEQUENCES:
        faults.append(Fault(f"{OPTIONS}n_seq_max", f"llama.cpp serves at most {MOST_SEQUENCES} sequences"))
    faults.extend(
        Fault(f"parallel.{dimension}", "llama.cpp splits a model by layers over its devices; use 1")
        for dimension in ("tensor", "expert", "data", "context")
        if getattr(scenario.parallel, dimension) != 1
    )
    if scenario.parallel.pipeline not in (1, devices):
        message = f"llama.cpp lays layers over all {devices} devices it is given; use 1, got {scenario.parallel.pipeline}"
        faults.append(Fault("parallel.pipeline", message))
    if scenario.parallel.sharding != "none":
        faults.append(Fault("parallel.sharding", "llama.cpp shards nothing over replicas; use none"))
    faults.extend(_device_faults(options, devices))
    faults.extend(_length_faults(scenario.inference))
    if scenario.offload.optimizer:
        faults.append(Fault("offload.optimizer", "a served model has no optimizer; use 0"))
    if scenario.offload.kv_cache not in (0.0, 1.0):
        message = f"llama.cpp keeps every cache on the host or none beside its layer; use 0 or 1, got {scenario.offload.kv_cache:g}"
        faults.append(Fault("offload.kv_cache", message))
    if faults:
        raise Faults(faults)
    method = scenario.inference.speculation.method
    if method in UNMODELLED_SPECULATIONS:
        raise NotModelled(f"{UNMODELLED_SPECULATIONS[method]} is not derived for llama.cpp")
    if scenario.inference.adapters.count:
        raise NotModelled("llama.cpp's graphs with adapters are not derived")


def _length_faults(ask: Inference) -> list[Fault]:
    """A request longer than its slot, which llama-server refuses (``tools/server/server-context.cpp``, "exceeds the available")."""
    if ask.max_model_len is None or ask.context_tokens <= ask.max_model_len:
        return []
    message = f"{ask.context_tokens} tokens a request exceed max_model_len {ask.max_model_len}; shorten it or raise the limit"
    return [Fault("inference.prompt_tokens", message)]


def _device_faults(options: Mapping[str, object], devices: int) -> list[Fault]:
    shares = _shares(str(options.get("tensor_split", "")))
    faults: list[Fault] = []
    if shares is None:
        faults.append(Fault(f"{OPTIONS}tensor_split", "must be shares of the devices separated by commas, such as 3,1"))
    elif len(shares) > max(devices, MOST_DEVICES):
        faults.append(Fault(f"{OPTIONS}tensor_split", f"has {len(shares)} shares; llama.cpp takes at most {MOST_DEVICES}"))
    elif any(shares) and devices and not any(shares[:devices]):
        faults.append(Fault(f"{OPTIONS}tensor_split", f"gives nothing to the {devices} devices there are"))
    main = integer(options, "main_gpu", 0)
    if options.get("split_mode") == "none" and devices and main >= devices:
        faults.append(Fault(f"{OPTIONS}main_gpu", f"must be below {devices}, the number of devices, got {main}"))
    return faults


def cache_type_faults(architecture: Architecture, options: Mapping[str, object]) -> list[Fault]:
    """What is wrong with the cache's types for a model."""
    flash = bool(options["flash_attn"])
    is_latent, *widths = _head_widths(architecture)
    faults: list[Fault] = []
    for name, found in zip(("type_k", "type_v"), widths, strict=True):
        asked = str(options[name]).lower()
        if asked not in CACHE_TYPES:
            fault = Fault("inference.kv_cache", f"llama.cpp has no cache type {options[name]}; use one of {', '.join(CACHE_TYPES)}")
            faults += [fault] if fault not in faults else []
            continue
        kind = GGML_TYPES[asked.upper()]
        wrong = [width for width in sorted(found) if width % kind.block_values]
        if wrong and flash:
            message = f"blocks of {kind.block_values} values don't divide a head of {wrong[0]}; use f16"
            faults.append(Fault(f"{OPTIONS}{name}", message))
        if kind.is_quantized and not flash and name == ("type_k" if is_latent else "type_v"):
            faults.append(Fault(f"{OPTIONS}{name}", "a quantised cache of values needs flash_attn: true"))
    return faults


@remember_by_identity(64)
def _head_widths(architecture: Architecture) -> tuple[bool, frozenset[int], frozenset[int]]:
    """Whether attention is latent; the widths of heads of keys and of values."""
    mixers = [mixer for layer in architecture.decoder.layers for mixer in layer.sequence]
    heads = [mixer for mixer in mixers if isinstance(mixer, Attention)]
    is_latent = any(isinstance(mixer, LatentAttention) for mixer in mixers)
    return is_latent, frozenset(mixer.head_dim for mixer in heads), frozenset(mixer.value_head_dim for mixer in heads)


def integer(options: Mapping[str, object], name: str, default: int) -> int:
    """A whole number among the options."""
    value = options.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) else default


def _context_tokens(ask: Inference, architecture: Architecture, sequences: int) -> int:
    each = ask.max_model_len or ask.context_tokens
    return (each or architecture.max_context_tokens or 0) * sequences


def _shares(text: str) -> tuple[Fraction, ...] | None:
    """Shares as written, separated by commas or slashes as llama.cpp takes them; None where they are none."""
    if not text.strip():
        return ()
    try:
        found = tuple(Fraction(Decimal(part)) for part in text.replace("/", ",").split(","))
    except (InvalidOperation, ValueError, OverflowError):
        return None
    return found if all(share >= 0 for share in found) else None
