"""The safetensors and GGUF header readers: real files, the official writers as oracle, and hostile input."""

from __future__ import annotations

import contextlib
import json
import struct
import subprocess
import sys
import time
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from planner.faults import Faults
from resources import gguf_header, safetensors_header
from resources.byte_source import Buffer, LocalFile
from resources.gguf_header import MAX_HEADER_BYTES, GgufHeader
from resources.tensors import fold
from tests.resources import checkpoints
from tests.resources.checkpoints import gguf_string, gguf_value

GOOD = {"a": {"dtype": "BF16", "shape": [2, 3], "data_offsets": [0, 12]}}


def file_of(header: object, data_bytes: int = 12) -> Buffer:
    body = (header if isinstance(header, str) else json.dumps(header)).encode()
    return Buffer(struct.pack("<Q", len(body)) + body + bytes(data_bytes), "m.safetensors")


def with_entry(**changes: object) -> dict[str, object]:
    return {"a": {**GOOD["a"], **changes}}


def test_reads_what_safetensors_writes(tmp_path: Path) -> None:
    tensors = {
        "x.0.w": torch.zeros(3, 4),
        "x.1.w": torch.zeros(3, 4),
        "scale": torch.zeros(()),
        "b": torch.zeros(5, dtype=torch.bfloat16),
    }
    save_file(tensors, tmp_path / "m.safetensors", metadata={"format": "pt"})
    found = safetensors_header.read_header(LocalFile(tmp_path / "m.safetensors"))
    assert {tensor.name: tensor.size_bytes for tensor in found} == {
        name: t.numel() * t.element_size() for name, t in tensors.items()
    }
    folded = fold(found, "safetensors")
    assert folded.parameters == 3 * 4 * 2 + 1 + 5
    assert next(group for group in folded.groups if group.name == "x.*.w").layers == (0, 1)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (Buffer(b"", "m.safetensors"), "8-byte header length"),
        (Buffer(struct.pack("<Q", 10 * 10**9) + b"{}", "m.safetensors"), "header must be at most .* says 10000000000"),
        (Buffer(struct.pack("<Q", 10 * 10**9), "m.safetensors", 2**40), "header must be at most"),
        (Buffer(struct.pack("<Q", 500) + b"{}", "m.safetensors"), "cut short"),
        (Buffer(struct.pack("<Q", 500) + b"{}", "m.safetensors", 1000), "header must be 500 bytes, got 2"),
        (file_of("[]"), "must hold a JSON object"),
        (file_of("{{"), "is not JSON"),
        (file_of('{"a":1,"a":2}'), "m.safetensors:a: is given twice"),
        (file_of('{"a":{"dtype":"F32","dtype":"F32"}}'), "m.safetensors:a.dtype: is given twice"),
        (file_of('{"a":{"shape":[NaN]}}'), r"m.safetensors:a.shape\[0\]: must be a finite number"),
        (file_of('{"a":' * 500 + "1" + "}" * 500), "nested deeper than 8 levels"),
        (file_of('{"a":' * 100_000 + "1" + "}" * 100_000), "nested deeper than 8 levels"),
        (file_of('{"a":1' + "0" * 10_000 + "}"), "more digits than can be read"),
        (file_of({"a": 5}), "m.safetensors:a: must be an object, got 5"),
        (file_of(with_entry(dtype="pickle!")), r"m.safetensors:a.dtype: must be a dtype"),
        (file_of(with_entry(shape=[-2, 3])), r"m.safetensors:a.shape: must be a list of up to 16 sizes"),
        (file_of(with_entry(shape=[True, 6])), "m.safetensors:a.shape"),
        (file_of(with_entry(shape=[2**59] * 16)), "m.safetensors:a.data_offsets: must span"),
        (file_of(with_entry(shape=[1] * 17)), "m.safetensors:a.shape"),
        (file_of(with_entry(shape="2,3")), "m.safetensors:a.shape"),
        (file_of(with_entry(data_offsets=[0])), "m.safetensors:a.data_offsets: must be two offsets"),
        (file_of(with_entry(data_offsets=[12, 0])), "must not end before it begins"),
        (file_of(with_entry(data_offsets=[0, 11])), r"must span 2×3 values of BF16, got 11 bytes"),
        (file_of(with_entry(data_offsets=[4, 16]), 16), "must begin at 0, got 4"),
        (file_of(GOOD, 11), "data must be 12 bytes, got 11: the file is cut short"),
        (file_of(GOOD, 13), "bytes without a tensor follow"),
        (file_of({**GOOD, "b": GOOD["a"]}), "must begin at 12, got 0"),
    ],
)  # fmt: skip
def test_a_hostile_safetensors_header_is_refused_by_field(source: Buffer, words: str) -> None:
    with pytest.raises(Faults, match=words):
        safetensors_header.read_header(source)


