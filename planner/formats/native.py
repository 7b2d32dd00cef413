"""The format a checkpoint says it is stored in: ``quantization_config`` and ``hf_quant_config.json``, strictly read.

Each quantisation method is one function from its config to a :class:`Format`. What a config does not tell becomes a
format whose ``unknown`` says why: then only the header of the file knows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from planner.faults import Fault, Faults, Reader
from planner.formats import catalog
from planner.formats.compressed_tensors import compressed_tensors
from planner.formats.format import EMBEDDINGS, EXPERTS, HEAD, LINEARS, LINEARS_AND_EXPERTS, Format, Override
from planner.formats.kv_cache import declared_kv_cache
from planner.formats.modelopt import modelopt, modelopt_algorithm
from planner.formats.readers import from_header_only, module_names, reject_huge, unquantized
from planner.formats.storage import WHOLE, BitsAndBytes4Bit, Gptq, Hqq, QuantoBits, Scaled

ROUTED_EXPERTS = r"re:.*\.experts\..*"

_STORAGE_BYTES = {"uint8": 1, "int8": 1, "float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}


def native_format(config: Mapping[str, object], hf_quant_config: Mapping[str, object] | None = None) -> Format:
    """The format of the checkpoint that ``config`` (its config.json) and its ``hf_quant_config.json`` describe.

    Raises :class:`planner.faults.Faults` with the path of each bad value.
    """
    path, found = _find(config)
    if found is None:
        found, path = _modelopt_file(hf_quant_config), "hf_quant_config.json"
    if found is None:
        return unquantized()
    reject_huge(found, path)
    reader = Reader(found, path)
    method = _method(reader)
    read = METHODS.get(method)
    fmt = (
        read(reader)
        if read
        else from_header_only(method or "?", HEADER_ONLY.get(method, f"quantization method {method!r} is not known"))
    )
    reader.raise_faults()
    fmt = _with_expert_dtype(fmt, config) if method == "fp8" else fmt
    return replace(fmt, kv_cache=declared_kv_cache(reader)) if method in DECLARES_CACHE else fmt


def _find(config: Mapping[str, object]) -> tuple[str, object | None]:
    """The quantisation config and its path: at the top or in the text model's part, under its names of old."""
    text = config.get("text_config")
    for prefix, owner in (("", config), ("text_config.", text)):
        if isinstance(owner, Mapping):
            for key in ("quantization_config", "compression_config", "quantization"):
                if owner.get(key) is not None:
                    return prefix + key, owner[key]
    return "", None


def _modelopt_file(document: Mapping[str, object] | None) -> object | None:
    """``hf_quant_config.json`` as a ``quantization_config`` would say it."""
    if document is None:
        return None
    section = document.get("quantization")
    if not isinstance(section, Mapping):
        raise Faults([Fault("hf_quant_config.json", "must hold an object quantization")])
    return {"quant_method": "modelopt", **section} if section.get("quant_algo") else None


def _method(reader: Reader) -> str:
    if reader.has("quant_method"):
        return reader.string("quant_method").lower().replace("_", "-")
    if reader.has("load_in_4bit") or reader.has("load_in_8bit"):
        return "bitsandbytes"
    return "mlx" if reader.has("bits") and reader.has("group_size") else ""


def _skipping(fmt: Format, reader: Reader, *keys: str) -> Format:
    """``fmt`` with the modules its config leaves alone; a list that is given replaces the default of keeping the head."""
    for key in keys:
        if reader.has(key):
            return replace(fmt, quantizes=fmt.quantizes | HEAD, keeps=module_names(reader, key))
    return fmt


def _gptq(reader: Reader) -> Format:
    """GPTQ and GPTQModel: ``bits``, ``group_size``, per-module ``dynamic`` rules, ``lm_head``."""
    bits = reader.integer("bits", 4, minimum=2, maximum=8)
    group_size = _group_size(reader, 128)
    layout = reader.string("checkpoint_format", reader.string("format", "gptq")).lower()
    if reader.boolean("is_marlin_format", default=False):
        layout = "marlin"
    if layout not in ("gptq", "gptq_v2", "gptq_p"):
        return from_header_only("gptq", f"checkpoint_format {layout} repacks the weights")
    fmt = catalog.gptq_format(bits, group_size)
    roles = fmt.quantizes | HEAD if reader.boolean("lm_head", default=False) else fmt.quantizes
    blocks = reader.raw("modules_in_block_to_quantize")
    only = (
        tuple(name for block in blocks if isinstance(block, list) for name in block if isinstance(name, str))
        if isinstance(blocks, list)
        else ()
    )
    return replace(fmt, quantizes=roles, only=only, overrides=_gptq_dynamic(reader, bits, group_size), rest_dtype=None)


