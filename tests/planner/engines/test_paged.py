"""Pages of one pool: groups, unified sizes, padding, and how many sequences they hold."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.engines.paged import PageSpec, Pool, page_layout
from planner.modelled import NotModelled

FULL = PageSpec("full", 16, 65536)
WINDOW = PageSpec("window", 16, 65536, 1024)


def test_equal_layers_are_one_group():
    layout = page_layout([FULL] * 32)
    assert len(layout.groups) == 1
    assert layout.block_bytes == 32 * 65536


def test_five_windows_to_one_full_layer_make_six_groups():
    layout = page_layout([WINDOW] * 20 + [FULL] * 4)
    assert len(layout.groups) == 6
    assert layout.block_bytes == 4 * 65536
    assert layout.padding_layers == 0


def test_kinds_of_nearly_equal_number_are_padded_to_the_larger():
    layout = page_layout([WINDOW] * 12 + [FULL] * 13)
    assert (len(layout.groups), layout.block_bytes, layout.padding_layers) == (2, 13 * 65536, 1)


def test_odd_numbers_are_padded():
    layout = page_layout([WINDOW] * 52 + [FULL] * 10)
    assert (len(layout.groups), layout.padding_layers) == (7, 8)


def test_smaller_pages_take_more_tokens():
    layout = page_layout([PageSpec("full", 16, 32768), PageSpec("window", 16, 65536, 512)])
    assert {group.page_bytes for group in layout.groups} == {65536}
    assert {group.block_tokens for group in layout.groups} == {16, 32}


def test_pages_that_do_not_divide_are_not_modelled():
    with pytest.raises(NotModelled, match="can't share one pool"):
        page_layout([PageSpec("full", 16, 3000), PageSpec("window", 16, 4096, 512)])


def test_full_layers_of_different_widths_share_a_block():
    layout = page_layout([PageSpec("full", 64, 1000), PageSpec("full", 64, 200)])
    assert len(layout.groups) == 1
    assert layout.block_bytes == 1200


def test_a_window_keeps_what_it_sees_and_what_is_computed():
    assert WINDOW.pages(100_000, 8192) == (1023 + 8192 + 15) // 16 + 1
    assert WINDOW.pages(100, 8192) == 8
    assert PageSpec("state", 1, 65536).pages(100_000, 8192) == 1


def test_prefixes_are_shared_by_whole_blocks():
    pool = Pool((FULL,), 65536, 1000)
    assert pool.sequence_blocks(1000, 8192) - pool.sequence_blocks(1000, 8192, 500) == 500 // 16


specs = st.lists(
    st.sampled_from([FULL, WINDOW, PageSpec("chunk", 16, 65536, 4096), PageSpec("state", 1, 65536)]), min_size=1, max_size=40
)


@given(specs=specs, available=st.integers(-(2**30), 2**40))
def test_a_pool_never_outgrows_its_room(specs, available):
    """0 ≤ blocks · block bytes ≤ what is available."""
    pool = page_layout(specs).pool(available)
    assert 0 <= pool.size_bytes <= max(0, available)


@given(specs=specs, tokens=st.integers(1, 200_000), more=st.integers(0, 1000))
def test_longer_sequences_never_take_fewer_blocks(specs, tokens, more):
    """Blocks are monotone in tokens."""
    pool = page_layout(specs).pool(2**38)
    assert pool.sequence_blocks(tokens, 2048) <= pool.sequence_blocks(tokens + more, 2048)


@given(specs=specs, blocks=st.integers(0, 5000), limit=st.integers(1, 200_000))
def test_the_longest_sequence_fits_and_its_neighbour_does_not(specs, blocks, limit):
    """longest(limit) holds; one token more does not, unless that is the limit."""
    layout = page_layout(specs)
    pool = Pool(layout.groups, layout.block_bytes, blocks)
    longest = pool.longest(limit, 2048)
    if longest:
        assert pool.sequence_blocks(longest, 2048) <= blocks
    if longest < limit:
        assert pool.sequence_blocks(longest + 1, 2048) > blocks
