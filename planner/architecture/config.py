"""Typed reading of a model's config: key, else the family's default, with where each number came from."""

from __future__ import annotations

from collections.abc import Mapping

from planner.faults import Reader, describe

MAX_DIMENSION = 2**24
MAX_LAYERS = 4096
MAX_VOCABULARY = 2**27
MAX_TOKENS = 2**31

_DTYPES = {
    "float32": "fp32",
    "float": "fp32",
    "float16": "fp16",
    "half": "fp16",
    "bfloat16": "bf16",
    "float8_e4m3fn": "fp8",
    "float8_e5m2": "fp8",
    "float64": "fp64",
}


class UnknownArchitecture(ValueError):
    """A config of a model type that is not known and whose keys do not suffice; ``reason`` says what is missing."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)


class Config:
    """One object of a model's config, read with a family's defaults.

    A key that is absent takes the default of the framework's configuration class; ``null`` is a value of its own
    (DeepSeek-V2's ``q_lora_rank`` is 1536 by default, ``null`` means no compression). Several names for one
    key are tried in order. Faults are collected, and a bad value reads as the default or 1 meanwhile.
    """

    def __init__(
        self,
        values: Mapping[str, object],
        defaults: Mapping[str, object],
        *,
        reader: Reader | None = None,
        base: str = "model.",
        head: str = "lm_head",
    ) -> None:
        self.reader = Reader(values) if reader is None else reader
        self.values = values
        self.defaults = defaults
        self.base = base
        """Path of the decoder inside the model, with its dot: ``model.`` or ``model.language_model.``."""
        self.head = head
        self.sources: dict[str, str] = {}
        self.read: set[str] = set()

    def get(self, *names: str) -> object:
        """The value under the first of ``names`` the config has, else the family's default, else None."""
        self.read.update(names)
        for name in names:
            if name in self.values:
                return self._note(name, self.values[name], "config.json")
        for name in names:
            if name in self.defaults:
                return self._note(name, self.defaults[name], "default")
        return None

    def has(self, *names: str) -> bool:
        """Whether the config itself says something other than null under one of ``names``."""
        return any(self.values.get(name) is not None for name in names)

    def optional(self, *names: str, minimum: int = 1, maximum: int = MAX_DIMENSION) -> int | None:
        """A whole number within bounds, or None when the value is null or absent with no default."""
        value = self.get(*names)
        if value is None:
            return None
        key = self._key(names)
        if isinstance(value, bool) or not isinstance(value, int):
            if isinstance(value, float) and value.is_integer() and abs(value) <= maximum:
                return self._bounded(key, int(value), minimum, maximum)
            self.reader.fault(key, f"must be a whole number, got {describe(value)}")
            return None
        return self._bounded(key, value, minimum, maximum)

    def size(self, *names: str, minimum: int = 1, maximum: int = MAX_DIMENSION) -> int:
        """A whole number that must be there; a fault is noted when it is null, or absent with no default."""
        before = len(self.reader.faults)
        value = self.optional(*names, minimum=minimum, maximum=maximum)
        if value is not None:
            return value
        if len(self.reader.faults) == before:
            self.reader.fault(names[0], "is missing; the model's sizes need it")
        fallback = next((self.defaults[name] for name in names if isinstance(self.defaults.get(name), int)), None)
        return fallback if isinstance(fallback, int) and fallback >= minimum else max(minimum, 1)

    def flag(self, *names: str, default: bool = False) -> bool:
        """True or false; absent or null reads as the family's default, else ``default``."""
        value = self.get(*names)
        if value is None:
            return default
        if not isinstance(value, bool):
            self.reader.fault(self._key(names), f"must be true or false, got {describe(value)}")
            return default
        return value

    def text(self, *names: str, default: str = "") -> str:
        """A short string."""
        value = self.get(*names)
        if value is None:
            return default
        if not isinstance(value, str) or len(value) > 256:
            self.reader.fault(self._key(names), f"must be a name, got {describe(value)}")
            return default
        return value

    def number(self, *names: str, default: float) -> float:
        """A finite number of sane size."""
        value = self.get(*names)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int | float) or not -1e12 < value < 1e12:
            self.reader.fault(self._key(names), f"must be a finite number, got {describe(value)}")
            return default
        return float(value)

    def child(self, key: str, defaults: Mapping[str, object], *, base: str = "model.", head: str = "lm_head") -> Config:
        """The object at ``key`` (absent or null reads as empty), with the defaults of its own family."""
        value = self.get(key)
        child = value if isinstance(value, Mapping) else {}
        found = Config(child, defaults, reader=self.reader.child(key), base=base, head=head)
        found.sources = self.sources
        return found

    def _bounded(self, key: str, value: int, minimum: int, maximum: int) -> int | None:
        if value < minimum:
            self.reader.fault(key, f"must be at least {minimum}, got {describe(value)}")
        elif value > maximum:
            self.reader.fault(key, f"must be at most {maximum}, got {describe(value)}")
        else:
            return value
        return None

    def _key(self, names: tuple[str, ...]) -> str:
        return next((name for name in names if name in self.values), names[0])

    def _note(self, name: str, value: object, origin: str) -> object:
        if value is None or isinstance(value, str | int | float):
            path = f"{self.reader.path}.{name}" if self.reader.path else name
            self.sources[path] = f"{origin}: {path} = {describe(value)}"
        return value


def dtype_of(*configs: Config) -> str:
    """The weights' dtype as the first config that says so names it; fp32 when none does."""
    for config in configs:
        name = config.text("dtype", "torch_dtype")
        if name:
            return _DTYPES.get(name.removeprefix("torch."), "fp32")
    return "fp32"
