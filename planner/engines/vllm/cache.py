"""How vLLM's layers cache: pages of attention, windows, latents and recurrent states, and the pool they share.

vLLM 0.19 ``v1/kv_cache_interface.py``, ``model_executor/models/config.py`` (``HybridAttentionMambaModelConfig``),
``model_executor/layers/mamba/mamba_utils.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import lcm

from planner.architecture.layers import Architecture, Attention, LatentAttention, Recurrent, SequenceMixer
from planner.engines.paged import Layout, PageSpec, ceil_div, page_layout
from planner.faults import Fault, Faults
from planner.memo import remember_by_identity
from planner.modelled import NotModelled
from planner.record import record
from planner.sharding import rank_kv_heads

CACHE_BYTES = {"auto": 0, "fp16": 2, "bf16": 2, "fp8": 1, "fp8_e4m3": 1, "fp8_e5m2": 1, "float16": 2, "bfloat16": 2}
"""Bytes of a cached value; ``auto`` takes the model's."""
UNDERIVED_CACHES = ("nvfp4_", "turboquant", "octave", "ultraquant")
"""Beginnings of newer ``--kv-cache-dtype`` names whose pages follow layouts of their kernels (0.33 ``config/cache.py``)."""
SCALED_CACHES = {
    "fp8_per_token_head": (8, 32, 0),
    "int8_per_token_head": (8, 32, 0),
    "int4_per_token_head": (4, 32, 0),
    "nvfp4": (4, 0, 16),
}
"""Bits of a value, of a scale for each token and head, and values that share a scale of 8 bits, of types whose pages hold
scales (0.33 ``TritonAttentionBackend.customize_spec``, ``nvfp4_kv_cache_full_dim``)."""
SCALE_BITS = 8
LATENT_REFUSES = ("fp8_e5m2",)
"""No latent-attention backend reads it (``v1/attention/backends/mla``)."""
SPARSE_LATENT_FP8_BYTES = 656
"""A token of ``fp8_ds_mla``: 512 fp8 values, 4 fp32 scales, 64 rotary values in 16 bit."""
INDEXER_SCALE_BYTES = 4
"""An indexer key is kept in fp8 with one fp32 scale for 128 values."""
STATE_BYTES = {"qwen3_5": 4, "qwen3_5_moe": 4, "qwen3_5_text": 4, "qwen3_5_moe_text": 4}
"""Recurrent states are kept in the model's dtype except where its own rule says fp32
(``Qwen3_5ForConditionalGenerationConfig``)."""
FP32_STATES_SINCE = {"nemotron_h": (0, 20, 0)}
"""Types whose rule came with a release (``NemotronHForCausalLMConfig``, pull request 39032); 16 bit before."""
STATES_BY_BLOCK = ("bamba", "falcon_h1", "granitemoehybrid", "nemotron_h", "zamba2")
"""Types that keep a state for every block where prefixes are cached (``SupportsMambaPrefixCaching``: ``mamba_cache_mode``
all, pull request 25752); others keep the last two (align)."""
FP32_STATE_KINDS = ("kimi_delta",)
CONTEXT_SINCE, CONTEXT_SINCE_HEADS = (0, 10, 2), (0, 11, 1)
"""Decode context parallelism for latent attention, and for heads of keys and values (releases' notes)."""
KERNEL_ALIGNMENT_TOKENS = 16
LATENT_ALIGNMENT_TOKENS = 64
LATENT_BLOCK_TOKENS = 64
"""FlashMLA's kernels read blocks of 64 (``platforms/cuda.py``)."""


@record
class CacheKind:
    """What decides the bytes of a page besides the model."""

    tensor: int
    value_bytes: int
    dtype_bytes: int
    block_tokens: int
    hybrid: bool = True
    cache_dtype: str = "auto"
    speculative_tokens: int = 0
    state_bytes: int = 0
    """Bytes of a value of recurrent states where the engine fixes them."""
    state_pages: int = 1
    """States a sequence keeps: one, or two where prefixes are cached (``mamba_cache_mode`` align); one more for each token
    that is proposed (``MambaSpec.num_speculative_blocks``)."""
    by_block: bool = False
    """Whether every block of a sequence keeps a state."""
    context: int = 1
    """Ranks that share a sequence's tokens: a block of the pool holds so many times its tokens over them."""


