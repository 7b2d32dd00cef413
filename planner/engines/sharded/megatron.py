"""Megatron-LM: tensor, sequence, pipeline, context and expert parallelism with Transformer Engine's layers.

Megatron Core 0.20 (``core/distributed/param_and_grad_buffer.py``, ``core/optimizer/distrib_optimizer.py``,
``core/pipeline_parallel/schedules.py``, ``core/tensor_parallel/cross_entropy.py``) and Transformer Engine's fused layers:

- a rank keeps 16-bit parameters and fp32 gradients of all it computes, into which products add directly; fp32 masters and
  Adam's moments are whole, or with the distributed optimizer divided over the replicas (experts over theirs);
- a layer saves the input and the result of both norms (cut over the tensor-parallel ranks with sequence parallelism), the
  joint projection of queries, keys and values, rotated queries and keys, what attention made with its fp32 log-sum-exp,
  both halves of the first feed-forward product and what the second reads; fully recomputed it saves its input alone;
- in 1F1B stage i of p holds min(m, p − i) micro-batches, interleaved min(m · v, 2 (p − i − 1) + (v − 1) p + 1) chunks;
- the last stage's logits are cut by vocabulary: 16 bit, and a fp32 copy that becomes softmax and gradient in place.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from math import prod

from planner.architecture.counts import is_routed, layer_weights
from planner.architecture.layers import Architecture, Attention, ChannelMixer, DenseMLP, Layer, Weight
from planner.components.tape import Level, Peak, Size, highest
from planner.engines.sharded.layout import Ways
from planner.engines.sharded.tensor import tensor_rank
from planner.engines.transformers import Step
from planner.faults import Fault, Faults
from planner.memo import remember_by_identity
from planner.modelled import NotModelled
from planner.record import record
from planner.scenario import Scenario

FP32_BYTES = 4
BF16_BYTES = 2
VOCABULARY_MULTIPLE = 128
"""``--make-vocab-size-divisible-by``, times the tensor-parallel ranks."""
MOMENTS = {"adamw": 2, "adamw_fused": 2, "adamw_foreach": 2, "sgd_momentum": 1, "sgd": 0}


@record
class Stage:
    """One pipeline stage on one of its ranks.

    ``dense`` and ``experts``: parameters it computes with; ``held``: layers and, of each, how many micro-batches at once.
    """

    number: int
    of: int
    layers: tuple[Layer, ...]
    dense: int
    experts: int
    in_flight: int


@remember_by_identity(64)
def stages(architecture: Architecture, ways: Ways, chunks: int, micro_batches: int) -> tuple[Stage, ...]:
    """Every stage; its layers are those of one rank. Raises :class:`Faults` where stages are not equal.

    Interleaved, ``in_flight`` counts chunks of a stage's layers.
    """
    total, parts = len(architecture.decoder.layers), ways.pipeline * chunks
    if total % parts:
        message = f"Megatron cuts layers evenly: {ways.pipeline} stages of {chunks} chunks don't divide the {total} layers"
        raise Faults([Fault("parallel.pipeline", message)])
    rank = tensor_rank(_padded(architecture, ways.tensor), ways.tensor, cuts_embedding=True)
    each = total // ways.pipeline
    return tuple(
        _stage(rank, rank.decoder.layers[number * each : (number + 1) * each], number, ways, chunks, micro_batches)
        for number in range(ways.pipeline)
    )


def _stage(
    architecture: Architecture, layers: tuple[Layer, ...], number: int, ways: Ways, chunks: int, micro_batches: int
) -> Stage:
    weights = [weight for layer in layers for weight in layer_weights(layer)]
    if number == 0:
        weights += architecture.embeddings
    if number == ways.pipeline - 1:
        weights += architecture.final_norm.weights if architecture.final_norm is not None else ()
        weights += architecture.head
        if architecture.tied_head and ways.pipeline > 1:
            weights += architecture.embeddings[:1]
    dense = sum(prod(w.shape) * w.count for w in weights if not w.is_buffer and not is_routed(w))
    routed = sum(prod(w.shape) * -(-w.count // ways.expert) for w in weights if not w.is_buffer and is_routed(w))
    before = ways.pipeline - number - 1
    held = min(micro_batches, before + 1)
    if chunks > 1:
        held = min(micro_batches * chunks, 2 * before + (chunks - 1) * ways.pipeline + 1)
    return Stage(number, ways.pipeline, layers, dense, routed, held)


def _padded(architecture: Architecture, tensor: int) -> Architecture:
    """The vocabulary as Megatron pads it."""
    multiple = VOCABULARY_MULTIPLE * tensor
    rows = -(-architecture.vocab_size // multiple) * multiple

    def pad(weight: Weight) -> Weight:
        return replace(weight, shape=(rows, *weight.shape[1:])) if weight.shape[0] == architecture.vocab_size else weight

    return replace(
        architecture, vocab_size=rows, embeddings=tuple(map(pad, architecture.embeddings)), head=tuple(map(pad, architecture.head))
    )


def require_megatron(scenario: Scenario, architecture: Architecture) -> None:
    """Raise :class:`NotModelled` for layers and choices that were not read from Megatron's code."""
    ask = scenario.training
    for field, value, known in (
        ("method", ask.method, ("full",)), ("precision", ask.precision, ("bf16", "amp-bf16", "amp-fp16")),
        ("optimizer", ask.optimizer, tuple(MOMENTS)), ("loss", ask.loss, ("default",)),
        ("checkpointing", ask.checkpointing, ("none", "full", "selective")),
        ("attention", ask.attention, ("sdpa", "flash")),
    ):  # fmt: skip
        if value not in known:
            raise NotModelled(f"training.{field}: {value} under Megatron has no closed form yet")
    if scenario.offload != type(scenario.offload)():
        raise NotModelled("offload: Megatron's offloading has no closed form yet")
    if architecture.kind != "decoder" or architecture.towers:
        raise NotModelled(f"{architecture.model_class}: Megatron's layers are modelled for decoders of text")
    for layer in architecture.decoder.layers:
        if len(layer.sequence) != 1 or len(layer.channel) != 1 or not isinstance(layer.sequence[0], Attention):
            raise NotModelled(
                f"{architecture.model_class}: Megatron's layers are modelled for attention with one feed-forward block"
            )


