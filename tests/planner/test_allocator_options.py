"""Settings: what torch's parser accepts and refuses, and what each says."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from planner.allocator import CONSTANTS, AllocatorOptions, constants_for, parse_alloc_conf
from planner.faults import Faults

MIB = 2**20


@pytest.mark.parametrize(
    ("conf", "expected"),
    [
        ("", AllocatorOptions()),
        ("expandable_segments:True", AllocatorOptions(expandable_segments=True)),
        (" max_split_size_mb : 128 ,", AllocatorOptions(max_split_size_bytes=128 * MIB)),
        ("max_non_split_rounding_mb:40", AllocatorOptions(max_non_split_rounding_bytes=40 * MIB)),
        ("garbage_collection_threshold:.6", AllocatorOptions(garbage_collection_threshold=0.6)),
        (
            "large_segment_size_mb:64,max_split_size_mb:64",
            AllocatorOptions(large_segment_bytes=64 * MIB, max_split_size_bytes=64 * MIB),
        ),
        ("roundup_power2_divisions:16", AllocatorOptions(roundup_power2_divisions=(16,) * 16)),
        ("backend:native,pinned_use_background_threads:True,pinned_num_register_threads:8", AllocatorOptions()),
        ("throw_on_cudamalloc_oom:False,expandable_segments:False", AllocatorOptions()),
    ],
)
def test_settings(conf: str, expected: AllocatorOptions) -> None:
    assert parse_alloc_conf(conf) == expected


def test_settings_change_only_what_they_name() -> None:
    base = AllocatorOptions(capacity_bytes=2**30, expandable_segments=True)
    found = parse_alloc_conf("per_process_memory_fraction:0.25", base)
    assert (found.allowed_bytes, found.expandable_segments) == (2**28, True)


@pytest.mark.parametrize(
    ("version", "conf", "expected"),
    [
        ("2.13.0", "[256:1,512:2,1024:4,>:8]", [1] * 9 + [2, 4] + [8] * 5),
        ("2.9.1", "[256:1,512:2,1024:4,>:8]", [1] * 9 + [2] + [8] * 6),  # before pytorch#165304 the rest began with the last
        ("2.13.0", "[4:2,16:4]", [2, 2, 2, 0, 4] + [0] * 11),
        ("2.13.0", "[1048576:8,]", [8] * 16),
        ("2.13.0", "[>:4]", [0] + [4] * 15),
        ("2.9.1", "[>:4]", [4] * 16),
        ("2.13.0", "[8:0,>:2]", [0] * 4 + [2] * 12),
    ],
)
def test_divisions_by_interval(version: str, conf: str, expected: list[int]) -> None:
    found = parse_alloc_conf(f"roundup_power2_divisions:{conf}", AllocatorOptions(torch_version=version))
    assert list(found.roundup_power2_divisions) == expected


REFUSED = [
    ("max_split_size_mb:19", "max_split_size_mb: must be at least 20, got 19"),
    ("large_segment_size_mb:40,max_split_size_mb:30", "max_split_size_mb: must be at least 40, got 30"),
    ("large_segment_size_mb:10", "large_segment_size_mb: must be at least 11, got 10"),
    ("max_split_size_mb:abc", "max_split_size_mb: must be a whole number, got 'abc'"),
    ("garbage_collection_threshold:1", "garbage_collection_threshold: must be above 0 and below 1, got 1"),
    ("garbage_collection_threshold:x", "garbage_collection_threshold: must be a number, got 'x'"),
    ("expandable_segments:true", "expandable_segments: must be True or False, got 'true'"),
    ("roundup_power2_divisions:3", "roundup_power2_divisions: must be a power of two, got 3"),
    ("roundup_power2_divisions:0", "roundup_power2_divisions: must be a power of two, got 0"),
    ("roundup_power2_divisions:[3:4]", "roundup_power2_divisions: must be a power of two, got 3"),
    ("roundup_power2_divisions:[256]", "roundup_power2_divisions: expected MiB:divisions, got '256'"),
    ("roundup_power2_divisions:[256:1", r"expected key:value at 'roundup_power2_divisions:\[256:1'"),
    ("max_split_size_mb", "expected key:value at 'max_split_size_mb'"),
]
STRICTER = [
    ("max_split_size_mb:20.5", "must be a whole number, got '20.5'"),
    ("max_split_size_mb:64,large_segment_size_mb:80", "large_segment_size_mb: max_split_size_bytes: must be at least"),
    ("max_split_mb:20", r"max_split_mb: unknown setting \(did you mean max_split_size_mb\?\)"),
    ("expandable_segments:True,expandable_segments:False", "expandable_segments: is set twice"),
    ("per_process_memory_fraction:1.5", "per_process_memory_fraction: must be between 0 and 1, got 1.5"),
    ("per_process_memory_fraction:0.5", "memory_fraction: needs capacity_bytes"),
    ("throw_on_cudamalloc_oom:True", "throw_on_cudamalloc_oom: .* is not simulated"),
    ("backend:cudaMallocAsync", "backend: only the native backend is simulated"),
    ("pinned_free_catch_all:yes", "pinned_free_catch_all: must be True or False"),
    ("pinned_num_register_threads:two", "pinned_num_register_threads: must be a whole number"),
]


@pytest.mark.parametrize(("conf", "message"), REFUSED + STRICTER)
def test_refused_settings(conf: str, message: str) -> None:
    with pytest.raises(Faults, match=message):
        parse_alloc_conf(conf)


def test_every_fault_is_named() -> None:
    with pytest.raises(Faults) as caught:
        parse_alloc_conf("max_split_size_mb:1,expandable_segments:1,backend")
    assert [fault.path for fault in caught.value.faults] == [
        "PYTORCH_CUDA_ALLOC_CONF",
        "PYTORCH_CUDA_ALLOC_CONF.max_split_size_mb",
        "PYTORCH_CUDA_ALLOC_CONF.expandable_segments",
    ]


@pytest.fixture
def torch_settings() -> Iterator[object]:
    torch = pytest.importorskip("torch")
    if tuple(map(int, torch.__version__.split(".")[:2])) < (2, 11):
        pytest.skip("torch's own parser needs large_segment_size_mb")
    yield torch._C._accelerator_setAllocatorSettings
    torch._C._accelerator_setAllocatorSettings("large_segment_size_mb:20")


@pytest.mark.parametrize("conf", [conf for conf, _ in REFUSED])
def test_torch_refuses_them_too(conf: str, torch_settings: object) -> None:
    with pytest.raises((ValueError, RuntimeError)):
        torch_settings(conf)  # type: ignore[operator]


@pytest.mark.parametrize(
    "conf",
    [
        "",
        "max_split_size_mb:20,",
        "roundup_power2_divisions:[256:1,]",
        "roundup_power2_divisions:[>:4]",
        "roundup_power2_divisions:[256:0,512:2,>:8]",
        " garbage_collection_threshold : 0.8 , expandable_segments:True",
        "large_segment_size_mb:11,max_non_split_rounding_mb:12",
    ],
)
def test_torch_accepts_what_is_accepted_here(conf: str, torch_settings: object) -> None:
    torch_settings(conf)  # type: ignore[operator]
    parse_alloc_conf(conf)


@pytest.mark.parametrize(
    ("version", "since"),
    [
        ("2.1.0", (2, 1)),
        ("2.5.1+cu121", (2, 1)),
        ("2.6.0", (2, 6)),
        ("2.10.0a0", (2, 10)),
        ("2.13.0+cpu", (2, 11)),
        ("3.0", (2, 11)),
    ],
)
def test_constants_of_a_release(version: str, since: tuple[int, int]) -> None:
    assert constants_for(version).since == since


def test_sizes_have_not_changed_yet() -> None:
    """The table is there for the day they do."""
    for constants in CONSTANTS:
        assert constants.min_block_bytes == 512
        assert (constants.small_request_bytes, constants.small_segment_bytes) == (MIB, 2 * MIB)
        assert (constants.min_large_bytes, constants.large_segment_bytes, constants.large_rounding_bytes) == (
            10 * MIB,
            20 * MIB,
            2 * MIB,
        )


@pytest.mark.parametrize("version", ["", "nightly", "1.13.1", "2.0.1", "2", "2.99999.0"])
def test_unsupported_releases(version: str) -> None:
    with pytest.raises(Faults, match="torch_version: must be a release from"):
        AllocatorOptions(torch_version=version)


@pytest.mark.parametrize(
    ("version", "key"),
    [("2.5.1", "max_non_split_rounding_mb"), ("2.10.0", "large_segment_size_mb")],
)
def test_settings_of_later_releases(version: str, key: str) -> None:
    with pytest.raises(Faults, match=f"{key}: .* name a newer torch_version"):
        parse_alloc_conf(f"{key}:64", AllocatorOptions(torch_version=version))


def test_bad_options_are_all_named() -> None:
    with pytest.raises(Faults) as caught:
        AllocatorOptions(
            capacity_bytes=-1,
            outside_bytes=-1,
            memory_fraction=1.1,
            garbage_collection_threshold=1.0,
            max_split_size_bytes=MIB,
            max_non_split_rounding_bytes=-1,
            large_segment_bytes=10 * MIB,
            roundup_power2_divisions=(3,),
        )
    assert [fault.path for fault in caught.value.faults] == [
        "capacity_bytes",
        "outside_bytes",
        "large_segment_bytes",
        "max_split_size_bytes",
        "max_non_split_rounding_bytes",
        "memory_fraction",
        "garbage_collection_threshold",
        "roundup_power2_divisions",
    ]