def test_a_dtype_of_a_later_format_is_taken_at_its_offsets() -> None:
    found = safetensors_header.read_header(file_of(with_entry(dtype="F5_X", data_offsets=[0, 7]), 7))
    assert (found[0].dtype, found[0].size_bytes) == ("F5_X", 7)


@pytest.mark.parametrize("name", ["../x.safetensors", "/etc/x.safetensors", "a/b.safetensors", "x.bin", "", "a\nb.safetensors", 5])
def test_an_index_names_only_files_beside_it(name: object) -> None:
    with pytest.raises(Faults, match=r"weight_map: must name \.safetensors files beside the index"):
        safetensors_header.read_index(json.dumps({"weight_map": {"a": name}}).encode())


def test_a_tensor_held_by_two_shards_is_refused() -> None:
    with pytest.raises(Faults, match=r"two.safetensors:a: is held by another file"):
        safetensors_header.read_shards(["one.safetensors", "two.safetensors"], lambda _: file_of(GOOD))


shapes = st.lists(st.integers(0, 9), max_size=4)
tables = st.dictionaries(st.text(min_size=1, max_size=12).filter(lambda name: name != "__metadata__"), shapes, max_size=8)


@given(tables, st.sampled_from(["F32", "BF16", "F8_E4M3", "I64"]))
def test_what_is_written_is_read_back(table: dict[str, list[int]], dtype: str) -> None:
    """Rule: bytes of a tensor are its data_offsets' span; the spans fill the data exactly."""
    head, data_bytes = checkpoints.safetensors_header({name: tuple(shape) for name, shape in table.items()}, dtype)
    found = safetensors_header.read_header(Buffer(head, "m", len(head) + data_bytes))
    assert {tensor.name: list(tensor.shape) for tensor in found} == table
    assert sum(tensor.size_bytes for tensor in found) == data_bytes


@given(st.data())
@settings(max_examples=300)
def test_a_damaged_header_is_read_or_refused(data: st.DataObject) -> None:
    """Rule: any bytes give tensors or Faults, nothing else."""
    good = bytearray(data.draw(st.sampled_from([safetensors_bytes(), gguf_bytes()])))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(good) - 1))
        good[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=9))
    read = gguf_header.read_header if good[:2] == b"GG" else safetensors_header.read_header
    with contextlib.suppress(Faults):
        read(Buffer(bytes(good), "m"))


def safetensors_bytes() -> bytes:
    head, data_bytes = checkpoints.safetensors_header({"a.0.b": (2, 3), "c": (4,)})
    return head + bytes(data_bytes)


METADATA = {
    "general.architecture": "llama",
    "llama.block_count": 2,
    "llama.rope.freq_base": 1e4,
    "kv": [4, 0, 4],
    "tokens": ["a", "b"],
}


def gguf_bytes() -> bytes:
    head, data_bytes = checkpoints.gguf_header(METADATA, {"blk.0.w": (4, 32), "blk.1.w": (3,)}, "F16")
    return head + bytes(data_bytes)


