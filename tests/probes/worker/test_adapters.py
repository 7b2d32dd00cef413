"""What a method of training and the weights it is asked for have to do with each other."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("torch", reason="needs torch, which the extra `probe` installs")
pytest.importorskip("transformers", reason="needs transformers, which the extra `probe` installs")

from probes.worker.adapters import apply_method
from probes.worker.errors import WorkerError


@pytest.mark.parametrize(
    ("method", "weights", "words"),
    [
        ("qlora", "fp32", "qlora adapts quantised weights, and fp32 are none; choose nf4, or the method lora"),
        ("dora", "nf4", "DoRA over nf4 is not rehearsed"),
    ],
)
def test_weights_that_a_method_cannot_take_are_refused_by_their_path(method: str, weights: str, words: str) -> None:
    order: Any = SimpleNamespace(weights=weights, fake=True, training=SimpleNamespace(method=method))
    with pytest.raises(WorkerError, match=words) as caught:
        apply_method(None, order)
    assert caught.value.field == "scenario.weights"
