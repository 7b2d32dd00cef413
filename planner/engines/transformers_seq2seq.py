"""transformers 5.23 on one device: one forward of an encoder; encoder, first token and generation of an encoder–decoder.

``generate`` runs the encoder once and keeps its output; the decoder starts from one token. ``prompt_tokens`` are the
encoder's; an audio encoder takes its whole window whatever the prompt.
"""

from __future__ import annotations

from functools import partial

from planner.architecture.counts import layer_groups
from planner.architecture.layers import Architecture, Attention, Stack
from planner.components.biased import position_bias
from planner.components.encoder import (
    Block,
    bart_block,
    bert_block,
    cross_cache,
    encoder_span,
    first_step,
    is_used_as_decoder,
    modernbert_block,
    own_cache,
    relative_positions,
    rotary_tables,
    t5_block,
    whisper_block,
    window_mask,
)
from planner.components.encoder_outside import embedded_size
from planner.components.graph import Graph
from planner.components.run import FP32_BYTES, Run
from planner.components.tape import Course, Level, Size
from planner.engines.transformers import Generation, Step
from planner.modelled import NotModelled

SHARING_POSITIONS = ("t5", "mt5")
"""Whose first layer looks positions up for all."""
POSITIONS_OF_EVERY_SEQUENCE, POSITIONS_OF_ONE = (
    ("bart", "mbart", "plbart", "m2m_100"),
    ("pegasus", "marian", "blenderbot-small", "blenderbot"),
)
"""Whose encoder holds embedded positions beside its words: for every sequence, or one row for all."""
BLOCKS: dict[str, Block] = {
    **dict.fromkeys(
        ("bert", "roberta", "xlm-roberta", "camembert", "ernie", "distilbert", "bart", "plbart", "marian", "blenderbot-small"),
        bert_block,
    ),
    "modernbert": modernbert_block,
    "electra": bert_block,
    **dict.fromkeys(("nomic_bert", "gte", "jina_embeddings_v3"), partial(bert_block, keeps_attention=True)),
    **dict.fromkeys(
        ("mbart", "pegasus", "blenderbot", "m2m_100", "roberta-prelayernorm", "xlm-roberta-xl", "eurobert"), bart_block
    ),
    **dict.fromkeys(SHARING_POSITIONS, t5_block),
    "whisper": whisper_block,
}
"""Families whose layers were read in transformers."""


def encoding_phases(architecture: Architecture, weights: Level, work: Generation) -> list[Step]:
    """Load and prefill of an encoder, or load, prefill and decode of an encoder–decoder.

    Raises :class:`NotModelled` for families nobody has read, and for attention computed eagerly.
    """
    block = BLOCKS.get(architecture.model_type)
    if block is None or is_used_as_decoder(architecture):
        raise NotModelled(
            f"{architecture.model_class}: what its blocks hold while they compute has no closed form; a rehearsal tells"
        )
    if work.eager or work.dtype_bytes == FP32_BYTES:
        raise NotModelled(f"{architecture.model_class}: activations are modelled for fused attention in 16 bits")
    course = Course()
    course.level = weights.fork()
    course.begin_phase()
    steps = [Step("load", course.peak)]
    if architecture.kind == "encoder":
        _encode(course, architecture, architecture.decoder, _run(work, architecture.hidden_size, work.prompt_tokens), block)
        _masked_head(course, architecture, work)
        return [*steps, Step("prefill", course.peak)]
    tower = architecture.towers[0]
    source = _source_tokens(tower, work)
    run = _run(work, tower.hidden_size, source)
    _encode(course, architecture, tower, run, block)
    one = _run(work, architecture.hidden_size, 1)
    for layer, count in layer_groups(architecture.decoder):
        course.run(first_step(layer, one, source, by_head=architecture.model_type == "whisper"), count, "first token")
    _hold_own_cache(course, architecture, one, 1)
    _logits(course, architecture, work)
    steps.append(Step("prefill", course.peak))
    return [*steps, _decode(architecture, weights, work, run, source)]


def _encode(course: Course, architecture: Architecture, stack: Stack, run: Run, block: Block) -> None:
    """Embeddings and layers; leaves the encoder's output as ``encoded``."""
    if architecture.model_type == "whisper":
        _hear(course, stack, run)
    embeddings = embedded_size(architecture, run) if stack is architecture.decoder else run.hidden()
    course.hold("workspace", "x", run.hidden())
    course.level.change("workspace", "embeddings", embeddings, 1)
    shared = _hold_shared(course, architecture, stack, run)
    for layer, count in layer_groups(stack):
        course.run(encoder_span(layer, run, block, shared), count, "encoder layers")
    for name, size in {**shared, "embeddings": embeddings, "x": run.hidden()}.items():
        course.level.change("workspace", name, size, -1)
    if architecture.model_type == "whisper":
        course.level.change("workspace", "features", _features(stack, run), -1)
    course.hold("workspace", "encoded", run.hidden())