def _gptq_dynamic(reader: Reader, bits: int, group_size: int) -> tuple[Override, ...]:
    """``dynamic``: a pattern marked ``-:`` is left alone, another gets its own bits and group size."""
    rules = reader.child("dynamic") if reader.has("dynamic") else None
    if rules is None:
        return ()
    overrides = []
    for pattern in rules.names():
        if pattern.startswith("-:"):
            overrides.append(Override((pattern[2:],), None))
            rules.raw(pattern)
        else:
            rule = rules.child(pattern)
            scheme = Gptq(rule.integer("bits", bits, minimum=2, maximum=8), _group_size(rule, group_size))
            overrides.append(Override((pattern.removeprefix("+:"),), scheme))
    return tuple(overrides)


def _group_size(reader: Reader, default: int) -> int:
    """A group size: -1 for one group a row, else at least 1."""
    size = reader.integer("group_size", default, minimum=-1, maximum=2**24)
    if size == 0:
        reader.fault("group_size", "must be -1 or at least 1, got 0")
        return default
    return size


def _awq(reader: Reader) -> Format:
    """AWQ in its GEMM layout; the others pad and interleave."""
    version = reader.string("version", reader.string("format", "gemm")).lower()
    fmt = catalog.awq_format(4, _group_size(reader, 128))
    if reader.integer("bits", 4, minimum=1, maximum=8) != 4 or version not in ("gemm", "exllama"):
        return from_header_only("awq", f"AWQ version {version} lays the weights out in its own way")
    keeps = module_names(reader, "modules_to_not_convert") if reader.has("modules_to_not_convert") else ()
    return replace(fmt, keeps=keeps, rest_dtype=None)


def _bitsandbytes(reader: Reader) -> Format:
    """LLM.int8() and the 4-bit types."""
    four, eight = (reader.boolean(key, default=False) for key in ("load_in_4bit", "load_in_8bit"))
    if four and eight:
        reader.fault("load_in_4bit", "must not be true together with load_in_8bit")
    if not four and not eight:
        return unquantized()
    fmt = _bitsandbytes_4bit(reader) if four else catalog.FORMATS["int8"]
    return _skipping(fmt, reader, "llm_int8_skip_modules")


def _bitsandbytes_4bit(reader: Reader) -> Format:
    kind = reader.choice("bnb_4bit_quant_type", "fp4", ("fp4", "nf4"))
    double = reader.boolean("bnb_4bit_use_double_quant", default=False)
    storage = reader.choice("bnb_4bit_quant_storage", "uint8", _STORAGE_BYTES)
    fmt = catalog.FORMATS[f"{kind}-dq" if double else kind]
    return replace(fmt, scheme=BitsAndBytes4Bit(kind, double, storage_bytes=_STORAGE_BYTES[storage]))


def _fp8(reader: Reader) -> Format:
    """DeepSeek's and Qwen's block FP8, and per-tensor FP8 where no block size is given."""
    static = reader.choice("activation_scheme", "dynamic", ("dynamic", "static")) == "static"
    scale_bits = 8 if reader.string("scale_fmt", "float") == "ue8m0" else 32
    extra = 4 if static else 0
    block = block_size(reader, "weight_block_size")
    if block is None:
        fmt = replace(catalog.FORMATS["fp8"], scheme=Scaled("fp8", 8, (WHOLE, WHOLE), 32, tensor_bytes=extra))
    else:
        fmt = replace(catalog.FORMATS["fp8-block"], scheme=Scaled("fp8", 8, block, scale_bits, tensor_bytes=extra))
    return _skipping(fmt, reader, "modules_to_not_convert", "ignored_layers")


def block_size(reader: Reader, key: str) -> tuple[int, int] | None:
    """Rows and columns of a block of values, or None where the key is absent."""
    value = reader.raw(key)
    if value is None:
        return None
    sizes = value if isinstance(value, list | tuple) else ()
    rows_and_columns = [size for size in sizes if isinstance(size, int) and not isinstance(size, bool) and 0 < size < 2**31]
    if len(sizes) != 2 or len(rows_and_columns) != 2:
        reader.fault(key, "must be two whole numbers, rows and columns, of at least 1")
        return None
    return rows_and_columns[0], rows_and_columns[1]


def _with_expert_dtype(fmt: Format, config: Mapping[str, object]) -> Format:
    """DeepSeek-V4's routed experts are MXFP4 in a checkpoint that is block FP8 otherwise."""
    if config.get("expert_dtype") != "fp4":
        return fmt
    return replace(fmt, overrides=(*fmt.overrides, Override((ROUTED_EXPERTS,), catalog.MXFP4)))


