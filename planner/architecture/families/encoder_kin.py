"""Encoders beside BERT and RoBERTa: ALBERT, ELECTRA, DeBERTa, MPNet, Megatron's BERT, those with norms first, EuroBERT."""

from __future__ import annotations

from dataclasses import replace

from planner.architecture.blocks import (
    attention,
    block,
    convolution,
    embedding,
    label_count,
    layer_norm,
    linear,
    mlp,
    num_layers,
    rms_norm,
    with_head,
)
from planner.architecture.config import MAX_LAYERS, MAX_TOKENS, MAX_VOCABULARY, Config, UnknownArchitecture
from planner.architecture.counts import layer_weights
from planner.architecture.families.encoder import (
    NO_POOLER,
    bert_embeddings,
    bert_head,
    bert_layer,
    encoder,
    pooler,
    task_head,
    untied_decoder,
)
from planner.architecture.families.gpt_like import full_attention
from planner.architecture.families.registry import family
from planner.architecture.layers import Architecture, Layer, Weight

CAUSAL = ("ForCausalLM", "LMHeadModel")


def refuse(config: Config, *endings: str) -> str:
    """The wanted class, unless it is one of those that are not read."""
    wanted = config.defaults.model_class
    if wanted.endswith(endings):
        raise UnknownArchitecture(f"{wanted} is not read; its encoder is")
    return wanted


@family("electra")
def electra(config: Config) -> Architecture:
    """ELECTRA: BERT's layers behind embeddings that may be narrower."""
    wanted = refuse(config, *CAUSAL)
    hidden, width = config.size("hidden_size"), config.optional("embedding_size") or config.size("hidden_size")
    tables, weights = bert_embeddings(with_head(config, hidden_size=width))
    if width != hidden:
        weights += linear(f"{config.base}embeddings_project", hidden, width, bias=True)
    layers = [bert_layer(config)] * num_layers(config)
    return encoder(config, layers, embeddings=tables, weights=weights, head=electra_head(config, wanted, width))


def electra_head(config: Config, wanted: str, width: int) -> tuple[Weight, ...]:
    """A generator's head shares the word embedding; a discriminator's says of each token whether it was replaced."""
    hidden, vocabulary = config.size("hidden_size"), config.size("vocab_size", maximum=MAX_VOCABULARY)
    if wanted.endswith("ForMaskedLM"):
        head = layer_norm("generator_predictions.LayerNorm", width).weights
        head += linear("generator_predictions.dense", width, hidden, bias=True)
        head += (Weight("generator_lm_head.bias", (vocabulary,), "bias"),)
        tied = config.flag("tie_word_embeddings")
        return head if tied else (*head, *linear("generator_lm_head", vocabulary, width, role="head"))
    if wanted.endswith("ForPreTraining"):
        dense = linear("discriminator_predictions.dense", hidden, hidden, bias=True)
        return (*dense, *linear("discriminator_predictions.dense_prediction", 1, hidden, bias=True, role="head"))
    return dense_then_labels(config, wanted)


def dense_then_labels(config: Config, wanted: str) -> tuple[Weight, ...]:
    """A sequence's classifier has a layer of its own before the labels."""
    hidden = config.size("hidden_size")
    if wanted.endswith("ForSequenceClassification"):
        dense = linear("classifier.dense", hidden, hidden, bias=True)
        return (*dense, *linear("classifier.out_proj", label_count(config), hidden, bias=True, role="head"))
    return task_head(config, wanted)


def roberta_head(config: Config, wanted: str) -> tuple[Weight, ...]:
    """RoBERTa's: a transformation before the word embedding, or labels."""
    hidden = config.size("hidden_size")
    if not wanted.endswith("ForMaskedLM"):
        return dense_then_labels(config, wanted)
    return (
        Weight("lm_head.bias", (config.size("vocab_size", maximum=MAX_VOCABULARY),), "bias"),
        *linear("lm_head.dense", hidden, hidden, bias=True),
        *layer_norm("lm_head.layer_norm", hidden).weights,
        *untied_decoder(config, "lm_head.decoder"),
    )


def normed_first(config: Config, norms: tuple[str, str]) -> list[Layer]:
    """BERT's layers with norms before the mixers."""
    return [bert_layer(config, norms)] * num_layers(config)


@family("megatron-bert")
def megatron_bert(config: Config) -> Architecture:
    """Megatron's BERT: norms first, none over the embeddings."""
    wanted = refuse(config, "ForPreTraining", *CAUSAL)
    tables, _ = bert_embeddings(config)
    pooled = wanted.endswith(("Model", "ForSequenceClassification"))
    return encoder(
        config,
        normed_first(config, ("attention.ln", "ln")),
        embeddings=tables,
        weights=pooler(config) if pooled else (),
        head=bert_head(config, wanted),
        norm=layer_norm(f"{config.base}encoder.ln", config.size("hidden_size")),
    )


