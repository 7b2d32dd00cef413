"""The tensor types of GGML and the file types of llama.cpp, as data.

Source: ggml ``ggml.h`` / ``ggml-common.h`` and llama.cpp ``include/llama.h`` (0.5.0-dev, 0c1e57098; ggml 0.25.3).
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING

from planner.record import record

if TYPE_CHECKING:
    from collections.abc import Mapping


@record
class GgmlType:
    """A tensor type: ``block_values`` values of a row share a block of ``block_bytes``."""

    name: str
    type_id: int
    block_values: int
    block_bytes: int

    @property
    def is_quantized(self) -> bool:
        """Whether values share blocks."""
        return self.block_values > 1

    def row_bytes(self, values: int) -> int:
        """Bytes of one row of ``values``. Raises ValueError when they don't fill whole blocks."""
        if values % self.block_values:
            raise ValueError(f"{self.name}: a row must be a multiple of {self.block_values} values, got {values}")
        return values // self.block_values * self.block_bytes


# fmt: off
_TYPES = {
    "F32": GgmlType("F32", 0, 1, 4),
    "F16": GgmlType("F16", 1, 1, 2),
    "Q4_0": GgmlType("Q4_0", 2, 32, 18),
    "Q4_1": GgmlType("Q4_1", 3, 32, 20),
    "Q5_0": GgmlType("Q5_0", 6, 32, 22),
    "Q5_1": GgmlType("Q5_1", 7, 32, 24),
    "Q8_0": GgmlType("Q8_0", 8, 32, 34),
    "Q8_1": GgmlType("Q8_1", 9, 32, 36),
    "Q2_K": GgmlType("Q2_K", 10, 256, 84),
    "Q3_K": GgmlType("Q3_K", 11, 256, 110),
    "Q4_K": GgmlType("Q4_K", 12, 256, 144),
    "Q5_K": GgmlType("Q5_K", 13, 256, 176),
    "Q6_K": GgmlType("Q6_K", 14, 256, 210),
    "Q8_K": GgmlType("Q8_K", 15, 256, 292),
    "IQ2_XXS": GgmlType("IQ2_XXS", 16, 256, 66),
    "IQ2_XS": GgmlType("IQ2_XS", 17, 256, 74),
    "IQ3_XXS": GgmlType("IQ3_XXS", 18, 256, 98),
    "IQ1_S": GgmlType("IQ1_S", 19, 256, 50),
    "IQ4_NL": GgmlType("IQ4_NL", 20, 32, 18),
    "IQ3_S": GgmlType("IQ3_S", 21, 256, 110),
    "IQ2_S": GgmlType("IQ2_S", 22, 256, 82),
    "IQ4_XS": GgmlType("IQ4_XS", 23, 256, 136),
    "I8": GgmlType("I8", 24, 1, 1),
    "I16": GgmlType("I16", 25, 1, 2),
    "I32": GgmlType("I32", 26, 1, 4),
    "I64": GgmlType("I64", 27, 1, 8),
    "F64": GgmlType("F64", 28, 1, 8),
    "IQ1_M": GgmlType("IQ1_M", 29, 256, 56),
    "BF16": GgmlType("BF16", 30, 1, 2),
    "TQ1_0": GgmlType("TQ1_0", 34, 256, 54),
    "TQ2_0": GgmlType("TQ2_0", 35, 256, 66),
    "MXFP4": GgmlType("MXFP4", 39, 32, 17),
    "NVFP4": GgmlType("NVFP4", 40, 64, 36),
    "Q1_0": GgmlType("Q1_0", 41, 128, 18),
    "Q2_0": GgmlType("Q2_0", 42, 64, 18),
}
# fmt: on

GGML_TYPES: Mapping[str, GgmlType] = MappingProxyType(_TYPES)
"""Every tensor type by its upper-case name."""

GGML_TYPES_BY_ID: Mapping[int, GgmlType] = MappingProxyType({kind.type_id: kind for kind in _TYPES.values()})
"""Every tensor type by the number a GGUF header holds."""


@record
class FileType:
    """A mix that ``llama-quantize`` makes: the type most tensors get. ``file_type_id`` is ``general.file_type``."""

    name: str
    file_type_id: int
    default: str
    needs_importance_matrix: bool = False


FILE_TYPES: Mapping[str, FileType] = MappingProxyType(
    {
        kind.name: kind
        for kind in (
            FileType("F32", 0, "F32"),
            FileType("F16", 1, "F16"),
            FileType("BF16", 32, "BF16"),
            FileType("Q8_0", 7, "Q8_0"),
            FileType("Q6_K", 18, "Q6_K"),
            FileType("Q5_K_M", 17, "Q5_K"),
            FileType("Q5_K_S", 16, "Q5_K"),
            FileType("Q5_1", 9, "Q5_1"),
            FileType("Q5_0", 8, "Q5_0"),
            FileType("Q4_K_M", 15, "Q4_K"),
            FileType("Q4_K_S", 14, "Q4_K"),
            FileType("Q4_1", 3, "Q4_1"),
            FileType("Q4_0", 2, "Q4_0"),
            FileType("IQ4_NL", 25, "IQ4_NL"),
            FileType("IQ4_XS", 30, "IQ4_XS"),
            FileType("Q3_K_L", 13, "Q3_K"),
            FileType("Q3_K_M", 12, "Q3_K"),
            FileType("Q3_K_S", 11, "Q3_K"),
            FileType("IQ3_M", 27, "IQ3_S"),
            FileType("IQ3_S", 26, "IQ3_S"),
            FileType("IQ3_XS", 22, "IQ3_S"),
            FileType("IQ3_XXS", 23, "IQ3_XXS", needs_importance_matrix=True),
            FileType("Q2_K", 10, "Q2_K"),
            FileType("Q2_K_S", 21, "Q2_K", needs_importance_matrix=True),
            FileType("IQ2_M", 29, "IQ2_S", needs_importance_matrix=True),
            FileType("IQ2_S", 28, "IQ2_XS", needs_importance_matrix=True),
            FileType("IQ2_XS", 20, "IQ2_XS", needs_importance_matrix=True),
            FileType("IQ2_XXS", 19, "IQ2_XXS", needs_importance_matrix=True),
            FileType("IQ1_M", 31, "IQ1_M", needs_importance_matrix=True),
            FileType("IQ1_S", 24, "IQ1_S", needs_importance_matrix=True),
            FileType("TQ2_0", 37, "TQ2_0"),
            FileType("TQ1_0", 36, "TQ1_0"),
            FileType("MXFP4_MOE", 38, "MXFP4"),
            FileType("NVFP4", 39, "NVFP4"),
            FileType("Q1_0", 40, "Q1_0"),
            FileType("Q2_0", 41, "Q2_0"),
        )
    }
)
"""Every file type by name, from large to small."""
