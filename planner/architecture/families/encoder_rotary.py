"""Encoders for embeddings with BERT's layers and rotary positions: Nomic's, GTE, Jina's third."""

from __future__ import annotations

from dataclasses import replace

from planner.architecture.blocks import (
    attention,
    block,
    embedding,
    head_counts,
    label_count,
    layer_norm,
    linear,
    mlp,
    num_layers,
)
from planner.architecture.config import MAX_VOCABULARY, Config
from planner.architecture.families.encoder import encoder, pooler, task_head, untied_decoder
from planner.architecture.families.registry import family
from planner.architecture.layers import Architecture, DenseMLP, Layer, Weight

NORMS = ("post_attention_layernorm", "post_mlp_layernorm")


def rotary_layer(config: Config, channel: DenseMLP, *, bias: bool) -> Layer:
    """Attention of whole heads, the feed-forward block, each normed after it is added."""
    heads, _, head_dim = head_counts(config)
    mixer = attention(
        config, heads=heads, kv_heads=heads, head_dim=head_dim, qkv_bias=bias, output_bias=bias, causal=False
    )  # fmt: skip
    layer = block(config, mixer, channel, norms=NORMS, norm=layer_norm)
    usual = 0.0 if config.text("model_type") == "nomic_bert" else 0.1
    return replace(layer, dropout=config.number("hidden_dropout_prob", default=usual) > 0)


def rotary_encoder(config: Config, layer: Layer, head: tuple[Weight, ...], *, pooled: bool) -> Architecture:
    """Tables of words and segments under a norm, the layers, a pooler in some classes, and a head."""
    hidden, at = config.size("hidden_size"), f"{config.base}embeddings"
    tables: tuple[Weight, ...] = (embedding(f"{at}.word_embeddings", config.size("vocab_size", maximum=MAX_VOCABULARY), hidden),)
    if segments := config.size("type_vocab_size", minimum=0):
        tables += (embedding(f"{at}.token_type_embeddings", segments, hidden),)
    weights = layer_norm(f"{at}.LayerNorm", hidden).weights + (pooler(config) if pooled else ())
    layers = [layer] * num_layers(config)
    return encoder(config, layers, embeddings=tables, weights=weights, head=head, layers_name="layers")


def masked_head(config: Config, transform: str, decoder: str, bias: str) -> tuple[Weight, ...]:
    """A linear and a norm under ``transform``, a bias for each word, and the matrix where it is not the embedding.

    A matrix of its own brings a bias of its own, where the other is not that already.
    """
    hidden = config.size("hidden_size")
    return (
        Weight(bias, (config.size("vocab_size", maximum=MAX_VOCABULARY),), "bias"),
        *linear(f"{transform}.dense", hidden, hidden, bias=True),
        *layer_norm(f"{transform}.layer_norm", hidden).weights,
        *untied_decoder(config, decoder, bias=not bias.startswith(decoder)),
    )


@family("nomic_bert")
def nomic_bert(config: Config) -> Architecture:
    """Nomic's BERT: gated feed-forward blocks, no biases."""
    wanted = config.defaults.model_class
    head = task_head(config, wanted)
    if wanted.endswith("ForMaskedLM"):
        head = masked_head(config, "cls.predictions.transform", "cls.predictions.decoder", "cls.predictions.bias")
    layer = rotary_layer(config, mlp(config), bias=False)
    return rotary_encoder(config, layer, head, pooled=wanted.endswith("ForSequenceClassification"))


@family("gte")
def gte(config: Config) -> Architecture:
    """GTE: gated feed-forward blocks with one bias, behind them."""
    wanted = config.defaults.model_class
    head = task_head(config, wanted)
    if wanted.endswith("ForMaskedLM"):
        head = masked_head(config, "lm_head", "lm_head.decoder", "lm_head.decoder.bias")
    channel = mlp(config, extra=(Weight("mlp.down_proj.bias", (config.size("hidden_size"),), "bias"),))
    return rotary_encoder(
        config, rotary_layer(config, channel, bias=True), head, pooled=wanted.endswith("ForSequenceClassification")
    )


@family("jina_embeddings_v3")
def jina_embeddings(config: Config) -> Architecture:
    """Jina's third embedding model: XLM-RoBERTa with rotary positions."""
    wanted, hidden = config.defaults.model_class, config.size("hidden_size")
    head = task_head(config, wanted)
    if wanted.endswith("ForSequenceClassification"):
        dense = linear("classifier.dense", hidden, hidden, bias=True)
        head = (*dense, *linear("classifier.out_proj", label_count(config), hidden, bias=True, role="head"))
    elif wanted.endswith("ForMaskedLM"):
        head = masked_head(config, "lm_head", "lm_head.decoder", "lm_head.bias")
    channel = mlp(config, gated=False, bias=True, names=("fc1", "fc2"))
    return rotary_encoder(config, rotary_layer(config, channel, bias=True), head, pooled=wanted.endswith("Model"))
