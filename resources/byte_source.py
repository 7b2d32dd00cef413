"""Where headers are read from: a file on this machine, or ranges of a remote one. Never more than was asked for."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Protocol

from planner.faults import Fault, Faults


class ByteSource(Protocol):
    """A file of which ranges can be read. ``name`` leads the path of faults; ``size_bytes`` is None until known."""

    name: str
    size_bytes: int | None

    def read(self, offset: int, length: int) -> bytes:
        """Up to ``length`` bytes from ``offset``; fewer only where the file ends."""
        ...


class LocalFile:
    """A regular file on this machine."""

    def __init__(self, path: Path) -> None:
        self.path, self.name = path, path.name
        try:
            found = path.stat()
        except (OSError, ValueError) as error:
            raise Faults([Fault(path.name, f"can't be read: {getattr(error, 'strerror', None) or error}")]) from None
        if not stat.S_ISREG(found.st_mode):
            raise Faults([Fault(path.name, "is not a file")])
        self.size_bytes: int | None = found.st_size

    def read(self, offset: int, length: int) -> bytes:
        """Up to ``length`` bytes from ``offset``. Raises :class:`Faults`."""
        try:
            with self.path.open("rb") as file:
                file.seek(offset)
                return file.read(length)
        except OSError as error:
            raise Faults([Fault(self.name, f"can't be read: {error.strerror}")]) from None


class Buffer:
    """Bytes already in memory, with the size the whole file is said to have."""

    def __init__(self, data: bytes, name: str = "buffer", size_bytes: int | None = None) -> None:
        self.data, self.name = data, name
        self.size_bytes: int | None = len(data) if size_bytes is None else size_bytes

    def read(self, offset: int, length: int) -> bytes:
        """Up to ``length`` bytes from ``offset``."""
        return self.data[offset : offset + length]
