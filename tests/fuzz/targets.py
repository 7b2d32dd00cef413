"""What is fuzzed: each reader of what strangers wrote, with seeds and the errors it may answer with."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from planner.architecture import UnknownArchitecture, parameter_count, read_config
from planner.faults import Faults
from resources import gguf_header, safetensors_header
from resources.byte_source import Buffer
from resources.catalog import catalog_model, model_ids
from resources.gguf_config import config_of
from resources.strict_json import parse_object
from tests.resources import checkpoints

HOSTILE = (
    -1, 0, 1, 2**31, 2**53, 2**63, 10**30, -(10**30), 0.0, -0.5, 1e308, True, False, None, "", "x", "9" * 400, [], {}, [0],
    [[[]]], [-1] * 3, [10**9] * 5, {"type": "linear"}, "full_attention", ["mamba"] * 4, "bfloat16", [None],
)  # fmt: skip


@dataclass(frozen=True)
class Target:
    """One reader; ``run`` may end only in its answer or in one of ``allowed``."""

    run: Callable[[bytes], object]
    seeds: Callable[[], Iterator[bytes]]
    allowed: tuple[type[Exception], ...] = (Faults,)


def read_safetensors(data: bytes) -> object:
    """The header alone, then with the size the file really has."""
    tensors = safetensors_header.read_header(_Unsized(data))
    return tensors, safetensors_header.read_index(data[8:])


def read_gguf(data: bytes) -> object:
    """The header, and the config that its metadata spell."""
    return config_of(gguf_header.read_header(_Unsized(data)))


def read_strict_json(data: bytes) -> object:
    """Any bytes as a config file, then as an architecture."""
    return _architecture(parse_object(data, "config.json", infinity=True))


def read_mutated_config(data: bytes) -> object:
    """A bundled config with some values replaced: what a hand-edited or malicious config.json looks like."""
    if len(data) < 4:
        return None
    ids = model_ids()
    config = json.loads(json.dumps(catalog_model(ids[int.from_bytes(data[:2], "little") % len(ids)]).config))
    for at in range(2, min(len(data) - 2, 32), 3):
        _mutate(config, data[at], data[at + 1], data[at + 2])
    return _architecture(config)


def _mutate(config: dict[str, object], where: int, what: int, how: int) -> None:
    nested = [value for value in config.values() if isinstance(value, dict) and value]
    target = nested[how % len(nested)] if nested and how % 3 == 0 else config
    keys = sorted(target)
    if not keys:
        return
    key = keys[where % len(keys)]
    if what == 255:
        del target[key]
    else:
        target[key] = HOSTILE[what % len(HOSTILE)]


def _architecture(config: dict[str, object]) -> int:
    return parameter_count(read_config(config))


class _Unsized(Buffer):
    """Bytes of a file whose size is not known, as from a server that doesn't tell."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data, "file")
        self.size_bytes = None


def _config_seeds() -> Iterator[bytes]:
    for model in model_ids():
        yield json.dumps(catalog_model(model).config).encode()


def _choice_seeds() -> Iterator[bytes]:
    for number in range(len(model_ids())):
        yield number.to_bytes(2, "little") + bytes([number, number * 7 % 255, 1])


def _safetensors_seeds() -> Iterator[bytes]:
    for dtype in ("BF16", "F8_E4M3", "U8"):
        yield checkpoints.safetensors_header(checkpoints.llama_tensors(), dtype)[0]
    index = {"weight_map": dict.fromkeys(checkpoints.llama_tensors(), "model-00001-of-00001.safetensors")}
    yield bytes(8) + json.dumps(index).encode()


def _gguf_seeds() -> Iterator[bytes]:
    for arch in ("llama", "qwen3moe", "deepseek2", "nemotron_h", "gemma3", "mamba2", "t5", "gemma4", "granitehybrid"):
        metadata: dict[str, object] = {"general.architecture": arch, "tokenizer.ggml.tokens": ["a", "b"]}
        for key in ("block_count", "embedding_length", "attention.head_count", "ssm.inner_size", "expert_count"):
            metadata[f"{arch}.{key}"] = 4
        metadata |= {f"{arch}.attention.head_count_kv": [4, 0, 4, 0], f"{arch}.rope.freq_base": 1e4}
        yield checkpoints.gguf_header(metadata, {"token_embd.weight": (8, 32), "blk.0.ffn_up.bias": (32,)}, "F32")[0]


TARGETS = {
    "safetensors": Target(read_safetensors, _safetensors_seeds),
    "gguf": Target(read_gguf, _gguf_seeds),
    "json": Target(read_strict_json, _config_seeds, (Faults, UnknownArchitecture)),
    "config": Target(read_mutated_config, _choice_seeds, (Faults, UnknownArchitecture)),
}