@record
class Tokens:
    """One micro-batch on one rank: ``sequence`` tokens of each of ``batch`` sequences, ``residual`` of them between blocks."""

    batch: int
    sequence: int
    residual: int
    hidden: int

    def wide(self, width: int, bytes_: int = BF16_BYTES) -> Size:
        """A tensor of every token."""
        return Size(batch=self.batch, sequence=self.sequence, width=width, bytes=bytes_)

    def stream(self) -> Size:
        """The residual stream, cut over the tensor-parallel ranks with sequence parallelism."""
        return Size(batch=self.batch, sequence=self.residual, hidden_size=self.hidden, bytes=BF16_BYTES)


def megatron_steps(scenario: Scenario, architecture: Architecture, ways: Ways, stage: Stage) -> list[Step]:
    """Load, forward, backward and optimizer of one stage's rank, at the moment when most micro-batches are in flight."""
    ask, options = scenario.training, scenario.training.engine_options
    cut = ways.tensor if options.get("sequence_parallel", ways.tensor > 1) else 1
    own = (ask.sequence or 1) // ways.context
    tokens = Tokens(ask.batch, own, own // cut, architecture.hidden_size)
    load = _model_states(stage, ways, divided=ways.sharding != "none")
    states = _with_moments(load, stage, ways, MOMENTS[ask.optimizer], divided=ways.sharding != "none")
    chunks = int(str(options.get("virtual_pipeline", 1)))
    forward = _activations(states, stage, tokens, chunks, recomputed=ask.checkpointing == "full")
    at_head = _with_logits(forward, stage, tokens, architecture, ways)
    back = _with_transients(forward, stage, tokens, recomputed=ask.checkpointing == "full")
    return [
        Step("load", Peak(load)), Step("forward", Peak(at_head, "loss" if stage.number == stage.of - 1 else "layers")),
        Step("backward", highest(Peak(back, "backward of a layer"), Peak(at_head.fork(), "backward of the head"))),
        Step("optimizer", Peak(states.copy())),
    ]  # fmt: skip


def _divided(stage: Stage, ways: Ways, *, divided: bool) -> tuple[int, int]:
    """Parameters whose masters and moments a rank keeps: dense ones over all replicas, experts over theirs."""
    if not divided:
        return stage.dense, stage.experts
    replicas = ways.sharded_over
    return -(-stage.dense // replicas), -(-stage.experts // max(replicas // ways.expert, 1))


def _model_states(stage: Stage, ways: Ways, *, divided: bool) -> Level:
    level, whole = Level(), stage.dense + stage.experts
    level.change("weights", "parameters", Size(parameters_of_rank=whole, bytes=BF16_BYTES), 1)
    level.change("gradients", "gradient buffer", Size(parameters_of_rank=whole, fp32_bytes=FP32_BYTES), 1)
    for name, count in zip(("masters", "masters of experts"), _divided(stage, ways, divided=divided), strict=True):
        if count:
            level.change("master_weights", name, Size(parameters=count, fp32_bytes=FP32_BYTES), 1)
    return level


def _with_moments(load: Level, stage: Stage, ways: Ways, moments: int, *, divided: bool) -> Level:
    level = load.fork()
    for name, count in zip(("moments", "moments of experts"), _divided(stage, ways, divided=divided), strict=True):
        if count and moments:
            level.change("optimizer_state", name, Size(parameters=count, fp32_bytes=FP32_BYTES), moments)
    return level


def _activations(states: Level, stage: Stage, tokens: Tokens, chunks: int, *, recomputed: bool) -> Level:
    """What all micro-batches in flight have saved. A chunk in flight counts its share of the layers."""
    level, held = states.fork(), stage.in_flight
    for layer in stage.layers[::chunks] if chunks > 1 else stage.layers:
        for name, size in [("layer input", tokens.stream())] if recomputed else _saved(layer, tokens):
            level.change("activations", name, size, held)
    if stage.number == 0:
        level.change("activations", "token ids", Size(batch=tokens.batch, sequence=tokens.sequence, int64_bytes=8), held)
    return level


def _saved(layer: Layer, tokens: Tokens) -> Iterator[tuple[str, Size]]:
    """What one layer saves of one micro-batch."""
    mixer, channel = layer.sequence[0], layer.channel[0]
    assert isinstance(mixer, Attention)  # noqa: S101  require_megatron has seen to it
    queries, keys = mixer.num_heads * mixer.head_dim, mixer.num_kv_heads * mixer.head_dim
    for norm in ("attention norm", "mlp norm"):
        yield f"input of the {norm}", tokens.stream()
        yield norm, tokens.stream()
    yield "queries, keys and values", tokens.wide(queries + keys + mixer.num_kv_heads * mixer.value_head_dim)
    if mixer.rotary_dim:
        yield "rotated queries and keys", tokens.wide(queries + keys)
    yield "attended", tokens.wide(mixer.num_heads * mixer.value_head_dim)
    yield "log-sum-exp", tokens.wide(mixer.num_heads, FP32_BYTES)
    yield from _saved_by_channel(channel, tokens)


def _saved_by_channel(channel: ChannelMixer, tokens: Tokens) -> Iterator[tuple[str, Size]]:
    if isinstance(channel, DenseMLP):
        yield "first product", tokens.wide((2 if channel.gated else 1) * channel.intermediate_size)
        yield "activated", tokens.wide(channel.intermediate_size)
        return
    gated, width = 2 if channel.gated else 1, channel.intermediate_size
    routed = {"batch": tokens.batch, "sequence": tokens.sequence, "experts_per_token": channel.experts_per_token}
    yield "tokens by expert", Size(**routed, hidden_size=tokens.hidden, bytes=BF16_BYTES)
    yield "first product of experts", Size(**routed, width=gated * width, bytes=BF16_BYTES)
    yield "activated by experts", Size(**routed, width=width, bytes=BF16_BYTES)
    yield "router scores", tokens.wide(channel.num_experts, FP32_BYTES)
    if channel.shared_intermediate_size:
        yield "first product of the shared expert", tokens.wide(gated * channel.shared_intermediate_size)
        yield "activated by the shared expert", tokens.wide(channel.shared_intermediate_size)


def _with_logits(forward: Level, stage: Stage, tokens: Tokens, architecture: Architecture, ways: Ways) -> Level:
    """On the last stage: the head's input, logits in 16 bit, and the fp32 copy that becomes softmax and gradient."""
    level = forward.fork()
    if stage.number < stage.of - 1:
        return level
    multiple = VOCABULARY_MULTIPLE * ways.tensor
    columns = -(-architecture.vocab_size // multiple) * VOCABULARY_MULTIPLE
    shape = {"batch": tokens.batch, "sequence": tokens.sequence, "vocab_of_rank": columns}
    level.change("activations", "input of the head", tokens.stream(), 2)
    level.change("logits", "logits", Size(**shape, bytes=BF16_BYTES), 1)
    level.change("logits", "softmax", Size(**shape, fp32_bytes=FP32_BYTES), 1)
    return level


def _with_transients(forward: Level, stage: Stage, tokens: Tokens, *, recomputed: bool) -> Level:
    """One layer's backward: gradients of its feed-forward block, the gathered input with its gradient.

    Recomputed, its saved tensors are made anew.
    """
    level, layer = forward.fork(), stage.layers[-1]
    for name, size in _saved(layer, tokens) if recomputed else ():
        level.change("activations", f"recomputed {name}", size, 1)
    for name, size in _saved_by_channel(layer.channel[0], tokens):
        level.change("workspace", f"gradient of {name}", size, 1)
    level.change("workspace", "gathered input and its gradient", tokens.wide(tokens.hidden), 2)
    return level
