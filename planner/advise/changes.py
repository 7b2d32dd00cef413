"""Changes a plan may take, in the engine's own terms, each with what it costs.

A change is a whole scenario. Which of them help is the predictor's to say; here it is only said which are possible.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from planner.architecture.layers import MixtureOfExperts
from planner.record import record

if TYPE_CHECKING:
    from planner.architecture.layers import Architecture
    from planner.scenario import Scenario

NO_COST, SLIGHT, CLEAR, LARGE, LARGEST = range(5)
"""How much a change costs, in quality or in speed."""


@record
class Change:
    """One step away from a plan. ``effort``: quality and speed together, from 0 to 6. ``kind``: a later one replaces it."""

    kind: str
    title: str
    cost: str
    effort: int
    scenario: Scenario
    because: str = ""


@record
class Dial:
    """Changes of one kind from the mildest to the strongest: ``at(0)`` … ``at(count - 1)``. The mildest that fits is wanted."""

    count: int
    at: Callable[[int], Change]


@record
class Format:
    """What a weight format costs in quality, and where that is measured."""

    title: str
    cost: str
    effort: int
    because: str


_LLM_INT8 = "Dettmers et al. 2022, LLM.int8(), table 1"
_QLORA = "Dettmers et al. 2023, QLoRA, tables 2–4"
_LLAMA_CPP = "llama.cpp, perplexity tables of tools/quantize/README.md"
_FP8 = "Micikevicius et al. 2022, FP8 Formats for Deep Learning"
_GPTQ = "Frantar et al. 2022, GPTQ, table 3; Lin et al. 2023, AWQ, table 4"
FORMATS: Mapping[str, Mapping[str, Format]] = {
    "transformers": {
        "bf16": Format("Weights in bf16", "no loss against the published checkpoint", NO_COST, ""),
        "int8": Format("Weights in int8 (LLM.int8)", "quality about equal, clearly slower", CLEAR, _LLM_INT8),
        "nf4": Format("Weights in NF4", "slight loss of quality, slower", CLEAR, _QLORA),
    },
    "vllm": {
        "bf16": Format("Weights in bf16", "no loss against the published checkpoint", NO_COST, ""),
        "fp8": Format("Weights in FP8", "quality about equal; faster on Ada, Hopper and newer", SLIGHT, _FP8),
        "awq-int4-g128": Format("Weights in AWQ int4", "slight loss of quality; needs a quantised checkpoint", CLEAR, _GPTQ),
    },
    "llama.cpp": {
        "gguf:Q8_0": Format("Weights in Q8_0", "quality about equal", SLIGHT, _LLAMA_CPP),
        "gguf:Q6_K": Format("Weights in Q6_K", "quality about equal", SLIGHT, _LLAMA_CPP),
        "gguf:Q5_K_M": Format("Weights in Q5_K_M", "slight loss of quality", SLIGHT, _LLAMA_CPP),
        "gguf:Q4_K_M": Format("Weights in Q4_K_M", "slight loss of quality", CLEAR, _LLAMA_CPP),
        "gguf:IQ3_M": Format("Weights in IQ3_M", "clear loss of quality", LARGE, _LLAMA_CPP),
    },
}
LIKE_VLLM = ("sglang", "tensorrt-llm", "tgi")
CACHES: Mapping[str, tuple[tuple[str, str, int], ...]] = {
    "vllm": (("fp8", "KV cache in FP8", SLIGHT),),
    "sglang": (("fp8", "KV cache in FP8", SLIGHT),),
    "tensorrt-llm": (("fp8", "KV cache in FP8", SLIGHT),),
    "tgi": (("fp8", "KV cache in FP8", SLIGHT),),
    "llama.cpp": (("q8_0", "KV cache in q8_0", SLIGHT), ("q4_0", "KV cache in q4_0", CLEAR)),
    "transformers": (),
}
OPTIMIZERS: tuple[tuple[str, str, str, int, str], ...] = (
    ("adamw_8bit", "8-bit AdamW", "about the same result", SLIGHT, "Dettmers et al. 2021, 8-bit Optimizers, table 1"),
    ("paged_adamw_8bit", "Paged 8-bit AdamW", "states move to the host when memory is short", CLEAR, _QLORA),
    ("adafactor", "Adafactor", "another optimizer: tune its learning rate anew", CLEAR, "Shazeer and Stern 2018, Adafactor"),
)
HISTORIES: Mapping[str, tuple[str, str, int, str]] = {
    "retrieve": ("Retrieve", "only passages that an embedding model finds are seen; it takes memory of its own", CLEAR,
                 "Lewis et al. 2020, Retrieval-Augmented Generation"),
    "summarise": ("Summarise into", "details of earlier turns are lost; a summary is written every turn", LARGE,
                  "Xu et al. 2022, Beyond Goldfish Memory, table 5"),
}  # fmt: skip
"""What stands for the earlier turns of a conversation: a verb, its cost, effort, and where it is measured."""
TENSOR_PARALLEL = ("vllm", *LIKE_VLLM)
SHARDING_COSTS = {"zero1": NO_COST, "zero2": NO_COST, "zero3": SLIGHT, "fsdp": SLIGHT}
ZERO = "Rajbhandari et al. 2020, ZeRO, section 7"
TOKENS_STEP = 64
LENGTH_STEP = 256
"""By so many tokens the longest request of a server is shortened."""
LEAST_STEP_TOKENS = 2048
LEAST_MICRO_BATCH = 128
CHECKPOINTING = "Chen et al. 2016, Training Deep Nets with Sublinear Memory Cost: one more forward, about +33 % compute"


DISTILLED = "Hinton et al. 2015, Distilling the Knowledge in a Neural Network"
KEPT_WEIGHTS = ("bf16", "fp16", "fp32", "fp8", "int8", "nf4", "nf4-dq")
"""What any checkpoint can be loaded in; others are as the other model's checkpoint stores them."""


