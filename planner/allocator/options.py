"""What can be set on the caching allocator, with the constants of each torch release as data.

Source: pytorch c10/core/AllocatorConfig.{h,cpp} and c10/cuda/CUDAAllocatorConfig.{h,cpp}; the class constants were in
c10/cuda/CUDACachingAllocator.cpp until 2.8.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

from planner.faults import Fault, Faults, nearest

MIB = 2**20
_ROUNDUP_INTERVALS = 16  # 1 MiB, 2 MiB … 32 GiB and above; smaller requests use the first


@dataclass(frozen=True, slots=True)
class AllocatorConstants:
    """Sizes compiled into a torch release, and what its settings parser does. ``since`` is (major, minor)."""

    since: tuple[int, int]
    min_block_bytes: int = 512
    small_request_bytes: int = MIB
    small_segment_bytes: int = 2 * MIB
    large_segment_bytes: int = 20 * MIB
    min_large_bytes: int = 10 * MIB
    large_rounding_bytes: int = 2 * MIB
    rest_starts_after_last: bool = True
    """``roundup_power2_divisions``: whether ``>`` leaves the last interval named as it was."""
    unknown_settings: frozenset[str] = frozenset()


CONSTANTS = (
    AllocatorConstants(
        since=(2, 1),
        rest_starts_after_last=False,
        unknown_settings=frozenset({"max_non_split_rounding_mb", "large_segment_size_mb"}),
    ),
    # pytorch/pytorch#136174
    AllocatorConstants(since=(2, 6), rest_starts_after_last=False, unknown_settings=frozenset({"large_segment_size_mb"})),
    # pytorch/pytorch#165304
    AllocatorConstants(since=(2, 10), unknown_settings=frozenset({"large_segment_size_mb"})),
    # pytorch/pytorch#172056
    AllocatorConstants(since=(2, 11)),
)
"""One entry for each release that changed something, oldest first."""


def constants_for(torch_version: str) -> AllocatorConstants:
    """The constants of a torch release such as ``2.13.0`` or ``2.6.0+cu124``; a newer one has those of the last entry.

    Raises Faults for anything that is no version, or older than 2.1 (no expandable segments).
    """
    found = re.match(r"(\d{1,4})\.(\d{1,4})(?!\d)", torch_version)
    release = (int(found[1]), int(found[2])) if found else (0, 0)
    for constants in reversed(CONSTANTS):
        if release >= constants.since:
            return constants
    raise Faults([Fault("torch_version", f"must be a release from 2.1 on, such as 2.13.0; got {torch_version[:40]!r}")])


@dataclass(frozen=True, slots=True)
class AllocatorOptions:
    """Settings of one device's allocator. Sizes in bytes. Raises Faults naming every field out of range.

    ``capacity_bytes`` is the device's total memory, None for a card without end. ``outside_bytes`` is what the CUDA context,
    libraries and other processes hold of it. ``memory_fraction`` is torch.cuda.set_per_process_memory_fraction; below 1 it
    also lets ``garbage_collection_threshold`` (a share of the allowed memory, 0 is off) take effect.
    ``max_split_size_bytes`` None is no limit. ``roundup_power2_divisions`` has one number of divisions for each
    power of two from 1 MiB to 32 GiB; 0 and 1 are off.
    """

    torch_version: str = "2.13.0"
    capacity_bytes: int | None = None
    outside_bytes: int = 0
    memory_fraction: float = 1.0
    garbage_collection_threshold: float = 0.0
    max_split_size_bytes: int | None = None
    max_non_split_rounding_bytes: int = 20 * MIB
    large_segment_bytes: int = 20 * MIB
    roundup_power2_divisions: tuple[int, ...] = (0,) * _ROUNDUP_INTERVALS
    expandable_segments: bool = False
    constants: AllocatorConstants = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "constants", constants_for(self.torch_version))
        faults = [*_size_faults(self), *_ratio_faults(self)]
        if faults:
            raise Faults(faults)

    @property
    def allowed_bytes(self) -> int | None:
        """What ``memory_fraction`` lets the allocator reserve; None when it is not limited."""
        if self.memory_fraction == 1.0 or self.capacity_bytes is None:
            return None
        return int(self.memory_fraction * float(self.capacity_bytes))


def _size_faults(options: AllocatorOptions) -> list[Fault]:
    faults = []
    capacity, split, large = options.capacity_bytes, options.max_split_size_bytes, options.large_segment_bytes
    if capacity is not None and capacity < 0:
        faults.append(Fault("capacity_bytes", f"must be at least 0, got {capacity}; leave it out for no limit"))
    if options.outside_bytes < 0:
        faults.append(Fault("outside_bytes", f"must be at least 0, got {options.outside_bytes}"))
    if large <= options.constants.min_large_bytes:
        faults.append(Fault("large_segment_bytes", f"must be above {options.constants.min_large_bytes}, got {large}"))
    if split is not None and split < large:
        faults.append(Fault("max_split_size_bytes", f"must be at least large_segment_bytes ({large}), got {split}"))
    if options.max_non_split_rounding_bytes < 0:
        faults.append(Fault("max_non_split_rounding_bytes", f"must be at least 0, got {options.max_non_split_rounding_bytes}"))
    return faults


def _ratio_faults(options: AllocatorOptions) -> list[Fault]:
    faults = []
    fraction, divisions = options.memory_fraction, options.roundup_power2_divisions
    if not 0.0 <= fraction <= 1.0:
        faults.append(Fault("memory_fraction", f"must be between 0 and 1, got {fraction}"))
    elif fraction < 1.0 and options.capacity_bytes is None:
        faults.append(Fault("memory_fraction", "needs capacity_bytes, of which it is a share"))
    if not 0.0 <= options.garbage_collection_threshold < 1.0:
        faults.append(Fault("garbage_collection_threshold", f"must be in [0, 1), got {options.garbage_collection_threshold}"))
    if len(divisions) != _ROUNDUP_INTERVALS or not all(_is_power_of_two(n) or n == 0 for n in divisions):
        faults.append(Fault("roundup_power2_divisions", f"must be {_ROUNDUP_INTERVALS} powers of two, or 0, got {divisions}"))
    return faults


def parse_alloc_conf(conf: str, base: AllocatorOptions | None = None) -> AllocatorOptions:
    """``base`` changed by a PYTORCH_CUDA_ALLOC_CONF (or PYTORCH_ALLOC_CONF) string, as torch reads it.

    Settings of pinned host memory are checked and change nothing here. Raises Faults, under ``PYTORCH_CUDA_ALLOC_CONF.<key>``,
    for syntax, unknown or repeated keys, values torch refuses, and settings whose effect this simulator does not have.
    """
    options = base or AllocatorOptions()
    faults: list[Fault] = []
    for key, value in _pairs(conf, faults).items():
        try:
            options = replace(options, **_reader_of(key, options.constants)(value, options))
        except ValueError as error:
            faults.append(Fault(f"PYTORCH_CUDA_ALLOC_CONF.{key}", str(error)))
    if faults:
        raise Faults(faults)
    return options


_PAIR = re.compile(r"([^,:\[\]]+):(\[[^\[\]]*\]|[^,:\[\]]+)(?:,|$)")


def _pairs(conf: str, faults: list[Fault]) -> dict[str, str]:
    text = "".join(conf.split())
    pairs: dict[str, str] = {}
    position = 0
    while position < len(text):
        found = _PAIR.match(text, position)
        if not found:
            faults.append(Fault("PYTORCH_CUDA_ALLOC_CONF", f"expected key:value at {text[position : position + 40]!r}"))
            break
        if found[1] in pairs:
            faults.append(Fault(f"PYTORCH_CUDA_ALLOC_CONF.{found[1]}", "is set twice; keep one"))
        pairs[found[1]] = found[2]
        position = found.end()
    return pairs


_Reader = Callable[[str, AllocatorOptions], Mapping[str, Any]]
"""From a value, and the options as set so far, to the options it changes; ValueError says what is wrong."""


def _reader_of(key: str, constants: AllocatorConstants) -> _Reader:
    if key in constants.unknown_settings:
        raise ValueError(f"came after torch {constants.since[0]}.{constants.since[1]}; remove it or name a newer torch_version")
    if key not in _READERS:
        raise ValueError(f"unknown setting{nearest(key, _READERS)}")
    return _READERS[key]


def _max_split(value: str, options: AllocatorOptions) -> Mapping[str, Any]:
    return {"max_split_size_bytes": _whole(value, options.large_segment_bytes // MIB) * MIB}


def _max_rounding(value: str, options: AllocatorOptions) -> Mapping[str, Any]:
    return {"max_non_split_rounding_bytes": _whole(value, options.large_segment_bytes // MIB) * MIB}


def _large_segment(value: str, options: AllocatorOptions) -> Mapping[str, Any]:
    return {"large_segment_bytes": _whole(value, options.constants.min_large_bytes // MIB + 1) * MIB}


def _fraction(value: str, _options: AllocatorOptions) -> Mapping[str, Any]:
    number = _real(value)
    if not 0.0 <= number <= 1.0:
        raise ValueError(f"must be between 0 and 1, got {value[:40]}")
    return {"memory_fraction": number}


def _threshold(value: str, _options: AllocatorOptions) -> Mapping[str, Any]:
    number = _real(value)
    if not 0.0 < number < 1.0:
        raise ValueError(f"must be above 0 and below 1, got {value[:40]}")
    return {"garbage_collection_threshold": number}


def _expandable(value: str, _options: AllocatorOptions) -> Mapping[str, Any]:
    return {"expandable_segments": _truth(value)}


def _divisions(value: str, options: AllocatorOptions) -> Mapping[str, Any]:
    if not value.startswith("["):
        return {"roundup_power2_divisions": (_power_of_two(value),) * _ROUNDUP_INTERVALS}
    divisions = [0] * _ROUNDUP_INTERVALS
    last: int | None = None
    for item in filter(None, value[1:-1].split(",")):
        bound, colon, count_text = item.partition(":")
        if not colon:
            raise ValueError(f"expected MiB:divisions, got {item[:40]!r}")
        count = 0 if count_text == "0" else _power_of_two(count_text)
        if bound == ">":
            first = (last or 0) + options.constants.rest_starts_after_last
            divisions[first:] = [count] * (_ROUNDUP_INTERVALS - first)
            continue
        index = min(_power_of_two(bound).bit_length() - 1, _ROUNDUP_INTERVALS - 1)
        if last is None:
            divisions[:index] = [count] * index
        divisions[index] = count
        last = index
    return {"roundup_power2_divisions": tuple(divisions)}


def _flag_without_effect(value: str, _options: AllocatorOptions) -> Mapping[str, Any]:
    _truth(value)
    return {}


def _number_without_effect(value: str, _options: AllocatorOptions) -> Mapping[str, Any]:
    _whole(value, 0)
    return {}


def _flag_not_simulated(value: str, _options: AllocatorOptions) -> Mapping[str, Any]:
    if _truth(value):
        raise ValueError("changes when memory is taken and is not simulated; set it to False or remove it")
    return {}


def _backend(value: str, _options: AllocatorOptions) -> Mapping[str, Any]:
    if value != "native":
        raise ValueError(f"only the native backend is simulated, got {value[:40]!r}; remove it")
    return {}


def _whole(value: str, minimum: int) -> int:
    if not re.fullmatch(r"[0-9]{1,12}", value):
        raise ValueError(f"must be a whole number, got {value[:40]!r}")
    if int(value) < minimum:
        raise ValueError(f"must be at least {minimum}, got {int(value)}")
    return int(value)


def _real(value: str) -> float:
    if not re.fullmatch(r"[0-9]*\.?[0-9]+(?:[eE][+-]?[0-9]{1,3})?", value):
        raise ValueError(f"must be a number, got {value[:40]!r}")
    return float(value)


def _truth(value: str) -> bool:
    if value not in ("True", "False"):
        raise ValueError(f"must be True or False, got {value[:40]!r}")
    return value == "True"


def _power_of_two(value: str) -> int:
    number = _whole(value, 0)
    if not _is_power_of_two(number):
        raise ValueError(f"must be a power of two, got {number}")
    return number


def _is_power_of_two(number: int) -> bool:
    return number > 0 and number & (number - 1) == 0


_READERS: Mapping[str, _Reader] = MappingProxyType(
    {
        "max_split_size_mb": _max_split,
        "max_non_split_rounding_mb": _max_rounding,
        "large_segment_size_mb": _large_segment,
        "garbage_collection_threshold": _threshold,
        "per_process_memory_fraction": _fraction,
        "roundup_power2_divisions": _divisions,
        "expandable_segments": _expandable,
        "backend": _backend,
        "graph_capture_record_stream_reuse": _flag_not_simulated,
        "throw_on_cudamalloc_oom": _flag_not_simulated,
        "release_lock_on_cudamalloc": _flag_without_effect,
        "release_lock_on_hipmalloc": _flag_without_effect,
        "pinned_use_cuda_host_register": _flag_without_effect,
        "pinned_use_hip_host_register": _flag_without_effect,
        "pinned_use_background_threads": _flag_without_effect,
        "pinned_free_catch_all": _flag_without_effect,
        "pinned_num_register_threads": _number_without_effect,
        "pinned_reserve_segment_size_mb": _number_without_effect,
        "pinned_max_round_threshold_mb": _number_without_effect,
        "pinned_max_cached_size_mb": _number_without_effect,
    }
)
