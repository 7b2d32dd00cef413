"""Formats by name."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.formats import FILE_TYPES, FORMATS, UnknownFormat, cache_format, cache_value_bytes, format_names, parse_format
from planner.formats.storage import Gptq, Hqq


def test_every_name_parses_to_itself() -> None:
    assert all(parse_format(name).name == name for name in format_names())


@pytest.mark.parametrize("name", ["fp32", "bf16", "fp16", "fp8", "int8", "nf4", "nf4-dq", "fp4", "mxfp4", "nvfp4", "gguf:Q4_K_M"])
def test_promised_names_exist(name: str) -> None:
    assert name in FORMATS


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("group_size", [16, 32, 64, 128, 256, -1])
def test_gptq_names_carry_their_parameters(bits: int, group_size: int) -> None:
    assert parse_format(f"gptq-int{bits}-g{group_size}").scheme == Gptq(bits, group_size)


def test_parameters_may_be_left_out() -> None:
    assert parse_format("gptq-int4").name == "gptq-int4-g128"
    assert parse_format("awq-int4").name == "awq-int4-g128"
    assert parse_format("hqq-int4").scheme == Hqq(4, 64)
    assert parse_format("gguf:q4_k_m").name == "gguf:Q4_K_M"


@pytest.mark.parametrize(
    ("name", "suggestion"),
    [("bf61", "bf16"), ("gguf:Q4_K_L", "gguf:Q4_K"), ("nf4dq", "nf4-dq"), ("q4_k_m", "gguf:Q4_K_M"), ("BF16", "bf16")],
)
def test_an_unknown_name_suggests_the_nearest(name: str, suggestion: str) -> None:
    with pytest.raises(UnknownFormat, match=suggestion):
        parse_format(name)


@pytest.mark.parametrize("name", ["", "gptq-int5-g128", "gptq-int4-g0", "gptq-int4-g-2", "awq-int3-g128", "gguf:", "gguf:F8"])
def test_nonsense_is_refused(name: str) -> None:
    with pytest.raises(UnknownFormat):
        parse_format(name)


@given(st.text(max_size=200))
def test_any_text_is_a_format_or_refused(name: str) -> None:
    """A name either parses or raises UnknownFormat, never anything else."""
    try:
        parse_format(name)
    except UnknownFormat as error:
        assert len(str(error)) < 300


def test_every_file_type_is_a_format() -> None:
    assert {f"gguf:{name}" for name in FILE_TYPES} <= set(FORMATS)


@pytest.mark.parametrize(
    ("name", "values", "size"),
    [("bf16", 128, 256), ("fp8", 128, 128), ("q8_0", 128, 136), ("q4_0", 128, 72), ("int4", 128, 72), ("fp8_e4m3", 7, 7)],
)
def test_cache_rows(name: str, values: int, size: int) -> None:
    assert cache_format(name).row_bytes(values) == size
    block_values, block_bytes = cache_value_bytes(name)
    assert values * block_bytes == size * block_values


def test_an_unknown_cache_format_is_refused() -> None:
    with pytest.raises(UnknownFormat, match="q8_0"):
        cache_format("q8_O")
