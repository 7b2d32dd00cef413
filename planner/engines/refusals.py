"""What serving engines refuse: lengths, formats, cards, ways of spreading and of proposing tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from planner.architecture.layers import Architecture
from planner.faults import Fault
from planner.formats import Format
from planner.gpu import Gpu
from planner.modelled import NotModelled
from planner.scenario import Inference, Scenario


def refuse_context(ask: Inference, limit: int | None, max_model_len: int, engine: str) -> list[Fault]:
    """Lengths the engine refuses: beyond the model's own limit, or requests beyond what the server accepts."""
    faults: list[Fault] = []
    if limit is not None and max_model_len > limit:
        message = f"{engine} refuses {max_model_len}: the model's own limit is {limit}; use at most that"
        faults.append(Fault("inference.max_model_len", message))
    elif ask.context_tokens > max_model_len:
        message = f"{ask.context_tokens} tokens a request exceed max_model_len {max_model_len}; shorten it or raise the limit"
        faults.append(Fault("inference.prompt_tokens", message))
    return faults


def refuse_chunks(ask: Inference, step_tokens: int, prompt_tokens: int, engine: str, option: str) -> list[Fault]:
    """A prompt that is not cut into chunks must fit one step (vLLM ``SchedulerConfig.verify_max_model_len``, others alike)."""
    if ask.chunked_prefill is not False or prompt_tokens <= step_tokens:
        return []
    message = f"without chunked prefill {engine} takes a prompt in one step: {prompt_tokens} tokens exceed {option} {step_tokens}"
    return [Fault("inference.chunked_prefill", f"{message}; raise it or use true")]


def refuse_dtype(fmt: Format, gpu: Gpu, engine: str, minimum: Mapping[str, tuple[int, int]]) -> list[Fault]:
    """Formats the card's kernels can't read. ``minimum``: compute capability by the beginning of a format's name."""
    if gpu.compute_capability is None:
        return []
    for start, capability in minimum.items():
        if fmt.name.startswith(start) and gpu.compute_capability < capability:
            have = ".".join(map(str, gpu.compute_capability))
            need = ".".join(map(str, capability))
            return [Fault("weights", f"{engine} runs {fmt.name} from compute capability {need} on; {gpu.name} has {have}")]
    return []


def halved_as_fp16(fmt: Format, gpu: Gpu, engine: str) -> list[str]:
    """In words that bf16 runs as fp16 where the card has no bf16: as many bytes."""
    if fmt.name != "bf16" or not gpu.lacks_bf16:
        return []
    return [f"weights: {engine} runs bf16 as fp16 on {gpu.name}, unless bf16 is forced, which it refuses"]


def refuse_card(gpu: Gpu, engine: str, vendors: Sequence[str]) -> list[Fault]:
    """Cards of makers that the engine has no backend for."""
    if gpu.vendor in vendors:
        return []
    return [Fault("hardware.gpu", f"{engine} runs on GPUs of {', '.join(vendors)}; {gpu.name} is of {gpu.vendor}; use llama.cpp")]


def refuse_format(fmt: Format, engine: str, refused: Mapping[str, str]) -> list[Fault]:
    """Formats the engine has no loader for. ``refused``: the reason by the beginning of a format's name."""
    for start, reason in refused.items():
        if fmt.name.startswith(start):
            return [Fault("weights", f"{engine} cannot run {fmt.name}: {reason}")]
    return []


def refuse_layout(scenario: Scenario, engine: str, *, splits_context: bool = False) -> list[Fault]:
    """More ranks than GPUs, and ways of spreading that serving doesn't know. ``splits_context``: it has context parallelism."""
    spread, cards = scenario.parallel, scenario.hardware.gpus * scenario.hardware.nodes
    faults = [
        Fault(f"parallel.{name}", f"{engine} has no such way of spreading a served model; use {default}")
        for name, value, default in (
            ("context", spread.context != 1 and not splits_context, "1"),
            ("sharding", spread.sharding != "none", "none"),
        )
        if value
    ]
    ranks = spread.tensor * spread.pipeline * spread.data
    if ranks > cards:
        message = f"{spread.tensor} · {spread.pipeline} · {spread.data} ranks need {ranks} GPUs, there are {cards}"
        faults.append(Fault("hardware.gpus", message))
    return faults


def refuse_offload(scenario: Scenario, engine: str, offloads: Sequence[str]) -> list[Fault]:
    """Keeping on the host what the engine has no way to keep there. ``offloads``: what it has."""
    asked = {"weights": scenario.offload.weights, "kv_cache": scenario.offload.kv_cache}
    faults = [
        Fault(f"offload.{name}", f"{engine} has no way to keep {name.replace('_', ' ')} on the host; use 0")
        for name, share in asked.items()
        if share and name not in offloads
    ]
    if scenario.offload.to == "nvme" and scenario.offload.weights and "weights" in offloads:
        faults.append(Fault("offload.to", f"{engine} keeps offloaded weights in the machine's memory; use cpu"))
    if scenario.offload.kv_cache == 1 and not faults:
        message = f"{engine} computes on blocks of the GPU's pool, blocks on the host are beside it; use less than 1"
        faults.append(Fault("offload.kv_cache", message))
    if scenario.offload.optimizer:
        faults.append(Fault("offload.optimizer", "a served model has no optimizer; use 0"))
    return faults


def refuse_speculation(scenario: Scenario, engine: str, methods: Sequence[str]) -> list[Fault]:
    """Ways of proposing tokens that the engine does not have."""
    method = scenario.inference.speculation.method
    if method in ("none", *methods):
        return []
    return [Fault("inference.speculation.method", f"{engine} proposes no tokens by {method}; use none or {', '.join(methods)}")]


def refuse_expert(scenario: Scenario, architecture: Architecture) -> list[Fault]:
    """Expert parallelism spans the tensor- and data-parallel ranks, and needs experts."""
    spread = scenario.parallel
    if spread.expert == 1:
        return []
    ranks = spread.tensor * spread.data
    if spread.expert != ranks:
        message = f"experts are spread over all {ranks} tensor- and data-parallel ranks; use {ranks} or 1"
        return [Fault("parallel.expert", message)]
    if not any(
        weight.role == "expert" for layer in architecture.decoder.layers for mixer in layer.channel for weight in mixer.weights
    ):
        return [Fault("parallel.expert", "the model has no experts; use 1")]
    return []


def require_decoder(architecture: Architecture, engine: str) -> None:
    """Raise :class:`NotModelled` for what has no pool of this kind."""
    if architecture.kind != "decoder":
        raise NotModelled(f"{engine}: an {architecture.kind} model keeps no decoder cache of its own")
