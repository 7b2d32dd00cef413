"""A pool of cache pages shared by every sequence, as vLLM lays it out; also what one sequence takes of it.

Layers that cache alike form groups of equal size; a block is one page in each layer of a group, and every group has
block tables of its own over the same blocks (vLLM ``v1/core/kv_cache_utils.py``: ``get_kv_cache_groups``,
``get_kv_cache_config_from_groups``, ``get_max_concurrency_for_kv_cache_config``).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import field, replace
from typing import Literal

from planner.modelled import NotModelled
from planner.record import record
from planner.symbolic.amount import largest

GROWING = ("full", "states")
"""Kinds that take a page for every block of a sequence."""
PAD_ABOVE = 1.5
"""Kinds whose layer counts differ by less are padded to the larger count rather than cut to the smaller."""


def ceil_div(numerator: int, denominator: int) -> int:
    """⌈numerator / denominator⌉."""
    return -(-numerator // denominator)


@record
class PageSpec:
    """How one layer caches: ``page_bytes`` for ``block_tokens`` tokens, or for one state of a recurrent layer.

    ``states``: a recurrent layer that keeps the state behind every block.
    """

    kind: Literal["full", "window", "chunk", "state", "states"]
    block_tokens: int
    page_bytes: int
    window_tokens: int = 0
    state_pages: int = 1
    """States of a sequence, and of each of its blocks' the last more often where tokens are proposed."""

    def pages(self, tokens: int, scheduled_tokens: int) -> int:
        """Pages one sequence of ``tokens`` tokens holds at most, ``scheduled_tokens`` of them in one step.

        ``KVCacheSpec.max_memory_usage_bytes``: a window keeps what it sees and what is being computed, and may start
        inside a block.
        """
        if self.kind == "state":
            return self.state_pages
        if self.kind == "states":
            return ceil_div(tokens, self.block_tokens) + self.state_pages - 1
        if self.kind == "window":
            return ceil_div(min(self.window_tokens - 1 + scheduled_tokens, tokens), self.block_tokens) + 1
        if self.kind == "chunk":
            tokens = min(self.window_tokens + scheduled_tokens, tokens)
        return ceil_div(tokens, self.block_tokens)


@record
class Pool:
    """Groups of layers over ``blocks`` blocks of ``block_bytes`` each."""

    groups: tuple[PageSpec, ...]
    block_bytes: int
    blocks: int
    padding_layers: int = 0

    @property
    def size_bytes(self) -> int:
        """Bytes of the pool."""
        return self.blocks * self.block_bytes

    @property
    def block_tokens(self) -> int:
        """Tokens of the smallest block."""
        return min((group.block_tokens for group in self.groups if group.kind != "state"), default=1)

    @property
    def tokens(self) -> int:
        """Tokens the pool holds when every group takes its share of the blocks (``_report_kv_cache_config``)."""
        return self.blocks // len(self.groups) * self.block_tokens if self.groups else 0

    def sequence_blocks(self, tokens: int, scheduled_tokens: int, shared_tokens: int = 0) -> int:
        """Blocks of one sequence. ``shared_tokens``: of a prefix another sequence already holds, whole blocks of it."""
        return sum(
            max(group.pages(tokens, scheduled_tokens) - _shared_pages(group, shared_tokens), 1 if tokens else 0)
            for group in self.groups
        )

    def concurrency(self, tokens: int, scheduled_tokens: int) -> float:
        """Sequences of ``tokens`` tokens the pool holds at once."""
        needed = self.sequence_blocks(tokens, scheduled_tokens)
        return self.blocks / needed if needed else 0.0

    def longest(self, limit_tokens: int, scheduled_tokens: int) -> int:
        """The longest single sequence of at most ``limit_tokens`` tokens that the pool holds; 0 when not even one token."""
        if self.sequence_blocks(1, scheduled_tokens) > self.blocks:
            return 0
        if self.sequence_blocks(limit_tokens, scheduled_tokens) <= self.blocks:
            return limit_tokens
        growing = [group for group in self.groups if group.kind in GROWING]
        widths = {group.block_tokens for group in growing}
        if len(widths) == 1:
            # Windows and states take what they take of a sequence that long; the rest of the pool is the growing groups'.
            settled = sum(group.pages(limit_tokens, scheduled_tokens) for group in self.groups if group.kind not in GROWING)
            tokens = (self.blocks - settled) // len(growing) * growing[0].block_tokens
            if tokens > 0 and self._is_longest(tokens, limit_tokens, scheduled_tokens):
                return tokens
        return self._searched(limit_tokens, scheduled_tokens)

    def _is_longest(self, tokens: int, limit_tokens: int, scheduled_tokens: int) -> bool:
        held = self.sequence_blocks(tokens, scheduled_tokens)
        return tokens < limit_tokens and held <= self.blocks < self.sequence_blocks(tokens + 1, scheduled_tokens)

    def _searched(self, limit_tokens: int, scheduled_tokens: int) -> int:
        low, high = 1, limit_tokens
        while low < high:
            middle = (low + high + 1) // 2
            if self.sequence_blocks(middle, scheduled_tokens) <= self.blocks:
                low = middle
            else:
                high = middle - 1
        return low


