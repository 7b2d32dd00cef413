"""How a request is rounded to a block, and a block to the segment asked of the driver."""

from __future__ import annotations

from planner.allocator.options import MIB, AllocatorOptions


class Sizes:
    """The rounding rules of one set of options."""

    __slots__ = ("_constants", "_divides", "_divisions", "_large_segment_bytes")

    def __init__(self, options: AllocatorOptions) -> None:
        self._constants = options.constants
        self._divisions = options.roundup_power2_divisions
        self._divides = any(count > 1 for count in self._divisions)
        self._large_segment_bytes = options.large_segment_bytes

    def block_bytes(self, size_bytes: int) -> int:
        """Bytes of the block a request takes: a multiple of 512 B, or a step of ``roundup_power2_divisions``."""
        unit = self._constants.min_block_bytes
        if self._divides:
            interval = min(max(size_bytes.bit_length() - MIB.bit_length(), 0), len(self._divisions) - 1)
            divisions = self._divisions[interval]
            if divisions > 1 and size_bytes > unit * divisions:
                step = (1 << (size_bytes.bit_length() - 1)) // divisions
                return -(-size_bytes // step) * step
        return -(-size_bytes // unit) * unit

    def is_small(self, block_bytes: int) -> bool:
        """Whether a block belongs to the small pool."""
        return block_bytes <= self._constants.small_request_bytes

    def segment_bytes(self, block_bytes: int) -> int:
        """Bytes of the segment asked of the driver for a block."""
        constants = self._constants
        if block_bytes <= constants.small_request_bytes:
            return constants.small_segment_bytes
        if block_bytes < constants.min_large_bytes:
            return self._large_segment_bytes
        return -(-block_bytes // constants.large_rounding_bytes) * constants.large_rounding_bytes