def test_reads_what_the_gguf_package_writes(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(2)
    writer.add_head_count_kv([2, 0])
    writer.add_token_list([f"token {number}" for number in range(5000)])
    writer.add_chat_template("x" * 10_000)
    writer.add_tensor("token_embd.weight", np.zeros((100, 64), np.float32))
    writer.add_tensor("blk.0.up.weight", np.zeros((7, 34), np.uint8), raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found, oracle = gguf_header.read_header(LocalFile(path)), gguf.GGUFReader(path)
    mine = [(tensor.name, tensor.dtype, tensor.shape[::-1], tensor.size_bytes) for tensor in found.tensors]
    assert mine == [(t.name, t.tensor_type.name, tuple(map(int, t.shape)), t.n_bytes) for t in oracle.tensors]
    assert found.metadata == {"general.architecture": "llama", "llama.block_count": 2, "llama.attention.head_count_kv": [2, 0]}
    assert found.array_lengths["tokenizer.ggml.tokens"] == 5000


def test_block_sizes_are_those_of_the_gguf_package() -> None:
    ours = {name: (block, size) for name, block, size in gguf_header.GGML_TYPES.values() if name != "Q8_1"}
    theirs = {kind.name: gguf.GGML_QUANT_SIZES[kind] for kind in gguf.GGMLQuantizationType if kind.name != "Q8_1"}
    assert theirs.items() <= ours.items()


def header(*keys: bytes, tensors: bytes = b"", version: int = 3, counts: tuple[int, int] | None = None) -> Buffer:
    tensor_count, key_count = counts or (1 if tensors else 0, len(keys))
    return Buffer(b"GGUF" + struct.pack("<IQQ", version, tensor_count, key_count) + b"".join(keys) + tensors, "m.gguf", 2**50)


def key(name: str, kind: int, value: bytes) -> bytes:
    return gguf_string(name) + struct.pack("<I", kind) + value


def tensor(name: str = "t", sides: tuple[int, ...] = (32,), kind: int = 1, offset: int = 0) -> bytes:
    return gguf_string(name) + struct.pack(f"<I{len(sides)}QIQ", len(sides), *sides, kind, offset)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (Buffer(b"PK\3\4" * 10, "m.gguf"), "m.gguf: must start with GGUF"),
        (Buffer(b"GGUF" + struct.pack(">I", 3) + bytes(99), "m.gguf"), "big-endian"),
        (header(version=1), "m.gguf:version: must be 2 or 3, got 1"),
        (header(counts=(2**40, 0)), "m.gguf:tensor_count: must be at most"),
        (header(counts=(0, 2**63)), "m.gguf:metadata_kv_count: must be at most"),
        (header(counts=(0, 1)), "cut short"),
        (header(gguf_string("")), "name must be 1 to 512 bytes, got 0"),
        (header(key("a", 4, bytes(4)), key("a", 4, bytes(4))), "m.gguf:a: is given twice"),
        (header(key("a", 99, b"")), "m.gguf:a: has value type 99"),
        (header(key("a", 7, b"\x02")), r"m.gguf:a: must be true \(1\) or false"),
        (header(key("a", 6, struct.pack("<f", float("nan")))), "m.gguf:a: must be a finite number"),
        (header(key("a", 8, struct.pack("<Q", 2**62))), "m.gguf:a: takes the header past"),
        (header(key("a", 9, struct.pack("<IQ", 8, 2**62))), "m.gguf:a: has .* elements, more than"),
        (header(key("a", 9, struct.pack("<IQ", 8, 60_000_000))), "m.gguf:a: takes the header past 1200000 strings"),
        (header(key("a", 9, struct.pack("<IQ", 9, 60_000_000))), "m.gguf:a: takes the header past 1200000 strings"),
        (header(key("a", 9, struct.pack("<IQIQIQIQ", 9, 1, 9, 1, 9, 1, 9, 1))), "m.gguf:a: is nested deeper than 3 arrays"),
        (header(key("general.alignment", 4, struct.pack("<I", 7))), "m.gguf:general.alignment: must be a power of two"),
        (header(tensors=tensor(sides=(32,) * 5)), "m.gguf:t: must have at most 4 dimensions, got 5"),
        (header(tensors=tensor(sides=(2**60, 2**60))), "m.gguf:t: has more values than any file holds"),
        (header(tensors=tensor(kind=77)), "m.gguf:t.type: has tensor type 77"),
        (header(tensors=tensor(sides=(33,), kind=8)), r"m.gguf:t: rows of 33 values don't fill blocks of 32 \(Q8_0\)"),
        (header(tensors=tensor(offset=64)), "m.gguf:t.offset: must be 0, got 64"),
        (Buffer(gguf_bytes()[:-70], "m.gguf"), "the file is cut short"),
    ],
)  # fmt: skip
def test_a_hostile_gguf_header_is_refused_by_field(source: Buffer, words: str) -> None:
    with pytest.raises(Faults, match=words):
        gguf_header.read_header(source)


