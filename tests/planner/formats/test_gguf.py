"""GGUF: types, and the bytes of every file type of real models, to the byte."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.architecture import Architecture, read_config
from planner.architecture.layers import LatentAttention, Layer, MixtureOfExperts, Weight
from planner.formats import (
    FILE_TYPES,
    GGML_TYPES,
    GGML_TYPES_BY_ID,
    checkpoint_bytes,
    gguf_tensors,
    parse_format,
)
from planner.formats.gguf_mix import GgufModel, block_of, category_of, tensor_types, use_more_bits

EFFECTIVE = json.loads((Path(__file__).parents[2] / "data" / "gguf_effective.json").read_text())


@cache
def architecture(model: str) -> Architecture:
    return read_config(EFFECTIVE["models"][model])


@pytest.mark.parametrize("row", EFFECTIVE["rows"], ids=lambda row: f"{row[0]}-{row[1]}")
def test_bytes_of_a_file_type_equal_the_file(row: tuple[str, str, int, int, dict[str, int]]) -> None:
    model, file_type, parameters, tensor_bytes, tensors_by_type = row
    tensors = gguf_tensors(architecture(model), file_type)
    assert sum(math.prod(tensor.shape) for tensor in tensors) == parameters
    assert Counter(tensor.kind.name for tensor in tensors) == tensors_by_type
    assert sum(tensor.size_bytes for tensor in tensors) == tensor_bytes
    fmt = parse_format(f"gguf:{file_type}")
    assert checkpoint_bytes(architecture(model), fmt).total_bytes == tensor_bytes


def test_types_are_those_of_the_gguf_package() -> None:
    gguf = pytest.importorskip("gguf")
    for kind in gguf.GGMLQuantizationType:
        ours = GGML_TYPES_BY_ID[kind.value]
        assert ours.name == kind.name
        if kind.name != "Q8_1":  # the package counts its two halves as floats; ggml-common.h has 36 bytes
            assert (ours.block_values, ours.block_bytes) == gguf.GGML_QUANT_SIZES[kind]


def test_file_types_are_those_of_the_gguf_package() -> None:
    gguf = pytest.importorskip("gguf")
    known = {kind.name.removeprefix("MOSTLY_").removeprefix("ALL_"): kind.value for kind in gguf.LlamaFileType}
    known.pop("GUESSED")
    assert {name: FILE_TYPES[name].file_type_id for name in known} == known


def test_a_row_that_does_not_fill_blocks_is_refused() -> None:
    with pytest.raises(ValueError, match="multiple of 256"):
        GGML_TYPES["Q4_K"].row_bytes(100)


@pytest.mark.parametrize(
    ("name", "category"),
    [
        ("output.weight", "output"),
        ("token_embd.weight", "token_embd"),
        ("attn_qkv.weight", "attn_v"),
        ("attn_k_b.weight", "other"),
        ("ffn_down_exps.weight", "ffn_down"),
        ("ffn_gate_shexp.weight", "ffn_gate"),
        ("ssm_out.weight", "other"),
    ],
)
def test_categories(name: str, category: str) -> None:
    assert category_of(name) == category


def test_blocks() -> None:
    assert block_of("blk.12.attn_q.weight") == 12
    assert block_of("output.weight") == -1
    assert block_of("blk.x.y") == -1


@given(st.integers(min_value=1, max_value=200))
def test_more_bits_go_to_less_than_two_thirds_of_the_layers(total: int) -> None:
    """The first and last eighth and every third between get more bits: at least the third, at most half and a few."""
    favoured = sum(use_more_bits(index, total) for index in range(total))
    assert total // 3 <= favoured + 3
    assert favoured <= total // 2 + 3


def small_llama(columns: int) -> list[tuple[str, tuple[int, ...]]]:
    """Two layers of Llama's names with rows of ``columns``."""
    names = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    blocks = [(f"blk.{index}.{name}.weight", (64, columns)) for index in range(2) for name in names]
    return [("token_embd.weight", (100, columns)), ("output.weight", (100, columns)), ("output_norm.weight", (columns,)), *blocks]


