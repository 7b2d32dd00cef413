"""Encoders: BERT and its kin, ModernBERT."""

from __future__ import annotations

from dataclasses import replace

from planner.architecture.blocks import (
    activation,
    attention,
    biasless_layer_norm,
    block,
    embedding,
    label_count,
    layer_norm,
    linear,
    mlp,
    num_layers,
)
from planner.architecture.config import MAX_TOKENS, MAX_VOCABULARY, Config, UnknownArchitecture, dtype_of
from planner.architecture.families.gpt_like import full_attention
from planner.architecture.families.llama_like import FULL, SLIDING
from planner.architecture.families.registry import family
from planner.architecture.layers import Architecture, Layer, Norm, Stack, Weight

NO_POOLER = ("ForMaskedLM", "ForCausalLM", "LMHeadModel", "ForTokenClassification", "ForQuestionAnswering")


def encoder(
    config: Config,
    layers: list[Layer],
    *,
    embeddings: tuple[Weight, ...],
    weights: tuple[Weight, ...] = (),
    head: tuple[Weight, ...] = (),
    norm: Norm | None = None,
    layers_name: str = "encoder.layer",
) -> Architecture:
    """An encoder: embeddings, layers, and what its class puts on top."""
    return Architecture(
        model_type=config.text("model_type"),
        model_class=config.defaults.model_class,
        kind="encoder",
        hidden_size=config.size("hidden_size"),
        vocab_size=config.size("vocab_size", maximum=MAX_VOCABULARY),
        max_context_tokens=config.optional("max_position_embeddings", maximum=MAX_TOKENS),
        dtype=dtype_of(config),
        tied_head=config.defaults.model_class.endswith("ForMaskedLM"),
        embeddings=embeddings,
        head=head,
        final_norm=norm,
        decoder=Stack(f"{config.base}{layers_name}", "encoder", config.size("hidden_size"), tuple(layers), weights),
    )


def bert_layer(config: Config, norms: tuple[str, str] = ("attention.output.LayerNorm", "output.LayerNorm")) -> Layer:
    """Norms after the mixers, biases everywhere; of a decoder that reads an encoder a second attention with its norm."""
    is_decoder, crosses = config.flag("is_decoder"), config.flag("add_cross_attention")
    if crosses and not is_decoder:
        raise UnknownArchitecture("add_cross_attention without is_decoder: transformers builds no such encoder")
    names = ("query", "key", "value", "")
    mixer = full_attention(config, path="attention.self", names=names, qkv_bias=True, rotary=False, causal=is_decoder)
    hidden = config.size("hidden_size")
    output = linear("attention.output.dense", hidden, hidden, bias=True)
    channel = mlp(config, gated=False, bias=True, path="", names=("intermediate.dense", "output.dense"))
    mixer = replace(mixer, weights=(*mixer.weights[:-1], *output))
    layer = block(config, mixer, channel, norms=norms, norm=layer_norm)
    layer = replace(layer, dropout=config.number("hidden_dropout_prob", default=0.1) > 0)
    own = (*mixer.weights, *layer.norms[0].weights) if crosses else ()
    return replace(layer, weights=tuple(replace(weight, name=f"cross{weight.name}") for weight in own))


def bert_embeddings(config: Config) -> tuple[tuple[Weight, ...], tuple[Weight, ...]]:
    """Tables of words, positions and segments; the norm over their sum."""
    hidden, at = config.size("hidden_size"), f"{config.base}embeddings"
    rows = {
        "word_embeddings": config.size("vocab_size", maximum=MAX_VOCABULARY),
        "position_embeddings": config.size("max_position_embeddings", maximum=MAX_TOKENS),
        "token_type_embeddings": config.size("type_vocab_size", minimum=0),
    }
    if config.flag("use_task_id"):
        rows["task_type_embeddings"] = config.size("task_type_vocab_size")
    tables = tuple(embedding(f"{at}.{name}", count, hidden) for name, count in rows.items())
    return tables, layer_norm(f"{at}.LayerNorm", hidden).weights


def pooler(config: Config) -> tuple[Weight, ...]:
    """A linear over the first token, in the classes that have one."""
    hidden = config.size("hidden_size")
    return linear(f"{config.base}pooler.dense", hidden, hidden, bias=True)