def changes_of(scenario: Scenario, architecture: Architecture) -> Iterator[Dial]:
    """Every change that a plan can take from where it stands."""
    for change in _steps(scenario):
        yield Dial(1, lambda _, change=change: change)  # type: ignore[misc]
    yield from _dials(scenario, architecture)


def models_of(scenario: Scenario, smaller: Sequence[str]) -> Iterator[Dial]:
    """Other models that may serve instead, the largest first; a training is of the model it is of."""
    if smaller and scenario.task == "inference":
        yield Dial(len(smaller), lambda step: _model(scenario, smaller[step]))


def _model(scenario: Scenario, name: str) -> Change:
    title, cost = f"{name} instead", "a smaller model of the family: clear loss of quality, less where it was distilled; faster"
    weights = scenario.weights if scenario.weights in KEPT_WEIGHTS or scenario.inference.engine == "llama.cpp" else "native"
    return Change("model", title, cost, LARGEST, replace(scenario, model=name, weights=weights), DISTILLED)


def _steps(scenario: Scenario) -> Iterator[Change]:
    if scenario.task == "training":
        yield from _training(scenario)
        yield from _methods(scenario)
        yield from _sharding(scenario)
    else:
        yield from _formats(scenario)
        yield from _caches(scenario)
        yield from _options(scenario)
    if not scenario.hardware.cards:
        yield from _hardware(scenario)


