"""The question: one frozen value that says which model runs, how, and on what.

``parse_scenario`` reads the JSON strictly (unknown keys and bad values are refused, all faults at once with their
paths); ``to_json`` writes it back. What a scenario leaves out is None here and is settled, with a note for each
default taken, by :func:`planner.defaults.settle`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from typing import Literal

from planner.engine_options import read_engine_options
from planner.faults import Reader
from planner.record import record

VERSION = 1
TASKS = ("inference", "training")
INFERENCE_ENGINES = ("transformers", "vllm", "sglang", "tensorrt-llm", "tgi", "llama.cpp")
TRAINING_ENGINES = ("transformers", "deepspeed", "fsdp", "megatron")
ATTENTIONS = ("auto", "sdpa", "flash", "eager", "paged")
METHODS = ("full", "lora", "qlora", "dora", "freeze", "ia3", "prompt", "prefix", "vera", "loha", "lokr")
PRECISIONS = ("bf16", "amp-bf16", "amp-fp16", "fp32", "fp8")
OPTIMIZERS = (
    "adamw_fused", "adamw_foreach", "adamw", "adamw_8bit", "paged_adamw_8bit", "adafactor", "lion", "sgd",
    "sgd_momentum", "muon", "galore", "apollo", "paged_adamw_32bit", "lion_8bit", "paged_lion_8bit",
    "soap", "shampoo",
)  # fmt: skip
CHECKPOINTINGS = ("none", "full", "selective")
ARRANGEMENTS = ("padded", "packed", "flattened")
LOSSES = ("default", "chunked", "fused")
OBJECTIVES = ("sft", "dpo", "grpo", "ppo")
REFERENCES = ("auto", "model", "adapter", "precomputed", "none")
GENERATORS = ("transformers", "vllm", "server")
REFERENCES_OF: Mapping[str, tuple[str, ...]] = {
    "sft": ("none",),
    "dpo": ("model", "adapter", "precomputed"),
    "grpo": ("none", "model", "adapter"),
    "ppo": ("model", "adapter"),
}
"""References that TRL's trainer of an objective can be given."""
SHARDINGS = ("none", "zero1", "zero2", "zero3", "fsdp")
OFFLOAD_TARGETS = ("cpu", "nvme")
SPECULATIONS = ("none", "draft", "ngram", "mtp", "eagle")
HISTORIES = ("keep", "summarise", "retrieve")
_MAX_TOKENS = 2**31
_MAX_CARDS = 64
_MAX_PARAMETERS = 10**13


@record
class ModelPath:
    """A folder, config.json, .safetensors or .gguf file on this machine."""

    path: str


@record
class InlineConfig:
    """A config.json given inside the scenario."""

    config: Mapping[str, object] = field(hash=False)


ModelRef = str | ModelPath | InlineConfig


@record
class Speculation:
    """Speculative decoding: ``tokens`` proposed a step.

    By a draft model, an n-gram look-up, the model's own multi-token-prediction modules or an EAGLE head. ``draft``: the
    proposing model's config.json; without it ``draft_parameters`` say its size.
    """

    method: str = "none"
    tokens: int = 0
    draft: Mapping[str, object] | None = field(default=None, hash=False)
    draft_parameters: int | None = None

    @property
    def proposed(self) -> int:
        """Tokens that are proposed ahead in a step; none where nothing proposes."""
        return 0 if self.method == "none" else self.tokens


@record
class ServedAdapters:
    """Low-rank adapters served beside each other: slots on the GPU, each of ``rank`` for every linear layer."""

    count: int = 0
    rank: int = 16


@record
class Conversation:
    """A dialogue of ``turns`` questions and answers.

    ``history``: all of it stays in the context, or a summary or retrieved passages of ``kept_tokens`` stand for it.
    """

    turns: int = 1
    history: str = "keep"
    kept_tokens: int = 0


@record
class Embedder:
    """An embedding model beside the one that answers, which finds what a conversation retrieves.

    ``config``: its config.json; without it ``parameters`` say its size. It runs in 16 bit on the first GPU.
    """

    config: Mapping[str, object] | None = field(default=None, hash=False)
    parameters: int | None = None

    @property
    def is_held(self) -> bool:
        """Whether there is one."""
        return self.config is not None or self.parameters is not None


