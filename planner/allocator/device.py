"""The driver below the allocator: how much memory the device has, and what is taken of it."""

from __future__ import annotations

from planner.allocator.blocks import BlockPool
from planner.allocator.options import AllocatorOptions

_FIRST_ADDRESS = 0x7F0000000000
_ENDLESS_BYTES = 2**44  # addresses for an expandable segment on a card without end


class Device:
    """Counts what the allocator holds (``reserved_bytes``) against the device's memory.

    Addresses rise from one base and are never given twice, where the driver's are its own affair; they only break ties between
    free blocks of one size.
    """

    __slots__ = ("_allowed", "_capacity", "_next_address", "_outside", "peak_reserved_bytes", "reserved_bytes")

    def __init__(self, options: AllocatorOptions) -> None:
        self._capacity = options.capacity_bytes
        self._outside = options.outside_bytes
        self._allowed = options.allowed_bytes
        self._next_address = _FIRST_ADDRESS
        self.reserved_bytes = 0
        self.peak_reserved_bytes = 0

    @property
    def free_bytes(self) -> int:
        """What the driver has left; 0 for a device without end, which never runs out."""
        return max(0, (self._capacity or 0) - self._outside - self.reserved_bytes)

    def allows(self, size: int) -> bool:
        """Whether the memory fraction lets the allocator ask for ``size`` more."""
        return self._allowed is None or self.reserved_bytes + size <= self._allowed

    def has(self, size: int) -> bool:
        """Whether the driver can give ``size`` more."""
        return self._capacity is None or size <= self.free_bytes

    def addresses(self, size: int) -> int:
        """The start of ``size`` fresh addresses."""
        start = self._next_address
        self._next_address += size
        return start

    def address_range_bytes(self, size: int) -> int:
        """Addresses an expandable segment takes that must hold ``size``.

        An eighth more than the card, so that pages unmapped earlier can come back at the end.
        """
        return max(_ENDLESS_BYTES, size) if self._capacity is None else self._capacity + self._capacity // 8

    def reserve(self, pool: BlockPool, size: int) -> None:
        """The driver gave ``size`` for a pool."""
        self.reserved_bytes += size
        if pool.owner is not None:
            pool.owner.reserved_bytes += size
        self.peak_reserved_bytes = max(self.peak_reserved_bytes, self.reserved_bytes)

    def unreserve(self, pool: BlockPool, size: int) -> None:
        """The driver has ``size`` of a pool back."""
        self.reserved_bytes -= size
        if pool.owner is not None:
            pool.owner.reserved_bytes -= size
