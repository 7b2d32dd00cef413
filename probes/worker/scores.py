"""Log-probabilities of completions without all logits, as TRL's trainers compute them (TRL 1.16, kernels/chunked_logprob.py).

The head runs over the scored positions alone, in tiles of tokens by vocabulary that one buffer holds; what a tile adds to each
token's statistics is kept. The backward makes every tile again, turns it into its gradient in place, and sums the gradients of
states and head in fp32.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from .errors import WorkerError

Label = Callable[[torch.Tensor], None]
TILE_TOKENS, TILE_COLUMNS = 4096, 32768
STATISTICS = 7
"""Running maximum, sums and the label's logit: of each token, whatever is asked for."""
_SUMS_WIDE = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2]) >= (2, 8)
"""Whether 16-bit products can be added to an fp32 sum (``torch.addmm`` with ``out_dtype``, CUDA alone)."""
BLOCK_COLUMNS = 1024
"""A real tile is read so many columns at a time, so that nothing of a tile's size stands beside it."""


@dataclass(frozen=True)
class Scored:
    """Which positions of equal rows are scored: all from ``first`` on (a position is scored by what follows it)."""

    rows: int
    positions: int
    first: int

    @property
    def tokens(self) -> int:
        """Scored positions of all rows."""
        return self.rows * (self.positions - self.first)

    def mask(self, device: torch.device) -> torch.Tensor:
        """True where a position is scored."""
        found = torch.zeros((self.rows, self.positions), dtype=torch.bool, device=device)
        found[:, self.first :] = True
        return found


def log_probabilities(
    model: Any, input_ids: torch.Tensor, first: int, extras: tuple[torch.dtype, ...], fake: bool, label: Label
) -> tuple[torch.Tensor, ...]:
    """Of every token from ``first`` + 1 on, given those before it: (rows, sequence − 1) in fp32, zero elsewhere.

    ``extras``: dtypes of what is computed beside for the trainer's metrics (entropies, mean logits, whether the label ranks first);
    ``label`` hears of the buffer.
    """
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    head = inner.get_output_embeddings()
    if head is None:
        raise WorkerError("unsupported", f"scenario.training.objective: {type(inner).__name__} has no head")
    labels = input_ids.clone()
    hidden = getattr(inner, inner.base_model_prefix)(input_ids=input_ids, use_cache=False)[0]
    rows = hidden[:, :-1]
    scored = Scored(rows.shape[0], rows.shape[1], first)
    mask = scored.mask(input_ids.device)
    targets = _Take.apply(labels[:, 1:], mask, scored.tokens, fake)
    found = _TiledScores.apply(_Take.apply(rows, mask, scored.tokens, fake), head.weight, targets, extras, fake, label)
    return tuple(_Put.apply(each, mask, fake) for each in found)


class _Take(torch.autograd.Function):
    """``values[mask]``; of fake values as many as are known to be chosen."""

    @staticmethod
    def forward(ctx: Any, values: torch.Tensor, mask: torch.Tensor, tokens: int, fake: bool) -> torch.Tensor:
        ctx.shape, ctx.fake = values.shape, fake
        ctx.save_for_backward(mask)
        if not fake:
            return values[mask]
        places = values.new_empty((tokens, mask.dim()), dtype=torch.int64)
        taken = values.new_empty((tokens, *values.shape[2:]))
        del places
        return taken

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        (mask,) = ctx.saved_tensors
        found = grad.new_zeros(ctx.shape)
        if not ctx.fake:
            found[mask] = grad
        return found, None, None, None


class _Put(torch.autograd.Function):
    """Zeros of the mask's shape with ``values`` where it is true."""

    @staticmethod
    def forward(ctx: Any, values: torch.Tensor, mask: torch.Tensor, fake: bool) -> torch.Tensor:
        ctx.fake, ctx.tokens = fake, values.shape[0]
        ctx.save_for_backward(mask)
        zeros = values.new_zeros(mask.shape)
        return zeros.clone() if fake else zeros.masked_scatter(mask, values)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        (mask,) = ctx.saved_tensors
        return (grad.new_empty((ctx.tokens,)) if ctx.fake else grad[mask]), None, None


