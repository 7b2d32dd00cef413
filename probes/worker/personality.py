"""What a CUDA device allocates where the CPU's operators do something else.

A rehearsal runs on fake CPU tensors. Every difference that changes sizes is one function below with its source. The
sources are files of pytorch/pytorch (main, 2026) unless said otherwise.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch

from .attribution import Attribution
from .tracker import COMPONENT_INDEX, Differences

aten = torch.ops.aten
HALF = (torch.float16, torch.bfloat16)
WORKSPACE = COMPONENT_INDEX["workspace"]

CUBLAS_WORKSPACE_BYTES = {9: 32 << 20, 10: 32 << 20, 11: 32 << 20, 12: 32 << 20}
"""By compute capability's major; older cards take 4096·2 + 16·8 KiB (aten/src/ATen/cuda/CublasHandlePool.cpp)."""
CUBLAS_WORKSPACE_DEFAULT_BYTES = (4096 * 2 + 16 * 8) << 10

FLASH_MAX_HEAD_DIM = 256
FLASH_HEAD_ALIGNMENT = 8
EFFICIENT_QUERY_BLOCK = 32
EFFICIENT_MASK_ALIGNMENT = 16
EMBEDDING_SMALL_INDICES = 3072
EMBEDDING_ROWS_PER_THREAD = 10
WARP = 32
FOREACH_CHUNK = 65536
"""kChunkSize of native/cuda/MultiTensorApply.cuh."""


class CudaPersonality:
    """The differences of one card, as what :class:`probes.worker.tracker.StorageTracker` and ``torch`` are given."""

    def __init__(self, capability: tuple[int, int], attribution: Attribution) -> None:
        self._major = capability[0]
        self._capability = capability
        self._attribution = attribution
        self._threads_with_cublas: set[bool] = set()

    def differences(self) -> Differences:
        """Replacements and scratch by operator."""
        gemms = (aten.mm.default, aten.mm.out, aten.addmm.default, aten.bmm.default, aten.baddbmm.default)
        replace: dict[Any, Callable[[Any, Any, Any], Any]] = dict.fromkeys(gemms, self._gemm)
        replace[aten.native_layer_norm.default] = _layer_norm
        if hasattr(aten, "_grouped_mm"):
            replace[aten._grouped_mm.default] = _grouped_mm
        return Differences(
            replace=replace,
            scratch_bytes={
                aten._scaled_dot_product_flash_attention_backward.default: flash_backward_scratch_bytes,
                aten._scaled_dot_product_efficient_attention_backward.default: efficient_backward_scratch_bytes,
                aten.embedding_dense_backward.default: embedding_backward_scratch_bytes,
                aten._foreach_norm.Scalar: foreach_norm_scratch_bytes,
            },
        )

    @contextlib.contextmanager
    def functions(self, autocast: bool) -> Iterator[None]:
        """Composite functions that choose by device are decided as CUDA decides them."""
        functional = torch.nn.functional
        with (
            mock.patch.object(functional, "scaled_dot_product_attention", self._attention),
            mock.patch.object(functional, "dropout", _dropout),
            _cuda_autocast() if autocast else contextlib.nullcontext(),
        ):
            yield

    def _gemm(self, func: Any, args: Any, kwargs: Any) -> Any:
        """The first matrix product of a thread takes cuBLAS's workspace, for good.

        The handle belongs to the thread, and autograd runs backwards in its own (CublasHandlePool.cpp,
        getCurrentCUDABlasHandle): two workspaces in training, one in inference.
        """
        in_backward = self._attribution.phase == "backward"
        if in_backward not in self._threads_with_cublas:
            self._threads_with_cublas.add(in_backward)
            assert self._attribution.tracker is not None
            nbytes = CUBLAS_WORKSPACE_BYTES.get(self._major, CUBLAS_WORKSPACE_DEFAULT_BYTES)
            self._attribution.tracker.hold(nbytes, WORKSPACE, "cublas.workspace")
        return func(*args, **kwargs)

    def _attention(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attn_mask: torch.Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> torch.Tensor:
        query, key, value, attn_mask = _autocast_inputs(query, key, value, attn_mask)
        scale = 1 / math.sqrt(query.size(-1)) if scale is None else scale
        backend = choose_attention(query, key, value, attn_mask, is_causal, enable_gqa, self._capability)
        if backend == "flash":
            return flash(query, key, value, dropout_p, is_causal, scale)
        if attn_mask is not None and attn_mask.dtype == torch.bool:
            attn_mask = torch.where(attn_mask, 0.0, torch.tensor(-math.inf, dtype=query.dtype))
        if backend == "efficient":
            return _efficient(query, key, value, attn_mask, dropout_p, is_causal, scale)
        math_attention: Any = aten._scaled_dot_product_attention_math.default
        # Autocast has cast the operands; inside an operator's own implementation its key is excluded.
        with torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(_AUTOCAST_KEY)):
            out: torch.Tensor = math_attention(
                query, key, value, attn_mask, dropout_p, is_causal, None, scale=scale, enable_gqa=enable_gqa
            )[0]
        return out


