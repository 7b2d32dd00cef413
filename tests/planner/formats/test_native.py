"""What a checkpoint's config says about its format, and what a hostile one gets."""

from __future__ import annotations

import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.architecture.layers import Weight
from planner.faults import Faults
from planner.formats import Format, native_format
from planner.formats.format import scheme_of
from planner.formats.native import HEADER_ONLY, METHODS
from planner.formats.storage import WHOLE, Awq, BitsAndBytes4Bit, Gptq, Hqq, PackedInt32, Plain, QuantoBits, Scaled

LINEAR = Weight("mlp.up_proj.weight", (1024, 256), "linear")
HEAD = Weight("lm_head.weight", (1000, 256), "head")
PATH = "model.layers.3."


def native(**quantization: Any) -> Format:
    return native_format({"quantization_config": quantization})


def stored(fmt: Format, weight: Weight = LINEAR, path: str = PATH) -> object:
    return scheme_of(fmt.for_model(has_experts=True, dtype="bf16"), weight, path)


def torchao(kind: str, version: int, **data: Any) -> dict[str, Any]:
    """A config as torchao writes its classes."""
    return {"quant_method": "torchao", "quant_type": {"default": {"_type": kind, "_version": version, "_data": data}}}


SCHEMES = [
    ({"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": True, "sym": True}, Gptq(4, 128)),
    ({"quant_method": "gptq", "bits": 3, "group_size": -1}, Gptq(3, -1)),
    ({"quant_method": "awq", "bits": 4, "group_size": 64, "zero_point": True, "version": "gemm"}, Awq(4, 64)),
    ({"quant_method": "bitsandbytes", "load_in_8bit": True}, Scaled("int8", 8, (1, WHOLE), 32)),
    ({"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}, BitsAndBytes4Bit("nf4", True)),
    (
        {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_storage": "bfloat16"},
        BitsAndBytes4Bit("fp4", False, storage_bytes=2),
    ),
    ({"quant_method": "fp8", "weight_block_size": [128, 128]}, Scaled("fp8", 8, (128, 128), 32)),
    ({"quant_method": "fp8", "weight_block_size": [1, 32], "scale_fmt": "ue8m0"}, Scaled("fp8", 8, (1, 32), 8)),
    ({"quant_method": "fp8", "activation_scheme": "static"}, Scaled("fp8", 8, (WHOLE, WHOLE), 32, tensor_bytes=4)),
    ({"quant_method": "fbgemm_fp8"}, Scaled("fp8", 8, (1, WHOLE), 32, tensor_bytes=4)),
    ({"quant_method": "hqq", "quant_config": {"weight_quant_params": {"nbits": 3, "group_size": 64}}}, Hqq(3, 64)),
    ({"quant_method": "hqq", "quant_config": {"weight_quant_params": {"nbits": 4, "group_size": None}}}, Hqq(4, None)),
    ({"quant_method": "quanto", "weights": "int4"}, QuantoBits(4)),
    ({"quant_method": "quanto", "weights": "float8"}, Scaled("fp8", 8, (1, WHOLE), 16, tensor_bytes=4)),
    (
        torchao("Int4WeightOnlyConfig", 2, group_size=32, int4_packing_format={"_type": "Int4PackingFormat", "_data": "PLAIN"}),
        Scaled("int4", 4, (1, 32), 16, zero_point_bits=16),
    ),
    (torchao("Int4WeightOnlyConfig", 1, group_size=64), Scaled("int4", 4, (1, 64), 16, 16, padded_to=(8, 1024))),
    (torchao("Int8WeightOnlyConfig", 1, group_size=32), Scaled("int8", 8, (1, 32), 32, zero_point_bits=8)),
    (torchao("Float8DynamicActivationFloat8WeightConfig", 1), Scaled("fp8", 8, (WHOLE, WHOLE), 32)),
    (
        torchao("Float8DynamicActivationFloat8WeightConfig", 1, granularity=[{"_type": "PerRow"}, {"_type": "PerRow"}]),
        Scaled("fp8", 8, (1, WHOLE), 32),
    ),
    ({"quant_method": "eetq"}, Scaled("int8", 8, (1, WHOLE), 16)),
    ({"quant_method": "bitnet"}, Scaled("int2", 2, (WHOLE, WHOLE), 16)),
    ({"quant_method": "auto-round", "bits": 4, "group_size": 128, "packing_format": "auto_round:auto_gptq"}, Gptq(4, 128)),
    ({"quant_method": "modelopt", "quant_algo": "FP8"}, Scaled("fp8", 8, (WHOLE, WHOLE), 32, tensor_bytes=4)),
    ({"quant_method": "modelopt", "quant_algo": "NVFP4", "group_size": 16}, Scaled("nvfp4", 4, (1, 16), 8, tensor_bytes=8)),
]


@pytest.mark.parametrize(("quantization", "scheme"), SCHEMES, ids=lambda value: str(value)[:60])
def test_schemes(quantization: dict[str, Any], scheme: object) -> None:
    fmt = native_format({"quantization_config": quantization})
    assert not fmt.unknown
    assert stored(fmt) == scheme
    assert stored(fmt, HEAD, "") == Plain("bf16")


def compressed(layout: str, **weights: Any) -> dict[str, Any]:
    group = {"targets": ["Linear"], "weights": weights, "input_activations": None}
    return {"quant_method": "compressed-tensors", "format": layout, "config_groups": {"group_0": group}, "ignore": ["lm_head"]}


COMPRESSED = [
    ("pack-quantized", {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 128}, PackedInt32(4, 128)),
    ("pack-quantized", {"num_bits": 8, "strategy": "channel", "symmetric": False}, PackedInt32(8, -1, symmetric=False)),
    ("pack-quantized", {"num_bits": 4, "group_size": 64, "actorder": "group"}, PackedInt32(4, 64, has_group_index=True)),
    ("int-quantized", {"num_bits": 8, "strategy": "channel"}, Scaled("int8", 8, (1, WHOLE), 16)),
    ("float-quantized", {"num_bits": 8, "type": "float", "strategy": "channel"}, Scaled("fp8", 8, (1, WHOLE), 16)),
    (
        "float-quantized",
        {"num_bits": 8, "type": "float", "strategy": "block", "block_structure": [128, 128]},
        Scaled("fp8", 8, (128, 128), 16),
    ),
    (
        "nvfp4-pack-quantized",
        {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16},
        Scaled("nvfp4", 4, (1, 16), 8, tensor_bytes=4),
    ),
    (
        "mxfp4-pack-quantized",
        {"num_bits": 4, "type": "float", "strategy": "group", "group_size": 32},
        Scaled("mxfp4", 4, (1, 32), 8),
    ),
]


@pytest.mark.parametrize(("layout", "weights", "scheme"), COMPRESSED)
def test_compressed_tensors(layout: str, weights: dict[str, Any], scheme: object) -> None:
    fmt = native_format({"quantization_config": compressed(layout, **weights)})
    assert stored(fmt) == scheme
    assert stored(fmt, HEAD, "") == Plain("bf16")


def test_a_group_that_targets_names_wins_over_the_class() -> None:
    config = compressed("pack-quantized", num_bits=4, group_size=128)
    config["config_groups"]["group_1"] = {"targets": ["re:.*up_proj"], "weights": {"num_bits": 8, "group_size": 32}}
    fmt = native_format({"quantization_config": config})
    assert stored(fmt) == PackedInt32(8, 32)
    assert stored(fmt, Weight("mlp.down_proj.weight", (256, 1024), "linear")) == PackedInt32(4, 128)


def test_dynamic_rules_of_gptqmodel() -> None:
    dynamic = {r"-:.*\.down_proj": {}, r"+:.*\.up_proj": {"bits": 8, "group_size": 32}}
    fmt = native(quant_method="gptq", bits=4, group_size=128, dynamic=dynamic)
    assert stored(fmt) == Gptq(8, 32)
    assert stored(fmt, Weight("mlp.down_proj.weight", (256, 1024), "linear")) == Plain("bf16")
    assert stored(fmt, Weight("mlp.gate_proj.weight", (256, 1024), "linear")) == Gptq(4, 128)


def test_a_skip_list_replaces_the_default_of_keeping_the_head() -> None:
    """transformers: an explicit list is the whole list, so a head that it does not name is quantised."""
    fmt = native(quant_method="fp8", weight_block_size=[128, 128], modules_to_not_convert=["mlp.up_proj"])
    assert stored(fmt) == Plain("bf16")
    assert stored(fmt, HEAD, "") == Scaled("fp8", 8, (128, 128), 32)


def test_routers_norms_and_convolutions_are_never_quantised() -> None:
    fmt = native(quant_method="fp8", weight_block_size=[128, 128], modules_to_not_convert=[])
    for role in ("router", "norm", "conv", "other"):
        assert stored(fmt, Weight("x.weight", (64, 64), role)) == Plain("bf16")  # type: ignore[arg-type]


def test_hf_quant_config_speaks_where_the_config_is_silent() -> None:
    document = {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "FP8", "exclude_modules": ["lm_head"]}}
    assert stored(native_format({}, document)) == Scaled("fp8", 8, (WHOLE, WHOLE), 32, tensor_bytes=4)
    layers = {"model.layers.3.mlp.up_proj": {"quant_algo": "NVFP4", "group_size": 16}}
    mixed = native_format({}, {"quantization": {"quant_algo": "MIXED_PRECISION", "quantized_layers": layers}})
    assert stored(mixed) == Scaled("nvfp4", 4, (1, 16), 8, tensor_bytes=8)
    assert stored(mixed, path="model.layers.4.") == Plain("bf16")


def test_the_text_model_of_a_multimodal_config_is_asked_too() -> None:
    fmt = native_format({"text_config": {"quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": 32}}})
    assert fmt.name == "gptq-int4-g32"


def test_experts_in_fp4_beside_block_fp8() -> None:
    config = {"expert_dtype": "fp4", "quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}}
    fmt = native_format(config)
    assert stored(fmt, Weight("mlp.experts.*.up_proj.weight", (64, 64), "expert", 8)) == Scaled("mxfp4", 4, (1, 32), 8)
    assert stored(fmt, Weight("mlp.shared_experts.up_proj.weight", (64, 64), "linear")) == Scaled("fp8", 8, (128, 128), 32)


def test_an_unquantised_config_is_in_the_model_s_dtype() -> None:
    fmt = native_format({"torch_dtype": "float16"})
    assert not fmt.is_quantized
    assert scheme_of(fmt.for_model(has_experts=False, dtype="fp16"), LINEAR, PATH) == Plain("fp16")


@pytest.mark.parametrize("method", [method for method in HEADER_ONLY if method not in ("", "mlx")])
def test_from_header_only_says_why(method: str) -> None:
    fmt = native(quant_method=method)
    assert fmt.unknown == HEADER_ONLY[method]
    assert fmt.is_quantized


@pytest.mark.parametrize(
    "quantization",
    [
        {"quant_method": "brand-new"},
        {"quant_method": "gptq", "bits": 4, "checkpoint_format": "marlin"},
        {"quant_method": "awq", "bits": 4, "version": "gemv_fast"},
        {"quant_method": "gptq", "bits": 4, "is_marlin_format": True},
        {"quant_method": "torchao", "quant_type": "uintx"},
        torchao("Int4WeightOnlyConfig", 2, group_size=32, int4_packing_format="marlin_sparse"),
        torchao("Int4WeightOnlyConfig", 1, layout={"_type": "MarlinSparseLayout"}),
        {"quant_method": "modelopt", "quant_algo": "W4A8_AWQ"},
        {"quant_method": "compressed-tensors", "format": "marlin-24", "config_groups": {"g": {"weights": {"num_bits": 4}}}},
        {"bits": 4, "group_size": 64},
    ],
)
def test_what_a_config_does_not_tell_is_unknown(quantization: dict[str, Any]) -> None:
    assert native_format({"quantization_config": quantization}).unknown


BAD = [
    ({"quant_method": "gptq", "bits": "four"}, "quantization_config.bits"),
    ({"quant_method": "gptq", "bits": 4, "group_size": 0}, "quantization_config.group_size"),
    ({"quant_method": "gptq", "bits": 10**400}, "quantization_config.bits"),
    ({"quant_method": "gptq", "dynamic": []}, "quantization_config.dynamic"),
    ({"quant_method": 7}, "quantization_config.quant_method"),
    ({"quant_method": "fp8", "weight_block_size": [0, 128]}, "quantization_config.weight_block_size"),
    ({"quant_method": "fp8", "weight_block_size": [float("nan"), 1]}, "quantization_config.weight_block_size"),
    ({"quant_method": "fp8", "modules_to_not_convert": "lm_head"}, "quantization_config.modules_to_not_convert"),
    ({"quant_method": "bitsandbytes", "load_in_4bit": True, "load_in_8bit": True}, "quantization_config.load_in_4bit"),
    ({"quant_method": "hqq", "quant_config": {"weight_quant_params": {"nbits": 5}}}, "quant_config.weight_quant_params.nbits"),
    (compressed("int-quantized", strategy="diagonal"), "config_groups.group_0.weights.strategy"),
    ([1, 2], "quantization_config"),
]


@pytest.mark.parametrize(("quantization", "path"), BAD, ids=lambda value: str(value)[:60])
def test_a_bad_value_is_a_fault_at_its_path(quantization: object, path: str) -> None:
    with pytest.raises(Faults) as error:
        native_format({"quantization_config": quantization})
    assert any(fault.path.endswith(path) for fault in error.value.faults)


def test_hf_quant_config_must_be_an_object() -> None:
    with pytest.raises(Faults, match=r"hf_quant_config\.json"):
        native_format({}, {"quantization": 3})


def test_depth_and_size_are_bounded() -> None:
    deep: Any = {}
    for _ in range(5000):
        deep = {"weight_quant_params": deep}
    for document in ({"quant_method": "hqq", "quant_config": deep}, {"quant_method": "fp8", "ignored_layers": ["a"] * 200_000}):
        start = time.process_time()
        with pytest.raises(Faults):
            native_format({"quantization_config": document})
        assert time.process_time() - start < 1


keys = st.sampled_from(
    [
        *(
            "quant_method",
            "bits",
            "group_size",
            "dynamic",
            "config_groups",
            "weights",
            "format",
            "ignore",
            "targets",
            "quant_type",
        ),
        *(
            "weight_block_size",
            "quant_config",
            "weight_quant_params",
            "nbits",
            "modules_to_not_convert",
            "load_in_4bit",
            "strategy",
        ),
        *("num_bits", "block_structure", "quant_algo", "quantized_layers", "default", "_type", "input_activations", "group_0"),
    ]
)
leaves = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from([*METHODS, "float", "int", "group", "Linear", "pack-quantized", "re:.*gate", "NVFP4", "MIXED_PRECISION"]),
)
inner = st.one_of(leaves, st.lists(leaves, max_size=3), st.dictionaries(keys, leaves, max_size=3))
documents = st.one_of(inner, st.dictionaries(keys, st.one_of(inner, st.dictionaries(keys, inner, max_size=3)), max_size=3))


@given(st.sampled_from(sorted(METHODS)), st.dictionaries(keys, documents, max_size=6))
def test_any_quantization_config_is_a_format_or_faults(method: str, document: dict[str, Any]) -> None:
    """A hostile quantization_config gives a Format or Faults with paths, never another exception."""
    document.setdefault("quant_method", method)
    try:
        fmt = native_format({"quantization_config": document})
    except Faults as error:
        assert all(fault.path.startswith("quantization_config") for fault in error.faults)
    else:
        assert fmt.unknown or stored(fmt).store((64, 64))  # type: ignore[attr-defined]