@record
class Inference:
    """A serving or generation workload. Counts of tokens are per sequence."""

    engine: str = "transformers"
    batch: int = 1
    prompt_tokens: int | None = None
    new_tokens: int | None = None
    max_model_len: int | None = None
    kv_cache: str = "auto"
    attention: str = "auto"
    engine_options: Mapping[str, object] = field(default_factory=dict, hash=False)
    samples: int = 1
    """Answers drawn from one prompt: parallel samples or beams, which share its blocks."""
    shared_prefix: float = 0.0
    """Share of the prompt that every request begins with alike."""
    chunked_prefill: bool | None = None
    speculation: Speculation = Speculation()
    adapters: ServedAdapters = ServedAdapters()
    conversation: Conversation = Conversation()
    embedder: Embedder = Embedder()

    @property
    def context_tokens(self) -> int:
        """Tokens of one request at its end, the history of its conversation included."""
        each = (self.prompt_tokens or 0) + (self.new_tokens or 0)
        if self.conversation.history == "keep":
            return each * self.conversation.turns
        return each + (self.conversation.kept_tokens if self.conversation.turns > 1 else 0)


@record
class Lora:
    """Low-rank adapters (Hu et al. 2021): ``rank`` · (in + out) parameters for every module named in ``targets``.

    ``targets``: names as PEFT matches them, or ``all-linear``, every linear layer but the head; IA³ scales the same modules.
    ``alpha`` scales them (None: twice the rank) and ``rslora`` divides by √rank instead of the rank: both size nothing.
    ``dropout`` is the share of their inputs that is dropped.
    """

    rank: int = 8
    targets: tuple[str, ...] = ("q_proj", "v_proj")
    alpha: int | None = None
    dropout: float = 0.0
    rslora: bool = False


@record
class Rollout:
    """How a training makes the completions that it learns from (objectives ``grpo``, ``ppo``).

    ``generations`` answers of each prompt. ``steps``: micro-batches that are generated at once (None: one for each of
    ``gradient_accumulation``). ``engine``: ``transformers`` (the trained model's own ``generate``), ``vllm`` beside the
    trainer in ``gpu_memory_utilization`` of the card, which ``sleep`` gives back while training, or a ``server`` elsewhere.
    """

    generations: int = 8
    steps: int | None = None
    engine: str = "transformers"
    gpu_memory_utilization: float = 0.3
    sleep: bool = False


@record
class Training:
    """A fine-tuning workload; ``batch`` is the micro-batch of one GPU."""

    engine: str = "transformers"
    method: str = "full"
    batch: int = 1
    sequence: int | None = None
    gradient_accumulation: int = 1
    precision: str = "bf16"
    optimizer: str = "adamw_fused"
    checkpointing: str = "none"
    lora: Lora = Lora()
    loss: str = "default"
    attention: str = "auto"
    engine_options: Mapping[str, object] = field(default_factory=dict, hash=False)
    trainable: tuple[str, ...] = ()
    """What trains under method ``freeze``: modules by their names or paths (``lm_head``, ``layers.31``); none: the head."""
    virtual_tokens: int = 20
    """Trained vectors before the input (method ``prompt``), or before every layer's keys and values (``prefix``)."""
    data: str = "padded"
    """How examples become rows: ``padded`` to the longest of the batch, ``packed`` into rows of ``sequence`` tokens, or
    ``flattened``: all of a batch in one row, kept apart by their positions (transformers ``DataCollatorWithFlattening``)."""
    lengths: tuple[int, ...] = ()
    """Tokens of a sample of examples, where they differ; ``sequence`` then cuts the longer ones."""
    objective: str = "sft"
    """``sft``: predict the next token. ``dpo``: ``batch`` pairs of a chosen and a rejected sequence. ``grpo``, ``ppo``:
    ``batch`` sequences whose completions the model makes itself."""
    reference: str = "auto"
    """What log-probabilities are held against: a ``model`` of its own beside the trained one, the base without its
    ``adapter``, ``precomputed`` ones, or ``none``; auto: as TRL takes it for the objective and method."""
    prompt_tokens: int | None = None
    """Tokens of ``sequence`` that are prompt; only the rest, the completion, is scored or generated."""
    rollout: Rollout = Rollout()


@record
class Hardware:
    """``gpus`` cards of a catalog name in each of ``nodes`` machines."""

    gpu: str | None = None
    gpus: int = 1
    nodes: int = 1
    capacity_bytes: int | None = None
    """A capacity the user set by hand; None takes the catalog's."""
    cards: tuple[str, ...] = ()
    """Where the GPUs of one machine differ: the catalog name of each in the order of devices, ``gpu`` the first of them."""


