"""Real headers of small and of huge checkpoints, made byte by byte; bodies are sparse or never written."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence

from resources.gguf_header import GGML_TYPES
from resources.safetensors_header import DTYPE_BITS

GGML_IDS = {name: number for number, (name, _, _) in GGML_TYPES.items()}

LLAMA = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64, "intermediate_size": 128,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 256,
    "max_position_embeddings": 512, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
}  # fmt: skip


def llama_tensors(config: Mapping[str, object] = LLAMA) -> dict[str, tuple[int, ...]]:
    """Names and shapes as transformers saves a Llama."""
    hidden, wide, vocab = (int(str(config[key])) for key in ("hidden_size", "intermediate_size", "vocab_size"))
    kv = hidden * int(str(config["num_key_value_heads"])) // int(str(config["num_attention_heads"]))
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocab, hidden)}
    for layer in range(int(str(config["num_hidden_layers"]))):
        at = f"model.layers.{layer}"
        shapes |= {f"{at}.input_layernorm.weight": (hidden,), f"{at}.post_attention_layernorm.weight": (hidden,)}
        for name, out in (("q", hidden), ("k", kv), ("v", kv), ("o", hidden)):
            shapes[f"{at}.self_attn.{name}_proj.weight"] = (out, hidden)
        shapes |= {f"{at}.mlp.gate_proj.weight": (wide, hidden), f"{at}.mlp.up_proj.weight": (wide, hidden)}
        shapes[f"{at}.mlp.down_proj.weight"] = (hidden, wide)
    return shapes | {"model.norm.weight": (hidden,), "lm_head.weight": (vocab, hidden)}


def product(shape: Sequence[int]) -> int:
    size = 1
    for side in shape:
        size *= side
    return size


def safetensors_header(shapes: Mapping[str, tuple[int, ...]], dtype: str = "BF16") -> tuple[bytes, int]:
    """The header of a file holding these tensors, and how many bytes of data follow it."""
    entries, at = {}, 0
    for name, shape in shapes.items():
        size = product(shape) * DTYPE_BITS[dtype] // 8
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    body = json.dumps(entries).encode()
    return struct.pack("<Q", len(body)) + body, at


def gguf_string(text: str | bytes) -> bytes:
    data = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(data)) + data


def gguf_value(value: object) -> bytes:
    """A metadata value with its type: str, bool, int (u32), float (f32), or a list of one of these."""
    if isinstance(value, str):
        return struct.pack("<I", 8) + gguf_string(value)
    if isinstance(value, bool):
        return struct.pack("<IB", 7, value)
    if isinstance(value, int):
        return struct.pack("<Ii" if value < 0 else "<II", 5 if value < 0 else 4, value)
    if isinstance(value, float):
        return struct.pack("<If", 6, value)
    assert isinstance(value, list)
    items = [gguf_value(item) for item in value] or [struct.pack("<II", 4, 0)]
    count = len(value)
    return struct.pack("<I", 9) + items[0][:4] + struct.pack("<Q", count) + b"".join(item[4:] for item in items[:count])


def gguf_header(
    metadata: Mapping[str, object], shapes: Mapping[str, tuple[int, ...]], dtype: str = "F16", version: int = 3
) -> tuple[bytes, int]:
    """The header of a GGUF file (shapes outermost first), padded to its data, and how many bytes of data follow."""
    _, block_values, block_bytes = GGML_TYPES[GGML_IDS[dtype]]
    parts = [b"GGUF", struct.pack("<IQQ", version, len(shapes), len(metadata))]
    parts += [gguf_string(key) + gguf_value(value) for key, value in metadata.items()]
    at = size = 0
    for name, shape in shapes.items():
        sides = tuple(reversed(shape))
        parts.append(gguf_string(name) + struct.pack(f"<I{len(sides)}Q", len(sides), *sides))
        parts.append(struct.pack("<IQ", GGML_IDS[dtype], at))
        size = at + product(shape) // block_values * block_bytes
        at = -(-size // 32) * 32
    header = b"".join(parts)
    return header + bytes(-len(header) % 32), size
