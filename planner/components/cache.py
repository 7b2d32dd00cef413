"""What a model's caches hold: keys and values, compressed entries, states.

As transformers 5.23 keeps them (``cache_utils.py``). ``tokens`` and ``batch`` may be numbers or NumPy arrays.
"""

from __future__ import annotations

from dataclasses import field
from typing import Any

from planner.architecture.counts import layer_groups
from planner.architecture.layers import (
    Architecture,
    Attention,
    Compression,
    LatentAttention,
    Layer,
    Recurrent,
    SequenceMixer,
)
from planner.components.quantised_cache import quantised_past
from planner.components.recurrent.states import STATES, state_tensors
from planner.components.run import Run
from planner.components.tape import Size, rounded
from planner.record import record

Number = Any
"""An int, or a NumPy array of ints: the same formulas serve a point and a grid."""


@record
class CacheSize:
    """Bytes of a cache after a prefill.

    ``logical_bytes``: what the cache's tensors show. ``held_bytes``: what stays alive; it is more right after
    the prefill of windowed layers, whose last tokens are a view of the full tensor until the next token.
    ``per_token_bytes``: growth of ``logical_bytes`` with one more token, of one sequence. ``constant_bytes``:
    of one sequence, whatever its length. ``by_field``: logical bytes by the cache's own field names.
    """

    logical_bytes: Number
    held_bytes: Number
    per_token_bytes: Number
    constant_bytes: int
    by_field: dict[str, Number] = field(default_factory=dict)


@record
class _Entry:
    """One field of one layer's cache: bytes per cell of a sequence, cells shown, cells held."""

    name: str
    cell_bytes: int
    cells: Number
    held_cells: Number
    grows: Number


def cache_bytes(
    architecture: Architecture,
    batch: Number,
    tokens: Number,
    dtype_bytes: int = 2,
    source_tokens: Number | None = None,
) -> CacheSize:
    """Bytes of all caches after a prefill of ``tokens`` tokens in each of ``batch`` sequences.

    ``source_tokens``: length of the other sequence that cross-attention reads (the encoder's output); without it
    cross-attention caches nothing.
    """
    logical: Number = 0
    held: Number = 0
    growth: Number = 0
    constant = 0
    by_field: dict[str, Number] = {}
    for layer, count in layer_groups(architecture.decoder):
        for mixer in layer.sequence:
            for entry in _entries(mixer, tokens, dtype_bytes, source_tokens):
                shown = count * entry.cell_bytes * entry.cells
                logical = logical + shown
                held = held + count * entry.cell_bytes * entry.held_cells
                growth = growth + count * entry.cell_bytes * entry.grows
                by_field[entry.name] = by_field.get(entry.name, 0) + batch * shown
                constant += count * entry.cell_bytes if isinstance(mixer, Recurrent) else 0
    growth = int(growth) if isinstance(growth, float) else growth
    return CacheSize(batch * logical, batch * held, growth, constant, by_field)


def _entries(mixer: SequenceMixer, tokens: Number, dtype_bytes: int, source_tokens: Number | None) -> list[_Entry]:
    match mixer:
        case Attention():
            return _attention_entries(mixer, tokens, dtype_bytes, source_tokens)
        case LatentAttention():
            return _latent_entries(mixer, tokens, dtype_bytes)
        case Recurrent():
            return _recurrent_entries(mixer, dtype_bytes)


def _attention_entries(mixer: Attention, tokens: Number, dtype_bytes: int, source_tokens: Number | None) -> list[_Entry]:
    if mixer.kv == "shared" or not mixer.causal:
        return []
    heads = mixer.cached_kv_heads or mixer.num_kv_heads
    window = mixer.window_tokens or mixer.chunk_tokens
    cells, held, grows = tokens, tokens, 1
    if mixer.kv == "cross":
        cells = held = source_tokens or 0
        grows = 0
    elif window is not None:
        cells, grows = _smaller(tokens, window - 1), (tokens < window - 1) * 1
    keys = _Entry("keys", heads * mixer.head_dim * dtype_bytes, cells, held, grows)
    if mixer.compression is not None:
        return [keys, *_compressed_entries(mixer.compression, mixer.head_dim, tokens, dtype_bytes)]
    return [keys, _Entry("values", heads * mixer.value_head_dim * dtype_bytes, cells, held, grows)]


def _compressed_entries(compression: Compression, width: int, tokens: Number, dtype_bytes: int) -> list[_Entry]:
    """Entries that stand for windows of tokens, and what waits for the next window.

    transformers' DeepSeek-V4 keeps the tokens of an unfinished window as a view of all that were projected (values
    and gates), so that after a prefill the whole projection is held; two overlapping series keep their last window.
    """
    entries = _compressor("compressor", compression, width, tokens, dtype_bytes)
    if compression.indexer is not None:
        entries += _compressor("indexer", compression, compression.indexer.head_dim, tokens, dtype_bytes)
    return entries


