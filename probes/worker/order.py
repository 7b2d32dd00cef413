"""The order: what to run, read strictly from the wire's first line."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .errors import WorkerError

PROTOCOL = 1
MODES = ("measure", "rehearse")
TASKS = ("inference", "training")
PERSONALITIES = ("cuda", "cpu")
DECODE_STEPS = ("auto", "all")
TRACED_LAYERS = ("auto", "all")
METHODS = ("full", "freeze", "lora", "dora", "qlora", "ia3", "prompt", "prefix", "vera", "loha", "lokr")
PRECISIONS = ("bf16", "amp-bf16", "amp-fp16", "fp32", "fp8")
CHECKPOINTINGS = ("none", "full", "selective")
ARRANGEMENTS = ("padded", "packed", "flattened")
OBJECTIVES = ("sft", "dpo", "grpo", "ppo")
REFERENCES = ("auto", "model", "adapter", "precomputed", "none")
LOSSES = ("default", "chunked", "fused")
DEFAULT_TOKENS = 512


@dataclass(frozen=True)
class Inference:
    """A generation workload; tokens are per sequence."""

    batch: int
    prompt_tokens: int
    new_tokens: int
    attention: str
    options: Mapping[str, Any] = field(default_factory=dict)
    kv_cache: str = "auto"


@dataclass(frozen=True)
class Lora:
    """Adapters: their rank, the modules that get one, alpha (default twice the rank) and the dropout of their inputs.

    ``targets`` of one name ``all-linear`` are every linear layer but the head. ``rslora`` divides alpha by √rank.
    """

    rank: int
    targets: tuple[str, ...]
    alpha: int
    dropout: float = 0.0
    rslora: bool = False


@dataclass(frozen=True)
class Training:
    """A fine-tuning workload; ``batch`` is the micro-batch."""

    method: str
    batch: int
    sequence: int
    gradient_accumulation: int
    precision: str
    optimizer: str
    checkpointing: str
    lora: Lora
    loss: str
    attention: str
    options: Mapping[str, Any] = field(default_factory=dict)
    trainable: tuple[str, ...] = ()
    """Modules that train under method ``freeze``; none: the head."""
    virtual_tokens: int = 20
    objective: str = "sft"
    reference: str = "none"
    """What scores are held against; never ``auto``."""
    prompt_tokens: int | None = None
    rollout: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Order:
    """Everything a run needs to know."""

    mode: str
    task: str
    weights: str
    config: Mapping[str, Any]
    inference: Inference
    training: Training
    device: str
    layers: int | None
    budget_bytes: int | None
    sample_interval_s: float
    personality: str
    compute_capability: tuple[int, int]
    decode_steps: str
    traced_layers: str
    ranks: int = 1
    snapshot: bool = False
    parallel: Mapping[str, Any] = field(default_factory=dict)

    @property
    def fake(self) -> bool:
        """Whether the run is a rehearsal, on tensors without memory."""
        return self.mode == "rehearse"

    @property
    def attention(self) -> str:
        """The attention the task asks for."""
        return self.inference.attention if self.task == "inference" else self.training.attention


def parse_order(document: object) -> Order:
    """Read a decoded order. Raises :class:`WorkerError` of kind bad_order or bad_config naming the field."""
    order = _Reader(document, "")
    order.equals("version", PROTOCOL)
    scenario = order.child("scenario")
    mode = order.choice("mode", MODES)
    config = order.mapping("config")
    if not config:
        raise WorkerError("bad_config", "config: is empty; give the contents of the model's config.json", "config")
    return Order(
        mode=mode,
        task=scenario.choice("task", TASKS),
        weights=_weights(scenario, order),
        config=config,
        inference=_inference(scenario.child("inference")),
        training=_training(scenario.child("training")),
        device=_device(order, mode),
        layers=order.optional_count("layers"),
        budget_bytes=order.optional_count("budget_bytes"),
        sample_interval_s=order.number("sample_interval_s", 0.05, minimum=0.001),
        personality=order.choice("personality", PERSONALITIES, "cuda"),
        compute_capability=_capability(order),
        decode_steps=order.choice("decode_steps", DECODE_STEPS, "auto"),
        traced_layers=order.choice("traced_layers", TRACED_LAYERS, "auto"),
        ranks=1 if mode == "rehearse" else order.count("ranks", 1),
        parallel=scenario.mapping("parallel"),
        snapshot=mode == "measure" and order.raw("snapshot", False) is True,
    )


def _weights(scenario: _Reader, order: _Reader) -> str:
    """The format asked for; ``native`` is what the checkpoint is stored in, where the one who orders has read it."""
    asked = scenario.text("weights", "native")
    return order.text("stored_as", "native") if asked == "native" else asked


def _inference(reader: _Reader) -> Inference:
    return Inference(
        batch=reader.count("batch", 1),
        prompt_tokens=reader.count("prompt_tokens", DEFAULT_TOKENS),
        new_tokens=reader.count("new_tokens", 1),
        attention=reader.text("attention", "auto"),
        options=reader.mapping("engine_options"),
        kv_cache=reader.text("kv_cache", "auto"),
    )


def _training(reader: _Reader) -> Training:
    batch, sequence = reader.count("batch", 1), reader.count("sequence", DEFAULT_TOKENS)
    if reader.choice("data", ARRANGEMENTS, "padded") == "flattened":
        batch, sequence = 1, batch * sequence
    method, objective = reader.choice("method", METHODS, "full"), reader.choice("objective", OBJECTIVES, "sft")
    return Training(
        method=method,
        batch=batch,
        sequence=sequence,
        gradient_accumulation=reader.count("gradient_accumulation", 1),
        precision=reader.choice("precision", PRECISIONS, "bf16"),
        optimizer=reader.text("optimizer", "adamw_fused"),
        checkpointing=reader.choice("checkpointing", CHECKPOINTINGS, "none"),
        lora=_lora(reader.child("lora")),
        loss=reader.choice("loss", LOSSES, "default"),
        attention=reader.text("attention", "auto"),
        options=reader.mapping("engine_options"),
        trainable=reader.texts("trainable", ()),
        virtual_tokens=reader.count("virtual_tokens", 20),
        objective=objective,
        reference=_reference(reader.choice("reference", REFERENCES, "auto"), objective, method),
        prompt_tokens=reader.optional_count("prompt_tokens"),
        rollout=reader.mapping("rollout"),
    )


def _reference(asked: str, objective: str, method: str) -> str:
    """What TRL compares with where it is not told."""
    if asked != "auto":
        return asked
    if objective in ("sft", "grpo"):
        return "none"
    return "model" if method in ("full", "freeze") else "adapter"


def _lora(reader: _Reader) -> Lora:
    rank = reader.count("rank", 8)
    targets = reader.texts("targets", ("q_proj", "v_proj"))
    scaled = reader.raw("rslora", False) is True
    return Lora(rank, targets, reader.count("alpha", 2 * rank), reader.number("dropout", 0.0, minimum=0.0), scaled)


def _device(order: _Reader, mode: str) -> str:
    device = order.text("device", "cpu")
    kind, _, index = device.partition(":")
    if kind not in ("cpu", "cuda", "mps", "xpu") or (index and not index.isdigit()) or (kind in ("cpu", "mps") and index):
        raise order.fault("device", f'must be "cpu", "cuda:N", "xpu:N" or "mps", got {device!r}')
    return "cpu" if mode == "rehearse" else device


def _capability(order: _Reader) -> tuple[int, int]:
    value = order.raw("compute_capability", [8, 0])
    if not isinstance(value, list) or len(value) != 2 or not all(isinstance(part, int) for part in value):
        raise order.fault("compute_capability", f"must be [major, minor], got {value!r}")
    return value[0], value[1]


class _Reader:
    """Typed access to a JSON object that names the path of a bad value."""

    def __init__(self, document: object, path: str) -> None:
        self._path = path
        if not isinstance(document, Mapping):
            raise self.fault("", "must be a JSON object")
        self._document = document

    def fault(self, key: str, message: str) -> WorkerError:
        path = ".".join(part for part in (self._path, key) if part)
        return WorkerError("bad_order", f"{path or 'order'}: {message}", path or None)

    def raw(self, key: str, default: Any = None) -> Any:
        value = self._document.get(key)
        return default if value is None else value

    def child(self, key: str) -> _Reader:
        return _Reader(self.raw(key, {}), f"{self._path}.{key}" if self._path else key)

    def mapping(self, key: str) -> Mapping[str, Any]:
        value = self.raw(key, {})
        if not isinstance(value, Mapping):
            raise self.fault(key, "must be a JSON object")
        return value

    def equals(self, key: str, expected: int) -> None:
        value = self.raw(key, expected)
        if value != expected:
            raise self.fault(key, f"this worker speaks version {expected}, got {value!r}")

    def choice(self, key: str, choices: tuple[str, ...], default: str | None = None) -> str:
        value = self.raw(key, default)
        if value not in choices:
            raise self.fault(key, f"must be one of {', '.join(choices)}, got {value!r}")
        return str(value)

    def text(self, key: str, default: str) -> str:
        value = self.raw(key, default)
        if not isinstance(value, str):
            raise self.fault(key, f"must be text, got {value!r}")
        return value

    def texts(self, key: str, default: tuple[str, ...]) -> tuple[str, ...]:
        value = self.raw(key, list(default))
        if not isinstance(value, (list, tuple)) or not all(isinstance(item, str) for item in value):
            raise self.fault(key, f"must be a list of names, got {value!r}")
        return tuple(value)

    def count(self, key: str, default: int) -> int:
        value = self.raw(key, default)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise self.fault(key, f"must be a whole number of at least 1, got {value!r}")
        return value

    def optional_count(self, key: str) -> int | None:
        return None if self.raw(key) is None else self.count(key, 1)

    def number(self, key: str, default: float, minimum: float) -> float:
        value = self.raw(key, default)
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not value >= minimum:
            raise self.fault(key, f"must be a number of at least {minimum}, got {value!r}")
        return float(value)
