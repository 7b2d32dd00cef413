"""Which type each tensor of a GGUF file gets in each file type, as ``llama-quantize`` decides it.

Source: llama.cpp ``src/llama-quant.cpp`` (``llama_tensor_get_type``), 0.5.0-dev (0c1e57098), without ``--pure`` and
without an importance matrix, except for the file types that can't be made without one. What stays in 32 bit is decided
earlier, by ``convert_hf_to_gguf.py`` (``prepare_tensors``).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Literal

from planner.formats.gguf_types import FILE_TYPES, GGML_TYPES, FileType, GgmlType
from planner.record import record

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

Category = Literal["output", "token_embd", "attn_v", "attn_k", "attn_q", "attn_output", "ffn_up", "ffn_gate", "ffn_down", "other"]

_CATEGORIES: tuple[tuple[str, Category], ...] = (
    ("attn_qkv.weight", "attn_v"),
    ("attn_kv_b.weight", "attn_v"),
    ("attn_v.weight", "attn_v"),
    ("attn_k.weight", "attn_k"),
    ("attn_q.weight", "attn_q"),
    ("attn_output.weight", "attn_output"),
    ("ffn_up", "ffn_up"),
    ("ffn_gate", "ffn_gate"),
    ("ffn_down", "ffn_down"),
)

_KEPT_IN_32_BIT = (
    *("_norm.weight", "ffn_gate_inp.weight", "ffn_gate_inp_shexp.weight", "ssm_conv1d", "shortconv.conv.weight"),
    *("position_embd.weight", "token_types.weight", "altup_correct_coef", "altup_predict_coef"),
    *("indexer.k_proj", "indexer.q_proj", "attn_rel_b"),
    *(f"time_mix_{name}.weight" for name in ("first", "w0", "w1", "w2", "v0", "v1", "v2", "a0", "a1", "a2", "g1", "g2")),
    *(f"time_mix_{name}.weight" for name in ("decay_w1", "decay_w2", "lerp_fused")),
)
_KEPT_IN_16_BIT = ("altup", "laurel", "per_layer_model_proj")

_FALLBACKS = {
    **dict.fromkeys(("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_XS"), "IQ4_NL"),
    **dict.fromkeys(("Q2_0", "Q2_K", "Q3_K", "TQ1_0", "TQ2_0"), "Q4_0"),
    "Q4_K": "Q5_0",
    "Q5_K": "Q5_1",
    "Q6_K": "Q8_0",
}

_SMALL_I = ("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ2_M")


@record
class GgufModel:
    """What of a model the rules ask for. ``architecture`` is GGUF's ``general.architecture``."""

    architecture: str
    num_layers: int
    num_heads: int
    num_kv_heads: int
    num_experts: int = 0

    @property
    def heads_per_kv_head(self) -> int:
        """``n_gqa``: of the first layer; 0 when it has no keys and values."""
        return self.num_heads // self.num_kv_heads if self.num_kv_heads else 0

    @property
    def is_seventy_b(self) -> bool:
        """``LLM_TYPE_70B``: 80 layers of Llama with grouped queries, or of Qwen2."""
        grouped = self.architecture == "qwen2" or (self.architecture == "llama" and self.num_heads != self.num_kv_heads)
        return self.num_layers == 80 and grouped


@dataclass(slots=True)
class _State:
    """The running counters of one file."""

    model: GgufModel
    file_type: FileType
    tied: bool
    attn_v_total: int
    attn_v_seen: int = 0
    ffn_down_seen: int = 0
    ffn_gate_seen: int = 0
    ffn_up_seen: int = 0

    @property
    def name(self) -> str:
        return self.file_type.name

    def layer(self, block: int, seen: int) -> int:
        """The layer a feed-forward tensor counts as: its running number, or its block's in a mixture of experts."""
        return block if self.model.num_experts > 1 else seen

    def is_early(self, layer: int, part: int = 8) -> bool:
        """Whether a layer is in the first 1/``part``."""
        return layer < self.model.num_layers // part


def block_of(tensor: str) -> int:
    """The layer in a tensor's name (``blk.7.attn_q.weight``), -1 when there is none."""
    number = tensor.split(".", 2)[1] if tensor.startswith("blk.") else ""
    return int(number) if number.isdecimal() and len(number) < 7 else -1


def leaf_of(tensor: str) -> str:
    """A tensor's name without its block: what the rules look at."""
    return tensor.split(".", 2)[2] if tensor.startswith("blk.") else tensor


@lru_cache(maxsize=4096)
def category_of(tensor: str) -> Category:
    """The kind of tensor a rule speaks of; ``tensor`` with or without its block."""
    if tensor == "output.weight":
        return "output"
    if tensor in ("token_embd.weight", "per_layer_token_embd.weight"):
        return "token_embd"
    return next((category for part, category in _CATEGORIES if part in tensor), "other")


