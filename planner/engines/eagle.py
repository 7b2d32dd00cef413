"""EAGLE's heads (Li et al. 2024, 2025): a decoder layer over the model's states, its embedding and, in EAGLE-1, its output head.

vLLM 0.33 ``model_executor/models/llama_eagle.py``, ``llama_eagle3.py``, ``v1/spec_decode/llm_base_proposer.py``
(``_maybe_share_embeddings``).
"""

from __future__ import annotations

from collections.abc import Mapping

from planner.architecture.layers import Architecture, Attention, LatentAttention, SequenceMixer

READ_LAYERS = 3
"""States of so many of the model's layers are what EAGLE-3 reads (``num_aux_hidden_states``)."""


def is_third(config: Mapping[str, object]) -> bool:
    """Whether a head's config is of EAGLE-3: a class of that name, or a vocabulary of its own."""
    names = config.get("architectures")
    named = any("eagle3" in str(name).lower() for name in names) if isinstance(names, list | tuple) else False
    return named or "draft_vocab_size" in config


def head_parameters(config: Mapping[str, object], draft: Architecture, target: Architecture, tensor: int) -> int:
    """Parameters of a head on one of ``tensor`` ranks: its layers are cut like the model's, what joins the states is whole.

    The embedding is the model's, and the output head of EAGLE-1 too.
    """
    hidden = draft.hidden_size
    mixed = sum(
        weight.count * _elements(weight.shape)
        for layer in draft.decoder.layers
        for mixer in (*layer.sequence, *layer.channel)
        for weight in mixer.weights
    )
    norms = sum(
        weight.count * _elements(weight.shape) for layer in draft.decoder.layers for norm in layer.norms for weight in norm.weights
    )
    if not is_third(config):
        return mixed // tensor + norms + 2 * hidden * hidden
    vocabulary = config.get("draft_vocab_size")
    rows = vocabulary if isinstance(vocabulary, int) else draft.vocab_size
    wider = _first_rows(draft) * hidden
    return (mixed + wider + rows * hidden) // tensor + norms + READ_LAYERS * target.hidden_size * hidden + 2 * hidden


def head_mixers(draft: Architecture | None, target: Architecture) -> tuple[SequenceMixer, ...]:
    """The layers of a head that keep a cache: its own, or one like the model's first full layer where only its size is told."""
    if draft is not None:
        return tuple(mixer for layer in draft.decoder.layers for mixer in layer.sequence)
    mixers = (mixer for layer in target.decoder.layers for mixer in layer.sequence)
    return tuple(mixer for mixer in mixers if _is_full(mixer))[:1]


def _is_full(mixer: SequenceMixer) -> bool:
    if isinstance(mixer, LatentAttention):
        return mixer.indexer is None
    return isinstance(mixer, Attention) and mixer.kv == "own" and mixer.causal and not (mixer.window_tokens or mixer.chunk_tokens)


def _first_rows(draft: Architecture) -> int:
    """Rows of the first layer's queries, keys and values, which read the embedding beside the states."""
    first = next((mixer for layer in draft.decoder.layers for mixer in layer.sequence if isinstance(mixer, Attention)), None)
    if first is None:
        return 0
    return (first.num_heads + first.num_kv_heads) * first.head_dim + first.num_kv_heads * first.value_head_dim


def _elements(shape: tuple[int, ...]) -> int:
    total = 1
    for size in shape:
        total *= size
    return total
