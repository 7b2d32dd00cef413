"""What a training reserves beside its live tensors: rules of the allocator, and replays of whole models that are kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from planner.components.tape import Level, Size, Tape, separate_bytes
from planner.reserve import Asked, TrainedSegments, training_reserved
from planner.scenario import parse_scenario
from resources.plan import make_plan

MIB = 2**20
REPLAYED = json.loads((Path(__file__).parents[1] / "data" / "reserved.json").read_text())
LORA: dict[str, Any] = {
    "method": "lora", "optimizer": "adamw_foreach", "checkpointing": "full",
    "lora": {"rank": 16, "targets": ["q_proj", "k_proj", "v_proj", "o_proj"]},
}  # fmt: skip
LONG = {
    **LORA, "batch": 4, "sequence": 4096, "attention": "flash", "lora": {**LORA["lora"], "alpha": 16, "dropout": 0.1},
}  # fmt: skip
ADAPTED: dict[str, tuple[str, dict[str, Any]]] = {
    "4x4096 checkpointed lora": ("bf16", LONG),
    "4x4096 checkpointed lora fused": ("bf16", LONG | {"loss": "fused"}),
    "2x2048 checkpointed lora": ("bf16", LORA | {"batch": 2, "sequence": 2048}),
    "4x4096 checkpointed qlora amp": (
        "nf4-dq", LONG | {"method": "qlora", "precision": "amp-bf16", "engine_options": {"prepare_for_kbit_training": True}},
    ),
}  # fmt: skip


def steps_of(*moves: tuple[str, Size | None]) -> Any:
    """Tensors made in turn, dropped where no size is given."""
    tape = Tape()
    for name, size in moves:
        if size is None:
            tape.free(name)
        else:
            tape.hold(name, size)
    return tape.span()


def test_tensors_of_one_kind_take_each_others_blocks_and_no_others():
    hidden, wide = Size(batch=2, sequence=512, hidden_size=64, bytes=2), Size(batch=2, sequence=512, width=256, bytes=2)
    span = steps_of(("x", hidden), ("y", wide), ("x", None), ("z", hidden), ("y", None), ("u", hidden))
    assert span.peak == hidden.bytes + wide.bytes
    assert separate_bytes(span.steps) == 2 * hidden.bytes + wide.bytes


def test_all_tokens_but_a_sequences_last_find_the_block_of_all():
    logits, shifted = Size(batch=2, sequence=512, vocab_size=1000, bytes=4), Size(tokens=1022, vocab_size=1000, bytes=4)
    assert separate_bytes(steps_of(("logits", logits), ("logits", None), ("shifted", shifted)).steps) == logits.bytes


def test_sizes_that_are_equal_for_one_length_alone_are_of_two_kinds():
    """Were they one, what is taken would fall where the length of a sequence is that of a head."""
    scores, hidden = Size(batch=1, heads=4, queries=64, keys=64, bytes=2), Size(batch=1, sequence=64, hidden_size=256, bytes=2)
    assert scores.bytes == hidden.bytes
    assert separate_bytes(steps_of(("s", scores), ("s", None), ("x", hidden)).steps) == scores.bytes + hidden.bytes


def level(**components: int) -> Level:
    found = Level()
    for name, size_bytes in components.items():
        found.change(name, name, Size(bytes=size_bytes), 1)
    return found


def test_logits_lie_beside_the_blocks_of_the_layers():
    """Held: 100. The layers' forward has been 30 above that, 5 lie idle, and no block of it takes one of the logits' 80."""
    weights = 100 * MIB
    levels = {
        "load": level(weights=weights),
        "forward": level(weights=weights, activations=20 * MIB, logits=60 * MIB),
        "backward": level(weights=weights, activations=20 * MIB, logits=60 * MIB),
        "optimizer": level(weights=weights, gradients=MIB),
    }
    asked = Asked(60 * MIB, 30 * MIB, 80 * MIB, weights + 30 * MIB, 5 * MIB, is_regular=True)
    found = training_reserved(levels, (weights, weights), TrainedSegments(0, MIB, 0), asked)
    assert found["forward"] == found["backward"] == weights + (30 + 5 + 80) * MIB


def test_layers_that_leave_tensors_of_many_sizes_cost_a_block_of_the_logits():
    weights = 100 * MIB
    high = level(weights=weights, activations=20 * MIB, logits=60 * MIB)
    levels = {"load": level(weights=weights), "forward": high, "backward": high, "optimizer": level(weights=weights)}
    asked = Asked(60 * MIB, 30 * MIB, 60 * MIB, weights, is_regular=False)
    assert training_reserved(levels, (weights, weights), None, asked)["backward"] == weights + (80 + 30) * MIB


@pytest.mark.parametrize("model", ["Qwen/Qwen3-0.6B", "meta-llama/Llama-3.2-1B", "mistralai/Mistral-7B-v0.1"])
@pytest.mark.parametrize("work", ADAPTED)
def test_adapters_reserve_what_replays_of_whole_models_do(work: str, model: str):
    weights, training = ADAPTED[work]
    document = {
        "version": 1, "model": model, "task": "training", "weights": weights, "training": training,
        "hardware": {"gpu": "H200 SXM 141GB", "capacity_bytes": 2**50},
    }  # fmt: skip
    found = make_plan(parse_scenario(document), network=False, calibrated=False).footprint
    for phase in found.gpus[0].phases:
        assert phase.reserved == pytest.approx(REPLAYED[work][model][phase.name], rel=0.03), phase.name