def choose_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    is_causal: bool,
    grouped: bool,
    capability: tuple[int, int],
) -> str:
    """One of "flash", "efficient" and "math" (aten/src/ATen/native/transformers/cuda/sdp_utils.cpp, select_sdp_backend).

    cuDNN's kernel, preferred on majors 9 and 10 by recent builds, returns what flash returns and counts as it.
    """
    if query.dim() != 4:
        return "math"
    heads_match = query.size(1) == key.size(1) == value.size(1)
    grouped_match = grouped and key.size(1) == value.size(1) and query.size(1) % key.size(1) == 0
    if _flash_can(query, key, value, mask, is_causal, capability) and (heads_match or grouped_match):
        return "flash"
    if _efficient_can(query, key, value, capability) and heads_match:
        return "efficient"
    return "math"


def _flash_can(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    is_causal: bool,
    capability: tuple[int, int],
) -> bool:
    head_dim = query.size(-1)
    small_smem = capability in ((8, 6), (8, 9)) or capability[0] == 12
    training = any(tensor.requires_grad for tensor in (query, key, value)) and torch.is_grad_enabled()
    return (
        mask is None
        and query.dtype in HALF
        and capability[0] >= 8
        and head_dim == key.size(-1) == value.size(-1) <= FLASH_MAX_HEAD_DIM
        and not (small_smem and training and head_dim > 192)
        and not (is_causal and query.size(-2) != key.size(-2))
    )


def _efficient_can(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, capability: tuple[int, int]) -> bool:
    alignment = 8 if query.dtype in HALF else 4
    return (
        (query.dtype in (torch.float16, torch.float32) or (query.dtype == torch.bfloat16 and capability[0] >= 8))
        and query.size(-1) == key.size(-1)
        and query.size(-1) % alignment == 0
        and value.size(-1) % alignment == 0
        and all(tensor.stride(-1) == 1 for tensor in (query, key, value))
    )


def flash(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, dropout_p: float, is_causal: bool, scale: float
) -> torch.Tensor:
    """SDPA's flash kernel; heads are padded to multiples of 8 (native/transformers/attention.cpp, pad_last_dim)."""
    head_dim = query.size(-1)
    missing = -head_dim % FLASH_HEAD_ALIGNMENT
    if missing:
        query, key, value = (torch.nn.functional.pad(tensor, (0, missing)) for tensor in (query, key, value))
    kernel: Any = aten._scaled_dot_product_flash_attention.default
    out: torch.Tensor = kernel(query, key, value, dropout_p, is_causal, False, scale=scale)[0]
    return out[..., :head_dim] if missing else out