@lru_cache(maxsize=4096)
def unquantized_type(tensor: str, dimensions: int, sixteen_bit: str = "F16") -> str | None:
    """The type of a tensor no file type quantises: F32, or that of the 16-bit source file; None when it is quantised."""
    if dimensions < 2 or not tensor.endswith(".weight") or any(part in tensor for part in _KEPT_IN_32_BIT):
        return "F32"
    return sixteen_bit if any(part in tensor for part in _KEPT_IN_16_BIT) else None


def tensor_types(tensors: Sequence[tuple[str, tuple[int, ...]]], model: GgufModel, file_type: str) -> tuple[GgmlType, ...]:
    """The type of each (name, shape) of a file, in the order given; shapes as (…, rows, columns).

    Counters run by layer and then by name, as llama.cpp's loader orders them, whatever the order given.
    """
    names = [name for name, _ in tensors]
    leaves = [leaf_of(name) for name in names]
    state = _State(
        model, FILE_TYPES[file_type], "output.weight" not in names, sum(category_of(leaf) == "attn_v" for leaf in leaves)
    )
    order = sorted((block_of(name), leaf, index) for index, (name, leaf) in enumerate(zip(names, leaves, strict=True)))
    chosen = {index: GGML_TYPES[_type_of(state, block, leaf, tensors[index][1])] for block, leaf, index in order}
    return tuple(chosen[index] for index in range(len(tensors)))


def _type_of(state: _State, block: int, leaf: str, shape: tuple[int, ...]) -> str:
    default = state.file_type.default
    kept = unquantized_type(leaf, len(shape), default if default in ("F32", "BF16") else "F16")
    if kept or not GGML_TYPES[default].is_quantized:
        return kept or default
    return _fit(_choose(state, block, leaf, shape), shape[-1])


def _fit(kind: str, columns: int) -> str:
    """A type whose blocks divide a row: the chosen one, its fallback with blocks of 32, or F16."""
    for candidate in (kind, _FALLBACKS.get(kind, "F16"), "F16"):
        if columns % GGML_TYPES[candidate].block_values == 0:
            return candidate
    return "F16"


def _choose(state: _State, block: int, leaf: str, shape: tuple[int, ...]) -> str:
    category = category_of(leaf)
    if category == "output" or (state.tied and category == "token_embd"):
        return _output(state, shape[-1])
    if state.name == "MXFP4_MOE":
        return "MXFP4" if len(shape) > 2 and shape[-3] > 1 else "Q8_0"
    if category == "token_embd":
        return _token_embd(state)
    rule = _RULES_SMALL_I.get(category) if state.name in _SMALL_I else _RULES.get(category)
    return rule(state, block) if rule else state.file_type.default


def _output(state: _State, columns: int) -> str:
    default = state.file_type.default
    misfits = columns % GGML_TYPES[default].block_values != 0
    if state.name == "MXFP4_MOE" or state.model.architecture == "falcon" or misfits or default == "Q8_0":
        return "Q8_0"
    return "Q5_K" if state.name in (*_SMALL_I, "IQ3_XXS") else "Q6_K"


def _token_embd(state: _State) -> str:
    special = {
        **dict.fromkeys(("IQ2_XXS", "IQ2_XS", "IQ1_S", "IQ1_M"), "Q2_K"),
        **dict.fromkeys(("IQ2_S", "IQ2_M", "IQ3_XXS"), "IQ3_S"),
        **dict.fromkeys(("TQ1_0", "TQ2_0", "Q2_0"), "Q4_K"),
    }
    return special.get(state.name, state.file_type.default)


def use_more_bits(index: int, total: int) -> bool:
    """The layers that the medium mixes favour: the first and last eighth, and every third between."""
    return index < total // 8 or index >= 7 * total // 8 or (index - total // 8) % 3 == 2


def _attn_v(state: _State, _: int) -> str:
    index = state.attn_v_seen
    state.attn_v_seen += 1
    if state.model.num_experts == 8:
        return "Q8_0"
    kind = _attn_v_mix(state, index)
    return "Q5_K" if state.model.is_seventy_b and kind in ("Q3_K", "Q4_K") else kind


def _attn_v_mix(state: _State, index: int) -> str:
    name, default = state.name, state.file_type.default
    wide = state.model.heads_per_kv_head >= 4
    more = use_more_bits(index, state.attn_v_total)
    mixes = {
        "Q2_K": "Q4_K" if wide else "Q3_K",
        "Q2_K_S": "Q4_K" if wide else default,
        "IQ3_XXS": "Q4_K" if wide else default,
        "IQ3_XS": "Q4_K" if wide else default,
        "IQ3_S": "Q4_K" if wide else default,
        "IQ3_M": "Q4_K",
        "Q3_K_M": "Q5_K" if index < 2 else "Q4_K",
        "Q3_K_L": "Q5_K",
        "IQ4_NL": "Q5_K" if wide else default,
        "IQ4_XS": "Q5_K" if wide else default,
        "Q4_K_M": "Q6_K" if more else default,
        "Q5_K_M": "Q6_K" if more else default,
        "Q4_K_S": "Q5_K" if index < 4 else default,
    }
    return mixes.get(name, default)