@given(st.sampled_from(sorted(FILE_TYPES)), st.integers(min_value=1, max_value=1024))
def test_every_tensor_gets_a_type_whose_blocks_fill_its_rows(file_type: str, columns: int) -> None:
    """Shape fallback: a row is always a whole number of blocks, whatever its width."""
    tensors = small_llama(columns)
    kinds = tensor_types(tensors, GgufModel("llama", 2, 8, 2), file_type)
    assert all(shape[-1] % kind.block_values == 0 for (_, shape), kind in zip(tensors, kinds, strict=True))


@given(st.permutations(small_llama(512)), st.sampled_from(sorted(FILE_TYPES)))
def test_the_order_of_the_file_does_not_matter(tensors: list[tuple[str, tuple[int, ...]]], file_type: str) -> None:
    """Counters run in the loader's order (layer, then name), not in the file's."""
    model = GgufModel("llama", 2, 8, 2)
    straight = dict(zip((name for name, _ in small_llama(512)), tensor_types(small_llama(512), model, file_type), strict=True))
    shuffled = dict(zip((name for name, _ in tensors), tensor_types(tensors, model, file_type), strict=True))
    assert shuffled == straight


def mixture(*weights: Weight) -> Architecture:
    """One layer of experts only."""
    router = Weight("mlp.gate.weight", (8, 256), "router")
    experts = MixtureOfExperts(8, 2, 512, gated=True, activation="silu", weights=(router, *weights))
    base = architecture("llama2-7b-L4")
    stack = replace(base.decoder, hidden_size=256, layers=(Layer((), (experts,), ()),))
    return replace(base, hidden_size=256, decoder=stack)


EXPERTS = {
    "one by one": (
        Weight("mlp.experts.*.gate_proj.weight", (512, 256), "expert", 8),
        Weight("mlp.experts.*.up_proj.weight", (512, 256), "expert", 8),
        Weight("mlp.experts.*.down_proj.weight", (256, 512), "expert", 8),
    ),
    "stacked": (
        Weight("mlp.experts.gate_up_proj", (8, 1024, 256), "expert"),
        Weight("mlp.experts.down_proj", (8, 256, 512), "expert"),
    ),
    "transposed": (
        Weight("mlp.experts.gate_up_proj", (8, 256, 1024), "expert"),
        Weight("mlp.experts.down_proj", (8, 512, 256), "expert"),
    ),
    "Granite's names": (
        Weight("block_sparse_moe.input_linear.weight", (8, 1024, 256), "expert"),
        Weight("block_sparse_moe.output_linear.weight", (8, 256, 512), "expert"),
    ),
}


@pytest.mark.parametrize("weights", EXPERTS.values(), ids=EXPERTS)
def test_experts_become_three_stacked_tensors_however_the_checkpoint_holds_them(weights: tuple[Weight, ...]) -> None:
    tensors = {tensor.name: tensor for tensor in gguf_tensors(mixture(*weights), "Q4_K_M") if tensor.layer == 0}
    assert {name: tensor.shape for name, tensor in tensors.items()} == {
        "blk.0.ffn_gate_inp.weight": (8, 256),
        "blk.0.ffn_gate_exps.weight": (8, 512, 256),
        "blk.0.ffn_up_exps.weight": (8, 512, 256),
        "blk.0.ffn_down_exps.weight": (8, 256, 512),
    }
    assert tensors["blk.0.ffn_gate_inp.weight"].kind.name == "F32"
    assert tensors["blk.0.ffn_down_exps.weight"].kind.name == "Q6_K"


def test_a_fused_key_value_projection_of_latent_attention_is_split_in_two() -> None:
    """kv_b_proj (heads · (nope + v), rank) becomes k_b (heads, rank, nope) and v_b (heads, v, rank)."""
    latent = LatentAttention(4, None, 64, 32, 16, 48, (Weight("self_attn.kv_b_proj.weight", (4 * 80, 64), "linear"),))
    base = architecture("llama2-7b-L4")
    model = replace(base, decoder=replace(base.decoder, layers=(Layer((latent,), (), ()),)))
    shapes = {tensor.name: tensor.shape for tensor in gguf_tensors(model, "F16") if tensor.layer == 0}
    assert shapes == {"blk.0.attn_k_b.weight": (4, 64, 32), "blk.0.attn_v_b.weight": (4, 48, 64)}
