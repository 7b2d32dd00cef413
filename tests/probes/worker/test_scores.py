"""Scores by tiles are the log-probabilities that a softmax over all logits gives, and so are their gradients."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="the worker needs torch")

from probes.worker import scores  # noqa: E402


def test_scores_and_gradients_equal_those_of_all_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens and columns that fill several tiles, the last of each in part."""
    monkeypatch.setattr(scores, "TILE_TOKENS", 5)
    monkeypatch.setattr(scores, "TILE_COLUMNS", 1500)
    torch.manual_seed(0)
    hidden, weight = torch.randn(2, 9, 16, requires_grad=True), torch.randn(4000, 16, requires_grad=True)
    ids = torch.randint(0, 4000, (2, 10))
    scored = scores.Scored(2, 9, 3)
    mask = scored.mask(torch.device("cpu"))
    taken, targets = (scores._Take.apply(each, mask, scored.tokens, False) for each in (hidden, ids[:, 1:]))
    found, entropies = (
        scores._Put.apply(each, mask, False)
        for each in scores._TiledScores.apply(taken, weight, targets, (torch.float32,), False, lambda _buffer: None)
    )
    whole = torch.log_softmax(hidden @ weight.t(), -1).gather(-1, ids[:, 1:, None])[..., 0] * mask
    torch.testing.assert_close(found, whole, atol=1e-4, rtol=1e-5)
    assert entropies.shape == mask.shape
    assert not entropies.requires_grad
    upstream = torch.randn_like(whole)
    for ours, theirs in zip(
        torch.autograd.grad((found * upstream).sum(), (hidden, weight)),
        torch.autograd.grad((whole * upstream).sum(), (hidden, weight)),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
