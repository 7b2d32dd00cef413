"""Bytes of one weight under each scheme, against what the libraries really allocated."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.formats.catalog import EETQ, FP8_BLOCK, FP8_PER_CHANNEL, FP8_PER_TENSOR, LLM_INT8, MXFP4, NVFP4, TORCHAO_INT8
from planner.formats.storage import Awq, BitsAndBytes4Bit, Gptq, Hqq, PackedInt32, Plain, QuantoBits, Scaled, Scheme

SCHEMES: tuple[Scheme, ...] = (
    Plain("fp32"),
    Plain("bf16"),
    FP8_PER_TENSOR,
    FP8_PER_CHANNEL,
    FP8_BLOCK,
    LLM_INT8,
    MXFP4,
    NVFP4,
    TORCHAO_INT8,
    EETQ,
    BitsAndBytes4Bit("nf4", double_quant=False),
    BitsAndBytes4Bit("nf4", double_quant=True),
    *(Gptq(bits, group) for bits in (2, 3, 4, 8) for group in (32, 128, -1)),
    Awq(4, 128),
    Hqq(3, 64),
    Hqq(4, 64),
    QuantoBits(4),
    PackedInt32(4, 128, symmetric=False, has_group_index=True),
)

dimensions = st.integers(min_value=1, max_value=3000)


def sizes(scheme: Scheme, shape: tuple[int, ...]) -> dict[str, int]:
    return {tensor.name: tensor.size_bytes for tensor in scheme.store(shape)}


def total(scheme: Scheme, shape: tuple[int, ...]) -> int:
    return sum(sizes(scheme, shape).values())


# Recorded by quantising random matrices on CPU and reading nbytes of every tensor kept.
BITSANDBYTES_0_50_2 = [
    ((256, 512), False, {"weight": 65536, "absmax": 8192, "quant_map": 64}),
    ((100, 130), False, {"weight": 6500, "absmax": 816, "quant_map": 64}),
    ((7, 33), False, {"weight": 116, "absmax": 16, "quant_map": 64}),
    ((1, 5), False, {"weight": 3, "absmax": 4, "quant_map": 64}),
    (
        (256, 512),
        True,
        {"weight": 65536, "absmax": 2048, "quant_map": 64, "nested_absmax": 32, "nested_quant_map": 1024, "nested_offset": 4},
    ),
    (
        (100, 130),
        True,
        {"weight": 6500, "absmax": 204, "quant_map": 64, "nested_absmax": 4, "nested_quant_map": 1024, "nested_offset": 4},
    ),
]


@pytest.mark.parametrize(("shape", "double_quant", "expected"), BITSANDBYTES_0_50_2)
def test_nf4_is_what_bitsandbytes_keeps(shape: tuple[int, int], double_quant: bool, expected: dict[str, int]) -> None:
    assert sizes(BitsAndBytes4Bit("nf4", double_quant), shape) == expected


@pytest.mark.parametrize(("shape", "expected"), [((256, 512), (131072, 1024)), ((100, 130), (13000, 400))])
def test_llm_int8_is_what_bitsandbytes_keeps(shape: tuple[int, int], expected: tuple[int, int]) -> None:
    assert tuple(sizes(LLM_INT8, shape).values()) == expected


HQQ_0_2_8 = [
    (8, 64, 131072, 4096),
    (8, 128, 131072, 2048),
    (4, 64, 65536, 4096),
    (3, 64, 52480, 4096),
    (3, 128, 52736, 2048),
    (2, 64, 32768, 4096),
    (1, 128, 16384, 2048),
]


@pytest.mark.parametrize(("bits", "group_size", "packed", "statistics"), HQQ_0_2_8)
def test_hqq_is_what_hqq_keeps(bits: int, group_size: int, packed: int, statistics: int) -> None:
    assert sizes(Hqq(bits, group_size), (256, 512)) == {"W_q": packed, "scale": statistics, "zero": statistics}


QUANTO_0_2_7 = [
    (4, (256, 512), 65536, 2048),
    (4, (64, 288), 9216, 384),
    (4, (64, 128), 4096, 128),
    (4, (64, 100), 3200, 128),
    (2, (256, 512), 32768, 2048),
    (2, (64, 288), 4608, 384),
]


@pytest.mark.parametrize(("bits", "shape", "packed", "statistics"), QUANTO_0_2_7)
def test_quanto_is_what_quanto_keeps(bits: int, shape: tuple[int, int], packed: int, statistics: int) -> None:
    expected = {"weight": packed, "scale": statistics, "shift": statistics, "input_output_scale": 4}
    assert sizes(QuantoBits(bits), shape) == expected


COMPRESSED_TENSORS_0_20 = [
    (3, (64, 512), 12288, 96),
    (3, (50, 100), 2000, 20),
    (4, (64, 512), 16384, 128),
    (4, (50, 100), 2600, 28),
    (8, (50, 100), 5000, 52),
]


@pytest.mark.parametrize(("bits", "shape", "packed", "zeros"), COMPRESSED_TENSORS_0_20)
def test_packed_words_are_those_of_compressed_tensors(bits: int, shape: tuple[int, int], packed: int, zeros: int) -> None:
    stored = sizes(PackedInt32(bits, 128, symmetric=False), shape)
    assert (stored["weight_packed"], stored["weight_zero_point"]) == (packed, zeros)
    assert stored["weight_shape"] == 16


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_gptq_buffers_have_the_shapes_autogptq_registers(bits: int) -> None:
    """qweight (in // 32 · bits, out), qzeros (⌈in / g⌉, out // 32 · bits), scales (⌈in / g⌉, out) fp16, g_idx (in): int32."""
    rows, columns, group = 1024, 4096, 128
    assert sizes(Gptq(bits, group), (rows, columns)) == {
        "qweight": columns // 32 * bits * rows * 4,
        "qzeros": columns // group * (rows // 32 * bits) * 4,
        "scales": columns // group * rows * 2,
        "g_idx": columns * 4,
    }


def test_awq_buffers_have_the_shapes_autoawq_registers() -> None:
    """qweight (in, out // 8), qzeros (in // g, out // 8), scales (in // g, out) fp16."""
    assert sizes(Awq(4, 128), (1024, 4096)) == {"qweight": 4096 * 128 * 4, "qzeros": 32 * 128 * 4, "scales": 32 * 1024 * 2}


@pytest.mark.parametrize(
    ("scheme", "bits_per_value"),
    [
        (BitsAndBytes4Bit("nf4", double_quant=False), 4 + 32 / 64),
        (BitsAndBytes4Bit("nf4", double_quant=True), 4 + 8 / 64 + 32 / (64 * 256)),
        (Awq(4, 128), 4 + 16 / 128 + 4 / 128),
        (MXFP4, 4 + 8 / 32),
        (NVFP4, 4 + 8 / 16),
        (FP8_BLOCK, 8 + 32 / 16384),
    ],
)
def test_true_bits_per_value(scheme: Scheme, bits_per_value: float) -> None:
    """The published bits per weight of each scheme, for a matrix large enough that scalars vanish."""
    assert total(scheme, (16384, 16384)) * 8 / 16384**2 == pytest.approx(bits_per_value, rel=2e-5)


@given(st.sampled_from(SCHEMES), dimensions, dimensions)
def test_growing_a_matrix_never_shrinks_its_values(scheme: Scheme, rows: int, columns: int) -> None:
    """A matrix with one more row or column takes at least as many bytes for its values."""
    payload = sum(t.size_bytes for t in scheme.store((rows, columns)) if t.is_payload)
    for larger in ((rows + 1, columns), (rows, columns + 1)):
        assert sum(t.size_bytes for t in scheme.store(larger) if t.is_payload) >= payload


@given(st.sampled_from(SCHEMES), dimensions, dimensions)
def test_every_stored_tensor_is_counted_in_whole_bytes(scheme: Scheme, rows: int, columns: int) -> None:
    """Bytes are non-negative integers and exactly one tensor holds the values."""
    tensors = scheme.store((rows, columns))
    assert all(type(tensor.size_bytes) is int and tensor.size_bytes >= 0 for tensor in tensors)
    assert [tensor.is_payload for tensor in tensors].count(True) == 1


@given(st.sampled_from([s for s in SCHEMES if isinstance(s, Scaled | Gptq | Awq | Plain)]), dimensions, dimensions)
def test_stacked_matrices_take_as_much_as_each_by_itself(scheme: Scheme, rows: int, columns: int) -> None:
    """Experts stacked in one tensor take their number times one expert's bytes."""
    one = total(scheme, (rows, columns))
    assert total(scheme, (4, rows, columns)) == 4 * one


@given(dimensions, dimensions)
def test_values_take_their_bits(rows: int, columns: int) -> None:
    """The values of a scheme take no less than rows · columns · bits / 8."""
    for bits, scheme in ((4, Gptq(4, 128)), (4, BitsAndBytes4Bit("nf4", double_quant=True)), (8, LLM_INT8), (3, Hqq(3, 64))):
        payload = sum(t.size_bytes for t in scheme.store((rows, columns)) if t.is_payload)
        assert payload >= math.ceil(rows * columns * bits / 8)


def test_tiles_are_stored_whole() -> None:
    """torchao's tensor-core tiles: 1,024 inputs and 8 outputs at least."""
    tiled = Scaled("int4", 4, (1, 128), 16, 16, padded_to=(8, 1024))
    assert [tensor.size_bytes for tensor in tiled.store((100, 1100))] == [104 * 2048 // 2, 104 * 16 * 2, 104 * 16 * 2]
