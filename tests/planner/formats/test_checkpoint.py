"""All weights of a model under a format."""

from __future__ import annotations

import json
import math
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.architecture import Architecture, iter_weights, parameter_count, read_config
from planner.formats import FORMATS, BytesUnknown, checkpoint_bytes, native_format, parse_format, placed_weights, weight_bytes

if TYPE_CHECKING:
    from collections.abc import Mapping

LLAMA = {
    "model_type": "llama",
    "vocab_size": 1000,
    "hidden_size": 256,
    "intermediate_size": 704,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "dtype": "bfloat16",
}
LLAMA_8B = json.loads((Path(__file__).parents[2] / "data" / "gguf_effective.json").read_text())["models"]["llama3.1-8b-L32"]
BY_NAME = sorted(name for name in FORMATS if not name.startswith("gguf:"))
LINEARS_OF_8B = 32 * (2 * 4096 * 4096 + 2 * 1024 * 4096 + 3 * 14336 * 4096)


@cache
def small() -> Architecture:
    return read_config(LLAMA)


@cache
def llama_8b() -> Architecture:
    return read_config(LLAMA_8B)


def sizes(name: str, architecture: Architecture | None = None, **options: Any) -> Any:
    return checkpoint_bytes(architecture or small(), parse_format(name), **options)


@pytest.mark.parametrize(("name", "width"), [("fp32", 4), ("bf16", 2), ("fp16", 2)])
def test_a_plain_format_is_parameters_times_width(name: str, width: int) -> None:
    assert sizes(name, llama_8b()).total_bytes == 8_030_261_248 * width
    assert sizes(name).total_bytes == parameter_count(small()) * width


@pytest.mark.parametrize("name", BY_NAME)
def test_bytes_are_conserved(name: str) -> None:
    """The total is payload and state, and the sum over roles, over dtypes and over single weights."""
    found = sizes(name)
    assert found.total_bytes == found.payload_bytes + found.quantization_state_bytes
    assert found.total_bytes == sum(found.by_role.values()) == sum(found.by_dtype.values())
    resolved = parse_format(name).for_model(has_experts=False, dtype="bf16")
    places = placed_weights(small(), unfold=True)
    assert found.total_bytes == sum(
        weight_bytes(resolved, place.weight, place.path, in_decoder=place.in_decoder).total_bytes * place.times for place in places
    )


@pytest.mark.parametrize("name", [name for name in BY_NAME if name not in ("fp32", "bf16", "fp16")])
def test_embeddings_norms_and_head_stay_in_16_bit(name: str) -> None:
    found = sizes(name)
    assert found.by_role["embedding"] == found.by_role["head"] == 1000 * 256 * 2
    assert found.by_role["norm"] == 9 * 256 * 2
    assert found.kept == ("model.embed_tokens", "lm_head")
    assert found.by_role["linear"] < sizes("bf16").by_role["linear"]


@pytest.mark.parametrize(
    ("name", "bits"),
    [
        ("nf4", 4.5),
        ("nf4-dq", 4 + 8 / 64 + 32 / 16384),
        ("awq-int4-g128", 4 + 20 / 128),
        ("mxfp4", 4.25),
        ("nvfp4", 4.5),
        ("int8", 8),
    ],
)
def test_true_bits_of_the_linears(name: str, bits: float) -> None:
    found = sizes(name, llama_8b())
    assert found.by_role["linear"] * 8 / LINEARS_OF_8B == pytest.approx(bits, rel=2e-3)


def test_single_layers_can_be_left_alone() -> None:
    whole, skipping = sizes("nf4"), sizes("nf4", skip=("model.layers.2.mlp",))
    assert skipping.total_bytes > whole.total_bytes
    assert {name for name in skipping.kept if "mlp" in name} == {
        f"model.layers.2.mlp.{part}_proj" for part in ("gate", "up", "down")
    }
    assert skipping.by_role["linear"] - whole.by_role["linear"] == 3 * 704 * 256 * 2 - sum(
        tensor.size_bytes
        for place in placed_weights(small())
        if ".mlp." in f".{place.weight.name}"
        for tensor in parse_format("nf4").scheme.store(place.weight.shape)
    )


def test_the_dtype_of_the_rest_is_the_model_s() -> None:
    assert sizes("nf4", read_config({**LLAMA, "dtype": "float32"})).by_role["head"] == 1000 * 256 * 4
    assert sizes("gptq-int4-g128", read_config({**LLAMA, "dtype": "float32"})).by_role["head"] == 1000 * 256 * 2


def test_a_tied_head_is_counted_once() -> None:
    tied = read_config({**LLAMA, "tie_word_embeddings": True})
    assert "head" not in sizes("bf16", tied).by_role
    assert sizes("gguf:F16", tied).total_bytes == sizes("gguf:F16").total_bytes - 1000 * 256 * 2


def test_what_only_a_header_tells_is_unknown() -> None:
    with pytest.raises(BytesUnknown, match="AQLM"):
        checkpoint_bytes(small(), native_format({"quantization_config": {"quant_method": "aqlm"}}))


def test_gguf_of_single_tensors_is_refused() -> None:
    _, weight, _ = next(iter(iter_weights(small())))
    with pytest.raises(ValueError, match="whole file"):
        weight_bytes(parse_format("gguf:Q4_K_M"), weight)


def test_an_answer_is_remembered() -> None:
    assert sizes("nf4") is sizes("nf4")
    assert sizes("nf4") is not sizes("nf4", read_config(LLAMA))


multiples = st.integers(min_value=1, max_value=12)


@settings(max_examples=50)
@given(st.sampled_from(BY_NAME), multiples, multiples, st.integers(min_value=1, max_value=6))
def test_a_larger_model_never_takes_less(name: str, width: int, inner: int, layers: int) -> None:
    """Bytes grow with hidden size, feed-forward width and depth."""

    def of(**changes: int) -> int:
        base: Mapping[str, Any] = {
            **LLAMA,
            "hidden_size": 256 * width,
            "intermediate_size": 256 * inner,
            "num_hidden_layers": layers,
        }
        found = checkpoint_bytes(read_config({**base, **changes}), parse_format(name))
        return int(found.total_bytes)

    here = of()
    assert of(hidden_size=256 * (width + 1)) > here
    assert of(intermediate_size=256 * (inner + 1)) > here
    assert of(num_hidden_layers=layers + 1) > here


@given(st.sampled_from(BY_NAME))
def test_never_below_the_payload(name: str) -> None:
    """What is stored is at least the values' bits, and quantising never takes more than fp32."""
    found = sizes(name)
    assert found.total_bytes >= found.payload_bytes >= math.ceil(parameter_count(small()) * 2 / 8)
    assert found.total_bytes <= parameter_count(small()) * 4