def _hold_shared(course: Course, architecture: Architecture, stack: Stack, run: Run) -> dict[str, Size]:
    """What is there beside the layers while they compute: positions, masks, cosines and sines."""
    attention = stack.layers[0].sequence[0]
    assert isinstance(attention, Attention)  # noqa: S101  encoders have nothing else
    shared: dict[str, Size] = {}
    if architecture.model_type in POSITIONS_OF_EVERY_SEQUENCE:
        shared["position embeddings"] = run.hidden()
    elif architecture.model_type in POSITIONS_OF_ONE:
        shared["position embeddings"] = Size(sequence=run.sequence, hidden_size=run.hidden_size, bytes=run.dtype_bytes)
    if "position embeddings" in shared:
        course.hold("workspace", "position embeddings", shared["position embeddings"])
    if architecture.model_type in SHARING_POSITIONS:
        shared["position bias"] = position_bias(run, attention)
        course.run(relative_positions(run, stack.layers[0]), 1, "relative positions")
    if architecture.model_type == "modernbert":
        shared["mask"] = Size(queries=run.sequence, keys=run.sequence, bool_bytes=1)
        course.run(window_mask(run), 1, "window mask")
    if tables := rotary_tables(run, stack.layers):
        shared["cosines and sines"] = tables
        course.hold("workspace", "cosines and sines", tables)
    return shared


def _hear(course: Course, stack: Stack, run: Run) -> None:
    """The features and two convolutions over them, the second of stride two (``WhisperEncoder.forward``)."""
    twice = Size(batch=run.batch, frames=2 * run.sequence, hidden_size=run.hidden_size, bytes=run.dtype_bytes)
    course.hold("workspace", "features", _features(stack, run))
    g = Graph(run)
    g.hold("first convolution", twice)
    g.hold("first activated", twice)
    g.free("first convolution")
    g.hold("second convolution", run.hidden())
    g.hold("second activated", run.hidden())
    g.free("second convolution", "first activated")
    g.free("second activated")
    course.run(g.span(), 1, "convolutions")


def _features(stack: Stack, run: Run) -> Size:
    """Mel bands of every frame, two frames a position."""
    bands = next(weight.shape[1] for weight in stack.weights if weight.name.endswith("conv1.weight"))
    return Size(batch=run.batch, mel_bins=bands, frames=2 * run.sequence, bytes=run.dtype_bytes)


def _source_tokens(tower: Stack, work: Generation) -> int:
    """The prompt, or the window of an audio encoder: as many positions as it has embeddings for."""
    if tower.kind != "audio":
        return work.prompt_tokens
    return next(weight.shape[0] for weight in tower.weights if weight.name.endswith("embed_positions.weight"))


def _masked_head(course: Course, architecture: Architecture, work: Generation) -> None:
    """Logits of every token, in the classes that fill masks."""
    if not architecture.model_class.endswith("ForMaskedLM"):
        return
    rows = {"batch": work.batch, "sequence": work.prompt_tokens, "bytes": work.dtype_bytes}
    if any(weight.role == "linear" for weight in architecture.head):
        course.hold("workspace", "transformed", Size(**rows, hidden_size=architecture.embeddings[0].shape[1]))
    course.hold("logits", "logits", Size(**rows, vocab_size=architecture.vocab_size), where="head")


def _decode(architecture: Architecture, weights: Level, work: Generation, run: Run, source: int) -> Step:
    """The last step: the cross caches and the encoder's output stay, the decoder's own cache has grown."""
    course = Course()
    course.level = weights.fork()
    one = _run(work, architecture.hidden_size, 1)
    course.hold("workspace", "encoded", run.hidden())
    for layer, count in layer_groups(architecture.decoder):
        for mixer in layer.sequence:
            if isinstance(mixer, Attention) and mixer.kv == "cross":
                for name, size in cross_cache(one, mixer, source).items():
                    course.hold("kv_cache", name, size, count)
    _hold_own_cache(course, architecture, one, work.new_tokens + 1)
    course.begin_phase()
    _logits(course, architecture, work)
    return Step("decode", course.peak)


def _hold_own_cache(course: Course, architecture: Architecture, run: Run, tokens: int) -> None:
    for layer, count in layer_groups(architecture.decoder):
        for mixer in layer.sequence:
            if isinstance(mixer, Attention) and mixer.kv == "own":
                for name, size in own_cache(run, mixer, tokens).items():
                    course.hold("kv_cache", name, size, count)


def _logits(course: Course, architecture: Architecture, work: Generation) -> None:
    """Of the one new token, and their fp32 copy."""
    rows = {"batch": work.batch, "vocab_size": architecture.vocab_size}
    course.hold("logits", "last logits", Size(**rows, bytes=work.dtype_bytes), where="head")
    course.hold("logits", "last logits fp32", Size(**rows, fp32_bytes=FP32_BYTES), where="head")


def _run(work: Generation, hidden_size: int, sequence: int) -> Run:
    return Run(work.batch, sequence, hidden_size, work.dtype_bytes, cuda=work.cuda)