def _dials(scenario: Scenario, architecture: Architecture) -> Iterator[Dial]:
    if scenario.task == "training":
        yield from _training_dials(scenario)
        return
    ask = scenario.inference
    if ask.batch > 1:
        yield Dial(ask.batch - 1, lambda step: _batch(scenario, ask.batch - 1 - step))
    if (ask.prompt_tokens or 0) > TOKENS_STEP:
        yield Dial((ask.prompt_tokens or 0) // TOKENS_STEP, lambda step: _prompt(scenario, step))
    yield from _histories(scenario)
    yield from _lengths(scenario, architecture)
    if ask.engine == "llama.cpp":
        yield from _llama_cpp(scenario, architecture)


def _formats(scenario: Scenario) -> Iterator[Change]:
    engine = scenario.inference.engine
    for name, found in FORMATS["vllm" if engine in LIKE_VLLM else engine].items():
        if name != scenario.weights:
            yield Change("weights", found.title, found.cost, found.effort, replace(scenario, weights=name), found.because)


def _caches(scenario: Scenario) -> Iterator[Change]:
    ask = scenario.inference
    for name, title, effort in CACHES[ask.engine]:
        if name != ask.kv_cache:
            options = {key: value for key, value in ask.engine_options.items() if key not in ("type_k", "type_v")}
            changed = replace(ask, kv_cache=name, engine_options=options)
            cost = "quality about equal" if effort == SLIGHT else "slight loss of quality on long contexts"
            yield Change("kv_cache", title, cost, effort, replace(scenario, inference=changed))


def _batch(scenario: Scenario, batch: int) -> Change:
    ask = scenario.inference
    title = f"Batch {batch} instead of {ask.batch}"
    return Change("batch", title, "fewer sequences at once", CLEAR, replace(scenario, inference=replace(ask, batch=batch)))


def _prompt(scenario: Scenario, step: int) -> Change:
    """Shorter by steps of :data:`TOKENS_STEP`, to a multiple of it."""
    ask = scenario.inference
    before = ask.prompt_tokens or 0
    tokens = max(TOKENS_STEP, (before - 1) // TOKENS_STEP * TOKENS_STEP - step * TOKENS_STEP)
    limit = None if ask.max_model_len is None else max(1, ask.max_model_len - (before - tokens))
    changed = replace(scenario, inference=replace(ask, prompt_tokens=tokens, max_model_len=limit))
    return Change("context", f"Prompts of {tokens:,} tokens instead of {before:,}", "a shorter context", LARGE, changed)


def _lengths(scenario: Scenario, architecture: Architecture) -> Iterator[Dial]:
    """The longest request that a server accepts: it starts only where its pool holds one."""
    ask = scenario.inference
    limit, needed = ask.max_model_len or architecture.max_context_tokens, ask.context_tokens
    if ask.engine not in TENSOR_PARALLEL or limit is None or limit <= needed:
        return

    def at(step: int) -> Change:
        tokens = max(needed, (limit - 1) // LENGTH_STEP * LENGTH_STEP - step * LENGTH_STEP)
        changed = replace(scenario, inference=replace(ask, max_model_len=tokens))
        return Change("length", f"max_model_len {tokens:,} instead of {limit:,}", "longer requests are refused", SLIGHT, changed)

    yield Dial(max(1, (limit - 1) // LENGTH_STEP - needed // LENGTH_STEP + 1), at)


def _histories(scenario: Scenario) -> Iterator[Dial]:
    """What may stand for a conversation's earlier turns, from a turn less than all of them down to one."""
    talk = scenario.inference.conversation
    for history in HISTORIES if talk.history == "keep" and talk.turns > 2 else ():
        yield Dial(talk.turns - 2, lambda step, history=history: _history(scenario, history, talk.turns - 2 - step))  # type: ignore[misc]


def _history(scenario: Scenario, history: str, turns: int) -> Change:
    ask = scenario.inference
    each = (ask.prompt_tokens or 0) + (ask.new_tokens or 0)
    verb, cost, effort, because = HISTORIES[history]
    kept = turns * each
    talk = replace(ask.conversation, history=history, kept_tokens=kept)
    limit = None if ask.max_model_len is None else min(ask.max_model_len, each + kept)
    title = f"{verb} {kept:,} tokens of earlier turns, not all {(ask.conversation.turns - 1) * each:,}"
    changed = replace(scenario, inference=replace(ask, conversation=talk, max_model_len=limit))
    return Change("history", title, cost, effort, changed, because)


def _with_options(scenario: Scenario, **changed: object) -> Scenario:
    ask = scenario.inference
    return replace(scenario, inference=replace(ask, engine_options=dict(ask.engine_options) | changed))


def _options(scenario: Scenario) -> Iterator[Change]:
    """Switches of the engine that cost nothing in quality."""
    ask = scenario.inference
    options = ask.engine_options
    if ask.attention == "eager":
        changed = replace(scenario, inference=replace(ask, attention="sdpa"))
        yield Change("attention", "Fused attention (sdpa)", "same results, faster", NO_COST, changed)
    if ask.engine == "transformers" and options.get("cache_implementation") == "static":
        changed = _with_options(scenario, cache_implementation="dynamic")
        yield Change("cache", "Dynamic cache", "no compiled decode", SLIGHT, changed)
    if ask.engine == "vllm" and not options.get("enforce_eager"):
        changed = _with_options(scenario, enforce_eager=True)
        yield Change("graphs", "No CUDA graphs (enforce_eager)", "slower decode at small batches", SLIGHT, changed)
    tokens = options.get("max_num_batched_tokens")
    if ask.engine == "vllm" and isinstance(tokens, int) and tokens > LEAST_STEP_TOKENS:
        changed = _with_options(scenario, max_num_batched_tokens=tokens // 2)
        yield Change("step", f"Steps of {tokens // 2:,} tokens", "slower prefill", SLIGHT, changed)
    micro = options.get("n_ubatch", 512)
    if ask.engine == "llama.cpp" and isinstance(micro, int) and micro > LEAST_MICRO_BATCH:
        changed = _with_options(scenario, n_ubatch=micro // 2)
        yield Change("step", f"Physical batch {micro // 2}", "slower prefill", SLIGHT, changed)


def _llama_cpp(scenario: Scenario, architecture: Architecture) -> Iterator[Dial]:
    """Experts, then whole layers, from the GPU to the host: as few as need be."""
    options = scenario.inference.engine_options
    layers = len(architecture.decoder.layers)
    experts = any(isinstance(mixer, MixtureOfExperts) for layer in architecture.decoder.layers for mixer in layer.channel)
    held = int(str(options.get("n_cpu_moe", 0)))
    if experts and held < layers:
        yield Dial(layers - held, lambda step: _experts_on_host(scenario, held + 1 + step))
    given = int(str(options.get("n_gpu_layers", -1)))
    on_gpu = layers + 1 if given < 0 else min(given, layers + 1)
    if on_gpu:
        yield Dial(on_gpu, lambda step: _layers_on_gpu(scenario, on_gpu - 1 - step, layers + 1))


def _experts_on_host(scenario: Scenario, count: int) -> Change:
    cost = "slower, by the host's memory bandwidth"
    changed = _with_options(scenario, n_cpu_moe=count)
    return Change("n_cpu_moe", f"Experts of {count} layers on the host", cost, CLEAR, changed)


def _layers_on_gpu(scenario: Scenario, count: int, of: int) -> Change:
    cost = "the rest runs on the CPU: much slower"
    return Change("n_gpu_layers", f"{count} of {of} layers on the GPU", cost, LARGE, _with_options(scenario, n_gpu_layers=count))


def _changed(scenario: Scenario, kind: str, title: str, cost: str, effort: int, because: str = "", **fields: Any) -> Change:
    """A change of the training itself."""
    changed = replace(scenario.training, **fields)
    return Change(kind, title, cost, effort, replace(scenario, training=changed), because)


def _training(scenario: Scenario) -> Iterator[Change]:
    """The same training, arranged otherwise."""
    ask = scenario.training
    if ask.attention == "eager":
        yield _changed(scenario, "attention", "Fused attention (sdpa)", "same results, faster", NO_COST, attention="sdpa")
    if ask.checkpointing == "none":
        title, cost = "Gradient checkpointing", "about +33 % compute"
        yield _changed(scenario, "checkpointing", title, cost, SLIGHT, CHECKPOINTING, checkpointing="full")
    if ask.objective != "sft":
        yield from _objective(scenario)
    elif ask.loss == "default":
        yield _changed(
            scenario, "loss", "Fused loss (Liger)", "same result", NO_COST, "Hsu et al. 2024, Liger Kernel", loss="fused"
        )


def _objective(scenario: Scenario) -> Iterator[Change]:
    """Fewer models at once."""
    ask = scenario.training
    if ask.objective == "dpo" and ask.reference in ("auto", "model"):
        title, cost = "Reference scores computed before", "one pass over the data first"
        yield _changed(scenario, "reference", title, cost, SLIGHT, reference="precomputed")
    if ask.objective == "grpo" and ask.rollout.engine == "vllm" and not ask.rollout.sleep:
        asleep = replace(ask.rollout, sleep=True)
        yield _changed(
            scenario, "sleep", "vLLM sleeps while training", "weights come back for each generation", SLIGHT, rollout=asleep
        )


def _methods(scenario: Scenario) -> Iterator[Change]:
    """Other optimizers; adapters instead of all weights, whose base is then the reference."""
    ask = scenario.training
    reference = "adapter" if ask.reference == "model" else ask.reference
    if ask.method == "full":
        for name, title, cost, effort, because in OPTIMIZERS:
            if name != ask.optimizer:
                yield _changed(scenario, "optimizer", title, cost, effort, because, optimizer=name)
        adapted: dict[str, Any] = {"method": "lora", "lora": replace(ask.lora, rank=16), "reference": reference}
        yield _changed(scenario, "method", "LoRA, rank 16", "trains adapters only", CLEAR, "Hu et al. 2021, LoRA", **adapted)
    if ask.method in ("full", "lora", "dora"):
        quantised = replace(scenario, weights="native", training=replace(ask, method="qlora", reference=reference))
        yield Change("method", "QLoRA: frozen weights in NF4", "trains adapters only, slower", CLEAR, quantised, _QLORA)


def _training_dials(scenario: Scenario) -> Iterator[Dial]:
    ask = scenario.training
    before = ask.sequence or 0

    def shorter(step: int) -> Change:
        tokens = max(TOKENS_STEP, (before - 1) // TOKENS_STEP * TOKENS_STEP - step * TOKENS_STEP)
        prompt = None if ask.prompt_tokens is None else min(ask.prompt_tokens, tokens // 2)
        title, cost = f"Sequences of {tokens:,} tokens", "a shorter context"
        return _changed(scenario, "context", title, cost, LARGE, sequence=tokens, prompt_tokens=prompt)

    if before > TOKENS_STEP:
        yield Dial(before // TOKENS_STEP, shorter)
    if ask.batch > 1:
        yield Dial(ask.batch.bit_length() - 1, lambda step: _micro_batch(scenario, step + 1))


def _micro_batch(scenario: Scenario, halvings: int) -> Change:
    """The same global batch in smaller steps."""
    ask = scenario.training
    batch, steps = max(1, ask.batch >> halvings), ask.gradient_accumulation << halvings
    title, cost = f"Micro-batch {batch}, accumulation {steps}", "same global batch, less parallel work"
    return _changed(scenario, "batch", title, cost, SLIGHT, batch=batch, gradient_accumulation=steps)


def _sharding(scenario: Scenario) -> Iterator[Change]:
    """Spread training states over the GPUs there are; offload what the optimizer keeps."""
    spread = scenario.parallel
    if scenario.hardware.gpus * scenario.hardware.nodes > 1:
        for name, effort in SHARDING_COSTS.items():
            if name != spread.sharding:
                cost = "more communication" if effort else "the same communication"
                title = "FSDP" if name == "fsdp" else f"ZeRO-{name[-1]}"
                yield Change("sharding", title, cost, effort, replace(scenario, parallel=replace(spread, sharding=name)), ZERO)
    if scenario.training.method == "full" and not scenario.offload.optimizer:
        moved = replace(scenario, offload=replace(scenario.offload, optimizer=1.0))
        cost = "steps wait for PCIe and the CPU"
        yield Change("offload", "Optimizer on the host", cost, CLEAR, moved, "Ren et al. 2021, ZeRO-Offload")


def _hardware(scenario: Scenario) -> Iterator[Change]:
    """Twice the GPUs, split by tensors (servers), by layers (llama.cpp) or by shards (training)."""
    gpus, spread = scenario.hardware.gpus * 2, scenario.parallel
    if scenario.task == "training":
        spread = replace(spread, sharding=spread.sharding if spread.sharding != "none" else "zero3")
    elif scenario.inference.engine in TENSOR_PARALLEL:
        spread = replace(spread, tensor=spread.tensor * 2)
    elif scenario.inference.engine != "llama.cpp":
        return
    more = replace(scenario, hardware=replace(scenario.hardware, gpus=gpus), parallel=spread)
    added = f"{gpus // 2} more card{'s' if gpus > 2 else ''}"
    yield Change("gpus", f"{gpus} GPUs", added, CLEAR, more)
