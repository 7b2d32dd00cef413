"""Reads metadata and tensor table of a GGUF file (versions 2 and 3) as a bounded stream; tensor data is never touched.

Format: github.com/ggml-org/ggml/blob/master/docs/gguf.md; what is refused follows ggml's own ``gguf.cpp``. Long arrays
(the vocabulary) are walked, not kept: only their length is.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NoReturn

from planner.faults import Fault, Faults
from planner.units import align
from resources.byte_source import ByteSource
from resources.strict_json import shown
from resources.tensors import StoredTensor

GGML_TYPES = {
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24), 8: ("Q8_0", 32, 34), 9: ("Q8_1", 32, 36), 10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144), 13: ("Q5_K", 256, 176), 14: ("Q6_K", 256, 210), 15: ("Q8_K", 256, 292),
    16: ("IQ2_XXS", 256, 66), 17: ("IQ2_XS", 256, 74), 18: ("IQ3_XXS", 256, 98), 19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18), 21: ("IQ3_S", 256, 110), 22: ("IQ2_S", 256, 82), 23: ("IQ4_XS", 256, 136), 24: ("I8", 1, 1),
    25: ("I16", 1, 2), 26: ("I32", 1, 4), 27: ("I64", 1, 8), 28: ("F64", 1, 8), 29: ("IQ1_M", 256, 56),
    30: ("BF16", 1, 2), 34: ("TQ1_0", 256, 54), 35: ("TQ2_0", 256, 66), 39: ("MXFP4", 32, 17), 40: ("NVFP4", 64, 36),
    41: ("Q1_0", 128, 18), 42: ("Q2_0", 64, 18),
}  # fmt: skip
"""ggml type id -> name, values a block, bytes a block (ggml 0.25.3, ggml.c ``type_traits``)."""
SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<B", 10: "<Q", 11: "<q", 12: "<d"}
BOOL, STRING, ARRAY = 7, 8, 9
MAX_HEADER_BYTES = 64 * 2**20
"""The largest vocabularies (262,144 tokens and 514,906 merges) come to 16 MB."""
MAX_KEYS, MAX_TENSORS, MAX_STRINGS = 65_536, 65_536, 1_200_000
MAX_KEPT_ELEMENTS, MAX_KEPT_STRING_BYTES = 4096, 4096
MAX_KEPT_ELEMENTS_IN_ALL = 262_144
MAX_NAME_BYTES, MAX_DIMENSIONS, MAX_ARRAY_DEPTH = 512, 4, 3
SPLIT_NAME = re.compile(r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """What one GGUF file says of itself. ``array_lengths`` has every array's length, also of those not kept."""

    version: int
    metadata: Mapping[str, object]
    array_lengths: Mapping[str, int]
    tensors: tuple[StoredTensor, ...]
    header_bytes: int


def read_header(source: ByteSource) -> GgufHeader:
    """The header of one file. Shapes are outermost first, as torch has them. Raises :class:`Faults` naming the key."""
    stream = _Stream(source)
    version = _read_preamble(stream)
    tensor_count = _count(stream, "tensor_count", MAX_TENSORS)
    key_count = _count(stream, "metadata_kv_count", MAX_KEYS)
    metadata, lengths = _read_metadata(stream, key_count)
    alignment = _alignment(stream, metadata)
    tensors = _read_tensors(stream, tensor_count, alignment)
    _check_size(stream, tensors, alignment)
    return GgufHeader(version, metadata, lengths, tensors, stream.position)


def split_names(name: str) -> tuple[str, ...]:
    """All files of the split that ``name`` is part of (``…-00001-of-00003.gguf``); itself alone if it is none."""
    found = SPLIT_NAME.fullmatch(name)
    if found is None:
        return (name,)
    count = int(found["count"])
    if not 1 <= int(found["number"]) <= count <= 2048:
        _refuse(name, "must be numbered from 1 to its count, at most 2048 files")
    return tuple(f"{found['stem']}-{number:05d}-of-{count:05d}.gguf" for number in range(1, count + 1))


def read_split(name: str, open_source: Callable[[str], ByteSource]) -> GgufHeader:
    """The header of a model in one file or several: metadata of the first, tensors of all. Raises :class:`Faults`."""
    names = split_names(name)
    first = read_header(open_source(names[0]))
    declared = first.metadata.get("split.count", 1)
    if declared not in (len(names), 0) and len(names) > 1:
        _refuse(f"{names[0]}:split.count", f"must be {len(names)} as the name says, got {declared}")
    tensors = {tensor.name: tensor for tensor in first.tensors}
    total_bytes = first.header_bytes
    for other in names[1:]:
        header = read_header(open_source(other))
        total_bytes += header.header_bytes
        for tensor in header.tensors:
            if tensor.name in tensors:
                _refuse(f"{other}:{shown(tensor.name)}", "is held by another file of the split too")
            tensors[tensor.name] = tensor
    expected = first.metadata.get("split.tensors.count", len(tensors))
    if expected != len(tensors):
        _refuse(f"{names[0]}:split.tensors.count", f"must be the number of tensors found, {len(tensors)}, got {expected}")
    return GgufHeader(first.version, first.metadata, first.array_lengths, tuple(tensors.values()), total_bytes)