@record
class Parallel:
    """How many ways each dimension is split, and how training states are sharded over the data-parallel ranks."""

    tensor: int = 1
    pipeline: int = 1
    expert: int = 1
    data: int = 1
    context: int = 1
    sharding: str = "none"


@record
class Offload:
    """Fractions (0 to 1) kept off the GPU."""

    weights: float = 0.0
    kv_cache: float = 0.0
    optimizer: float = 0.0
    to: str = "cpu"


@record
class Scenario:
    """Everything a prediction, a rehearsal or a measurement needs to know."""

    model: ModelRef
    task: Literal["inference", "training"]
    weights: str = "native"
    inference: Inference = Inference()
    training: Training = Training()
    hardware: Hardware = Hardware()
    parallel: Parallel = Parallel()
    offload: Offload = Offload()

    @property
    def engine(self) -> str:
        """The engine of the scenario's task."""
        return self.inference.engine if self.task == "inference" else self.training.engine


def parse_scenario(document: object) -> Scenario:
    """Read a scenario from decoded JSON.

    Raises :class:`planner.faults.Faults` naming every bad field.
    """
    top = Reader(document)
    version = top.integer("version", VERSION, minimum=1)
    if version != VERSION:
        top.fault("version", f"this program reads version {VERSION}, got {version}")
    if not top.has("task"):
        top.fault("task", f"is required: one of {', '.join(TASKS)}")
    scenario = Scenario(
        model=_model(top),
        task="training" if top.choice("task", "inference", TASKS) == "training" else "inference",
        weights=top.string("weights", "native"),
        inference=_inference(top.child("inference")),
        training=_training(top.child("training")),
        hardware=_hardware(top.child("hardware")),
        parallel=_parallel(top.child("parallel")),
        offload=_offload(top.child("offload")),
    )
    top.refuse_unknown()
    top.raise_faults()
    return scenario


def to_json(scenario: Scenario) -> dict[str, object]:
    """The scenario as JSON-ready data; the workload of the other task is left out."""
    task = _inference_json(scenario.inference) if scenario.task == "inference" else _training_json(scenario.training)
    return {
        "version": VERSION,
        "model": _model_json(scenario.model),
        "weights": scenario.weights,
        "task": scenario.task,
        scenario.task: task,
        "hardware": _hardware_json(scenario.hardware),
        "parallel": _fields(scenario.parallel),
        "offload": _fields(scenario.offload),
    }


def _model(top: Reader) -> ModelRef:
    value = top.raw("model")
    if isinstance(value, str) and value.strip() and len(value) <= 4096:
        return value
    if isinstance(value, Mapping):
        return _model_object(top.child("model"))
    top.fault("model", 'is required: a model id, {"path": …} or {"config": {…}}')
    return ""


def _model_object(reader: Reader) -> ModelRef:
    config = reader.raw("config")
    path = reader.string("path")
    reader.refuse_unknown()
    if reader.has("path") == reader.has("config"):
        reader.fault("path", "give either path or config, or the id of a model as a string in place of the object")
    if isinstance(config, Mapping):
        return InlineConfig(config)
    if config is not None:
        reader.fault("config", "must be an object: the contents of a config.json")
    return ModelPath(path)


def _inference(reader: Reader) -> Inference:
    engine = reader.choice("engine", "transformers", INFERENCE_ENGINES)
    inference = Inference(
        engine=engine,
        batch=reader.integer("batch", 1, minimum=1, maximum=1_000_000),
        prompt_tokens=reader.optional_integer("prompt_tokens", minimum=1, maximum=_MAX_TOKENS),
        new_tokens=reader.optional_integer("new_tokens", minimum=1, maximum=_MAX_TOKENS),
        max_model_len=reader.optional_integer("max_model_len", minimum=1, maximum=_MAX_TOKENS),
        kv_cache=reader.string("kv_cache", "auto"),
        attention=reader.choice("attention", "auto", ATTENTIONS),
        engine_options=read_engine_options(engine, "inference", reader.child("engine_options")),
        samples=reader.integer("samples", 1, minimum=1, maximum=10_000),
        shared_prefix=reader.number("shared_prefix", 0.0, minimum=0.0, maximum=1.0),
        chunked_prefill=_optional_boolean(reader, "chunked_prefill"),
        speculation=_speculation(reader.child("speculation")),
        adapters=_adapters(reader.child("adapters")),
        conversation=_conversation(reader.child("conversation")),
        embedder=_embedder(reader.child("embedder")),
    )
    reader.refuse_unknown()
    return inference