def _fbgemm_fp8(reader: Reader) -> Format:
    """FBGEMM's FP8: an fp32 scale a row and an upper bound of the input's scale."""
    scheme = Scaled("fp8", 8, (1, WHOLE), 32, tensor_bytes=4)
    fmt = Format("fbgemm-fp8", "FP8 of FBGEMM, one scale a row", scheme, LINEARS_AND_EXPERTS)
    return _skipping(fmt, reader, "modules_to_not_convert")


def _mxfp4(reader: Reader) -> Format:
    """gpt-oss: the experts in MXFP4, and nothing else of a model."""
    keeps = module_names(reader, "modules_to_not_convert") if reader.has("modules_to_not_convert") else ()
    return replace(catalog.FORMATS["mxfp4"], quantizes=EXPERTS, dense_quantizes=None, keeps=keeps)


def _hqq(reader: Reader) -> Format:
    """HQQ with one setting for all linears; settings by kind of linear are overrides."""
    settings = reader.child("quant_config")
    fmt = _hqq_format(settings.child("weight_quant_params")) if settings.has("weight_quant_params") else None
    overrides: tuple[Override, ...] = ()
    if fmt is None:
        tags = [tag for tag in settings.names() if settings.has(tag)]
        kinds = [_hqq_format(settings.child(tag).child("weight_quant_params")) for tag in tags]
        overrides = tuple(Override((f"re:.*{tag}",), kind.scheme) for tag, kind in zip(tags, kinds, strict=True))
        fmt = replace(catalog.hqq_format(4, 64), only=tuple(tags) or ("",))
    keeps = module_names(reader, "skip_modules") if reader.has("skip_modules") else ("lm_head",)
    return replace(fmt, overrides=overrides, keeps=keeps)


def _hqq_format(reader: Reader) -> Format:
    bits = reader.integer("nbits", 4, minimum=1, maximum=8)
    if bits not in (1, 2, 3, 4, 8):
        reader.fault("nbits", f"must be one of 1, 2, 3, 4, 8; got {bits}")
        bits = 4
    if "group_size" in reader.names() and not reader.has("group_size"):  # null: one group a row
        return replace(catalog.hqq_format(bits, 64), name=f"hqq-int{bits}", scheme=Hqq(bits, None))
    return catalog.hqq_format(bits, reader.integer("group_size", 64, minimum=1, maximum=2**24))


def _quanto(reader: Reader) -> Format:
    """optimum-quanto: int8, float8, int4, int2."""
    kind = reader.choice("weights", "int8", ("float8", "int8", "int4", "int2"))
    eight_bit = {"int8": "int8", "float8": "fp8"}.get(kind)
    scheme = catalog.QUANTO_8BIT[eight_bit] if eight_bit else QuantoBits(int(kind[3:]))
    fmt = catalog.linears_only(f"quanto-{kind}", f"optimum-quanto {kind}", scheme)
    return _skipping(fmt, reader, "modules_to_not_convert")


def _torchao(reader: Reader) -> Format:
    """torchao: the weight-only and dynamic configs whose tensors are plain or tiled; others repack for their kernels."""
    quant_type = reader.raw("quant_type")
    default = quant_type.get("default") if isinstance(quant_type, Mapping) else None
    kind = default.get("_type") if isinstance(default, Mapping) else quant_type
    name = kind.lower().replace("_", "").removesuffix("config") if isinstance(kind, str) else ""
    scheme = _torchao_scheme(name, default if isinstance(default, Mapping) else {})
    if scheme is None:
        return from_header_only("torchao", f"quant_type {str(kind)[:60]} is not one whose layout is known")
    fmt = catalog.linears_only(f"torchao-{name}", f"torchao {name}", scheme)
    if reader.boolean("include_input_output_embeddings", default=False):
        fmt = replace(fmt, quantizes=LINEARS | EMBEDDINGS | HEAD)
    return _skipping(fmt, reader, "modules_to_not_convert")


