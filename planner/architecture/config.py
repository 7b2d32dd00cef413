"""Typed reading of a model's config: key, else the family's default, with where each number came from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import field
from functools import lru_cache

from planner.architecture.noise import cannot_change_sizes
from planner.faults import Reader, describe
from planner.record import record

MAX_DIMENSION = 2**24
MAX_LAYERS = 4096
MAX_VOCABULARY = 2**27
MAX_TOKENS = 2**31

_DTYPES = {
    "float64": "fp64",
    "float32": "fp32",
    "float": "fp32",
    "float16": "fp16",
    "half": "fp16",
    "bfloat16": "bf16",
    "float8_e4m3fn": "fp8",
    "float8_e5m2": "fp8",
}
_RENAMED_LAYER_TYPES = {
    "mamba": "linear_attention",
    "attention": "full_attention",
    "deepseek_sparse_attention": "indexed_attention",
    "qwen_sparse_attention": "indexed_attention",
}


class UnknownArchitecture(ValueError):
    """A config of a model type that is not known and whose keys do not suffice; ``reason`` says what is missing."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)


@record
class Defaults:
    """What a framework's configuration class says about a model type."""

    model_class: str = ""
    base: str = ""
    """Name of the base model inside the class with a head: ``model``, ``transformer``."""
    aliases: Mapping[str, str] = field(default_factory=dict)
    """Common name of a key → the name this type stores it under."""
    values: Mapping[str, object] = field(default_factory=dict)

    @property
    def spellings(self) -> Mapping[str, tuple[str, ...]]:
        """A key → its other spellings, the stored name first."""
        return _spellings(tuple(self.aliases.items()))

    def knows(self, name: str) -> bool:
        """Whether the class has a default of its own for a key: a config may leave it out."""
        return any(self.values.get(spelling) is not None for spelling in (name, *self.spellings.get(name, ())))