@family("roberta-prelayernorm", "xlm-roberta-xl")
def roberta_normed_first(config: Config) -> Architecture:
    """RoBERTa with norms first; the XL one has none over the embeddings."""
    wanted, large = refuse(config, *CAUSAL), config.text("model_type") == "xlm-roberta-xl"
    tables, norm = bert_embeddings(config)
    norms = ("attention.self_attn_layer_norm", "LayerNorm") if large else ("attention.LayerNorm", "intermediate.LayerNorm")
    last = f"{config.base}encoder.LayerNorm" if large else f"{config.base}LayerNorm"
    weights = (() if large else norm) + (pooler(config) if wanted.endswith("Model") else ())
    return encoder(
        config, normed_first(config, norms), embeddings=tables, weights=weights, head=roberta_head(config, wanted),
        norm=layer_norm(last, config.size("hidden_size")),
    )  # fmt: skip


@family("mpnet")
def mpnet(config: Config) -> Architecture:
    """MPNet: distances bias the scores of all layers, no segments."""
    wanted, hidden, at = config.defaults.model_class, config.size("hidden_size"), f"{config.base}embeddings"
    names = ("q", "k", "v", "o")
    mixer = full_attention(config, path="attention.attn", names=names, qkv_bias=True, output_bias=True, rotary=False, causal=False)
    channel = mlp(config, gated=False, bias=True, path="", names=("intermediate.dense", "output.dense"))
    layer = block(config, mixer, channel, norms=("attention.LayerNorm", "output.LayerNorm"), norm=layer_norm)
    tables = (
        embedding(f"{at}.word_embeddings", config.size("vocab_size", maximum=MAX_VOCABULARY), hidden),
        embedding(f"{at}.position_embeddings", config.size("max_position_embeddings", maximum=MAX_TOKENS), hidden),
    )
    buckets = config.size("relative_attention_num_buckets")
    weights = (
        *layer_norm(f"{at}.LayerNorm", hidden).weights,
        embedding(f"{config.base}encoder.relative_attention_bias", buckets, config.size("num_attention_heads")),
        *(pooler(config) if wanted.endswith("Model") else ()),
    )
    layers = [replace(layer, dropout=config.number("hidden_dropout_prob", default=0.1) > 0)] * num_layers(config)
    return encoder(config, layers, embeddings=tables, weights=weights, head=roberta_head(config, wanted))


@family("deberta", "deberta-v2")
def deberta(config: Config) -> Architecture:
    """DeBERTa: content and relative positions attend to one another."""
    wanted, hidden = refuse(config, "ForMultipleChoice"), config.size("hidden_size")
    width = config.optional("embedding_size") or hidden
    at, second = f"{config.base}embeddings", config.text("model_type") == "deberta-v2"
    tables: tuple[Weight, ...] = (embedding(f"{at}.word_embeddings", config.size("vocab_size", maximum=MAX_VOCABULARY), width),)
    if config.flag("position_biased_input", default=True):
        rows = config.size("max_position_embeddings", maximum=MAX_TOKENS)
        tables += (embedding(f"{at}.position_embeddings", rows, width),)
    if segments := config.size("type_vocab_size", minimum=0):
        tables += (embedding(f"{at}.token_type_embeddings", segments, width),)
    weights = layer_norm(f"{at}.LayerNorm", hidden).weights
    if width != hidden:
        weights += linear(f"{at}.embed_proj", hidden, width)
    layer = deberta_layer(config, second=second)
    weights += deberta_positions(config, second=second)
    head = deberta_head(config, wanted, width)
    return encoder(config, [layer] * num_layers(config), embeddings=tables, weights=weights, head=head)