class _Stream:
    """Reads forward through the header in growing pieces, never past ``MAX_HEADER_BYTES``."""

    def __init__(self, source: ByteSource) -> None:
        self.source, self.name = source, source.name
        self._data, self._start, self._at, self._piece = b"", 0, 0, 64 * 2**10
        self.strings_left, self.elements_left = MAX_STRINGS, MAX_KEPT_ELEMENTS_IN_ALL

    @property
    def position(self) -> int:
        return self._start + self._at

    def take(self, length: int, path: str) -> bytes:
        if self._at + length > len(self._data):
            self._fill(length, path)
        self._at += length
        return self._data[self._at - length : self._at]

    def unpack(self, code: str, path: str) -> int | float:
        size = struct.calcsize(code)
        value: int | float = struct.unpack(code, self.take(size, path))[0]
        return value

    def integer(self, code: str, path: str) -> int:
        return int(self.unpack(code, path))

    def skip(self, length: int, path: str) -> None:
        """Passes over bytes that need not be looked at, without fetching those not yet here."""
        self._bound(length, path)
        here = min(length, len(self._data) - self._at)
        self._at += here
        if here < length:
            self._start, self._data, self._at = self.position + length - here, b"", 0

    def spend(self, count: int, path: str) -> None:
        """Counts strings and arrays inside arrays: each costs a step, however few bytes it has."""
        self.strings_left -= count
        if self.strings_left < 0:
            _refuse(path, f"takes the header past {MAX_STRINGS} strings in arrays")

    def skip_strings(self, count: int, path: str) -> None:
        """Passes over ``count`` length-prefixed strings: the hot loop of a vocabulary."""
        self.spend(count, path)
        unpack, done = struct.Struct("<Q").unpack_from, 0
        while done < count:
            data, at, last = self._data, self._at, len(self._data) - 8
            before = at
            while done < count and at <= last:
                before = at
                at += 8 + unpack(data, at)[0]
                done += 1
            if at > len(data):
                at, done = before, done - 1
            self._at = at
            if done < count:
                self.skip(self.integer("<Q", path), path)
                done += 1

    def _fill(self, length: int, path: str) -> None:
        self._bound(length, path)
        rest = self._data[self._at :]
        self._start, self._at = self.position, 0
        wanted = max(length - len(rest), self._piece)
        self._piece = min(self._piece * 2, 4 * 2**20)
        if self.source.size_bytes is not None:
            wanted = min(wanted, max(0, self.source.size_bytes - self._start - len(rest)))
        self._data = rest + (self.source.read(self._start + len(rest), wanted) if wanted else b"")
        if len(self._data) < length:
            _refuse(path, f"ends at byte {self._start + len(self._data)} of the header: the file is cut short")

    def _bound(self, length: int, path: str) -> None:
        if self.position + length > MAX_HEADER_BYTES:
            _refuse(path, f"takes the header past {MAX_HEADER_BYTES} bytes")


def _read_preamble(stream: _Stream) -> int:
    magic = stream.take(4, stream.name)
    if magic != b"GGUF":
        _refuse(stream.name, f"must start with GGUF, got {magic!r}")
    version = stream.integer("<I", f"{stream.name}:version")
    if version in (0x02000000, 0x03000000):
        _refuse(f"{stream.name}:version", "big-endian files are not read: convert it to little-endian")
    if version not in (2, 3):
        _refuse(f"{stream.name}:version", f"must be 2 or 3, got {version}")
    return version


def _count(stream: _Stream, field: str, maximum: int) -> int:
    path = f"{stream.name}:{field}"
    count = stream.integer("<Q", path)
    if count > maximum:
        _refuse(path, f"must be at most {maximum}, got {count}")
    return count


def _read_metadata(stream: _Stream, count: int) -> tuple[dict[str, object], dict[str, int]]:
    metadata: dict[str, object] = {}
    lengths: dict[str, int] = {}
    for number in range(count):
        key = _text(stream, f"{stream.name}:metadata[{number}]", MAX_NAME_BYTES)
        path = f"{stream.name}:{shown(key)}"
        if key in metadata or key in lengths:
            _refuse(path, "is given twice")
        kind = stream.integer("<I", path)
        if kind == ARRAY:
            length, kept = _read_array(stream, path, MAX_ARRAY_DEPTH)
            lengths[key] = length
            if kept is not None:
                metadata[key] = kept
        elif (value := _read_value(stream, kind, path)) is not None:
            metadata[key] = value
    return metadata, lengths


