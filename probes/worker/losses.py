"""The loss of a training step: the model's own, or one that never holds all logits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from .errors import WorkerError
from .order import Training

Loss = Callable[[Any, torch.Tensor], torch.Tensor]
_FIELD = "scenario.training.loss"
CHUNK_TOKENS = 1024


def make_loss(workload: Training, fake: bool) -> Loss:
    """The function ``(model, input_ids) -> loss``. Raises :class:`WorkerError` where a package is missing."""
    if workload.loss == "chunked":
        tokens = int(workload.options.get("chunk_tokens", CHUNK_TOKENS))
        return lambda model, input_ids: _chunked(model, input_ids, tokens)
    if workload.loss == "fused":
        return _fused if fake else _liger
    return _own


def _own(model: Any, input_ids: torch.Tensor) -> torch.Tensor:
    """The loss the installed transformers computes from labels."""
    main_input = getattr(model, "main_input_name", "input_ids")
    if main_input != "input_ids":
        raise WorkerError("unsupported", f"{type(model).__name__} trains on {main_input}; only token models are run here")
    outputs = model(input_ids=input_ids, labels=_labels(model, input_ids))
    loss = getattr(outputs, "loss", None)
    if loss is None:
        raise WorkerError("unsupported", f"{type(model).__name__} computes no loss from labels; it cannot be trained alone")
    return loss


def _labels(model: Any, input_ids: torch.Tensor) -> torch.Tensor:
    """The tokens themselves; of a class that tells classes the first, of each sequence or token (a number if it tells but one)."""
    inner = getattr(model, "module", model)
    inner = inner.get_base_model() if hasattr(inner, "get_base_model") else inner
    name = type(inner).__name__
    if name.endswith("ForTokenClassification"):
        return torch.zeros_like(input_ids)
    if not name.endswith("ForSequenceClassification"):
        return input_ids
    kind = torch.float32 if inner.config.num_labels == 1 else torch.long
    return torch.zeros(input_ids.shape[:1], dtype=kind, device=input_ids.device)


def _hidden_and_head(model: Any, input_ids: torch.Tensor) -> tuple[torch.Tensor, Any]:
    """The last hidden states, one row a predicted token, and the head."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    head = inner.get_output_embeddings()
    if head is None:
        raise WorkerError("unsupported", f"{_FIELD}: {type(inner).__name__} has no head; choose default", _FIELD)
    decoder = getattr(inner, inner.base_model_prefix)
    hidden = decoder(input_ids=input_ids)[0]
    return hidden[:, :-1].reshape(-1, hidden.shape[-1]), head


def _chunked(model: Any, input_ids: torch.Tensor, tokens: int) -> torch.Tensor:
    """Cross-entropy over chunks of tokens, each chunk's logits recomputed in the backward."""
    hidden, head = _hidden_and_head(model, input_ids)
    targets = input_ids[:, 1:].reshape(-1)

    def chunk_loss(states: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return functional.cross_entropy(head(states).float(), labels, reduction="sum")

    total = hidden.new_zeros((), dtype=torch.float32)
    for states, labels in zip(hidden.split(tokens), targets.split(tokens), strict=True):
        total = total + checkpoint(chunk_loss, states, labels, use_reentrant=False, preserve_rng_state=False)
    return total / targets.numel()


class _FusedLinearCrossEntropy(torch.autograd.Function):
    """What Liger's fused loss allocates (Liger-Kernel 0.5, ops/fused_linear_cross_entropy.py).

    Gradients are made in the forward, over chunks of tokens so many that a chunk's logits are about the size of the
    hidden states.
    """

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        tokens, width = hidden.shape
        vocabulary = weight.shape[0]
        chunk = _next_power_of_2(-(-tokens // -(-vocabulary // width)))
        grad_hidden = torch.zeros_like(hidden)
        grad_weight = torch.zeros_like(weight) if weight.requires_grad else None
        loss = torch.zeros(tokens, dtype=torch.float32, device=hidden.device)
        for start in range(0, tokens, chunk):
            states = hidden[start : start + chunk]
            logits = states @ weight.t()
            grad_hidden[start : start + chunk] = logits @ weight
            if grad_weight is not None:
                grad_weight += torch.mm(logits.t(), states)
        ctx.save_for_backward(grad_hidden, grad_weight)
        return loss.sum()

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        grad_hidden, grad_weight = ctx.saved_tensors
        return grad_hidden, grad_weight, None


def _fused(model: Any, input_ids: torch.Tensor) -> torch.Tensor:
    hidden, head = _hidden_and_head(model, input_ids)
    loss: torch.Tensor = _FusedLinearCrossEntropy.apply(hidden, head.weight, input_ids[:, 1:].reshape(-1))
    return loss


def _liger(model: Any, input_ids: torch.Tensor) -> torch.Tensor:
    try:
        from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss  # type: ignore[import-not-found,unused-ignore]
    except ImportError as error:
        message = f"{_FIELD}: the fused loss needs liger-kernel: python -m pip install liger-kernel, or rehearse"
        raise WorkerError("missing_package", message, _FIELD) from error
    hidden, head = _hidden_and_head(model, input_ids)
    loss: torch.Tensor = LigerFusedLinearCrossEntropyLoss()(head.weight, hidden, input_ids[:, 1:].reshape(-1))
    return loss


def _next_power_of_2(value: int) -> int:
    return 1 << max(0, value - 1).bit_length()
