"""How long it takes: a roofline of each part of each kind of layer (Williams et al. 2009), and what binds.

A part (a layer's projections, its attention, its experts, the head) takes as long as its arithmetic or as its reading
from memory, whichever is longer, at the share of the card's peak that is achieved; parts follow one another. What goes
over links (all-reduces, tokens to experts and to the next stage, offloaded weights and cache) comes on top. Activations
between parts are taken to stay in the caches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from planner.architecture.counts import is_routed, layer_groups
from planner.architecture.layers import Architecture, Attention, LatentAttention, MixtureOfExperts, Recurrent, SequenceMixer, Weight
from planner.components.cache import cache_bytes
from planner.formats.checkpoint import resolve_format
from planner.formats.format import Format, weight_bytes
from planner.gpu import Gpu
from planner.memo import remember_by_identity
from planner.record import record
from planner.scenario import Inference, Scenario
from planner.sharding import rank_kv_heads

BANDWIDTH_FRACTION = 0.72
"""Share of the memory bandwidth that decoding achieves: Llama-7B in bf16 on an A100 ("Accelerating Generative AI with
PyTorch II: GPT, Fast", PyTorch blog 2023)."""
PREFILL_FLOPS_FRACTION = 0.6
"""Share of the peak arithmetic in a prefill: between what training achieves and the 76 % of large prefills of PaLM (Pope
et al. 2022, "Efficiently Scaling Transformer Inference")."""
TRAINING_FLOPS_FRACTION = 0.52
"""The same in training: 22 billion to one trillion parameters reach 41.5 to 56.3 % (Korthikanti et al. 2022, table 5)."""
LINK_FRACTION = 0.8
"""Share of a link's rate that collectives achieve for large messages (all-reduce bus bandwidth of nccl-tests on NVLink)."""
COLLECTIVE_S, NVLINK_STEP_S, PCIE_STEP_S = 3.6e-6, 0.47e-6, 1.0e-6
"""What an all-reduce of any size takes, and each of its 2 · (n - 1) steps: NCCL's own model of a ring in its low-latency
protocol (``src/graph/tuning.cc``, ``baseLat`` and ``hwLat``)."""
HOST_FRACTION = 0.8
"""Share of PCIe's payload rate that copies from pinned memory achieve."""
STATE_FLOPS = 6
"""Operations on each value of a recurrent state for a token: decay, update by an outer product, reading, two each."""
BACKWARD = 2
"""A backward takes twice the forward: gradients of inputs and of weights (Kaplan et al. 2020, section 2.1)."""
FALLBACKS = {"fp8": ("bf16", "fp16", "fp32"), "bf16": ("fp16", "fp32"), "fp16": ("bf16", "fp32"), "fp4": ("fp8", "bf16", "fp16"),
             "int8": ("bf16", "fp16", "fp32"), "fp32": ("bf16",)}  # fmt: skip
"""Units that do the arithmetic where a card has none for a dtype."""
COMPUTES_IN = {"fp8": "fp8", "fp8-block": "fp8", "nvfp4": "fp4", "int8": "int8", "fp32": "fp32", "fp16": "fp16"}
"""Formats whose products run in a dtype of their own; all others are turned into 16 bit first."""
MOST_BATCH = 4096


@record
class Rates:
    """What one GPU achieves: operations and bytes a second; None where the catalog does not say."""

    flops: float
    bytes: float
    link_bytes: float | None
    host_bytes: float | None
    link_step_s: float = NVLINK_STEP_S


@record
class Part:
    """Arithmetic and memory traffic of one part of the model, of all its layers together."""

    name: str
    flops: float
    bytes: float


@record
class Pace:
    """One pass: seconds, and by what it is bound: compute, bandwidth, link or host."""

    seconds: float
    by: Mapping[str, float]

    @property
    def bound_by(self) -> str:
        """What takes most of the time."""
        return max(self.by, key=lambda name: self.by[name])


@record
class Share:
    """What one part, the links or the host's copies take of a pass: seconds, and by what they are bound."""

    name: str
    seconds: float
    bound_by: str


def rates_of(gpu: Gpu, dtype: str, flops_fraction: float) -> Rates | None:
    """The rates in ``dtype``, calibrated where they were measured; None for a card whose rates are not known."""
    unit = next((name for name in (dtype, *FALLBACKS.get(dtype, ())) if gpu.flops_for(name)), None)
    if unit is None or gpu.bandwidth_bytes_per_s is None:
        return None
    measured = gpu.calibration
    achieved = dict(measured.flops_fractions).get(unit) if measured else None
    bandwidth = measured.bandwidth_fraction if measured else None
    link, host = gpu.link_bytes_per_s or gpu.pcie_bytes_per_s, gpu.host_bytes_per_s
    return Rates(
        (gpu.flops_for(unit) or 0) * (achieved or flops_fraction),
        gpu.bandwidth_bytes_per_s * (bandwidth or BANDWIDTH_FRACTION),
        link and link * LINK_FRACTION,
        host and host * HOST_FRACTION,
        NVLINK_STEP_S if gpu.link_bytes_per_s else PCIE_STEP_S,
    )


def distinct_experts(experts: int, per_token: int, tokens: int) -> float:
    """Experts that ``tokens`` tokens wake, each choosing evenly: E · (1 − (1 − k/E)ᵗ)."""
    return experts * (1 - (1 - per_token / experts) ** tokens)


def parts_of(
    architecture: Architecture, fmt: Format, batch: int, tokens: int, past: int, *, all_logits: bool = False
) -> Iterator[Part]:
    """The parts of one forward of ``batch`` sequences, each ``tokens`` new tokens behind ``past`` cached ones."""
    resolved = resolve_format(fmt, architecture)
    count = batch * tokens
    for layer, times in layer_groups(architecture.decoder):
        mixers = [*(weight for mixer in layer.sequence for weight in mixer.weights), *layer.borrowed]
        yield _products("projections", resolved, mixers, count, times)
        for mixer in layer.sequence:
            yield _mixing(mixer, batch, tokens, past, times)
        for channel in layer.channel:
            if isinstance(channel, MixtureOfExperts):
                yield from _expert_parts(channel, resolved, count, times)
            else:
                yield _products("feed-forward", resolved, channel.weights, count, times)
    head = architecture.head or (architecture.embeddings[:1] if architecture.tied_head else ())
    yield _products("head", resolved, head, count if all_logits else batch, 1)
    cached = cache_bytes(architecture, batch, past + tokens)
    yield Part("cache", 0.0, float(cached.logical_bytes if tokens == 1 else batch * tokens * cached.per_token_bytes))


def _expert_parts(channel: MixtureOfExperts, fmt: Format, tokens: int, times: int) -> Iterator[Part]:
    experts, per_token = channel.num_experts, channel.experts_per_token
    always = [weight for weight in channel.weights if not is_routed(weight)]
    routed = [weight for weight in channel.weights if is_routed(weight)]
    awake = distinct_experts(experts, per_token, tokens) / experts
    yield _products("shared experts and router", fmt, always, tokens, times)
    yield _products("experts", fmt, routed, tokens, times, per_token / experts, awake)


def pace_of(parts: Iterator[Part], rates: Rates, ranks: int = 1) -> Pace:
    """The time of the parts, each spread evenly over ``ranks`` GPUs."""
    by = {"compute": 0.0, "bandwidth": 0.0}
    for part in parts:
        share = _share(part, rates, ranks)
        by[share.bound_by] += share.seconds
    return Pace(sum(by.values()), by)


def speed(scenario: Scenario, architecture: Architecture, fmt: Format, gpu: Gpu) -> dict[str, float | str | None]:
    """``prefill_s``, ``time_per_token_s``, ``tokens_per_s``, ``step_s`` and ``bound_by`` of a settled scenario.

    Beside them: what binds the prefill, and from which batch on a decode step spends more on its matrix products than on
    reading their weights (the cache, which every sequence reads for itself, never gains from a batch). Empty for a card
    whose rates are not known and for weights of unknown size.
    """
    if scenario.engine == "llama.cpp":
        from planner.engines.llama_cpp.speed import llama_cpp_speed  # noqa: PLC0415  loaded for those who ask

        return llama_cpp_speed(scenario, architecture, fmt, gpu)
    if fmt.unknown or fmt.file_type:
        return {}
    if scenario.task == "training":
        from planner.step_time import training_speed  # noqa: PLC0415  takes this module's parts and rates

        return training_speed(scenario, architecture, fmt, gpu)
    rates = rates_of(gpu, COMPUTES_IN.get(fmt.name, "bf16"), PREFILL_FLOPS_FRACTION)
    if rates is None:
        return {}
    ask = scenario.inference
    sequences, middle = decoding(ask)
    prefill = _pass(scenario, architecture, fmt, rates, *prefilling(ask))
    step = _pass(scenario, architecture, fmt, rates, sequences, 1, middle)

    def products_by_compute(batch: int) -> bool:
        products = (part for part in parts_of(architecture, fmt, batch, 1, 0) if part.name != "cache")
        return pace_of(products, rates).bound_by == "compute"

    return {
        "prefill_s": prefill.seconds,
        "time_per_token_s": step.seconds,
        "tokens_per_s": sequences / step.seconds,
        "step_s": None,
        "bound_by": step.bound_by,
        "prefill_bound_by": prefill.bound_by,
        "compute_bound_from_batch": _first(products_by_compute),
    }


def decoding(ask: Inference) -> tuple[int, int]:
    """Sequences that decode at once, every sample one of its own, and the tokens behind them halfway through their answers.

    Of a conversation it is the last turn, behind what is kept of the others.
    """
    new = ask.new_tokens or 1
    return ask.batch * ask.samples, max(1, ask.context_tokens - new) + new // 2


def prefilling(ask: Inference) -> tuple[int, int, int]:
    """(sequences, tokens of each, tokens cached before) of the last turn's prefill.

    ``generate`` passes samples and history anew; a server passes a prompt once for all samples, and finds the turns it has
    answered in its cache.
    """
    prompt, before = ask.prompt_tokens or 1, max(0, ask.context_tokens - (ask.prompt_tokens or 1) - (ask.new_tokens or 1))
    if ask.engine == "transformers":
        return ask.batch * ask.samples, before + prompt, 0
    return (ask.batch, prompt, before) if ask.conversation.history == "keep" else (ask.batch, before + prompt, 0)


def tokens_per_s(
    scenario: Scenario, architecture: Architecture, fmt: Format, gpu: Gpu, batches: Sequence[int]
) -> list[float] | None:
    """Decoded tokens a second, of all sequences together, at each batch; None for a card whose rates are not known."""
    rates = rates_of(gpu, COMPUTES_IN.get(fmt.name, "bf16"), PREFILL_FLOPS_FRACTION)
    ask = scenario.inference
    _, middle = decoding(ask)
    if rates is None:
        return None
    at_once = [batch * ask.samples for batch in batches]
    return [count / _pass(scenario, architecture, fmt, rates, count, 1, middle).seconds for count in at_once]


def _pass(scenario: Scenario, architecture: Architecture, fmt: Format, rates: Rates, batch: int, tokens: int, past: int) -> Pace:
    """One forward of every sequence, with what goes over the links.

    Data-parallel ranks share the sequences; stages work on as many groups of them at once as there are stages (one
    sequence has one stage working at a time), and the stage with most layers sets the pace.
    """
    sequences, turns = _groups(scenario, architecture, batch, tokens)
    by = _group_pass(scenario, architecture, fmt, rates, (sequences, tokens, past))
    return Pace(sum(by.values()) * turns, {name: seconds * turns for name, seconds in by.items()})


def step_shares(scenario: Scenario, architecture: Architecture, fmt: Format, gpu: Gpu) -> tuple[Share, ...]:
    """What ``time_per_token_s`` of :func:`speed` sums up, the largest first; empty where it is not known or not of such parts."""
    rates = rates_of(gpu, COMPUTES_IN.get(fmt.name, "bf16"), PREFILL_FLOPS_FRACTION)
    if rates is None or scenario.task == "training" or scenario.engine == "llama.cpp" or fmt.unknown or fmt.file_type:
        return ()
    running, middle = decoding(scenario.inference)
    sequences, turns = _groups(scenario, architecture, running, 1)
    seconds: dict[tuple[str, str], float] = {}
    for share in _group_shares(scenario, architecture, fmt, rates, (sequences, 1, middle)):
        key = share.name, share.bound_by
        seconds[key] = seconds.get(key, 0.0) + share.seconds * turns
    found = (Share(name, taken, bound_by) for (name, bound_by), taken in seconds.items() if taken)
    return tuple(sorted(found, key=lambda share: -share.seconds))


def _groups(scenario: Scenario, architecture: Architecture, batch: int, tokens: int) -> tuple[int, float]:
    """Sequences that go through the stages together, and for how many such groups' time a pass of all sequences takes."""
    spread, layers = scenario.parallel, len(architecture.decoder.layers)
    requests = -(-batch // spread.data)
    groups = min(spread.pipeline, requests)
    slowest = -(-layers // spread.pipeline) / layers
    return -(-requests // groups), max(1.0, groups * slowest) if tokens == 1 else 1 + (groups - 1) * slowest


def _group_pass(
    scenario: Scenario, architecture: Architecture, fmt: Format, rates: Rates, shape: tuple[int, int, int]
) -> dict[str, float]:
    """Seconds of one group of sequences through all stages, by what binds; ``shape``: sequences, new tokens, cached ones."""
    by = {"compute": 0.0, "bandwidth": 0.0}
    for share in _group_shares(scenario, architecture, fmt, rates, shape):
        by[share.bound_by] = by.get(share.bound_by, 0.0) + share.seconds
    return by


def _group_shares(
    scenario: Scenario, architecture: Architecture, fmt: Format, rates: Rates, shape: tuple[int, int, int]
) -> Iterator[Share]:
    spread, offload = scenario.parallel, scenario.offload
    parts = list(parts_of(architecture, fmt, *shape))
    if spread.expert > 1 and spread.data > 1:
        parts = [*(part for part in parts if part.name != "experts"), *_experts_of_all(architecture, fmt, shape, spread.data)]
    parts = [_copied(part, scenario, architecture) if part.name == "cache" else part for part in parts]
    yield from (_share(part, rates, spread.tensor) for part in parts)
    if rates.link_bytes and (linked := _link_s(scenario, architecture, shape[0] * shape[1], rates)):
        yield Share("links", linked, "link")
    if rates.link_bytes and spread.context > 1 and shape[1] == 1:
        yield Share("shared context", _context_s(scenario, architecture, shape[0], rates.link_bytes), "link")
    moved = offload.weights * sum(part.bytes for part in parts if part.name != "cache")
    moved += offload.kv_cache * sum(part.bytes for part in parts if part.name == "cache")
    if moved and rates.host_bytes:
        yield Share("what is offloaded", moved / spread.tensor / rates.host_bytes, "host")


def _share(part: Part, rates: Rates, ranks: int) -> Share:
    compute, reading = part.flops / rates.flops / ranks, part.bytes / rates.bytes / ranks
    return Share(part.name, max(compute, reading), "compute" if compute > reading else "bandwidth")


def _copied(cache: Part, scenario: Scenario, architecture: Architecture) -> Part:
    """What all tensor-parallel ranks read of the cache.

    Heads and latents that several keep are read by each, but where context parallelism gives each a share of the tokens.
    """
    tensor, context = scenario.parallel.tensor, scenario.parallel.context
    return Part(cache.name, cache.flops, cache.bytes * cache_copies(architecture, tensor) / context)


@remember_by_identity(64)
def cache_copies(architecture: Architecture, tensor: int) -> float:
    """How often ``tensor`` ranks keep a cached token, weighed by its width in each layer."""
    whole = held = 0
    for layer in architecture.decoder.layers:
        for mixer in layer.sequence:
            if isinstance(mixer, LatentAttention):
                width = mixer.kv_lora_rank + mixer.qk_rope_head_dim
                whole, held = whole + width, held + width * tensor
            elif isinstance(mixer, Attention):
                width = mixer.head_dim + mixer.value_head_dim
                whole, held = whole + mixer.num_kv_heads * width, held + rank_kv_heads(mixer.num_kv_heads, tensor) * tensor * width
    return held / whole if whole else 1.0


def _experts_of_all(architecture: Architecture, fmt: Format, shape: tuple[int, int, int], ranks: int) -> Iterator[Part]:
    """A data-parallel rank's share of the experts, which work for the tokens of all ranks."""
    sequences, tokens, past = shape
    for part in parts_of(architecture, fmt, sequences * ranks, tokens, past):
        if part.name == "experts":
            yield Part(part.name, part.flops / ranks, part.bytes / ranks)


def _link_s(scenario: Scenario, architecture: Architecture, tokens: int, rates: Rates) -> float:
    """Seconds on the links: all-reduces of tensor ranks, tokens sent to experts and back, hidden states between stages.

    Experts that lie over data-parallel ranks get each token once a rank at most and send it back (DeepSeek-V3, section
    3.2.2), in place of a layer's second all-reduce.
    """
    spread, layers, link_bytes = scenario.parallel, architecture.decoder.layers, rates.link_bytes or 1.0
    size = tokens * architecture.hidden_size * 2
    sent = [
        min(channel.experts_per_token, spread.expert)
        for layer in layers
        for channel in layer.channel
        if isinstance(channel, MixtureOfExperts) and spread.data > 1 and spread.expert > 1
    ]
    seconds = all_reduce_s(2 * len(layers) - len(sent), size, spread.tensor, link_bytes, rates.link_step_s)
    seconds += 2 * sum(sent) * size / spread.tensor * (1 - 1 / spread.expert) / link_bytes
    return seconds + (spread.pipeline - 1) * size / link_bytes


def _context_s(scenario: Scenario, architecture: Architecture, tokens: int, link_bytes: float) -> float:
    """Seconds that ranks sharing a context take in a decode step to gather queries and to reduce outputs."""
    spread = scenario.parallel
    return tokens * 2 * (spread.context - 1) * _gathered(architecture) / spread.tensor / link_bytes


def _gathered(architecture: Architecture) -> int:
    """Values of a token that ranks sharing its context gather and reduce: queries and outputs of every head."""
    total = 0
    for layer in architecture.decoder.layers:
        for mixer in layer.sequence:
            if isinstance(mixer, LatentAttention):
                total += mixer.num_heads * (2 * mixer.kv_lora_rank + mixer.qk_rope_head_dim)
            elif isinstance(mixer, Attention):
                total += mixer.num_heads * (mixer.head_dim + mixer.value_head_dim)
    return total


def all_reduce_s(times: int, size_bytes: float, ranks: int, link_bytes: float, step_s: float = 0.0) -> float:
    """Seconds of ``times`` ring all-reduces: each rank sends and receives 2 · (n − 1) / n of the size.

    ``step_s``: what each of the 2 · (n − 1) steps takes at least; 0 leaves latencies out, as where work hides them.
    """
    latency = COLLECTIVE_S + 2 * (ranks - 1) * step_s if step_s and ranks > 1 else 0.0
    return times * (2 * (ranks - 1) / ranks * size_bytes / link_bytes + latency)


def _products(
    name: str, fmt: Format, weights: Sequence[Weight], tokens: int, times: int, share: float = 1.0, awake: float = 1.0
) -> Part:
    """Matrices that ``tokens`` tokens pass: 2 operations a weight and token; each is read once.

    ``share`` of them works for a token, ``awake`` of them is read.
    """
    matrices = [weight for weight in weights if len(weight.shape) >= 2 and not weight.is_buffer]
    values = sum(_values(weight) for weight in matrices)
    size = sum(weight_bytes(fmt, weight).total_bytes for weight in matrices)
    return Part(name, 2.0 * tokens * values * share * times, float(size) * awake * times)


def _values(weight: Weight) -> int:
    total = weight.count
    for extent in weight.shape:
        total *= extent
    return total


def _mixing(mixer: SequenceMixer, batch: int, tokens: int, past: int, times: int) -> Part:
    """Scores and values of attention over what each token sees, or the update and reading of a state."""
    if isinstance(mixer, Recurrent):
        return Part("state", float(STATE_FLOPS * batch * tokens * mixer.state_numel * times), 0.0)
    if isinstance(mixer, LatentAttention):
        rope = mixer.qk_rope_head_dim
        width = 2 * mixer.kv_lora_rank + rope if tokens == 1 else mixer.qk_nope_head_dim + rope + mixer.v_head_dim
        return Part("attention", 2.0 * mixer.num_heads * width * batch * _seen(tokens, past, None) * times, 0.0)
    width = mixer.head_dim + mixer.value_head_dim
    window = mixer.window_tokens or mixer.chunk_tokens
    return Part("attention", 2.0 * mixer.num_heads * width * batch * _seen(tokens, past, window) * times, 0.0)


def _seen(tokens: int, past: int, window: int | None) -> int:
    """Pairs of a new token and one it sees, itself included: Σ min(past + i, window)."""
    if window is None or past + tokens <= window:
        return tokens * past + tokens * (tokens + 1) // 2
    before = max(0, min(tokens, window - past))
    return before * past + before * (before + 1) // 2 + (tokens - before) * window


def _first(reached: Callable[[int], bool]) -> int | None:
    """The first batch up to :data:`MOST_BATCH` from which on something holds, None when it does not there."""
    if not reached(MOST_BATCH):
        return None
    low, high = 0, MOST_BATCH
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if reached(middle) else (middle, high)
    return high