def deberta_layer(config: Config, *, second: bool) -> Layer:
    """BERT's block with projections of positions; the first release has one linear for queries, keys and values."""
    hidden, path = config.size("hidden_size"), "attention.self"
    heads = config.size("num_attention_heads")
    config.require(hidden % heads == 0, "num_attention_heads", f"must divide hidden_size ({hidden}), got {heads}")
    head_dim = (config.optional("attention_head_size") if second else None) or max(hidden // heads, 1)
    inner = heads * head_dim
    weights: tuple[Weight, ...] = ()
    if second:
        weights = tuple(
            weight for name in ["query", "key", "value"] for weight in linear(f"{path}.{name}_proj", inner, hidden, bias=True)
        )
    else:
        weights = linear(f"{path}.in_proj", 3 * inner, hidden)
        weights += tuple(Weight(f"{path}.{name}_bias", (inner,), "bias") for name in "qv")
        if config.flag("talking_head"):
            weights += tuple(w for name in ("logits", "weights") for w in linear(f"{path}.head_{name}_proj", heads, heads))
    weights += positions_read(config, path, inner, second=second)
    weights += linear("attention.output.dense", hidden, inner, bias=True)
    mixer = full_attention(config, path=path, rotary=False, causal=False)
    mixer = replace(mixer, weights=weights, head_dim=head_dim, value_head_dim=head_dim, fused_qkv=not second)
    channel = mlp(config, gated=False, bias=True, path="", names=("intermediate.dense", "output.dense"))
    layer = block(config, mixer, channel, norms=("attention.output.LayerNorm", "output.LayerNorm"), norm=layer_norm)
    return replace(layer, dropout=config.number("hidden_dropout_prob", default=0.1) > 0)


def positions_read(config: Config, path: str, inner: int, *, second: bool) -> tuple[Weight, ...]:
    """Projections of the embedded distances, for contents that look at positions and the reverse."""
    hidden, kinds = config.size("hidden_size"), config.get("pos_att_type")
    kinds = kinds.lower() if isinstance(kinds, str) else kinds or ()
    if (
        not config.flag("relative_attention")
        or (second and config.flag("share_att_key"))
        or not isinstance(kinds, str | list | tuple)
    ):
        return ()
    weights: tuple[Weight, ...] = ()
    if "c2p" in kinds:
        weights += linear(f"{path}.pos_key_proj" if second else f"{path}.pos_proj", inner, hidden, bias=second)
    if "p2c" in kinds:
        weights += linear(f"{path}.pos_query_proj" if second else f"{path}.pos_q_proj", inner, hidden, bias=True)
    return weights


def deberta_positions(config: Config, *, second: bool) -> tuple[Weight, ...]:
    """The embedded distances, their norm, and the convolution beside the first layer."""
    hidden, at = config.size("hidden_size"), f"{config.base}encoder"
    weights: tuple[Weight, ...] = ()
    if config.flag("relative_attention"):
        farthest = config.get("max_relative_positions")
        if not isinstance(farthest, int) or farthest < 1:
            farthest = config.size("max_position_embeddings", maximum=MAX_TOKENS)
        buckets = config.get("position_buckets") if second else None
        rows = buckets if isinstance(buckets, int) and 0 < buckets <= MAX_TOKENS else min(farthest, MAX_TOKENS)
        weights = (embedding(f"{at}.rel_embeddings", 2 * rows, hidden),)
    if second and "layer_norm" in [part.strip() for part in config.text("norm_rel_ebd").lower().split("|")]:
        weights += layer_norm(f"{at}.LayerNorm", hidden).weights
    if second and (kernel := config.optional("conv_kernel_size", minimum=0)):
        groups = config.optional("conv_groups") or 1
        weights += convolution(f"{at}.conv.conv", hidden, hidden // groups, kernel, bias=True)
        weights += layer_norm(f"{at}.conv.LayerNorm", hidden).weights
    return weights


def deberta_head(config: Config, wanted: str, width: int) -> tuple[Weight, ...]:
    """Masks are filled by the word embedding; a sequence is classified by its first token through a pooler."""
    hidden, vocabulary = config.size("hidden_size"), config.size("vocab_size", maximum=MAX_VOCABULARY)
    if wanted.endswith("ForMaskedLM"):
        legacy = config.flag("legacy", default=True)
        if not legacy and not config.flag("tie_word_embeddings"):
            raise UnknownArchitecture("legacy false with tie_word_embeddings false is not read for DeBERTa")
        at, inner = ("cls.predictions", width) if legacy else ("lm_predictions.lm_head", hidden)
        dense, norm = (f"{at}.transform.dense", f"{at}.transform.LayerNorm") if legacy else (f"{at}.dense", f"{at}.LayerNorm")
        head = (
            Weight(f"{at}.bias", (vocabulary,), "bias"),
            *linear(dense, inner, hidden, bias=True),
            *layer_norm(norm, inner).weights,
        )
        return (
            head
            if config.flag("tie_word_embeddings")
            else (*head, *linear(f"{at}.decoder", vocabulary, width, bias=True, role="head"))
        )
    if wanted.endswith("ForSequenceClassification"):
        pooled = config.optional("pooler_hidden_size") or hidden
        dense_weights = linear("pooler.dense", pooled, pooled, bias=True)
        return (*dense_weights, *linear("classifier", label_count(config), pooled, bias=True, role="head"))
    return task_head(config, wanted)


@family("eurobert")
def eurobert(config: Config) -> Architecture:
    """EuroBERT: Llama's layers that see both sides."""
    wanted, hidden = config.defaults.model_class, config.size("hidden_size")
    bias = config.flag("attention_bias")
    mixer = attention(config, qkv_bias=bias, output_bias=bias, causal=False)
    layer = block(config, mixer, mlp(config, bias=config.flag("mlp_bias")))
    vocabulary = config.size("vocab_size", maximum=MAX_VOCABULARY)
    head: tuple[Weight, ...] = ()
    if wanted.endswith("ForMaskedLM"):
        head = linear("lm_head", vocabulary, hidden, bias=config.flag("mlp_bias"), role="head")
        head = head[1:] if config.flag("tie_word_embeddings") else head
    elif wanted.endswith("ForSequenceClassification"):
        labels = linear("classifier", label_count(config), hidden, bias=True, role="head")
        head = (*linear("dense", hidden, hidden, bias=True), *labels)
    else:
        head = task_head(config, wanted)
    table = embedding(f"{config.base}embed_tokens", vocabulary, hidden)
    norm = rms_norm(f"{config.base}norm", hidden)
    return encoder(config, [layer] * num_layers(config), embeddings=(table,), head=head, norm=norm, layers_name="layers")


@family("albert")
def albert(config: Config) -> Architecture:
    """ALBERT: a few layers' weights serve all layers, behind narrower embeddings."""
    wanted, hidden, at = config.defaults.model_class, config.size("hidden_size"), f"{config.base}encoder"
    width, groups = config.size("embedding_size"), config.size("num_hidden_groups", maximum=MAX_LAYERS)
    inside = config.size("inner_group_num", maximum=MAX_LAYERS)
    count = max(num_layers(config), groups) * inside
    config.require(count <= MAX_LAYERS, "inner_group_num", f"must make at most {MAX_LAYERS} layers, got {inside}")
    own = min(groups * inside, MAX_LAYERS)
    tables, weights = bert_embeddings(with_head(config, hidden_size=width))
    weights += linear(f"{at}.embedding_hidden_mapping_in", hidden, width, bias=True)
    if not wanted.endswith(NO_POOLER):
        weights += linear(f"{config.base}pooler", hidden, hidden, bias=True)
    layer = albert_layer(config)
    head = albert_head(config, wanted, width)
    served = without_weights(layer)
    layers = [layer] * own + [served] * (min(count, MAX_LAYERS) - own)
    at = "encoder.albert_layer_groups.0.albert_layers"
    return encoder(config, layers, embeddings=tables, weights=weights, head=head, layers_name=at)


def albert_layer(config: Config) -> Layer:
    """BERT's layer under other names."""
    hidden, names = config.size("hidden_size"), ("query", "key", "value", "dense")
    mixer = full_attention(config, path="attention", names=names, qkv_bias=True, output_bias=True, rotary=False, causal=False)
    channel = mlp(config, gated=False, bias=True, path="", names=("ffn", "ffn_output"), hidden=hidden)
    return block(config, mixer, channel, norms=("attention.LayerNorm", "full_layer_layer_norm"), norm=layer_norm)


def without_weights(layer: Layer) -> Layer:
    """A layer that another's weights serve."""
    return Layer(
        tuple(replace(mixer, weights=()) for mixer in layer.sequence),
        tuple(replace(channel, weights=()) for channel in layer.channel),
        tuple(replace(norm, weights=()) for norm in layer.norms),
        dropout=layer.dropout,
        borrowed=tuple(layer_weights(layer)),
    )


def albert_head(config: Config, wanted: str, width: int) -> tuple[Weight, ...]:
    """A masked-LM head transforms to the embeddings' width; pre-training tells the order of sentences too."""
    hidden, vocabulary = config.size("hidden_size"), config.size("vocab_size", maximum=MAX_VOCABULARY)
    if not wanted.endswith(("ForMaskedLM", "ForPreTraining")):
        return task_head(config, wanted)
    head = (
        Weight("predictions.bias", (vocabulary,), "bias"),
        *layer_norm("predictions.LayerNorm", width).weights,
        *linear("predictions.dense", width, hidden, bias=True),
    )
    if not config.flag("tie_word_embeddings", default=True):
        head += linear("predictions.decoder", vocabulary, width, bias=True, role="head")
    order = linear("sop_classifier.classifier", label_count(config), hidden, bias=True, role="head")
    return (*head, *order) if wanted.endswith("ForPreTraining") else head
