"""The vocabulary every model is read into: layers of sequence mixers and channel mixers.

Plain frozen data. What a mixer costs (cache, activations, FLOPs) is said in ``planner.components``; which
mixers a model has is read from its config in ``planner.architecture.families``.
"""

from __future__ import annotations

from dataclasses import field
from typing import Literal

from planner.record import record

Role = Literal["linear", "expert", "router", "embedding", "head", "norm", "bias", "conv", "other"]


@record
class Weight:
    """One tensor of a model, or ``count`` tensors of one shape (the experts of a layer).

    ``name`` is the module path inside its owner as the checkpoint names it (``self_attn.q_proj.weight``,
    ``mlp.experts.*.gate_proj.weight``); linear shapes are (out_features, in_features).
    ``dtype`` is set only where the model fixes it whatever precision was asked for.
    """

    name: str
    shape: tuple[int, ...]
    role: Role
    count: int = 1
    dtype: str | None = None
    is_buffer: bool = False
    fixed: bool = False
    """Computed once and never trained: sinusoidal positions."""
    is_linear: bool = False
    """A router, or what weighs a shared expert, that is an ``nn.Linear``: adapters find it by name."""


@record
class Indexer:
    """The small key-only scorer of sparse attention (DeepSeek-V3.2, GLM-5)."""

    num_heads: int
    head_dim: int
    top_k: int


@record
class Compression:
    """Entries that stand for ``rate_tokens`` tokens each, kept beside the window (DeepSeek-V4).

    ``series``: how many overlapping series of entries are projected; 2 lets neighbouring windows share tokens.
    """

    rate_tokens: int
    series: int = 1
    indexer: Indexer | None = None


@record
class Attention:
    """Softmax attention with per-head keys and values: MHA, GQA, MQA; full, sliding-window or chunked; self or cross."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    value_head_dim: int
    weights: tuple[Weight, ...]
    window_tokens: int | None = None
    chunk_tokens: int | None = None
    kv: Literal["own", "shared", "cross"] = "own"
    """Where keys and values come from: this layer, an earlier layer's cache, or another sequence (encoder, image)."""
    cached_kv_heads: int | None = None
    """Heads the cache holds when it differs from num_kv_heads (Falcon-40B caches keys expanded to every head)."""
    causal: bool = True
    rotary_dim: int = 0
    qk_norm: Literal["none", "per_head", "full_width"] = "none"
    fused_qkv: bool = False
    output_gate: bool = False
    has_sinks: bool = False
    logit_softcap: bool = False
    dropout: bool = False
    """In training the probabilities pass a dropout (GPT-2)."""
    compression: Compression | None = None
    """Compressed entries beside a window; keys then serve as values too and are stored once."""


@record
class LatentAttention:
    """Multi-head latent attention (DeepSeek-V2 2024, section 2.1): one compressed cache entry a token."""

    num_heads: int
    q_lora_rank: int | None
    kv_lora_rank: int
    qk_nope_head_dim: int
    qk_rope_head_dim: int
    v_head_dim: int
    weights: tuple[Weight, ...]
    indexer: Indexer | None = None


@record
class Recurrent:
    """A mixer with constant state per sequence: Mamba-1/2, gated delta net, linear (lightning) attention, short convolution.

    ``conv_channels`` × ``conv_kernel`` values of convolution state in the activation dtype and ``state_numel``
    values of recurrent state (``state_dtype``, usually fp32) are kept for each sequence.
    """

    kind: Literal["mamba", "mamba2", "gated_delta_net", "kimi_delta", "lightning", "short_conv", "rg_lru", "rwkv", "mlstm"]
    weights: tuple[Weight, ...]
    conv_channels: int = 0
    conv_kernel: int = 0
    state_numel: int = 0
    state_dtype: str | None = "fp32"
    num_heads: int = 0
    head_dim: int = 0
    state_dim: int = 0
    num_groups: int = 0
    inner_dim: int = 0
    chunk_tokens: int = 0
    """Tokens that are computed at once where the sequence is cut into chunks."""
    step_rank: int = 0
    """Width of Mamba's low-rank step."""
    normed_step: bool = False
    """Step, B and C pass norms (Jamba, Falcon-Mamba)."""
    scaled_input: bool = False
    """Input and projection are multiplied by constants first (Falcon-H1)."""
    fused_gate: bool = False
    """Queries, keys, values and the output gate come from one projection (Qwen3-Next)."""


