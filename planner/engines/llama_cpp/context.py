"""What llama.cpp makes of its options before it allocates: cells, slots, batch and outputs.

Source: llama.cpp ``src/llama-context.cpp`` and ``src/llama-kv-cache-iswa.cpp``, 0.5.0-dev (ggml 0.25.3).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

CELL_BLOCK = 256
"""Contexts and caches are padded to this many cells."""
CONTEXT_TOKENS, BATCH_TOKENS, UBATCH_TOKENS = 4096, 2048, 512
"""``n_ctx`` stands in when neither the options nor the model say one; the others are ``llama_context_default_params``."""


@dataclass(frozen=True, slots=True)
class Context:
    """The sizes a graph and its caches are built for.

    ``cells``: of one stream's cache; ``streams``: caches side by side (1 when unified); ``tokens``: of the graph that is
    reserved, all sequences together; ``outputs``: tokens of it whose logits are computed.
    """

    cells: int
    streams: int
    sequences: int
    tokens: int
    outputs: int
    ubatch_tokens: int
    unified: bool = False
    flash: bool = True
    type_k: str = "F16"
    type_v: str = "F16"
    full_window_cache: bool = False

    def window_cells(self, window_tokens: int) -> int:
        """Cells of a sliding-window layer's cache: the window of every sequence in it and one batch, padded."""
        if self.full_window_cache:
            return self.cells
        wanted = window_tokens * (self.sequences if self.unified else 1) + self.ubatch_tokens
        return padded(min(self.cells, wanted), CELL_BLOCK)


def context_of(options: Mapping[str, object], model_context_tokens: int | None) -> Context:
    """The context that llama.cpp sets up for ``options`` (its own names, as in ``planner.engine_options``)."""
    asked = _integer(options, "n_ctx", 0) or model_context_tokens or CONTEXT_TOKENS
    sequences = _integer(options, "n_seq_max", 1)
    unified = bool(options.get("kv_unified", False))
    batch = min(asked, _integer(options, "n_batch", BATCH_TOKENS))
    ubatch = min(batch, _integer(options, "n_ubatch", UBATCH_TOKENS))
    total = padded(asked, CELL_BLOCK)
    cells = total if unified else padded(total // sequences, CELL_BLOCK)
    total = cells if unified else cells * sequences
    tokens = min(total, ubatch)
    return Context(
        cells=cells,
        streams=1 if unified else sequences,
        sequences=sequences,
        tokens=padded(tokens, sequences),
        outputs=min(tokens, _integer(options, "n_outputs_max", 0) or batch),
        ubatch_tokens=ubatch,
        unified=unified,
        flash=bool(options.get("flash_attn", True)),
        type_k=str(options.get("type_k", "f16")).upper(),
        type_v=str(options.get("type_v", "f16")).upper(),
        full_window_cache=bool(options.get("swa_full", False)),
    )


def padded(value: int, block: int) -> int:
    """``value`` rounded up to a multiple of ``block``."""
    return -(-value // block) * block


def _integer(options: Mapping[str, object], name: str, default: int) -> int:
    value = options.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) else default