def _optional_boolean(reader: Reader, key: str) -> bool | None:
    found = reader.boolean(key, default=False)
    return found if reader.has(key) else None


def _speculation(reader: Reader) -> Speculation:
    draft = reader.raw("draft")
    if draft is not None and not isinstance(draft, Mapping):
        reader.fault("draft", "must be an object: the contents of the draft model's config.json")
        draft = None
    method = reader.choice("method", "none", SPECULATIONS)
    found = Speculation(
        method=method,
        tokens=reader.integer("tokens", 0, minimum=0, maximum=1024),
        draft=draft,
        draft_parameters=reader.optional_integer("draft_parameters", minimum=1),
    )
    if method == "draft" and draft is None and found.draft_parameters is None:
        reader.fault("draft", "method draft needs the draft model: give draft or draft_parameters")
    reader.refuse_unknown()
    return found


def _embedder(reader: Reader) -> Embedder:
    config = reader.raw("config")
    if config is not None and not isinstance(config, Mapping):
        reader.fault("config", "must be an object: the contents of the embedding model's config.json")
        config = None
    found = Embedder(config, reader.optional_integer("parameters", minimum=1, maximum=_MAX_PARAMETERS))
    if found.config is not None and found.parameters is not None:
        reader.fault("parameters", "the config says the size already; give either")
    reader.refuse_unknown()
    return found


def _adapters(reader: Reader) -> ServedAdapters:
    found = ServedAdapters(
        reader.integer("count", 0, minimum=0, maximum=10_000), reader.integer("rank", 16, minimum=1, maximum=65536)
    )
    reader.refuse_unknown()
    return found


def _conversation(reader: Reader) -> Conversation:
    found = Conversation(
        turns=reader.integer("turns", 1, minimum=1, maximum=1_000_000),
        history=reader.choice("history", "keep", HISTORIES),
        kept_tokens=reader.integer("kept_tokens", 0, minimum=0, maximum=_MAX_TOKENS),
    )
    reader.refuse_unknown()
    return found


def _training(reader: Reader) -> Training:
    engine = reader.choice("engine", "transformers", TRAINING_ENGINES)
    lora = reader.child("lora")
    training = Training(
        engine=engine,
        method=reader.choice("method", "full", METHODS),
        batch=reader.integer("batch", 1, minimum=1, maximum=1_000_000),
        sequence=reader.optional_integer("sequence", minimum=1, maximum=_MAX_TOKENS),
        gradient_accumulation=reader.integer("gradient_accumulation", 1, minimum=1, maximum=1_000_000),
        precision=reader.choice("precision", "bf16", PRECISIONS),
        optimizer=reader.choice("optimizer", "adamw_fused", OPTIMIZERS),
        checkpointing=reader.choice("checkpointing", "none", CHECKPOINTINGS),
        lora=_lora(lora),
        loss=reader.choice("loss", "default", LOSSES),
        attention=reader.choice("attention", "auto", ATTENTIONS),
        engine_options=read_engine_options(engine, "training", reader.child("engine_options")),
        trainable=reader.strings("trainable", ()),
        virtual_tokens=reader.integer("virtual_tokens", 20, minimum=1, maximum=1_000_000),
        data=reader.choice("data", "padded", ARRANGEMENTS),
        lengths=reader.integers("lengths", minimum=1, maximum=_MAX_TOKENS),
        objective=reader.choice("objective", "sft", OBJECTIVES),
        reference=reader.choice("reference", "auto", REFERENCES),
        prompt_tokens=reader.optional_integer("prompt_tokens", minimum=1, maximum=_MAX_TOKENS),
        rollout=_rollout(reader.child("rollout")),
    )
    lora.refuse_unknown()
    _check_objective(reader, training)
    reader.refuse_unknown()
    return training


def _rollout(reader: Reader) -> Rollout:
    found = Rollout(
        generations=reader.integer("generations", 8, minimum=1, maximum=100_000),
        steps=reader.optional_integer("steps", minimum=1, maximum=1_000_000),
        engine=reader.choice("engine", "transformers", GENERATORS),
        gpu_memory_utilization=reader.number("gpu_memory_utilization", 0.3, minimum=0.01, maximum=1.0),
        sleep=reader.boolean("sleep", default=False),
    )
    reader.refuse_unknown()
    return found


