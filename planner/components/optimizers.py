"""What an optimizer keeps for each trained parameter, and what its step holds for a moment.

Every optimizer is two functions: the states of one parameter, and the moments of a step over all of them. Sources: torch 2.13
``torch/optim`` (AdamW, SGD, Muon), transformers 5.23 ``optimization.py`` (Adafactor), bitsandbytes 0.45 ``optim/optimizer.py``,
galore_torch and apollo_torch; SOAP (Vyas et al. 2024) and Shampoo (Gupta et al. 2018) as probes/worker/preconditioned.py states.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from math import prod
from typing import NamedTuple

from planner.components.tape import Level, Size, rounded
from planner.components.trainable import Trainable
from planner.memo import remember_by_identity

FP32_BYTES = 4
BF16_BYTES = 2
QUANTISED_BLOCK = 256
"""Values of an 8-bit state that share a scale (bitsandbytes 0.45, ``Optimizer2State.init_state``; before it was 2,048)."""
QUANTISED_FROM = 4096
"""Smaller parameters keep fp32 states (``min_8bit_size``)."""
PAGED_FROM = 100_000
"""Smaller states are not paged (``get_state_buffer``)."""
DEFAULT_RANK = 128
"""Rank of GaLore and APOLLO (transformers ``trainer_optimizer.py``)."""
WIDEST_PRECONDITIONED = 10_000
"""Longer sides of a matrix get no preconditioner (``max_precond_dim`` of SOAP)."""
NORM_CHUNK = 65536
"""Values that one block of a foreach kernel reads (``MultiTensorApply.cuh``, kChunkSize)."""


class State(NamedTuple):
    """A tensor kept for one parameter: ``numel`` values of ``width`` bytes, on the host where it is paged."""

    name: str
    numel: int
    width: int
    on_host: bool = False


Moment = Sequence[tuple[str, Size]]
"""What is live at once in a step, beside what stays."""
Carried = Callable[[Trainable, Trainable | None, int], Iterator[Moment]]
"""The moments of one parameter's update after another's, whose last tensors the loop's variables still hold."""


class Optimizer(NamedTuple):
    """``states`` of one parameter, and the moments of a ``step`` over all; both are told the rank of a projection."""

    states: Callable[[Trainable, int], Iterator[State]]
    step: Callable[[Sequence[Trainable], int], Iterator[Moment]]
    moments: int
    """Values it reads and writes for each parameter beside gradient and parameter."""


@remember_by_identity(64)
def in_module_order(tensors: Sequence[Trainable], last: tuple[str, ...]) -> tuple[Trainable, ...]:
    """The parameters as a loop over the model meets them: those of the names ``last`` (final norm, head) behind the layers."""
    behind = {name: place for place, name in enumerate(last, 1)}
    return tuple(sorted(tensors, key=lambda tensor: behind.get(tensor.name, 0)))


@remember_by_identity(64)
def optimizer_states(tensors: Sequence[Trainable], name: str, rank: int = DEFAULT_RANK, *, cuda: bool = True) -> Level:
    """Everything that optimizer ``name`` keeps on the device between steps."""
    level = Level()
    for (label, width), (total, values, count) in _sums(tensors, name, rank, on_host=False).items():
        factors = {"values": values, "bytes": width, "tensors": count}
        size = Size.stated(total, "values · bytes, each tensor rounded up to 512", **factors)
        level.change("optimizer_state", label, size, 1)
    if name in QUANTISED and any(tensor.numel >= QUANTISED_FROM for tensor in tensors):
        maps = 2 if "adamw" in name else 1
        level.change("optimizer_state", "quantile maps", Size(entries=256, fp32_bytes=FP32_BYTES), maps)
    counted = _counted(tensors, name, cuda=cuda)
    if counted:
        steps = Size.stated(counted * rounded(1), "tensors · 512 bytes of a step counter", tensors=counted)
        level.change("optimizer_state", "step counters", steps, 1)
    return level