def context_faults(architecture: Architecture, tensor: int, context: int, version: tuple[int, int, int]) -> list[Fault]:
    """What vLLM refuses of decode context parallelism, which uses the tensor-parallel ranks that keep copies of keys and values.

    ``config/model.py`` ``verify_with_parallel_config``, ``config/parallel.py``, ``v1/kv_cache_interface.py``.
    """
    if context == 1:
        return []
    message = _context_refusal(
        [mixer for layer in architecture.decoder.layers for mixer in layer.sequence], tensor, context, version
    )
    return [Fault("parallel.context", message)] if message else []


def _context_refusal(mixers: Sequence[SequenceMixer], tensor: int, context: int, version: tuple[int, int, int]) -> str:
    heads = [mixer for mixer in mixers if isinstance(mixer, Attention)]
    since = CONTEXT_SINCE_HEADS if heads else CONTEXT_SINCE
    copies = max(1, tensor // min((mixer.num_kv_heads for mixer in heads), default=1))
    refused = {
        f"vLLM splits the context of a model like this from {'.'.join(map(str, since))} on; use 1": version < since,
        "vLLM splits the context of full attention alone; use 1": any(
            isinstance(mixer, Recurrent) or (isinstance(mixer, Attention) and _is_local(mixer)) for mixer in mixers
        ),
        f"must divide the {tensor} tensor-parallel ranks, whose GPUs it uses; got {context}": tensor % context != 0,
        f"{tensor} tensor-parallel ranks keep each key-value head {copies} times; use at most {copies}": context > copies,
        f"must divide the queries of a key-value head; got {context}": any(
            mixer.num_heads // mixer.num_kv_heads % context for mixer in heads
        ),
    }
    return next((message for message, holds in refused.items() if holds), "")


def _is_local(mixer: Attention) -> bool:
    return mixer.window_tokens is not None or mixer.chunk_tokens is not None


def cache_kind_bytes(name: str, dtype_bytes: int) -> int:
    """Bytes of a cached value.

    Raises :class:`planner.faults.Faults` for a type vLLM has no ``--kv-cache-dtype`` of, ``NotModelled`` for newer ones.
    """
    if name.startswith(UNDERIVED_CACHES):
        raise NotModelled(f"inference.kv_cache: vLLM's pages of {name} have no closed form yet")
    found = 1 if name in SCALED_CACHES else CACHE_BYTES.get(name)
    if found is None:
        message = f"vLLM has no cache type {name}; use auto, bf16, fp16 or fp8"
        raise Faults([Fault("inference.kv_cache", message)])
    return found or dtype_bytes


def cache_faults(architecture: Architecture, name: str) -> list[Fault]:
    """What vLLM refuses of a cache type for this model."""
    latent = any(isinstance(mixer, LatentAttention) for layer in architecture.decoder.layers for mixer in layer.sequence)
    if latent and (name in LATENT_REFUSES or name in SCALED_CACHES):
        return [Fault("inference.kv_cache", f"latent attention (MLA) has no kernel for {name}; use auto or fp8")]
    return []


@remember_by_identity(256)
def cache_layout(
    architecture: Architecture, kind: CacheKind, layers: range | None = None, beside: tuple[SequenceMixer, ...] = ()
) -> Layout:
    """The pool's layout for the decoder's layers, or those of one pipeline stage; ``beside``: layers of what proposes tokens."""
    stack = architecture.decoder.layers
    chosen = stack if layers is None else [stack[index] for index in layers]
    mixers = [mixer for layer in chosen for mixer in layer.sequence]
    return page_layout(page_specs([*mixers, *beside], kind, architecture.model_type))


def page_specs(mixers: Sequence[SequenceMixer], kind: CacheKind, model_type: str) -> list[PageSpec]:
    """One spec for each layer that caches; beside recurrent states attention's blocks grow until pages are equal."""
    states = [_state_bytes(mixer, kind, model_type) for mixer in mixers if isinstance(mixer, Recurrent)]
    attention = [spec for mixer in mixers if not isinstance(mixer, Recurrent) for spec in _attention_specs(mixer, kind)]
    if not kind.hybrid and len({spec.kind for spec in attention}) > 1:
        attention = [replace(spec, kind="full", window_tokens=0) for spec in attention]
    if not states:
        return attention
    pages = kind.state_pages + kind.speculative_tokens
    if not attention:
        return [PageSpec("state", 1, size, state_pages=pages) for size in states]
    chunks = [mixer.chunk_tokens for mixer in mixers if isinstance(mixer, Recurrent)] if kind.by_block else []
    return _equal_pages(attention, states, kind, max(chunks, default=0))


def _equal_pages(attention: list[PageSpec], states: list[int], kind: CacheKind, chunk_tokens: int) -> list[PageSpec]:
    """``Platform.update_block_size_for_backend``. ``chunk_tokens``: what a kernel that keeps every block's state steps by."""
    token_bytes = attention[0].page_bytes // attention[0].block_tokens
    latent = attention[0].block_tokens == LATENT_BLOCK_TOKENS
    alignment = LATENT_ALIGNMENT_TOKENS if latent else KERNEL_ALIGNMENT_TOKENS
    if chunk_tokens:
        alignment = lcm(chunk_tokens, max(alignment, kind.block_tokens))
    tokens = max(kind.block_tokens, alignment * ceil_div(ceil_div(max(states), token_bytes), alignment))
    grown = [replace(spec, block_tokens=tokens, page_bytes=spec.page_bytes // spec.block_tokens * tokens) for spec in attention]
    page, more = grown[0].page_bytes, kind.speculative_tokens
    if chunk_tokens:
        return [*grown, *(PageSpec("states", tokens, page, state_pages=1 + more) for _ in states)]
    return [*grown, *(PageSpec("state", 1, page, state_pages=kind.state_pages + more) for _ in states)]


def _attention_specs(mixer: SequenceMixer, kind: CacheKind) -> list[PageSpec]:
    if isinstance(mixer, LatentAttention):
        return _latent_specs(mixer, kind)
    assert isinstance(mixer, Attention)  # noqa: S101  recurrent mixers were taken before
    if mixer.kv == "shared" or not mixer.causal:
        return []
    if mixer.kv == "cross" or mixer.compression is not None:
        raise NotModelled("the pool of a server for cross-attention and compressed entries has no closed form yet")
    heads = rank_kv_heads(mixer.num_kv_heads, kind.tensor)
    page = kind.block_tokens * heads * (_head_bytes(mixer.head_dim, kind) + _head_bytes(mixer.value_head_dim, kind))
    if mixer.window_tokens is not None:
        return [PageSpec("window", kind.block_tokens, page, mixer.window_tokens)]
    if mixer.chunk_tokens is not None:
        return [PageSpec("chunk", kind.block_tokens, page, mixer.chunk_tokens)]
    return [PageSpec("full", kind.block_tokens * kind.context, page)]


def _head_bytes(head_dim: int, kind: CacheKind) -> int:
    """Bytes of one token's keys or values of one head, with their scales."""
    scaled = SCALED_CACHES.get(kind.cache_dtype)
    if scaled is None:
        return head_dim * kind.value_bytes
    bits, scale_bits, shared = scaled
    return (head_dim * bits + scale_bits + (head_dim // shared * SCALE_BITS if shared else 0)) // 8


def _latent_specs(mixer: LatentAttention, kind: CacheKind) -> list[PageSpec]:
    """One entry a token on every rank: nothing to divide among tensor-parallel ranks."""
    tokens = max(kind.block_tokens, LATENT_BLOCK_TOKENS)
    entry = (mixer.kv_lora_rank + mixer.qk_rope_head_dim) * kind.value_bytes
    if mixer.indexer is None:
        return [PageSpec("full", tokens * kind.context, tokens * entry)]
    if kind.value_bytes == 1:
        entry = SPARSE_LATENT_FP8_BYTES
    keys = mixer.indexer.head_dim + INDEXER_SCALE_BYTES
    shared = tokens * kind.context
    return [PageSpec("full", shared, tokens * entry), PageSpec("full", shared, tokens * keys)]


def _state_bytes(mixer: Recurrent, kind: CacheKind, model_type: str) -> int:
    """Convolution's last inputs (kernel − 1, and one for each proposed token) and the recurrent state of one rank."""
    if mixer.kind in ("rwkv", "mlstm", "rg_lru"):
        raise NotModelled(f"no server is known to serve {mixer.kind} layers")
    conv = ceil_div(_conv_channels(mixer, kind.tensor), kind.tensor) * max(0, mixer.conv_kernel - 1 + kind.speculative_tokens)
    own = 4 if mixer.kind in FP32_STATE_KINDS else STATE_BYTES.get(model_type, kind.dtype_bytes)
    width = kind.state_bytes or own
    return conv * kind.dtype_bytes + ceil_div(mixer.state_numel, kind.tensor) * width


def _conv_channels(mixer: Recurrent, tensor: int) -> int:
    """Mamba-2's groups are copied until every rank has one (``extra_groups_for_head_shards``)."""
    if mixer.kind != "mamba2" or mixer.num_groups % tensor == 0:
        return mixer.conv_channels
    return mixer.conv_channels + 2 * (tensor - mixer.num_groups) * mixer.state_dim