def _compressor(name: str, compression: Compression, width: int, tokens: Number, dtype_bytes: int) -> list[_Entry]:
    rate, series = compression.rate_tokens, compression.series
    pair_bytes = 2 * width * dtype_bytes
    started = (tokens >= rate) * 1
    entries = [
        _Entry(name, width * dtype_bytes, tokens // rate, tokens // rate, 1 / rate),
        _Entry(name, series * pair_bytes, tokens % rate, tokens, 0),
    ]
    if series > 1:
        entries.append(_Entry(name, pair_bytes, rate * started, rate * started, 0))
    return entries


def _latent_entries(mixer: LatentAttention, tokens: Number, dtype_bytes: int) -> list[_Entry]:
    entries = [
        _Entry("keys", mixer.kv_lora_rank * dtype_bytes, tokens, tokens, 1),
        _Entry("values", mixer.qk_rope_head_dim * dtype_bytes, tokens, tokens, 1),
    ]
    if mixer.indexer is not None:
        entries.append(_Entry("indexer_keys", mixer.indexer.head_dim * dtype_bytes, tokens, tokens, 1))
    return entries


def _recurrent_entries(mixer: Recurrent, dtype_bytes: int) -> list[_Entry]:
    state_bytes = {"fp32": 4, "bf16": 2, "fp16": 2}.get(mixer.state_dtype or "", dtype_bytes)
    entries = [
        _Entry("conv_states", mixer.conv_channels * mixer.conv_kernel * dtype_bytes, 1, 1, 0),
        _Entry("linear_cache" if mixer.kind == "lightning" else "recurrent_states", mixer.state_numel * state_bytes, 1, 1, 0),
    ]
    return [entry for entry in entries if entry.cell_bytes]


def _smaller(tokens: Number, limit: int) -> Number:
    """min(tokens, limit), for a number or an array."""
    return tokens - (tokens > limit) * (tokens - limit)


def cached_tensors(layer: Layer, run: Run) -> dict[str, Size]:
    """What a layer's caches hold before a forward that continues a sequence: ``{name} past``."""
    found: dict[str, Size] = {}
    for mixer in layer.sequence if run.cached and run.past_tokens else ():
        match mixer:
            case Attention() if run.quantised_cache is not None:
                found |= quantised_past(mixer, run, run.quantised_cache)
            case Attention() if mixer.compression is not None:
                found["k past"] = run.cache(mixer, "k", run.past_tokens)
                found["compressed past"] = compressed_cache(mixer, run, run.past_tokens, whole=True)
            case Attention() if mixer.kv == "own":
                tokens = run.static_cells(mixer) if run.static_tokens else run.past_tokens
                found |= {f"{name} past": run.cache(mixer, name, tokens) for name in ("k", "v")}
            case LatentAttention():
                rows = {"batch": run.batch, "tokens": run.past_tokens, "bytes": run.dtype_bytes}
                found["kv past"] = Size(**rows, features=mixer.kv_lora_rank)
                found["k past"] = Size(**rows, features=mixer.qk_rope_head_dim)
                if mixer.indexer is not None:
                    found["index past"] = Size(**rows, features=mixer.indexer.head_dim)
            case Recurrent():
                found |= state_tensors(mixer, run)
            case _:
                pass
    return found


def compressed_cache(mixer: Attention, run: Run, tokens: int, *, whole: bool) -> Size:
    """Compressed entries after ``tokens``, and what waits for the next window; ``whole``: all projections it is a view of."""
    assert mixer.compression is not None  # noqa: S101  the caller has looked
    entries = _compressed_entries(mixer.compression, mixer.head_dim, tokens, run.dtype_bytes)
    total = run.batch * sum(entry.cell_bytes * (entry.held_cells if whole else entry.cells) for entry in entries)
    values = {"batch": run.batch, "tokens": tokens, "rate_tokens": mixer.compression.rate_tokens}
    return Size.stated(rounded(total), "batch · Σ of entries and of what waits for the next", **values)


def cache_component(name: str) -> str:
    """What a cached tensor of that name counts as."""
    return "recurrent_state" if name in STATES else "kv_cache"


def held_tensors(layer: Layer, run: Run, prompt_tokens: int) -> dict[str, Size]:
    """What stays alive under a layer's caches before a decode step.

    Before the first step windowed layers hold the whole prompt, of which they keep a view; later one token more than a view.
    """
    found = cached_tensors(layer, run)
    if run.static_tokens or run.quantised_cache is not None:
        return found
    for mixer in layer.sequence:
        if isinstance(mixer, Attention) and mixer.compression is not None and run.past_tokens > prompt_tokens:
            found["k past"] = run.cache(mixer, "k", min(run.past_tokens, mixer.window_tokens or run.past_tokens))
            found["compressed past"] = compressed_cache(mixer, run, run.past_tokens, whole=False)
            continue
        window = (mixer.window_tokens or mixer.chunk_tokens) if isinstance(mixer, Attention) else None
        if isinstance(mixer, Attention) and mixer.kv == "own" and window is not None and run.past_tokens > prompt_tokens:
            found |= {f"{name} past": run.cache(mixer, name, min(run.past_tokens, window)) for name in ("k", "v")}
    return found