def _attn_k(state: _State, block: int) -> str:
    return "Q8_0" if state.model.num_experts == 8 else _attn_q(state, block)


def _attn_q(state: _State, _: int) -> str:
    return {"IQ3_XS": "IQ3_XXS", "IQ3_XXS": "IQ2_S"}.get(state.name, state.file_type.default)


def _attn_output(state: _State, _: int) -> str:
    default = state.file_type.default
    if state.model.architecture == "falcon":
        return "Q4_K" if state.name == "Q3_K_L" else default
    if state.model.num_experts == 8:
        raised = ("Q2_K", "IQ3_XS", "IQ3_XXS", "Q3_K_S", "Q3_K_M", "IQ4_NL", "Q4_K_S", "Q4_K_M", "IQ3_S", "IQ3_M", "IQ4_XS")
        return "Q5_K" if state.name in raised else default
    mixes = {"Q2_K": "Q3_K", "IQ3_XXS": "IQ3_S", "Q3_K_M": "Q4_K", "Q3_K_L": "Q5_K", "IQ3_M": "Q4_K"}
    return mixes.get(state.name, default)


def _ffn_down(state: _State, block: int) -> str:
    layer, total = state.layer(block, state.ffn_down_seen), state.model.num_layers
    state.ffn_down_seen += 1
    name, default = state.name, state.file_type.default
    early, more = state.is_early(layer), use_more_bits(layer, total)
    falcon = state.model.architecture == "falcon"
    if falcon and name in ("Q3_K_M", "Q3_K_L", "Q4_K_M", "Q4_K_S"):
        return _ffn_down_falcon(state, layer, more=more)
    mixes = {
        "Q2_K": "Q3_K",
        "Q2_K_S": "Q4_K" if early else default,
        "Q3_K_M": "Q5_K" if state.is_early(layer, 16) else "Q4_K",
        "IQ3_M": "Q4_K" if early or (state.model.num_experts == 8 and more) else default,
        "Q3_K_L": "Q5_K",
        "Q4_K_M": "Q6_K" if more else default,
        "IQ4_NL": "Q5_K" if early else default,
        "IQ4_XS": "Q5_K" if early else default,
        "Q5_K_M": "Q6_K" if more else default,
        "Q4_K_S": "Q5_K" if early else default,
    }
    return mixes.get(name, default)


def _ffn_down_falcon(state: _State, layer: int, *, more: bool) -> str:
    first = state.is_early(layer, 16)
    return {
        "Q3_K_M": "Q5_K" if first else "Q4_K" if more else "Q3_K",
        "Q3_K_L": "Q4_K",
        "Q4_K_M": "Q6_K" if first else "Q5_K" if more else "Q4_K",
        "Q4_K_S": "Q4_K",
    }[state.name]


def _ffn_gate(state: _State, block: int) -> str:
    layer = state.layer(block, state.ffn_gate_seen)
    state.ffn_gate_seen += 1
    return _ffn_middle(state, layer)


def _ffn_up(state: _State, block: int) -> str:
    layer = state.layer(block, state.ffn_up_seen)
    state.ffn_up_seen += 1
    return _ffn_middle(state, layer)


def _ffn_middle(state: _State, layer: int) -> str:
    total = state.model.num_layers
    middle = total // 8 <= layer < 7 * total // 8
    return "IQ3_XXS" if state.name == "IQ3_XS" and middle else state.file_type.default


def _small_attn_v(state: _State, _: int) -> str:
    state.attn_v_seen += 1
    if state.model.heads_per_kv_head >= 4 or state.model.num_experts >= 4:
        return "Q4_K"
    return _small_raised(state)


def _small_attn_k(state: _State, _: int) -> str:
    return "Q4_K" if state.model.num_experts == 8 else state.file_type.default


def _small_ffn_down(state: _State, _: int) -> str:
    early = state.is_early(state.ffn_down_seen)
    state.ffn_down_seen += 1
    return _small_raised(state) if early else state.file_type.default


def _small_attn_output(state: _State, _: int) -> str:
    if state.model.num_experts == 8:
        return "Q5_K"
    mixes = {"IQ1_S": "IQ2_XXS", "IQ1_M": "IQ2_XXS", "IQ2_S": "IQ3_S", "IQ2_M": "IQ3_S"}
    return mixes.get(state.name, state.file_type.default)


def _small_raised(state: _State) -> str:
    return "IQ3_S" if state.name in ("IQ2_S", "IQ2_M") else "Q2_K"


_RULES: dict[Category, Callable[[_State, int], str]] = {
    "attn_v": _attn_v,
    "attn_k": _attn_k,
    "attn_q": _attn_q,
    "attn_output": _attn_output,
    "ffn_down": _ffn_down,
    "ffn_gate": _ffn_gate,
    "ffn_up": _ffn_up,
}
_RULES_SMALL_I: dict[Category, Callable[[_State, int], str]] = {
    "attn_v": _small_attn_v,
    "attn_k": _small_attn_k,
    "ffn_down": _small_ffn_down,
    "attn_output": _small_attn_output,
}