@lru_cache(512)
def _spellings(aliases: tuple[tuple[str, str], ...]) -> Mapping[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {common: (stored,) for common, stored in aliases}
    for common, stored in aliases:
        found[stored] = (*found.get(stored, ()), common)
    return found


class Config:
    """One object of a model's config, read with the defaults of its type.

    A key that is absent takes the default of the framework's configuration class; ``null`` is a value of its own
    (DeepSeek-V2's ``q_lora_rank`` is 1536 by default, ``null`` means no compression). Several names for one
    key are tried in order. Faults are collected, and a bad value reads as the default or the minimum meanwhile.
    """

    def __init__(
        self, values: Mapping[str, object], defaults: Defaults, *, reader: Reader | None = None, base: str = "", head: str = ""
    ) -> None:
        self.reader = Reader(values) if reader is None else reader
        self.values = values
        self.defaults = defaults
        self.base = base
        """Path of the stack inside the model, with its dot: ``model.`` or ``model.language_model.``."""
        self.head = head
        """Name of the head's linear layer; empty for a class that has none."""
        self.sources: dict[str, str] = {}
        self.notes: list[str] = []
        self.children: list[Config] = []
        self.read: set[str] = set()
        self._found: dict[tuple[str, ...], object] = {}

    def get(self, *names: str) -> object:
        """The value under the first of ``names`` (or its alias) the config has, else the default, else None."""
        if names in self._found:
            return self._found[names]
        known = self._spellings(names)
        self.read.update(known)
        for place, origin in ((self.values, "config.json"), (self.defaults.values, "default")):
            for name in known:
                if name in place:
                    self._found[names] = self._note(name, place[name], origin)
                    return self._found[names]
        self._found[names] = None
        return None

    def _spellings(self, names: Sequence[str]) -> Sequence[str]:
        """``names`` with what the type's class takes for each: where it stores it, and other names it is given under.

        Of a key that is given under both the other name holds: the class sets it last (``PreTrainedConfig.__setattr__``).
        """
        aliases, spellings = self.defaults.aliases, self.defaults.spellings
        if not aliases:
            return names
        both = [(name, *spellings.get(name, ())) for name in names]
        return [spelling for each in both for spelling in sorted(each, key=lambda found: found not in aliases)]

    def says(self, *names: str) -> bool:
        """Whether the config itself says something other than null under one of ``names``."""
        return any(self.values.get(name) is not None for name in self._spellings(names))

    def optional(self, *names: str, minimum: int = 1, maximum: int = MAX_DIMENSION) -> int | None:
        """A whole number within bounds, or None when the value is null or absent with no default."""
        value = self.get(*names)
        if value is None:
            return None
        if type(value) is int and minimum <= value <= maximum:
            return value
        key = self._key(names)
        if isinstance(value, list | tuple) and 0 < len(value) <= MAX_LAYERS and all(item == value[0] for item in value):
            value = value[0]  # said for each layer (Hunyuan-A13B), and the same in all
        if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int):
            self.reader.fault(key, f"must be a whole number, got {describe(value)}")
        elif value < minimum:
            self.reader.fault(key, f"must be at least {minimum}, got {describe(value)}")
        elif value > maximum:
            self.reader.fault(key, f"must be at most {maximum}, got {describe(value)}")
        else:
            return value
        return None

    def size(self, *names: str, minimum: int = 1, maximum: int = MAX_DIMENSION) -> int:
        """A whole number that must be there; a fault is noted when it is null, or absent with no default."""
        before = len(self.reader.faults)
        value = self.optional(*names, minimum=minimum, maximum=maximum)
        if value is not None:
            return value
        if len(self.reader.faults) == before:
            self.reader.fault(self._key(names), "is missing; the sizes of the model need it")
        return max(minimum, 1)

    def flag(self, *names: str, default: bool = False) -> bool:
        """True or false; absent or null reads as the type's default, else ``default``."""
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
        if not isinstance(value, str) or len(value) > 4096:
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

    def integers(self, *names: str, length: int | None = None, maximum: int = MAX_DIMENSION) -> tuple[int, ...] | None:
        """A list of whole numbers from 0 to ``maximum``, or None when null or absent."""
        value = self.get(*names)
        if value is None:
            return None
        key = self._key(names)
        if not isinstance(value, list | tuple) or not all(
            isinstance(item, int) and not isinstance(item, bool) and 0 <= item <= maximum for item in value
        ):
            self.reader.fault(key, f"must be a list of whole numbers from 0 to {maximum}, got {describe(value)}")
        elif length is not None and len(value) != length:
            self.reader.fault(key, f"must have one entry for each of the {length} layers, got {len(value)}")
        elif len(value) > MAX_LAYERS:
            self.reader.fault(key, f"must have at most {MAX_LAYERS} entries, got {len(value)}")
        else:
            return tuple(value)
        return None

    def names(self, *names: str) -> tuple[str, ...] | None:
        """A list of short strings, or None when null or absent."""
        value = self.get(*names)
        if value is None:
            return None
        if not isinstance(value, list | tuple) or len(value) > MAX_LAYERS or not all(isinstance(item, str) for item in value):
            self.reader.fault(self._key(names), f"must be a list of at most {MAX_LAYERS} names, got {describe(value)}")
            return None
        return tuple(value)

    def layer_types(self, layers: int, rule: Callable[[int], str], allowed: tuple[str, ...], *names: str) -> tuple[str, ...]:
        """One name for each layer: the config's list, else what ``rule`` says for the layer's index.

        Former names are read as today's (``mamba`` is ``linear_attention``). A name outside ``allowed`` is a fault.
        """
        keys = names or ("layer_types",)
        found = self.names(*keys)
        if found is None:
            return tuple(map(rule, range(layers)))
        found = tuple(_RENAMED_LAYER_TYPES.get(name, name) for name in found)
        if len(found) != layers:
            self.reader.fault(self._key(keys), f"must have one entry for each of the {layers} layers, got {len(found)}")
        for name in set(found) - set(allowed):
            self.reader.fault(self._key(keys), f"must hold only {', '.join(allowed)}; got {describe(name)}")
        return tuple(name if name in allowed else allowed[0] for name in found)[:layers]

    def mapping(self, key: str) -> Mapping[str, object]:
        """A plain object; absent, null or another type reads as empty."""
        value = self.get(key)
        return value if isinstance(value, Mapping) else {}

    def child(self, key: str, defaults: Defaults, *, base: str = "", head: str = "") -> Config:
        """The object at ``key`` (absent or null reads as empty), with the defaults of its own type."""
        found = Config(self.mapping(key), defaults, reader=self.reader.child(key), base=base, head=head)
        found.sources = self.sources
        found.notes = self.notes
        self.children.append(found)
        return found

    def require(self, holds: bool, key: str, message: str) -> None:  # noqa: FBT001 - reads as a sentence
        """Note a fault of keys that contradict one another, unless one of them was refused already."""
        if not holds and not self.reader.faults:
            self.reader.fault(key, message)

    def unread(self) -> list[str]:
        """Paths of keys nobody asked for, which the type's class does not declare and which could change sizes."""
        mine = [
            self._path(key)
            for key, value in self.values.items()
            if value is not None and key not in self.read and key not in self.defaults.values and not cannot_change_sizes(str(key))
        ]
        return mine + [path for child in self.children for path in child.unread()]

    def _key(self, names: tuple[str, ...]) -> str:
        return next((name for name in self._spellings(names) if name in self.values), names[0])

    def _path(self, key: object) -> str:
        shown = key if isinstance(key, str) and len(key) <= 80 else describe(key).strip("'")
        return f"{self.reader.path}.{shown}" if self.reader.path else shown

    def _note(self, name: str, value: object, origin: str) -> object:
        if type(value) is int or isinstance(value, str | float | bool | None):
            path = self._path(name)
            shown = value if type(value) is int and value < 2**63 else describe(value)
            self.sources[path] = f"{origin}: {path} = {shown}"
        return value


def dtype_of(*configs: Config) -> str:
    """The dtype of the weights as the first config that says so names it; fp32 when none does."""
    for config in configs:
        name = config.text("dtype", "torch_dtype").removeprefix("torch.")
        if name in _DTYPES:
            return _DTYPES[name]
        if name:
            config.notes.append(f"dtype {describe(name)} was not understood and is read as fp32")
    return "fp32"