def _efficient(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    dropout_p: float,
    is_causal: bool,
    scale: float,
) -> torch.Tensor:
    """The mask is padded to 16 and expanded without a copy (native/transformers/attention.cpp, preprocess_mask).

    A single query's mask counts as padded always, not in 15 of 16 steps: it is tiny, and so decode steps repeat.
    """
    if mask is not None:
        missing = -mask.size(-1) % EFFICIENT_MASK_ALIGNMENT
        if query.size(-2) == 1 and not missing:
            missing = EFFICIENT_MASK_ALIGNMENT
        if missing:
            mask = torch.nn.functional.pad(mask, (0, missing))[..., : key.size(-2)]
        mask = mask.expand(query.size(0), query.size(1), query.size(-2), key.size(-2))
    training = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (query, key, value))
    efficient: Any = aten._scaled_dot_product_efficient_attention.default
    out: torch.Tensor = efficient(query, key, value, mask, training, dropout_p, is_causal, scale=scale)[0]
    return out


def flash_backward_scratch_bytes(args: Any, kwargs: Any, out: Any) -> int:
    """softmax_d, dq_accum and, with grouped heads, dk and dv for every query head.

    native/transformers/cuda/flash_attn/flash_api.cpp, mha_bwd: sequence rounded up to 128, heads to 32 (to 64 above
    128), both in fp32.
    """
    _grad, query, key = args[:3]
    batch, heads, length, head_dim = query.shape
    rows = batch * heads * _up(length, 128)
    rounded_dim = _up(head_dim, 32) if head_dim <= 128 else _up(head_dim, 64)
    expanded = 2 * batch * heads * key.size(2) * head_dim * key.element_size() if key.size(1) != heads else 0
    return rows * 4 + rows * rounded_dim * 4 + expanded


def efficient_backward_scratch_bytes(args: Any, kwargs: Any, out: Any) -> int:
    """delta (fp32 a query) and, for 16-bit inputs, the query gradient's fp32 accumulator.

    native/transformers/cuda/attention_backward.cu, _efficient_attention_backward, and
    mem_eff_attention/kernel_backward.h, Params::workspace_size.
    """
    query = args[1]
    batch, heads, length, head_dim = query.shape
    rows = batch * heads * _up(length, EFFICIENT_QUERY_BLOCK)
    return rows * 4 + (rows * head_dim * 4 if query.dtype in HALF else 0)


def embedding_backward_scratch_bytes(args: Any, kwargs: Any, out: Any) -> int:
    """Sorted indices and one fp32 row a partial segment.

    native/cuda/Embedding.cu and EmbeddingBackwardKernel.cu (NROWS_PER_THREAD 10); up to 3,072 indices need none.
    """
    grad, indices, rows = args[:3]
    count = indices.numel()
    if count <= EMBEDDING_SMALL_INDICES:
        return 0
    segments = min(count, int(rows))
    partial = count // EMBEDDING_ROWS_PER_THREAD + segments
    return 2 * count * indices.element_size() + partial * _up(grad.size(-1), WARP) * 4


