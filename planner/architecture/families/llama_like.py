"""Dense decoders of Llama's build: RMSNorm before each mixer, rotary grouped-query attention, gated feed-forward."""

from __future__ import annotations

from planner.architecture.blocks import decoder, gated_mlp, gqa, num_layers, pre_norm
from planner.architecture.config import Config
from planner.architecture.families.registry import family
from planner.architecture.layers import Architecture


@family(
    "llama",
    "LlamaForCausalLM",
    vocab_size=32000,
    hidden_size=4096,
    intermediate_size=11008,
    num_hidden_layers=32,
    num_attention_heads=32,
    max_position_embeddings=2048,
    tie_word_embeddings=False,
)
def llama(config: Config) -> Architecture:
    """Llama 1 to 3 and everything published in its shape."""
    bias = config.flag("attention_bias")
    attention = gqa(config, qkv_bias=bias, output_bias=bias)
    layer = pre_norm(config, attention, gated_mlp(config, bias=config.flag("mlp_bias")))
    return decoder(config, "LlamaForCausalLM", [layer] * num_layers(config))


@family(
    "mistral",
    "MistralForCausalLM",
    vocab_size=32000,
    hidden_size=4096,
    intermediate_size=14336,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=8,
    max_position_embeddings=4096 * 32,
    tie_word_embeddings=False,
    sliding_window=4096,
)
def mistral(config: Config) -> Architecture:
    """Mistral 7B: every layer windowed when ``sliding_window`` is set."""
    attention = gqa(config, window_tokens=config.optional("sliding_window"))
    return decoder(config, "MistralForCausalLM", [pre_norm(config, attention, gated_mlp(config))] * num_layers(config))


@family(
    "qwen2",
    "Qwen2ForCausalLM",
    vocab_size=151936,
    hidden_size=4096,
    intermediate_size=22016,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=32,
    max_position_embeddings=32768,
    tie_word_embeddings=False,
    use_sliding_window=False,
    sliding_window=4096,
    max_window_layers=28,
)
def qwen2(config: Config) -> Architecture:
    """Qwen 1.5 to 2.5: biases on q, k and v."""
    full, windowed = (
        pre_norm(config, gqa(config, qkv_bias=True, window_tokens=window), gated_mlp(config))
        for window in (None, qwen_window(config))
    )
    start = config.size("max_window_layers", minimum=0) if config.flag("use_sliding_window") else num_layers(config)
    return decoder(config, "Qwen2ForCausalLM", [windowed if index >= start else full for index in range(num_layers(config))])


@family(
    "qwen3",
    "Qwen3ForCausalLM",
    vocab_size=151936,
    hidden_size=4096,
    intermediate_size=22016,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=32,
    head_dim=128,
    max_position_embeddings=32768,
    tie_word_embeddings=False,
    use_sliding_window=False,
    sliding_window=4096,
    max_window_layers=28,
)
def qwen3(config: Config) -> Architecture:
    """Qwen3: a norm on each query and key head."""
    bias = config.flag("attention_bias")
    full, windowed = (
        pre_norm(config, gqa(config, qkv_bias=bias, output_bias=bias, qk_norm="per_head", window_tokens=window), gated_mlp(config))
        for window in (None, qwen_window(config))
    )
    start = config.size("max_window_layers", minimum=0) if config.flag("use_sliding_window") else num_layers(config)
    return decoder(config, "Qwen3ForCausalLM", [windowed if index >= start else full for index in range(num_layers(config))])


def qwen_window(config: Config) -> int | None:
    """The window of Qwen's windowed layers; ``use_sliding_window: false`` turns ``sliding_window`` off."""
    window = config.optional("sliding_window")
    return window if config.flag("use_sliding_window") else None
