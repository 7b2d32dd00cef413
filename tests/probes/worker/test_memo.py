"""What the memo returns lies in memory as what the fake mode returns."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from probes.worker.memo import Memo

aten = torch.ops.aten


class Through(TorchDispatchMode):
    """Asks the memo for every operator."""

    def __init__(self, memo):
        super().__init__()
        self.memo = memo

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return self.memo(func, args, kwargs or {})


def lie(out, source):
    """How results lie in memory, and which share the source's."""
    out = out if isinstance(out, (tuple, list)) else (out,)
    return [
        (
            part is source, part.dtype, tuple(part.shape), part.stride(), part.storage_offset(), part.untyped_storage().nbytes(),
            part.untyped_storage()._cdata == source.untyped_storage()._cdata,
        )
        for part in out
        if part is not None
    ]  # fmt: skip


CALLS = {
    "new": lambda x: x + 1,
    "in place": lambda x: x.add_(1),
    "transposed": lambda x: x.transpose(0, 2),
    "select": lambda x: x[:, -2],
    "slice": lambda x: x[1:, 2:5],
    "further on": lambda x: x[1].unsqueeze(0).expand(3, -1, -1),
    "split": lambda x: x.split(2, dim=-1),
    "unbind": lambda x: x.unbind(1),
    "padded and cut": lambda x: torch.nn.functional.pad(x, (0, 5))[..., :8],
    "product": lambda x: x @ x.transpose(1, 2),
    "several": lambda x: torch.native_layer_norm(x, (8,), None, None, 1e-5),
    "joined": lambda x: torch.cat([x, x], dim=1),
    "given strides": lambda x: x.as_strided((2, 2), (8, 1), 3),
    "cast": lambda x: x.to(torch.bfloat16),
    "resized": lambda x: aten.as_strided.default(torch.zeros(100), (3, 3), (4, 1), 1),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_the_memo_answers_as_the_fake_mode_does_the_first_time_and_after(call):
    with FakeTensorMode() as mode:
        memo = Memo(mode)
        source = torch.empty(4, 6, 8)
        expected = lie(call(source), source)
        with Through(memo):
            for _ in range(3):
                source = torch.empty(4, 6, 8)
                assert lie(call(source), source) == expected


def test_views_begin_where_their_source_does():
    with FakeTensorMode() as mode, Through(Memo(mode)):
        rows = torch.empty(5, 8)
        views = [rows[index].view(2, 4)[1:] for index in range(5)]
        assert [view.storage_offset() for view in views] == [8 * index + 4 for index in range(5)]
        with pytest.raises(IndexError):
            rows.select(0, 5)


def test_results_that_depend_on_values_are_not_remembered():
    with FakeTensorMode() as mode:
        memo = Memo(mode)
        with Through(memo), pytest.raises(Exception, match=r"nonzero|data|dynamic"):
            torch.ones(3).nonzero()
        with Through(memo):
            one, two = torch.tensor(1), torch.tensor(2)
            assert (one.item(), two.item()) == (1, 2)
