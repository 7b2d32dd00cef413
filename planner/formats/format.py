"""A weight format: a scheme, and which tensors of a model it is applied to."""

from __future__ import annotations

from dataclasses import field, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Literal

from planner.formats.patterns import matches_any
from planner.formats.storage import DTYPE_BITS, Plain, Scheme, Stored
from planner.record import record

if TYPE_CHECKING:
    from planner.architecture.layers import Role, Weight
    from planner.formats.header import FileHeader

LINEARS: frozenset[Role] = frozenset({"linear"})
EXPERTS: frozenset[Role] = frozenset({"expert"})
HEAD: frozenset[Role] = frozenset({"head"})
EMBEDDINGS: frozenset[Role] = frozenset({"embedding"})
LINEARS_AND_EXPERTS: frozenset[Role] = LINEARS | EXPERTS

QUANTIZABLE: frozenset[Role] = LINEARS_AND_EXPERTS | EMBEDDINGS | HEAD
"""Roles that some scheme can be applied to at all; routers, norms and convolutions stay as they are."""

Stacks = Literal["all", "decoder"]


@record
class Override:
    """Modules that another scheme applies to; ``scheme`` None leaves them unquantised."""

    patterns: tuple[str, ...]
    scheme: Scheme | None


@record
class Format:
    """How a model's weights are stored. Made by :func:`parse_format` or :func:`native_format`, never by hand.

    ``quantizes``: the roles the scheme applies to; everything else stays in ``rest_dtype``, or in the model's own
    dtype when that is None. ``dense_quantizes``: the roles for a model without experts, when they differ.
    ``keeps``: modules left alone whatever their role; ``only``: when not empty, no other modules than these.
    ``unknown``: why the bytes can't be told from a name or a config (a safetensors header can), else empty.
    """

    name: str
    label: str
    scheme: Scheme
    quantizes: frozenset[Role] = frozenset()
    dense_quantizes: frozenset[Role] | None = None
    rest_dtype: str | None = None
    keeps: tuple[str, ...] = ()
    only: tuple[str, ...] = ()
    overrides: tuple[Override, ...] = ()
    stacks: Stacks = "all"
    file_type: str = ""
    """The GGUF file type, when it is one: its bytes are decided for the file as a whole."""
    unknown: str = ""
    header: FileHeader | None = None
    """What the headers of the checkpoint at hand say, when they have been read."""
    kv_cache: str = ""
    """The type that the checkpoint asks servers to keep keys and values in; empty: none."""
    notes: tuple[str, ...] = field(default=(), compare=False)

    @property
    def is_quantized(self) -> bool:
        """Whether any tensor is stored otherwise than in a plain dtype."""
        return bool(self.quantizes or self.file_type or self.unknown)

    def for_model(self, *, has_experts: bool, dtype: str) -> Format:
        """The format with what depends on the model filled in: its roles, and the dtype of what is not quantised."""
        rest = self.rest_dtype or (dtype if DTYPE_BITS.get(dtype, 0) >= 16 else "bf16")
        roles = self.quantizes if has_experts or self.dense_quantizes is None else self.dense_quantizes
        scheme = self.scheme if self.is_quantized else Plain(rest)
        return replace(self, scheme=scheme, quantizes=roles, dense_quantizes=None, rest_dtype=rest)


@record
class TensorBytes:
    """What one :class:`Weight` (all of its ``count`` tensors) takes."""

    payload_bytes: int
    overhead_bytes: int
    dtype: str
    tensors: tuple[Stored, ...]
    """The tensors that each one of the ``count`` becomes, for meters that round every tensor up."""

    @property
    def total_bytes(self) -> int:
        """Values and everything needed to read them."""
        return self.payload_bytes + self.overhead_bytes


def scheme_of(fmt: Format, weight: Weight, path: str, *, in_decoder: bool = True) -> Scheme:
    """The scheme ``weight`` is stored in. ``path``: what stands before its name, with the closing dot.

    ``in_decoder``: whether it belongs to the layers of the decoder, which alone some schemes quantise.
    """
    if not fmt.quantizes:
        return Plain(weight.dtype) if weight.dtype else fmt.scheme
    rest = Plain(weight.dtype or fmt.rest_dtype or "bf16")
    eligible = weight.role in fmt.quantizes and (in_decoder or fmt.stacks == "all" or weight.role == "head")
    if weight.dtype or weight.is_buffer or len(weight.shape) < 2 or weight.role not in QUANTIZABLE:
        return rest
    module = (path + weight.name).removesuffix(".weight")
    for override in fmt.overrides:
        if matches_any(module, override.patterns):
            return override.scheme or rest
    if not eligible or matches_any(module, fmt.keeps) or (fmt.only and not matches_any(module, fmt.only)):
        return rest
    return fmt.scheme


def weight_bytes(fmt: Format, weight: Weight, path: str = "", *, in_decoder: bool = True) -> TensorBytes:
    """The bytes of ``weight`` under ``fmt``, all of its ``count`` tensors together.

    Raises ValueError for GGUF (the file as a whole decides: :func:`planner.formats.gguf_tensors`) and for a format
    whose bytes only a header can tell.
    """
    if fmt.unknown:
        raise ValueError(f"{fmt.name}: {fmt.unknown}")
    if fmt.file_type:
        raise ValueError(f"{fmt.name}: a GGUF mix decides by the whole file: use gguf_tensors")
    scheme = scheme_of(fmt, weight, path, in_decoder=in_decoder)
    tensors = _stored(scheme, weight.shape)
    payload = sum(tensor.size_bytes for tensor in tensors if tensor.is_payload)
    overhead = sum(tensor.size_bytes for tensor in tensors if not tensor.is_payload)
    return TensorBytes(payload * weight.count, overhead * weight.count, scheme.dtype, tensors)


@lru_cache(maxsize=4096)
def _stored(scheme: Scheme, shape: tuple[int, ...]) -> tuple[Stored, ...]:
    return scheme.store(shape)
