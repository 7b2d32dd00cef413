"""Layers that compute with an earlier layer's weights: counted once, multiplied by every time."""

from __future__ import annotations

from planner.architecture import parameter_count, read_config
from planner.formats import FORMATS
from planner.speed import parts_of

ALBERT = {
    "model_type": "albert", "architectures": ["AlbertModel"], "hidden_size": 64, "embedding_size": 32, "intermediate_size": 128,
    "num_attention_heads": 4, "vocab_size": 100,
}  # fmt: skip


def test_more_layers_of_one_group_add_work_and_no_parameters() -> None:
    few, many = (read_config(ALBERT | {"num_hidden_layers": count}) for count in (2, 12))
    assert parameter_count(few) == parameter_count(many)
    work = [
        sum(part.flops for part in parts_of(found, FORMATS["bf16"], 1, 128, 0) if part.name == "projections")
        for found in (few, many)
    ]
    assert work[1] > 5 * work[0]