@remember_by_identity(64)
def host_states(tensors: Sequence[Trainable], name: str, rank: int = DEFAULT_RANK) -> int:
    """Bytes of states in managed host memory (paged optimizers; ``cudaMallocManaged`` moves pages to the device at use)."""
    return sum(total for total, _, _ in _sums(tensors, name, rank, on_host=True).values())


@remember_by_identity(64)
def step_transient(
    tensors: Sequence[Trainable], name: str, rank: int = DEFAULT_RANK, *, clips: bool = False, cuda: bool = True
) -> Moment:
    """The highest moment of a step. ``tensors`` in the model's order; ``clips``: gradients are clipped by their norm before."""
    moments: list[Moment] = [list(moment) for moment in OPTIMIZERS[name].step(tensors, rank)]
    if clips:
        moments.append(_clipping(tensors, cuda=cuda))
    return max(moments, key=lambda moment: sum(size.bytes for _, size in moment), default=[])


def _sums(tensors: Sequence[Trainable], name: str, rank: int, *, on_host: bool) -> dict[tuple[str, int], tuple[int, int, int]]:
    """Bytes with rounding, values and tensors of each kind of state; pages of the host are not rounded."""
    found: dict[tuple[str, int], tuple[int, int, int]] = {}
    for tensor in tensors:
        for state in OPTIMIZERS[name].states(tensor, rank):
            if state.on_host is on_host:
                total, values, count = found.get((state.name, state.width), (0, 0, 0))
                each = state.numel * state.width
                found[state.name, state.width] = (
                    total + tensor.times * (each if on_host else rounded(each)),
                    values + tensor.times * state.numel,
                    count + tensor.times,
                )
    return found


def _counted(tensors: Sequence[Trainable], name: str, *, cuda: bool) -> int:
    """Parameters with a step counter on the device: fused keeps it there, the others on the CPU (``Adam._init_group``)."""
    if name == "adamw_fused" or (not cuda and name in ("adamw", "adamw_foreach")):
        return sum(tensor.times for tensor in tensors)
    if name == "muon" and not cuda:
        return sum(tensor.times for tensor in tensors if len(tensor.shape) != 2)
    return 0