def _torchao_scheme(name: str, config: Mapping[str, object]) -> Scaled | None:
    """How one torchao config stores a weight (torchao ``quantization/quant_api.py``); None where that is not known."""
    data = config.get("_data")
    data = data if isinstance(data, Mapping) else {}
    group = data.get("group_size", 128 if name.startswith("int4") else None)
    grouped = type(group) is int and 0 < group < 2**24
    if name in ("int8weightonly", "int8dynamicactivationint8weight") and (grouped or group is None):
        return replace(catalog.TORCHAO_INT8, block=(1, group)) if type(group) is int else catalog.TORCHAO_INT8
    if name == "float8weightonly":
        return catalog.FP8_PER_CHANNEL
    if name == "float8dynamicactivationfloat8weight":
        by = _torchao_type(data.get("granularity"), "PerTensor")
        return {"PerTensor": catalog.FP8_PER_TENSOR, "PerRow": catalog.FP8_PER_CHANNEL}.get(by)
    if name != "int4weightonly" or type(group) is not int or not grouped:
        return None
    plain = replace(catalog.TORCHAO_INT4, block=(1, group))
    tiled = replace(plain, padded_to=(8, 1024))
    if config.get("_version", 1) == 1:
        return {"TensorCoreTiledLayout": tiled}.get(_torchao_type(data.get("layout"), "TensorCoreTiledLayout"))
    packing = _torchao_type(data.get("int4_packing_format"), "plain").lower()
    return {"plain": plain, "preshuffled": plain, "tile_packed_to_4d": tiled}.get(packing)


def _torchao_type(value: object, default: str) -> str:
    """The name of a layout or a granularity: said itself, as an object's type or an enumeration's value, once or for two."""
    if isinstance(value, list) and value:
        value = value[-1]  # of inputs and of weights
    if isinstance(value, Mapping):
        data = value.get("_data")
        value = data if isinstance(data, str) else value.get("_type")
    return default if value is None else str(value)[:60]


def _eetq(reader: Reader) -> Format:
    """EETQ: int8 with a 16-bit scale an output."""
    return _skipping(catalog.FORMATS["eetq-int8"], reader, "modules_to_not_convert")


def _bitnet(reader: Reader) -> Format:
    """BitNet b1.58: four ternary values a byte and one scale; trained online it is plain."""
    if reader.string("quantization_mode", "offline") == "online":
        return unquantized()
    fmt = catalog.linears_only("bitnet", "BitNet b1.58, two bits a value", Scaled("int2", 2, (WHOLE, WHOLE), 16))
    return _skipping(fmt, reader, "modules_to_not_convert")


def _auto_round(reader: Reader) -> Format:
    """AutoRound, stored as GPTQ or AWQ would be."""
    packing = reader.string("packing_format", "auto_round:auto_gptq").lower()
    if reader.has("extra_config"):
        return from_header_only("auto-round", "extra_config gives layers bits of their own")
    if "awq" in packing:
        return replace(catalog.awq_format(4, _group_size(reader, 128)), rest_dtype=None)
    if "gptq" in packing:
        return _gptq(reader)
    return from_header_only("auto-round", f"packing_format {packing} is its own layout")


def _gguf(reader: Reader) -> Format:
    """A GGUF file: the mix it names. Only its header has its tensors, where another tool than llama.cpp's chose their types."""
    name = reader.string("file_type", "")
    from planner.formats.gguf_types import FILE_TYPES  # noqa: PLC0415  loaded for those who ask

    if name in FILE_TYPES:
        return catalog.gguf_format(name)
    return from_header_only("gguf", f"file type {name[:60]} is not one of llama.cpp's mixes")


METHODS: dict[str, Callable[[Reader], Format]] = {
    "gguf": _gguf,
    "gptq": _gptq,
    "awq": _awq,
    "bitsandbytes": _bitsandbytes,
    "compressed-tensors": compressed_tensors,
    "sparseml": compressed_tensors,
    "fp8": _fp8,
    "fbgemm-fp8": _fbgemm_fp8,
    "mxfp4": _mxfp4,
    "hqq": _hqq,
    "quanto": _quanto,
    "torchao": _torchao,
    "eetq": _eetq,
    "bitnet": _bitnet,
    "auto-round": _auto_round,
    "intel/auto-round": _auto_round,
    "modelopt": modelopt,
    "modelopt-fp4": modelopt,
}

DECLARES_CACHE = frozenset(name for name, read in METHODS.items() if read in (compressed_tensors, modelopt))

HEADER_ONLY: dict[str, str] = {
    "aqlm": "AQLM's codebooks and codes depend on settings its config does not fix for every layer",
    "vptq": "VPTQ gives each layer its own codebooks",
    "spqr": "SpQR stores outliers whose number only the file knows",
    "higgs": "HIGGS pads and repacks for the GPU at hand",
    "quark": "Quark's export layouts are many",
    "fp-quant": "FP-Quant keeps transforms beside the weights",
    "fouroversix": "its scales depend on rules its config does not fix",
    "sinq": "SINQ keeps two scales a tile, in sizes its config does not fix",
    "metal": "its affine layout is that of Apple's kernels",
    "gemma": "each module has its own bits",
    "mlx": "MLX stores its own affine layout",
    "": "quantization_config names no quant_method",
}

__all__ = ["modelopt_algorithm", "native_format"]