def test_a_split_must_be_whole() -> None:
    def part(number: int, count: int, total: int = 2) -> Buffer:
        split = {"split.no": number, "split.count": count, "split.tensors.count": total}
        return Buffer(checkpoints.gguf_header(split, {f"t{number}": (32,)}, "F16")[0] + bytes(64), "part")

    name = "m-00001-of-00002.gguf"
    numbers = {"m-00001-of-00002.gguf": 0, "m-00002-of-00002.gguf": 1}
    whole = gguf_header.read_split("m-00002-of-00002.gguf", lambda name: part(numbers[name], 2))
    assert [tensor.name for tensor in whole.tensors] == ["t0", "t1"]
    with pytest.raises(Faults, match=r"split\.count: must be 2 as the name says, got 3"):
        gguf_header.read_split(name, lambda name: part(numbers[name], 3))
    with pytest.raises(Faults, match=r"split\.tensors\.count: must be the number of tensors found, 2, got 5"):
        gguf_header.read_split(name, lambda name: part(numbers[name], 2, 5))
    with pytest.raises(Faults, match="t0: is held by another file"):
        gguf_header.read_split(name, lambda _: part(0, 2))


@given(
    st.dictionaries(st.text(min_size=1, max_size=9), st.integers(0, 2**32 - 1) | st.text(max_size=9) | st.booleans(), max_size=6)
)
def test_gguf_metadata_is_read_back(metadata: dict[str, object]) -> None:
    """Rule: keys, scalars and short strings come back as written."""
    found: GgufHeader = gguf_header.read_header(Buffer(checkpoints.gguf_header(metadata, {})[0], "m"))
    assert found.metadata == metadata


HUGE = """
import resource, struct, sys, time
from planner.faults import Faults
from resources import gguf_header, safetensors_header, strict_json
from resources.byte_source import Buffer
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
def gguf(*keys): return b"GGUF" + struct.pack("<IQQ", 3, 0, len(keys)) + b"".join(keys)
def key(n, kind, value): return struct.pack("<Q", 4) + b"%04d" % n + struct.pack("<I", kind) + value
def nested(data): return struct.pack("<Q", len(data)) + data
case = sys.argv[1]
MIB = 2**20
bodies = {
    "lists": lambda: nested(b'{"a":[' + b"[]," * (5 * MIB) + b"[]]}"),
    "objects": lambda: nested(b'{"a":[' + b'{"b":1},' * 140_000 + b"1]}"),
    "members": lambda: nested(b"{" + b",".join(b'"%09d":{}' % n for n in range(149_000)) + b"}"),
    "text": lambda: nested(b'{"' + b"x" * (16 * MIB - 9) + b'":1}'),
    "escapes": lambda: nested(b'{"a":"' + rb"\\u1234" * 2_500_000 + b'"}'),
    "braces": lambda: nested(b'{"a":' * 3_000_000),
    "strings": lambda: gguf(key(1, 9, struct.pack("<IQ", 8, 1_119_999) + bytes(8 * 1_119_999))),
    "kept": lambda: gguf(*(key(n, 9, struct.pack("<IQ", 0, 4096) + bytes(4096)) for n in range(9999))),
    "arrays": lambda: gguf(key(1, 9, struct.pack("<IQ", 9, 119_999) + struct.pack("<IQ", 4, 0) * 119_999)),
    "keys": lambda: gguf(*(struct.pack("<Q", 5) + b"%05d" % n + struct.pack("<IQ", 8, 9) + b"x" * 9 for n in range(65_536))),
}
data = bodies[case]()
read = gguf_header.read_header if data[:4] == b"GGUF" else safetensors_header.read_header
source, before, start = Buffer(data, "m", 2**50), peak(), time.process_time()
try:
    read(source)
except Faults as error:
    assert all(len(str(fault)) < 400 for fault in error.faults)
print(round(time.process_time() - start, 3), round(peak() - before))
"""


@pytest.mark.parametrize("case", ["lists", "objects", "members", "text", "escapes", "braces", "strings", "kept", "arrays", "keys"])
def test_the_worst_header_costs_little(case: str) -> None:
    """Bars: 2 s and 200 MB over what held before, whatever the header claims or holds."""
    ran = subprocess.run([sys.executable, "-c", HUGE, case], capture_output=True, text=True, timeout=60, check=True)
    seconds, megabytes = map(float, ran.stdout.split())
    assert seconds < 2
    assert megabytes < 200


def test_a_claimed_size_is_not_allocated() -> None:
    start = time.process_time()
    with pytest.raises(Faults, match="cut short"):
        gguf_header.read_header(header(key("a", 8, struct.pack("<Q", MAX_HEADER_BYTES - 200)), counts=(0, 2)))
    assert time.process_time() - start < 0.1
    assert gguf_value([1]) == struct.pack("<IIQI", 9, 4, 1, 1)