def _clipping(tensors: Sequence[Trainable], *, cuda: bool) -> Moment:
    """``clip_grad_norm_``: a norm of each gradient and all of them in one tensor.

    On CUDA each norm is first one of every chunk (``ForeachReduceOp.cu``), as many for each tensor as the largest has.
    """
    count = sum(tensor.times for tensor in tensors)
    norms = ("norms of gradients", Size.stated(count * rounded(1), "tensors · 512 bytes", tensors=count))
    if not cuda:
        return [norms]
    chunks = -(-max(tensor.numel for tensor in tensors) // NORM_CHUNK)
    return [norms, ("norms of chunks", Size(tensors=count, chunks=chunks, fp32_bytes=FP32_BYTES))]


# -- states of one parameter


def _like(name: str, tensor: Trainable) -> State:
    return State(name, tensor.numel, tensor.dtype_bytes)


def _no_states(tensor: Trainable, rank: int) -> Iterator[State]:  # noqa: ARG001  every rule's
    return iter(())


def _one_moment(tensor: Trainable, rank: int) -> Iterator[State]:  # noqa: ARG001
    yield _like("momentum", tensor)


def _two_moments(tensor: Trainable, rank: int) -> Iterator[State]:  # noqa: ARG001
    """``exp_avg`` and ``exp_avg_sq`` in the parameter's dtype."""
    yield _like("first moments", tensor)
    yield _like("second moments", tensor)


def _muon(tensor: Trainable, rank: int) -> Iterator[State]:
    """Matrices have one momentum, everything else goes to AdamW."""
    return _one_moment(tensor, rank) if len(tensor.shape) == 2 else _two_moments(tensor, rank)


def _bitsandbytes(states: int, *, bits: int, paged: bool) -> Callable[[Trainable, int], Iterator[State]]:
    """One byte a value and an fp32 scale a block, or fp32; ``paged``: large ones in managed memory."""

    def of(tensor: Trainable, rank: int) -> Iterator[State]:  # noqa: ARG001
        count = tensor.numel
        quantised = bits == 8 and count >= QUANTISED_FROM
        for index in range(1, states + 1):
            yield State(f"state{index}", count, 1 if quantised else FP32_BYTES, paged and count >= PAGED_FROM)
            if quantised:
                yield State(f"absmax{index}", -(-count // QUANTISED_BLOCK), FP32_BYTES)

    return of


def _adafactor(tensor: Trainable, rank: int) -> Iterator[State]:  # noqa: ARG001
    """Means over rows and over columns of a matrix's squared gradient, a whole second moment of a vector; fp32."""
    rows, columns = _factors(tensor)
    yield State("RMS", 1, FP32_BYTES)
    if len(tensor.shape) < 2:
        yield State("second moments", tensor.numel, FP32_BYTES)
        return
    yield State("row factors", rows, FP32_BYTES)
    yield State("column factors", columns, FP32_BYTES)


def _factors(tensor: Trainable) -> tuple[int, int]:
    """Elements of Adafactor's two factors: the shape without its last, and without its last but one dimension."""
    return prod(tensor.shape[:-1]), prod((*tensor.shape[:-2], tensor.shape[-1]))


def is_projected(tensor: Trainable) -> bool:
    """Whether GaLore and APOLLO project it: matrices inside the layers (``optim_target_modules`` of the Trainer)."""
    return len(tensor.shape) == 2 and any(part == "*" or part.isdigit() for part in tensor.name.split("."))


def _projected_numel(tensor: Trainable, rank: int) -> int:
    """Elements of a projected gradient: the longer side by the rank."""
    return max(tensor.shape) * rank


def _galore(tensor: Trainable, rank: int) -> Iterator[State]:
    """Moments of the projected gradient; the projector's singular vectors, of an fp32 gradient a part of all of them."""
    if not is_projected(tensor):
        yield from _two_moments(tensor, rank)
        return
    short = min(tensor.shape)
    kept = short if tensor.dtype_bytes == FP32_BYTES else min(rank, short)
    yield State("projectors", short * kept, tensor.dtype_bytes)
    for name in ("first moments", "second moments"):
        yield State(name, _projected_numel(tensor, min(rank, short)), tensor.dtype_bytes)


def _apollo(tensor: Trainable, rank: int) -> Iterator[State]:
    """As GaLore, by a random projector."""
    if not is_projected(tensor):
        yield from _two_moments(tensor, rank)
        return
    yield State("projectors", min(tensor.shape) * rank, tensor.dtype_bytes)
    for name in ("first moments", "second moments"):
        yield State(name, _projected_numel(tensor, rank), tensor.dtype_bytes)


def _sides(tensor: Trainable) -> list[int]:
    """The sides of a matrix that are preconditioned."""
    return [side for side in tensor.shape if side <= WIDEST_PRECONDITIONED] if len(tensor.shape) == 2 else []


def _soap(tensor: Trainable, rank: int) -> Iterator[State]:
    """Two moments; of each side a covariance and its eigenbasis, fp32."""
    yield from _two_moments(tensor, rank)
    yield from _squares(tensor, "eigenbases")


def _shampoo(tensor: Trainable, rank: int) -> Iterator[State]:
    """A momentum; of each side a covariance and its inverse root, fp32."""
    yield from _one_moment(tensor, rank)
    yield from _squares(tensor, "inverse roots")


def _squares(tensor: Trainable, name: str) -> Iterator[State]:
    for side in _sides(tensor):
        yield State("covariances", side * side, FP32_BYTES)
        yield State(name, side * side, FP32_BYTES)


# -- moments of a step


def _in_place(tensors: Sequence[Trainable], rank: int) -> Iterator[Moment]:  # noqa: ARG001
    """One kernel, or several that write where they read."""
    return iter(())


def _all_at_once(tensors: Sequence[Trainable], rank: int) -> Iterator[Moment]:  # noqa: ARG001
    """The roots of all second moments (``torch.optim.adam._multi_tensor_adam``)."""
    total = sum(tensor.times * rounded(tensor.numel * tensor.dtype_bytes) for tensor in tensors)
    values = sum(tensor.times * tensor.numel for tensor in tensors)
    yield [("roots of second moments", Size.stated(total, "parameters · bytes", parameters=values))]


def _one_by_one(moments: Carried) -> Callable[[Sequence[Trainable], int], Iterator[Moment]]:
    """A loop over the parameters; of each two in a row the second starts while the first's variables are still held."""

    def step(tensors: Sequence[Trainable], rank: int) -> Iterator[Moment]:
        before: Trainable | None = None
        for tensor in tensors:
            yield from moments(tensor, before, rank)
            before = tensor

    return step


def _sized(tensor: Trainable, width: int) -> Size:
    return Size(elements=tensor.numel, bytes=width)


def _left(name: str, before: Trainable | None, width: int) -> Moment:
    return [] if before is None else [(f"{name} of the parameter before", _sized(before, width))]


def _adamw_loop(tensor: Trainable, before: Trainable | None, rank: int) -> Iterator[Moment]:  # noqa: ARG001
    """``_single_tensor_adam``: root of the second moment, then its quotient beside it."""
    size = _sized(tensor, tensor.dtype_bytes)
    left = _left("denominator", before, 0 if before is None else before.dtype_bytes)
    yield [("root", size), ("denominator", size), *left]


def _lion_loop(tensor: Trainable, before: Trainable | None, rank: int) -> Iterator[Moment]:  # noqa: ARG001
    """The sign of a moving average, in a tensor of its own."""
    left = _left("update", before, 0 if before is None else before.dtype_bytes)
    yield [("update", _sized(tensor, tensor.dtype_bytes)), *left]


def _adafactor_loop(tensor: Trainable, before: Trainable | None, rank: int) -> Iterator[Moment]:  # noqa: ARG001
    """``Adafactor.step``: fp32 copies of a 16-bit gradient and parameter; its square and the sum with a constant.

    Later the estimate of the second moment stands beside that sum, while its factors are still held.
    """
    size = _sized(tensor, FP32_BYTES)
    copies = [] if tensor.dtype_bytes == FP32_BYTES else [("gradient in fp32", size), ("parameter in fp32", size)]
    yield [*copies, ("square", size), ("update", size), *_left("update", before, FP32_BYTES)]
    if len(tensor.shape) > 1:
        factors = [
            (f"{name} factor", Size(elements=count, fp32_bytes=FP32_BYTES))
            for name, count in zip(("row", "column"), _factors(tensor), strict=True)
        ]
        yield [*copies, ("update", size), ("estimate", size), *factors]


def _muon_step(tensors: Sequence[Trainable], rank: int) -> Iterator[Moment]:
    """``_zeropower_via_newtonschulz``: bf16, the matrix before and after, products as wide as its shorter side.

    What is not a matrix goes to AdamW's foreach.
    """
    for tensor in tensors:
        if len(tensor.shape) == 2:
            short = min(tensor.shape)
            matrix, gram = _sized(tensor, BF16_BYTES), Size(rows=short, columns=short, bf16_bytes=BF16_BYTES)
            update = ("update", _sized(tensor, tensor.dtype_bytes))
            yield [update, ("matrix", matrix), ("next matrix", matrix), ("gram matrix", gram), ("gram update", gram)]
    yield from _all_at_once([tensor for tensor in tensors if len(tensor.shape) != 2], rank)


def _low_rank_step(tensors: Sequence[Trainable], rank: int, *, scales: bool) -> Iterator[Moment]:
    """Adam on the projected gradient, then the update of full size. ``scales``: APOLLO scales the gradient by columns or rows."""
    for tensor in tensors:
        whole = _sized(tensor, tensor.dtype_bytes)
        if not is_projected(tensor):
            yield [("root", whole), ("update", whole)]
            continue
        low = Size(elements=_projected_numel(tensor, rank if scales else min(rank, *tensor.shape)), bytes=tensor.dtype_bytes)
        projected = [("projected gradient", low), ("projected update", low)]
        yield [*projected, ("root", low)]
        factors = Size(elements=max(tensor.shape), bytes=tensor.dtype_bytes)
        yield [*projected, ("update", whole), *([("factors", factors)] if scales else [])]


def _galore_step(tensors: Sequence[Trainable], rank: int) -> Iterator[Moment]:
    return _low_rank_step(tensors, rank, scales=False)


def _apollo_step(tensors: Sequence[Trainable], rank: int) -> Iterator[Moment]:
    return _low_rank_step(tensors, rank, scales=True)


def _soap_step(tensors: Sequence[Trainable], rank: int) -> Iterator[Moment]:  # noqa: ARG001
    """In fp32: the gradient, Adam's update, and that turned back by one side after the other; later the products of sides."""
    for tensor in tensors:
        wide, narrow = _sized(tensor, FP32_BYTES), _sized(tensor, tensor.dtype_bytes)
        casts = tensor.dtype_bytes != FP32_BYTES
        whole = [("gradient in fp32", wide)] if casts else []
        yield [*whole, ("root", narrow), ("quotient", narrow), *([("quotient in fp32", wide)] if casts else [])]
        turned = [("turned by one side", wide), ("turned by both sides", wide)][: len(_sides(tensor))]
        yield [*whole, ("quotient", wide), *turned]
        for side in _sides(tensor):
            product = Size(rows=side, columns=side, fp32_bytes=FP32_BYTES)
            yield [*whole, ("quotient", wide), *turned[:1], ("covariance of the gradient", product)]


def _shampoo_step(tensors: Sequence[Trainable], rank: int) -> Iterator[Moment]:  # noqa: ARG001
    """In fp32: the momentum and its products with the inverse root of each side; before, the products of sides."""
    for tensor in tensors:
        wide = _sized(tensor, FP32_BYTES)
        casts = [("cast to fp32", wide)] if tensor.dtype_bytes != FP32_BYTES else []
        yield [*casts, *[("turned by one side", wide), ("turned by both sides", wide)][: len(_sides(tensor))]]
        for side in _sides(tensor):
            yield [*casts, ("covariance of the gradient", Size(rows=side, columns=side, fp32_bytes=FP32_BYTES))]


OPTIMIZERS = {
    "adamw_fused": Optimizer(_two_moments, _in_place, 2),
    "adamw_foreach": Optimizer(_two_moments, _all_at_once, 2),
    "adamw": Optimizer(_two_moments, _one_by_one(_adamw_loop), 2),
    "adamw_8bit": Optimizer(_bitsandbytes(2, bits=8, paged=False), _in_place, 2),
    "paged_adamw_8bit": Optimizer(_bitsandbytes(2, bits=8, paged=True), _in_place, 2),
    "paged_adamw_32bit": Optimizer(_bitsandbytes(2, bits=32, paged=True), _in_place, 2),
    "lion_8bit": Optimizer(_bitsandbytes(1, bits=8, paged=False), _in_place, 1),
    "paged_lion_8bit": Optimizer(_bitsandbytes(1, bits=8, paged=True), _in_place, 1),
    "lion": Optimizer(_one_moment, _one_by_one(_lion_loop), 1),
    "adafactor": Optimizer(_adafactor, _one_by_one(_adafactor_loop), 0),
    "sgd": Optimizer(_no_states, _in_place, 0),
    "sgd_momentum": Optimizer(_one_moment, _in_place, 1),
    "muon": Optimizer(_muon, _muon_step, 1),
    "galore": Optimizer(_galore, _galore_step, 1),
    "apollo": Optimizer(_apollo, _apollo_step, 1),
    "soap": Optimizer(_soap, _soap_step, 2),
    "shampoo": Optimizer(_shampoo, _shampoo_step, 1),
}
QUANTISED = tuple(name for name in OPTIMIZERS if name.endswith("_8bit"))
