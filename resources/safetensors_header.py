"""Reads what a safetensors checkpoint stores from its headers alone; the tensor data is never touched.

Format: 8 bytes little-endian header length, a JSON object name -> {dtype, shape, data_offsets}, then the data without
gaps (huggingface.co/docs/safetensors, "Format"). Bytes come from ``data_offsets``, so packed dtypes count right.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from typing import NoReturn

from planner.faults import Fault, Faults, describe
from resources.byte_source import ByteSource
from resources.strict_json import INDEX, MIB, Limits, parse_object, shown
from resources.tensors import StoredTensor

DTYPE_BITS = {
    "BOOL": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32,
    "C64": 64, "F64": 64, "I64": 64, "U64": 64,
}  # fmt: skip
HEADER = Limits(max_bytes=16 * MIB, max_items=300_000, max_depth=8)
"""Of one file: eight items a tensor. Larger checkpoints than 37,000 tensors come in shards."""
MAX_DIMENSIONS = 16
MAX_SHARDS = 2048
MAX_FILE_BYTES = 2**60
INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"


def read_header(source: ByteSource) -> tuple[StoredTensor, ...]:
    """Every tensor of one file, in order of its data. Raises :class:`Faults` naming the field."""
    first = source.read(0, 8)
    if len(first) < 8:
        _refuse(source.name, f"must start with an 8-byte header length, got {len(first)} bytes in all")
    length = int.from_bytes(first, "little")
    _check_length(source, length)
    body = source.read(8, length)
    if len(body) != length:
        _refuse(source.name, f"header must be {length} bytes, got {len(body)}: the file is cut short")
    header = parse_object(body, source.name, HEADER)
    data_bytes = None if source.size_bytes is None else source.size_bytes - 8 - length
    return _tensors(header, source.name, data_bytes)


def read_index(data: bytes, label: str = INDEX_NAME) -> tuple[str, ...]:
    """The files a sharded checkpoint consists of, from its index. Raises :class:`Faults`."""
    weight_map = parse_object(data, label, INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        _refuse(f"{label}:weight_map", f"must be an object of tensor to file, got {describe(weight_map)}")
    files = dict.fromkeys(file if isinstance(file, str) else "" for file in weight_map.values())
    for name in files:
        if not is_plain_name(name) or not name.endswith(".safetensors"):
            _refuse(f"{label}:weight_map", f"must name .safetensors files beside the index, got {describe(name)}")
    if len(files) > MAX_SHARDS:
        _refuse(f"{label}:weight_map", f"must name at most {MAX_SHARDS} files, got {len(files)}")
    return tuple(files)


def read_shards(names: Iterable[str], open_source: Callable[[str], ByteSource]) -> tuple[StoredTensor, ...]:
    """Every tensor of the named files together. Raises :class:`Faults` for a tensor that two of them hold."""
    tensors: dict[str, StoredTensor] = {}
    for name in names:
        add_shard(tensors, name, read_header(open_source(name)))
    return tuple(tensors.values())


def add_shard(tensors: dict[str, StoredTensor], name: str, shard: Iterable[StoredTensor]) -> None:
    """Add one file's tensors to those of the others. Raises :class:`Faults` for one that is there already."""
    for tensor in shard:
        if tensor.name in tensors:
            _refuse(f"{name}:{shown(tensor.name)}", "is held by another file of the checkpoint too")
        tensors[tensor.name] = tensor


def is_plain_name(name: str) -> bool:
    """Whether ``name`` names a file in the same folder: no separators, no parents, nothing hidden, no control characters."""
    return bool(re.fullmatch(r"[A-Za-z0-9_\-][A-Za-z0-9_.\-+ ]{0,254}", name))


def _check_length(source: ByteSource, length: int) -> None:
    if length > HEADER.max_bytes:
        _refuse(source.name, f"header must be at most {HEADER.max_bytes} bytes, says {length}: not a safetensors file?")
    if length < 2:
        _refuse(source.name, f"header must be at least 2 bytes, says {length}")
    if source.size_bytes is not None and length > source.size_bytes - 8:
        _refuse(source.name, f"header says {length} bytes, the file has {source.size_bytes}: it is cut short")


def _tensors(header: dict[str, object], label: str, data_bytes: int | None) -> tuple[StoredTensor, ...]:
    faults: list[Fault] = []
    placed: list[tuple[int, int, StoredTensor]] = []
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        try:
            placed.append(_tensor(name, entry, f"{label}:{shown(name)}"))
        except Faults as error:
            faults.extend(error.faults)
            if len(faults) >= 10:
                break
    if faults:
        raise Faults(faults)
    placed.sort(key=lambda place: place[:2])
    _check_layout(placed, label, data_bytes)
    return tuple(tensor for _, _, tensor in placed)


def _tensor(name: str, entry: object, path: str) -> tuple[int, int, StoredTensor]:
    if not isinstance(entry, dict):
        _refuse(path, f"must be an object, got {describe(entry)}")
    dtype, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if not isinstance(dtype, str) or not re.fullmatch(r"[A-Z][A-Z0-9_]{0,15}", dtype):
        _refuse(f"{path}.dtype", f"must be a dtype such as BF16, got {describe(dtype)}")
    if not isinstance(shape, list) or len(shape) > MAX_DIMENSIONS or not all(_is_count(size) for size in shape):
        _refuse(f"{path}.shape", f"must be a list of up to {MAX_DIMENSIONS} sizes, got {describe(shape)}")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(_is_count(offset) for offset in offsets):
        _refuse(f"{path}.data_offsets", f"must be two offsets, got {describe(offsets)}")
    begin, end = offsets
    if end < begin:
        _refuse(f"{path}.data_offsets", f"must not end before it begins, got [{begin}, {end}]")
    _check_bytes(path, dtype, shape, end - begin)
    return begin, end, StoredTensor(name, dtype, tuple(shape), end - begin)


def _check_bytes(path: str, dtype: str, shape: list[int], size_bytes: int) -> None:
    """A dtype this table does not know (a later format's) is taken at its word: the offsets say its bytes."""
    if dtype in DTYPE_BITS and math.prod(shape) * DTYPE_BITS[dtype] != size_bytes * 8:
        product = "×".join(map(str, shape)) or "1"
        _refuse(f"{path}.data_offsets", f"must span {product} values of {dtype}, got {size_bytes} bytes")


def _check_layout(placed: list[tuple[int, int, StoredTensor]], label: str, data_bytes: int | None) -> None:
    expected = 0
    for begin, end, tensor in placed:
        if begin != expected:
            _refuse(f"{label}:{shown(tensor.name)}.data_offsets", f"must begin at {expected}, got {begin}")
        expected = end
    if data_bytes is not None and data_bytes != expected:
        what = "the file is cut short" if data_bytes < expected else "bytes without a tensor follow"
        _refuse(label, f"data must be {expected} bytes, got {data_bytes}: {what}")


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_FILE_BYTES


def _refuse(path: str, message: str) -> NoReturn:
    raise Faults([Fault(path, message)])