@family("bert", "ernie")
def bert(config: Config) -> Architecture:
    """BERT. Its published checkpoints are pre-training models; without another task the encoder with its pooler is read."""
    wanted = config.defaults.model_class
    if wanted.endswith(("ForMaskedLM", "ForPreTraining")) and config.text("model_type") == "bert":
        stem = wanted.removesuffix("ForMaskedLM").removesuffix("ForPreTraining")
        config.notes.append(f"read as {stem}Model: the pre-training heads are left out")
        config = replaced_class(config, f"{stem}Model")
        wanted = config.defaults.model_class
    if wanted.endswith("ForPreTraining"):
        raise UnknownArchitecture(f"{wanted} is not read; its encoder is")
    tables, norm = bert_embeddings(config)
    layers = [bert_layer(config)] * num_layers(config)
    on_top = () if wanted.endswith(NO_POOLER) else pooler(config)
    return encoder(config, layers, embeddings=tables, weights=norm + on_top, head=bert_head(config, wanted))


def replaced_class(config: Config, name: str) -> Config:
    """The same config read for a class without a head, whose names start at the root."""
    found = Config(config.values, replace(config.defaults, model_class=name), reader=config.reader)
    found.sources, found.notes, found.read = config.sources, config.notes, config.read
    return found


def bert_head(config: Config, wanted: str) -> tuple[Weight, ...]:
    """What BERT's classes put on top; the head of a masked LM shares the word embedding."""
    hidden = config.size("hidden_size")
    if wanted.endswith(("ForMaskedLM", "LMHeadModel", "ForCausalLM")):
        at = "cls.predictions"
        return (
            Weight(f"{at}.bias", (config.size("vocab_size", maximum=MAX_VOCABULARY),), "bias"),
            *linear(f"{at}.transform.dense", hidden, hidden, bias=True),
            *layer_norm(f"{at}.transform.LayerNorm", hidden).weights,
            *untied_decoder(config, f"{at}.decoder"),
        )
    return task_head(config, wanted)


def untied_decoder(config: Config, name: str, *, bias: bool = True) -> tuple[Weight, ...]:
    """The matrix of a masked-LM head where it does not share the word embedding."""
    if config.flag("tie_word_embeddings", default=True):
        return ()
    return linear(name, config.size("vocab_size", maximum=MAX_VOCABULARY), config.size("hidden_size"), bias=bias, role="head")


def task_head(config: Config, wanted: str) -> tuple[Weight, ...]:
    """Classification of a sequence or of tokens, or the span of an answer."""
    hidden = config.size("hidden_size")
    if wanted.endswith(("ForSequenceClassification", "ForTokenClassification")):
        return linear("classifier", label_count(config), hidden, bias=True, role="head")
    if wanted.endswith("ForQuestionAnswering"):
        return linear("qa_outputs", label_count(config), hidden, bias=True, role="head")
    return ()


@family("roberta", "xlm-roberta", "camembert")
def roberta(config: Config) -> Architecture:
    """RoBERTa: BERT with another head."""
    wanted, hidden = config.defaults.model_class, config.size("hidden_size")
    tables, norm = bert_embeddings(config)
    layers = [bert_layer(config)] * num_layers(config)
    head = task_head(config, wanted)
    if wanted.endswith("ForSequenceClassification"):
        dense = linear("classifier.dense", hidden, hidden, bias=True)
        head = (*dense, *linear("classifier.out_proj", label_count(config), hidden, bias=True, role="head"))
    elif wanted.endswith(("ForMaskedLM", "ForCausalLM")):
        head = (
            Weight("lm_head.bias", (config.size("vocab_size", maximum=MAX_VOCABULARY),), "bias"),
            *linear("lm_head.dense", hidden, hidden, bias=True),
            *layer_norm("lm_head.layer_norm", hidden).weights,
            *untied_decoder(config, "lm_head.decoder"),
        )
    on_top = pooler(config) if wanted.endswith("Model") else ()
    return encoder(config, layers, embeddings=tables, weights=norm + on_top, head=head)


