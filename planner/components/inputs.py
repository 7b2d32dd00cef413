"""What a forward makes once and all layers share: embeddings, masks, cosines and sines."""

from __future__ import annotations

from dataclasses import replace

from planner.architecture.counts import layer_groups
from planner.architecture.layers import Architecture, Attention, LatentAttention, SequenceMixer
from planner.components.attention import mask_sizes
from planner.components.beside import OWN_INPUTS, own_inputs
from planner.components.layer import outliving
from planner.components.rotary import rotary_embedding
from planner.components.run import Run
from planner.components.tape import Course, Size, Tape

EMBEDDINGS, TABLES, MASK = "embeddings", "cosines and sines", "mask"
BIASES, COPIED = "biases of positions", "embeddings copied"


def hold_inputs(
    course: Course, architecture: Architecture, run: Run, *, checkpointing: bool = False, offloaded: bool = False
) -> None:
    """The first layer's input, the embeddings (alive until the model returns), masks, rotary tables.

    Checkpointed the first two are one tensor, unless positions are added or the checkpoint is on the host (``offloaded``).
    """
    first = replace(run, narrow_input=run.narrow_ends)
    course.hold("workspace", "x", first.entering())
    mixers = [mixer for layer, _ in layer_groups(architecture.decoder) for mixer in layer.sequence]
    _hold_masks(course, run, mixers)
    _hold_position_biases(course, architecture, run, mixers)
    own = own_inputs(architecture.decoder, run)
    if own is not None:
        course.run(own, 1, "inputs of each layer")
    if run.code.keeps_positions:
        bytes_ = run.compute_bytes if run.narrow_ends else run.dtype_bytes
        row = Size(sequence=run.sequence, hidden_size=run.hidden_size, bytes=bytes_)
        size = first.entering() if run.code.positions_by_row else row
        course.hold("workspace", "position embeddings", size)
    for rotary_dim in _rotary_tables(run, mixers):
        kept, moment = rotary_embedding(run, rotary_dim)
        tape = Tape()
        tape.hold("frequencies", moment)
        tape.hold(TABLES, kept)
        tape.free("frequencies")
        course.run(tape.span(), 1, "rotary embedding")
    if not checkpointing or offloaded or run.code.keeps_positions or run.code.computes_positions:
        course.level.change("workspace", EMBEDDINGS, first.entering() if run.narrow_ends else run.hidden(), 1)
    if run.code.copies_embeddings:
        course.level.change("workspace", COPIED, run.hidden(), 1)
    if checkpointing or run.cached:
        for name, size in outliving(architecture.decoder.layers[0], run).items():
            course.level.change("workspace", name, size, 1)


SHARED = (EMBEDDINGS, COPIED, "x", MASK, TABLES, BIASES, "earlier probabilities", "position embeddings", *OWN_INPUTS)
"""What goes when the model returns its last hidden state."""


def _hold_position_biases(course: Course, architecture: Architecture, run: Run, mixers: list[SequenceMixer]) -> None:
    """Of every head for all positions that the model can take (``build_mpt_alibi_tensor``)."""
    heads = max((mixer.num_heads for mixer in mixers if isinstance(mixer, Attention)), default=0)
    if run.code.attention == "biased" and architecture.max_context_tokens:
        size = Size(num_attention_heads=heads, positions=architecture.max_context_tokens, fp32_bytes=4)
        course.hold("workspace", BIASES, size, 1, "biases of positions")


def _rotary_tables(run: Run, mixers: list[SequenceMixer]) -> list[int]:
    """Rotated widths of which there is a table each; in some families windowed layers have one of their own."""
    found: dict[tuple[bool, int], int] = {}
    for mixer in mixers:
        if isinstance(mixer, LatentAttention) and run.code.rotary != "none":
            found[False, mixer.qk_rope_head_dim] = mixer.qk_rope_head_dim
        elif isinstance(mixer, Attention) and mixer.rotary_dim:
            apart = run.code.table_for_windows and mixer.window_tokens is not None
            found[apart, mixer.rotary_dim] = mixer.rotary_dim
    return list(found.values())


def _hold_masks(course: Course, run: Run, mixers: list[SequenceMixer]) -> None:
    """One mask for each kind of attention, shared by the layers of the kind."""
    masks = {
        (mixer.window_tokens or mixer.chunk_tokens): mask_sizes(run, mixer) for mixer in mixers if isinstance(mixer, Attention)
    }
    if any(isinstance(mixer, LatentAttention) and mixer.indexer is not None for mixer in mixers):
        masks[None] = [], Size(queries=run.sequence, keys=run.past_tokens + run.sequence, bool_bytes=1)
    for found in masks.values():
        if found is not None:
            moments, kept = found
            tape = Tape()
            for index, size in enumerate(moments):
                tape.hold(f"mask part {index}", size)
            tape.hold(MASK, kept)
            tape.free(*(f"mask part {index}" for index in range(len(moments))))
            course.run(tape.span(), 1, "causal mask")
