"""What TGI's launcher settles before the server starts: tokens of a prefill, the attention that is used, its blocks.

TGI 3.3 ``launcher/src/main.rs`` (``resolve_attention``, ``compute_optimal``, ``vram_maximum``, ``ComputeType``).
"""

from __future__ import annotations

from planner.architecture.layers import Architecture, Attention, LatentAttention, MixtureOfExperts
from planner.engines.shares import share_of
from planner.formats import Format
from planner.gpu import Gpu
from planner.symbolic.amount import smallest

CARD_TERAFLOPS = (
    ("H200 SXM", 989), ("H100 SXM", 900), ("H100 NVL", 900), ("A100 SXM4", 312), ("A100 PCIe 80GB", 312), ("L40S", 363),
    ("L40", 181), ("L4", 121), ("A10G", 125), ("A40", 149),
)  # fmt: skip
"""Cards whose name the launcher knows as ``nvidia-smi`` prints it; others have no entry there, the RTX 4090 and T4 among them."""
PREFILL_TOKENS, TOWER_TOKENS = 4096, {"qwen2_vl": 10_000, "qwen2_5_vl": 10_000, "gemma3": 8000}
LEAST_OPTIMAL_TOKENS = 100
LAUNCHER_WIGGLE_ROOM = 0.95
FLASHINFER_HEADS = (64, 128, 256)
FLASHINFER_BLOCK, FLASH_DECODING_BLOCK, PAGED_BLOCK = 1, 256, 16
FLASH_DECODING_TYPES = ("falcon", "deepseek_v2")
FLASH_DECODING_SINCE = (8, 0)
GEMMA3_HEAD = 256
COUNTED_EXPERTS = ("mixtral", "phimoe")
"""Types whose configs say ``num_local_experts``, the only name of it that the launcher reads."""


def block_tokens(architecture: Architecture, gpu: Gpu) -> int:
    """Tokens of a block: flashinfer pages single tokens where it knows the head, flash decoding 256, older cards' paged 16."""
    if head_dim(architecture) in FLASHINFER_HEADS and architecture.model_type not in FLASH_DECODING_TYPES:
        return FLASHINFER_BLOCK
    older = gpu.compute_capability is None or gpu.compute_capability < FLASH_DECODING_SINCE
    return PAGED_BLOCK if older else FLASH_DECODING_BLOCK


def head_dim(architecture: Architecture) -> int | None:
    """The head as the launcher reads it: hidden size over heads where attention is latent."""
    if architecture.model_type == "gemma3":
        return GEMMA3_HEAD
    mixer = _first(architecture)
    if isinstance(mixer, Attention):
        return mixer.head_dim
    if mixer is None or architecture.hidden_size % mixer.num_heads:
        return None
    return architecture.hidden_size // mixer.num_heads


def prefill_tokens(architecture: Architecture, fmt: Format, gpu: Gpu, capacity: int, ranks: int, fraction: float) -> int:
    """``max_batch_prefill_tokens`` where it is not given: a second of the cards' work, at most the model's own context.

    Where all is plain and of one width, also at most the tokens whose cache and feed-forward values the cards hold.
    """
    tokens = _optimal_tokens(architecture, gpu, ranks)
    if tokens is None:
        tokens = TOWER_TOKENS.get(architecture.model_type, PREFILL_TOKENS)
    if architecture.max_context_tokens is not None:
        tokens = min(tokens, architecture.max_context_tokens)
    widths = _widths(architecture)
    if widths is None or architecture.towers or fmt.name not in ("bf16", "fp16", "fp32"):
        return tokens
    model_bytes, token_bytes = _sizes(architecture, *widths)
    room = share_of(share_of(ranks * capacity, fraction), LAUNCHER_WIGGLE_ROOM) - model_bytes
    return tokens if room < 0 else smallest(tokens, room // token_bytes)


def _first(architecture: Architecture) -> Attention | LatentAttention | None:
    mixers = (mixer for layer in architecture.decoder.layers for mixer in layer.sequence)
    return next((mixer for mixer in mixers if isinstance(mixer, Attention | LatentAttention)), None)


def _widths(architecture: Architecture) -> tuple[int, int, int, int, int] | None:
    """Heads, key-value heads, head, feed-forward width and experts of a config that says them at its top."""
    mixer, head = _first(architecture), head_dim(architecture)
    channel = architecture.decoder.layers[0].channel
    if mixer is None or head is None or not channel:
        return None
    kv_heads = mixer.num_kv_heads if isinstance(mixer, Attention) else mixer.num_heads
    first, counted = channel[0], architecture.model_type in COUNTED_EXPERTS
    experts = first.num_experts if counted and isinstance(first, MixtureOfExperts) else 1
    return mixer.num_heads, kv_heads, head, first.intermediate_size, experts


def _optimal_tokens(architecture: Architecture, gpu: Gpu, ranks: int) -> int | None:
    widths = _widths(architecture)
    teraflops = next((found for name, found in CARD_TERAFLOPS if gpu.name.startswith(name)), None)
    if widths is None or teraflops is None or architecture.towers:
        return None
    heads, kv_heads, head, width, _ = widths
    hidden = architecture.hidden_size
    layer = 2 * head * hidden * (3 * heads + 2 * kv_heads) + 6 * hidden * width * _used_experts(architecture)
    tokens = ranks * teraflops * 10**12 // (layer * len(architecture.decoder.layers))
    return tokens if tokens > LEAST_OPTIMAL_TOKENS else None


def _used_experts(architecture: Architecture) -> int:
    """Experts of a token and shared ones, each reckoned as wide as ``intermediate_size``; 1 where there are none."""
    mixers = (mixer for layer in architecture.decoder.layers for mixer in layer.channel)
    routed = next((mixer for mixer in mixers if isinstance(mixer, MixtureOfExperts)), None)
    if routed is None:
        return 1
    return routed.experts_per_token + routed.shared_intermediate_size // routed.intermediate_size


def _sizes(architecture: Architecture, heads: int, kv_heads: int, head: int, width: int, experts: int) -> tuple[int, int]:
    """(bytes of the model, bytes of a token) as the launcher reckons them, in 16 bit."""
    hidden, layers = architecture.hidden_size, len(architecture.decoder.layers)
    layer = 3 * width * experts * hidden + (heads + 2 * kv_heads) * head + heads * head * hidden
    token = kv_heads * 2 * head * 2 * layers + (width + width // 2) * experts * 2 * 3
    return 2 * (layer * layers + 2 * hidden * architecture.vocab_size), token