@family("distilbert")
def distilbert(config: Config) -> Architecture:
    """DistilBERT: BERT without segments and pooler."""
    wanted, hidden = config.defaults.model_class, config.size("hidden_size")
    names = ("q_lin", "k_lin", "v_lin", "out_lin")
    mixer = full_attention(config, path="attention", names=names, qkv_bias=True, output_bias=True, rotary=False, causal=False)
    channel = mlp(config, config.size("hidden_dim"), gated=False, bias=True, path="ffn", names=("lin1", "lin2"))
    layer = block(config, mixer, channel, norms=("sa_layer_norm", "output_layer_norm"), norm=layer_norm, dropout=0.1)
    at, vocabulary = f"{config.base}embeddings", config.size("vocab_size", maximum=MAX_VOCABULARY)
    tables = (
        embedding(f"{at}.word_embeddings", vocabulary, hidden),
        embedding(f"{at}.position_embeddings", config.size("max_position_embeddings", maximum=MAX_TOKENS), hidden),
    )
    head = task_head(config, wanted)
    if wanted.endswith("ForSequenceClassification"):
        head = (*linear("pre_classifier", hidden, hidden, bias=True), *head)
    elif wanted.endswith("ForMaskedLM"):
        transform = linear("vocab_transform", hidden, hidden, bias=True)
        head = (*transform, *layer_norm("vocab_layer_norm", hidden).weights, Weight("vocab_projector.bias", (vocabulary,), "bias"))
        head += untied_decoder(config, "vocab_projector", bias=False)
    norm = layer_norm(f"{at}.LayerNorm", hidden).weights
    layers = [layer] * num_layers(config)
    return encoder(config, layers, embeddings=tables, weights=norm, head=head, layers_name="transformer.layer")


@family("modernbert")
def modernbert(config: Config) -> Architecture:
    """ModernBERT: rotary positions, gated feed-forward, two of three layers windowed on both sides."""
    wanted, hidden, layers = config.defaults.model_class, config.size("hidden_size"), num_layers(config)
    make = layer_norm if config.flag("norm_bias") else biasless_layer_norm
    bias = config.flag("attention_bias")
    every = config.optional("global_attn_every_n_layers") or 3
    types = config.layer_types(layers, lambda index: SLIDING if index % every else FULL, (FULL, SLIDING))

    def layer(kind: str, norms: tuple[str, ...]) -> Layer:
        mixer = attention(
            config,
            path="attn",
            fused="Wqkv",
            names=("", "", "", "Wo"),
            heads=(heads := config.size("num_attention_heads")),
            kv_heads=heads,
            head_dim=max(hidden // heads, 1),
            qkv_bias=bias,
            output_bias=bias,
            causal=False,
            window_tokens=config.size("local_attention", "sliding_window") if kind == SLIDING else None,
        )
        channel = mlp(config, bias=config.flag("mlp_bias"), names=("", "", "Wo"), fused="Wi")
        return block(config, mixer, replace(channel, activation=activation(config)), norms=norms, norm=make)

    both, rest = ("attn_norm", "mlp_norm"), {kind: layer(kind, ("attn_norm", "mlp_norm")) for kind in dict.fromkeys(types)}
    built = [*(layer(kind, both[1:]) for kind in types[:1]), *(rest[kind] for kind in types[1:])]
    vocabulary = config.size("vocab_size", maximum=MAX_VOCABULARY)
    head: tuple[Weight, ...] = ()
    if not wanted.endswith("Model"):
        at = "head"
        head = (*linear(f"{at}.dense", hidden, hidden, bias=config.flag("classifier_bias")), *make(f"{at}.norm", hidden).weights)
        if wanted.endswith("ForMaskedLM"):
            head += (Weight("decoder.bias", (vocabulary,), "bias"),) if config.flag("decoder_bias") else ()
            head += () if config.flag("tie_word_embeddings") else linear("decoder", vocabulary, hidden, role="head")
        else:
            head += linear("classifier", label_count(config), hidden, bias=True, role="head")
    table = embedding(f"{config.base}embeddings.tok_embeddings", vocabulary, hidden)
    first = make(f"{config.base}embeddings.norm", hidden).weights
    norm = make(f"{config.base}final_norm", hidden)
    return encoder(config, built, embeddings=(table,), weights=first, head=head, norm=norm, layers_name="layers")