def _read_value(stream: _Stream, kind: int, path: str) -> object:
    """One value; None for a string too long to keep."""
    if kind == STRING:
        return _kept_string(stream, path)
    if kind not in SCALARS:
        _refuse(path, f"has value type {kind}, which GGUF does not define")
    value = stream.unpack(SCALARS[kind], path)
    if kind == BOOL:
        if value not in (0, 1):
            _refuse(path, f"must be true (1) or false (0), got {value}")
        return bool(value)
    if not math.isfinite(value):
        _refuse(path, "must be a finite number")
    return value


def _read_array(stream: _Stream, path: str, depth: int) -> tuple[int, list[object] | None]:
    """Length and, if short and of scalars, the elements."""
    kind, length = stream.integer("<I", path), stream.integer("<Q", path)
    if length > MAX_HEADER_BYTES:
        _refuse(path, f"has {length} elements, more than the header may hold")
    if kind == ARRAY:
        if depth == 1:
            _refuse(path, f"is nested deeper than {MAX_ARRAY_DEPTH} arrays")
        stream.spend(length * 10, path)
        for _ in range(length):
            _read_array(stream, path, depth - 1)
        return length, None
    if kind == STRING:
        stream.skip_strings(length, path)
        return length, None
    if kind not in SCALARS:
        _refuse(path, f"has elements of type {kind}, which GGUF does not define")
    size = length * struct.calcsize(SCALARS[kind])
    if length > min(MAX_KEPT_ELEMENTS, stream.elements_left):
        stream.skip(size, path)
        return length, None
    stream.elements_left -= length
    values = list(struct.unpack(f"<{length}{SCALARS[kind][1]}", stream.take(size, path)))
    if not all(map(math.isfinite, values)):
        _refuse(path, "must hold finite numbers")
    return length, [bool(value) for value in values] if kind == BOOL else values


def _kept_string(stream: _Stream, path: str) -> str | None:
    size = stream.integer("<Q", path)
    if size > MAX_KEPT_STRING_BYTES:
        stream.skip(size, path)
        return None
    return stream.take(size, path).decode("utf-8", "replace")


def _text(stream: _Stream, path: str, maximum: int) -> str:
    size = stream.integer("<Q", path)
    if not 1 <= size <= maximum:
        _refuse(path, f"name must be 1 to {maximum} bytes, got {size}")
    try:
        return stream.take(size, path).decode("utf-8")
    except UnicodeDecodeError:
        _refuse(path, "name is not UTF-8")


def _alignment(stream: _Stream, metadata: Mapping[str, object]) -> int:
    value = metadata.get("general.alignment", 32)
    if not isinstance(value, int) or not 8 <= value <= 65_536 or value & (value - 1):
        _refuse(f"{stream.name}:general.alignment", f"must be a power of two from 8 to 65536, got {value}")
    return value


def _read_tensors(stream: _Stream, count: int, alignment: int) -> tuple[StoredTensor, ...]:
    tensors: dict[str, StoredTensor] = {}
    expected = 0
    for number in range(count):
        name = _text(stream, f"{stream.name}:tensors[{number}]", MAX_NAME_BYTES)
        path = f"{stream.name}:{shown(name)}"
        if name in tensors:
            _refuse(path, "is given twice")
        tensor = _read_tensor(stream, name, path)
        offset = stream.integer("<Q", path)
        if offset != expected:
            _refuse(f"{path}.offset", f"must be {expected}, got {offset}")
        expected += align(tensor.size_bytes, alignment)
        tensors[name] = tensor
    return tuple(tensors.values())


def _read_tensor(stream: _Stream, name: str, path: str) -> StoredTensor:
    dimensions = stream.integer("<I", path)
    if dimensions > MAX_DIMENSIONS:
        _refuse(path, f"must have at most {MAX_DIMENSIONS} dimensions, got {dimensions}")
    shape = [stream.integer("<Q", path) for _ in range(dimensions)]
    elements = math.prod(shape)
    if elements > 2**53:
        _refuse(path, "has more values than any file holds")
    kind = stream.integer("<I", path)
    if kind not in GGML_TYPES:
        _refuse(f"{path}.type", f"has tensor type {kind}, which is not known")
    dtype, block_values, block_bytes = GGML_TYPES[kind]
    if shape and shape[0] % block_values:
        _refuse(path, f"rows of {shape[0]} values don't fill blocks of {block_values} ({dtype})")
    return StoredTensor(name, dtype, tuple(reversed(shape)), elements // block_values * block_bytes)


def _check_size(stream: _Stream, tensors: tuple[StoredTensor, ...], alignment: int) -> None:
    if stream.source.size_bytes is None or not tensors:
        return
    end = align(stream.position, alignment) + sum(align(tensor.size_bytes, alignment) for tensor in tensors[:-1])
    end += tensors[-1].size_bytes
    if stream.source.size_bytes < end:
        _refuse(stream.name, f"must have {end} bytes, has {stream.source.size_bytes}: the file is cut short")


def _refuse(path: str, message: str) -> NoReturn:
    raise Faults([Fault(path, message)])