def _shared_pages(group: PageSpec, shared_tokens: int) -> int:
    return shared_tokens // group.block_tokens if group.kind in GROWING else 0


@record
class Layout:
    """Groups and the bytes of one block, before it is known how many blocks there are."""

    groups: tuple[PageSpec, ...] = ()
    block_bytes: int = 0
    padding_layers: int = 0
    layers: Mapping[PageSpec, int] = field(default_factory=dict, hash=False)

    def pool(self, available_bytes: int) -> Pool:
        """The pool that ``available_bytes`` hold."""
        blocks = largest(0, available_bytes) // self.block_bytes if self.block_bytes else 0
        return Pool(self.groups, self.block_bytes, blocks, self.padding_layers)


def page_layout(specs: Sequence[PageSpec]) -> Layout:
    """How layers share one pool. Raises :class:`NotModelled` where pages can't be made equal, as vLLM itself refuses."""
    layers = Counter(specs)
    if not layers:
        return Layout()
    if len(layers) == 1 or _uniform(layers):
        one = next(iter(layers))
        total = sum(spec.page_bytes * count for spec, count in layers.items())
        return Layout((replace(one, page_bytes=total),), total, 0, layers)
    unified = _unified(layers)
    size = _group_size(tuple(unified.values()))
    groups: list[PageSpec] = []
    padding = 0
    for spec, count in unified.items():
        number = ceil_div(count, size)
        padding += number * size - count
        groups += [spec] * number
    return Layout(tuple(groups), size * groups[0].page_bytes, padding, layers)


def _uniform(layers: Counter[PageSpec]) -> bool:
    """Whether all layers need the same slots: all full attention, or one and the same window (``is_uniform_type``)."""
    kinds = {(spec.kind, spec.block_tokens, spec.window_tokens) for spec in layers}
    return len(kinds) == 1 and next(iter(kinds))[0] != "state"


def _unified(layers: Counter[PageSpec]) -> Counter[PageSpec]:
    """Pages made equal by giving layers with small ones more tokens a block (``unify_kv_cache_spec_page_size``)."""
    widest = max(spec.page_bytes for spec in layers)
    unified: Counter[PageSpec] = Counter()
    for spec, count in layers.items():
        ratio, rest = divmod(widest, spec.page_bytes)
        if rest:
            raise NotModelled(f"pages of {spec.page_bytes} and {widest} bytes can't share one pool")
        unified[replace(spec, page_bytes=widest, block_tokens=spec.block_tokens * ratio)] += count
    return unified


def _group_size(counts: tuple[int, ...]) -> int:
    return max(counts) if max(counts) < min(counts) * PAD_ABOVE else min(counts)