class _TiledScores(torch.autograd.Function):
    """Log-probabilities of ``targets``, and ``extras`` beside them that get no gradient here."""

    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, extras: tuple[torch.dtype, ...], fake: bool,
        label: Label,
    ) -> tuple[torch.Tensor, ...]:  # fmt: skip
        tokens = hidden.shape[0]
        dtype = _compute_dtype(hidden)
        highest, total, chosen, *_rest = [
            torch.zeros((tokens,), device=hidden.device, dtype=torch.float32) for _ in range(STATISTICS)
        ]
        highest.fill_(-torch.inf)
        buffer = torch.empty((min(tokens, TILE_TOKENS), TILE_COLUMNS), device=hidden.device, dtype=dtype)
        label(buffer)
        for rows, columns, tile, _states, _head in _tiles(hidden, weight, buffer):
            if not fake:
                _fold(tile, targets[rows], columns.start, highest[rows], total[rows], chosen[rows])
        log_z = highest + torch.log(total)
        scores = chosen - log_z
        beside = tuple(torch.zeros_like(scores, dtype=kind) for kind in extras)
        ctx.save_for_backward(hidden, weight, targets, log_z, *beside[:1])
        ctx.dtype, ctx.fake, ctx.label = dtype, fake, label
        ctx.mark_non_differentiable(*beside)
        return scores, *beside

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor, *_: Any) -> Any:
        hidden, weight, targets, log_z, *_entropy = ctx.saved_tensors
        wants_hidden, wants_weight = ctx.needs_input_grad[:2]
        options = {"device": hidden.device, "dtype": torch.float32}
        grad_hidden = torch.zeros(hidden.shape, **options) if wants_hidden else None
        grad_weight = torch.zeros(weight.shape, **options) if wants_weight else None
        buffer = torch.empty((min(hidden.shape[0], TILE_TOKENS), TILE_COLUMNS), device=hidden.device, dtype=ctx.dtype)
        ctx.label(buffer)
        for rows, columns, tile, states, head in _tiles(hidden, weight, buffer):
            if ctx.fake:
                continue
            _differentiate(tile, targets[rows], columns.start, log_z[rows], grad[rows])
            if grad_hidden is not None:
                _add_product(grad_hidden[rows], tile, head)
            if grad_weight is not None:
                _add_product(grad_weight[columns], tile.t(), states)
        return (
            grad_hidden.to(hidden.dtype) if grad_hidden is not None else None,
            grad_weight.to(weight.dtype) if grad_weight is not None else None,
            None, None, None, None,
        )  # fmt: skip


def _compute_dtype(hidden: torch.Tensor) -> torch.dtype:
    kind = hidden.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype


def _tiles(hidden: torch.Tensor, weight: torch.Tensor, buffer: torch.Tensor) -> Any:
    """Tokens, columns, the tile's logits in ``buffer``, and what they are the product of."""
    for first in range(0, hidden.shape[0], TILE_TOKENS):
        rows = slice(first, min(first + TILE_TOKENS, hidden.shape[0]))
        states = hidden[rows].to(buffer.dtype)
        for column in range(0, weight.shape[0], TILE_COLUMNS):
            columns = slice(column, min(column + TILE_COLUMNS, weight.shape[0]))
            head = weight[columns].to(buffer.dtype)
            tile = buffer[: states.shape[0], : head.shape[0]]
            torch.mm(states, head.t(), out=tile)
            yield rows, columns, tile, states, head


def _fold(tile: torch.Tensor, targets: torch.Tensor, first: int, highest: Any, total: Any, label: Any) -> None:
    """Add a tile to the running sum of exponentials, and take the labels' logits from it."""
    for start in range(0, tile.shape[1], BLOCK_COLUMNS):
        block = tile[:, start : start + BLOCK_COLUMNS].float()
        top = torch.maximum(highest, block.amax(-1))
        total.mul_(torch.exp(highest - top)).add_(torch.exp(block - top[:, None]).sum(-1))
        highest.copy_(top)
        place = targets - first - start
        inside = (place >= 0) & (place < block.shape[1])
        found = block.gather(-1, place.clamp(0, block.shape[1] - 1)[:, None])[:, 0]
        label.copy_(torch.where(inside, found, label))


def _differentiate(tile: torch.Tensor, targets: torch.Tensor, first: int, log_z: Any, grad: Any) -> None:
    """Logits become the gradient of the loss with respect to them: of the label's g · (1 − p), of any other −g · p."""
    for start in range(0, tile.shape[1], BLOCK_COLUMNS):
        block = tile[:, start : start + BLOCK_COLUMNS]
        found = -torch.exp(block.float() - log_z[:, None])
        place = targets - first - start
        inside = (place >= 0) & (place < block.shape[1])
        found.scatter_add_(-1, place.clamp(0, block.shape[1] - 1)[:, None], inside[:, None].float())
        block.copy_(found * grad.float()[:, None])


def _add_product(total: torch.Tensor, first: torch.Tensor, second: torch.Tensor) -> None:
    """``total += first @ second`` in fp32."""
    if total.device.type == "cuda" and first.dtype in (torch.float16, torch.bfloat16) and _SUMS_WIDE:
        torch.addmm(total, first, second, out_dtype=torch.float32, out=total)
    else:
        total.addmm_(first.float(), second.float())
