"""What the headers of a checkpoint's files say: exact sizes, where a config can only be derived from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from planner.formats.gguf_file import GgufTensor


@dataclass(frozen=True, eq=False, slots=True)
class FileHeader:
    """The tensors of a checkpoint as its headers list them; one object for each checkpoint read, compared by identity.

    ``parameters``: values stored, None where packed types hide how many there are. ``gguf``: every tensor, of GGUF only.
    """

    total_bytes: int
    parameters: int | None
    bytes_by_dtype: Mapping[str, int]
    gguf: tuple[GgufTensor, ...] = ()