def foreach_norm_scratch_bytes(args: Any, kwargs: Any, out: Any) -> int:
    """One fp32 norm a chunk, as many for each tensor as the largest has (native/cuda/ForeachReduceOp.cu)."""
    tensors = args[0]
    return len(tensors) * -(-max(tensor.numel() for tensor in tensors) // FOREACH_CHUNK) * 4


def _layer_norm(func: Any, args: Any, kwargs: Any) -> Any:
    """Mean and reciprocal deviation are fp32 for 16-bit inputs (native/cuda/layer_norm_kernel.cu)."""
    out, mean, rstd = func(*args, **kwargs)
    if args[0].dtype in HALF and mean.dtype in HALF:
        mean, rstd = (torch.empty(part.shape, dtype=torch.float32, device=part.device) for part in (mean, rstd))
    return out, mean, rstd


def _grouped_mm(func: Any, args: Any, kwargs: Any) -> Any:
    """fp32 and fp16 are multiplied group by group into one result, which fake tensors refuse (native/GroupedMMUtils.h)."""
    if args[0].dtype == torch.bfloat16:
        return func(*args, **kwargs)
    shape_only = func(*(part.to(torch.bfloat16) for part in args[:2]), *args[2:], **kwargs)
    return torch.empty_strided(shape_only.size(), shape_only.stride(), dtype=args[0].dtype, device=args[0].device)


def _dropout(input: torch.Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> torch.Tensor:  # noqa: A002
    """One kernel that keeps a mask of one byte an element (native/Dropout.cpp, is_fused_kernel_acceptable)."""
    if not training or p == 0.0:
        return input
    out: torch.Tensor = torch.native_dropout(input, p, True)[0]
    return out


def _autocast_inputs(*tensors: Any) -> tuple[Any, ...]:
    """SDPA is on autocast's 16-bit list (aten/src/ATen/autocast_mode.h)."""
    if not torch.is_autocast_enabled("cpu"):
        return tensors
    dtype = torch.get_autocast_dtype("cpu")
    return tuple(t.to(dtype) if t is not None and t.dtype == torch.float32 else t for t in tensors)


_AUTOCAST_FP32: tuple[tuple[Any, tuple[str, ...]], ...] = (
    (torch.nn.functional, ("layer_norm", "group_norm", "softmax", "log_softmax", "cross_entropy", "nll_loss", "softplus")),
    (torch, ("layer_norm", "softmax", "log_softmax", "pow", "rsqrt", "exp", "log", "cumsum", "norm")),
    (torch.Tensor, ("softmax", "log_softmax", "pow", "rsqrt", "exp", "log", "cumsum", "norm")),
)
"""CUDA autocast's fp32 list (aten/src/ATen/autocast_mode.h, AT_FORALL_FP32), which the CPU's lacks."""
_AUTOCAST_FP32_RESULTS: tuple[tuple[Any, tuple[str, ...]], ...] = ((torch, ("sum", "prod")), (torch.Tensor, ("sum", "prod")))
"""Of the same list, those whose kernel reads 16 bit and answers in fp32 (native/ReduceOpsUtils.h, gpu_lowp_to_f32)."""
_AUTOCAST_KEY = torch._C.DispatchKey.AutocastCPU


@contextlib.contextmanager
def _cuda_autocast() -> Iterator[None]:
    """Casts 16-bit inputs of the listed functions to fp32 while autocast is on.

    Patched and not a torch function mode: those are off inside a backward, where checkpointed layers run again.
    """
    with contextlib.ExitStack() as stack:
        for owner, names in _AUTOCAST_FP32:
            for name in names:
                stack.enter_context(mock.patch.object(owner, name, _in_fp32(getattr(owner, name))))
        stack.enter_context(mock.patch.object(torch, "einsum", _in_16_bit(torch.einsum)))
        for owner, names in _AUTOCAST_FP32_RESULTS:
            for name in names:
                stack.enter_context(mock.patch.object(owner, name, _to_fp32(getattr(owner, name))))
        yield


def _in_fp32(function: Callable[..., Any]) -> Callable[..., Any]:
    def cast(*args: Any, **kwargs: Any) -> Any:
        # A dtype that the caller names stays.
        if (
            kwargs.get("dtype") is None
            and torch.is_autocast_enabled("cpu")
            and not torch._C._dispatch_tls_is_dispatch_key_excluded(_AUTOCAST_KEY)
        ):
            args = tuple(a.float() if isinstance(a, torch.Tensor) and a.dtype in HALF else a for a in args)
        return function(*args, **kwargs)

    return cast


def _in_16_bit(function: Callable[..., Any]) -> Callable[..., Any]:
    """``einsum`` is on CUDA's list of what runs in 16 bit, the CPU casts for the products inside it."""

    def cast(*args: Any, **kwargs: Any) -> Any:
        return function(*(_autocast_inputs(arg)[0] if isinstance(arg, torch.Tensor) else arg for arg in args), **kwargs)

    return cast


def _autocasts() -> bool:
    """Below autocast, in an operator's own implementation, its key is excluded."""
    return torch.is_autocast_enabled("cpu") and not torch._C._dispatch_tls_is_dispatch_key_excluded(_AUTOCAST_KEY)


def _to_fp32(function: Callable[..., Any]) -> Callable[..., Any]:
    def summed(*args: Any, **kwargs: Any) -> Any:
        if _autocasts():
            kwargs = {"dtype": torch.float32 if args[0].dtype in HALF else None} | kwargs
        return function(*args, **kwargs)

    return summed


def _up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