def _check_objective(reader: Reader, training: Training) -> None:
    """Faults for what TRL's trainers refuse."""
    objective, reference = training.objective, training.reference
    if reference not in ("auto", *REFERENCES_OF[objective]):
        reader.fault("reference", f"objective {objective} takes {' or '.join(REFERENCES_OF[objective])}, got {reference}")
    if reference == "adapter" and training.method in ("full", "freeze"):
        reader.fault("reference", f"method {training.method} has no adapter to switch off; choose model")
    if objective == "grpo" and reference == "model" and training.method not in ("full", "freeze"):
        reader.fault("reference", "under adapters GRPO compares with their base: choose adapter, got model")
    if training.prompt_tokens is not None and training.sequence is not None and training.prompt_tokens >= training.sequence:
        reader.fault("prompt_tokens", f"must be less than the sequence of {training.sequence}, got {training.prompt_tokens}")
    if objective == "grpo" and training.rollout.generations < 2:
        reader.fault("rollout.generations", "GRPO compares answers of one prompt: must be at least 2, got 1")


def _lora(reader: Reader) -> Lora:
    return Lora(
        rank=reader.integer("rank", 8, minimum=1, maximum=65536),
        targets=reader.strings("targets", Lora().targets),
        alpha=reader.optional_integer("alpha", minimum=1, maximum=2**31),
        dropout=reader.number("dropout", 0.0, minimum=0.0, maximum=1.0),
        rslora=reader.boolean("rslora", default=False),
    )


def _hardware_json(hardware: Hardware) -> dict[str, object]:
    fields = _fields(hardware)
    if not hardware.cards:
        del fields["cards"]
    return fields


def _hardware(reader: Reader) -> Hardware:
    cards = reader.strings("cards", ())
    hardware = Hardware(
        gpu=reader.string("gpu") or (cards[0] if cards else None),
        gpus=reader.integer("gpus", len(cards) or 1, minimum=1, maximum=100_000),
        nodes=reader.integer("nodes", 1, minimum=1, maximum=100_000),
        capacity_bytes=reader.optional_integer("capacity_bytes", minimum=1),
        cards=cards,
    )
    if cards and (hardware.gpu, hardware.gpus, hardware.nodes) != (cards[0], len(cards), 1):
        reader.fault("cards", f"names every GPU of one machine: gpu is the first, gpus {len(cards)}, nodes 1")
    if len(cards) > _MAX_CARDS:
        reader.fault("cards", f"at most {_MAX_CARDS} in one machine, got {len(cards)}")
    if cards and hardware.capacity_bytes is not None:
        reader.fault("capacity_bytes", "is of GPUs that are alike; leave it out beside cards")
    reader.refuse_unknown()
    return hardware


def _parallel(reader: Reader) -> Parallel:
    def ways(key: str) -> int:
        return reader.integer(key, 1, minimum=1, maximum=100_000)

    parallel = Parallel(
        ways("tensor"), ways("pipeline"), ways("expert"), ways("data"), ways("context"),
        sharding=reader.choice("sharding", "none", SHARDINGS),
    )  # fmt: skip
    reader.refuse_unknown()
    return parallel


def _offload(reader: Reader) -> Offload:
    def fraction(key: str) -> float:
        return reader.number(key, 0.0, minimum=0.0, maximum=1.0)

    offload = Offload(fraction("weights"), fraction("kv_cache"), fraction("optimizer"), reader.choice("to", "cpu", OFFLOAD_TARGETS))
    reader.refuse_unknown()
    return offload


def _model_json(model: ModelRef) -> object:
    if isinstance(model, ModelPath):
        return {"path": model.path}
    if isinstance(model, InlineConfig):
        return {"config": dict(model.config)}
    return model


def _inference_json(inference: Inference) -> dict[str, object]:
    speculation, beside = _fields(inference.speculation), inference.embedder.config
    if inference.speculation.draft is not None:
        speculation["draft"] = dict(inference.speculation.draft)
    return _fields(inference) | {
        "engine_options": dict(inference.engine_options),
        "speculation": speculation,
        "adapters": _fields(inference.adapters),
        "conversation": _fields(inference.conversation),
        "embedder": _fields(inference.embedder) | ({"config": dict(beside)} if beside is not None else {}),
    }


def _training_json(training: Training) -> dict[str, object]:
    lora = _fields(training.lora) | {"targets": list(training.lora.targets)}
    more = {
        "engine_options": dict(training.engine_options),
        "trainable": list(training.trainable) or None,
        "lengths": list(training.lengths) or None,
        "rollout": _fields(training.rollout),
    }
    return _fields(training) | {"lora": lora} | more


def _fields(value: object) -> dict[str, object]:
    return dict(vars(value))