SequenceMixer = Attention | LatentAttention | Recurrent


@record
class DenseMLP:
    """A feed-forward block: down(act(gate) · up) when gated, else down(act(up))."""

    intermediate_size: int
    gated: bool
    activation: str
    weights: tuple[Weight, ...]
    fused_gate_up: bool = False


@record
class MixtureOfExperts:
    """Routed experts, with shared experts that every token passes."""

    num_experts: int
    experts_per_token: int
    intermediate_size: int
    gated: bool
    activation: str
    weights: tuple[Weight, ...]
    shared_intermediate_size: int = 0


ChannelMixer = DenseMLP | MixtureOfExperts


@record
class Norm:
    """A normalisation over the last dimension. ``upcasts``: computed in fp32 whatever the input's dtype."""

    name: str
    width: int
    kind: Literal["rms", "layer"]
    weights: tuple[Weight, ...]
    upcasts: bool = True


@record
class Layer:
    """One block of a stack. ``parallel``: the mixers read the same input and are added (Falcon, GPT-J, Falcon-H1's mixers)."""

    sequence: tuple[SequenceMixer, ...]
    channel: tuple[ChannelMixer, ...]
    norms: tuple[Norm, ...]
    weights: tuple[Weight, ...] = ()
    parallel: bool = False
    dropout: bool = False
    """In training the mixers' outputs pass a dropout (GPT-2, OPT)."""
    residual_in_fp32: bool = False
    """The layer's output is fp32 whatever the weights are (Mamba)."""
    borrowed: tuple[Weight, ...] = ()
    """An earlier layer's weights, which this one computes with (ALBERT)."""


@record
class Stack:
    """A run of layers over one hidden size: the decoder, an encoder, a vision or audio tower, multi-token-prediction modules."""

    name: str
    kind: Literal["decoder", "encoder", "vision", "audio", "mtp", "projector"]
    hidden_size: int
    layers: tuple[Layer, ...]
    weights: tuple[Weight, ...] = ()
    """Weights of the stack outside its layers: patch or token embeddings, final norm, projections."""


@record
class Architecture:
    """Everything about a model that decides sizes, as its config says it."""

    model_type: str
    model_class: str
    kind: Literal["decoder", "encoder", "encoder-decoder"]
    hidden_size: int
    vocab_size: int
    max_context_tokens: int | None
    dtype: str
    """The dtype the config names for its weights, a name of planner.formats ("bf16")."""
    tied_head: bool
    embeddings: tuple[Weight, ...]
    head: tuple[Weight, ...]
    """Empty when tied to the embedding or when the class has none."""
    final_norm: Norm | None
    decoder: Stack
    """The stack that makes the output tokens (or, for an encoder, the encodings)."""
    towers: tuple[Stack, ...] = ()
    unbuilt: tuple[Stack, ...] = ()
    """In the checkpoint but not built by transformers: multi-token-prediction modules."""
    verified: bool = True
    """False when read by its keys because the model_type is not known."""
    notes: tuple[str, ...] = ()
    """What the config says that was not understood or was assumed."""
    logit_softcap: bool = False
    decoder_type: str = ""
    """Whose code the decoder runs, where it is not ``model_type``'s: the text part of a composite, a variant of a type."""
    rope_factor_values: int = 0
    """Rotary factors a scaled embedding needs: Llama 3's frequencies, LongRoPE's two lists."""
    keeps_cache: bool = True
    """``use_cache``: whether a forward that nobody tells otherwise makes a cache, as of a decoder without a head."""
    sources: dict[str, str] = field(default_factory=dict, hash=False, compare=False)
    """Quantity → where it came from: ``config.json: num_key_value_heads = 8`` or ``default: …``."""
