"""Buffers over the cells of a cache: lines between bends, the same at every point as the graph played there."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.architecture import read_config
from planner.engines.llama_cpp.allocator import played
from planner.engines.llama_cpp.compute import course_of
from planner.engines.llama_cpp.context import context_of
from planner.engines.llama_cpp.course import Line, Reach
from planner.engines.llama_cpp.families import FAMILIES
from planner.engines.llama_cpp.placement import CUDA, LOOPBACK, placement_of
from planner.faults import Faults
from planner.predict import answer_alone
from planner.scenario import parse_scenario
from planner.sweep import VERDICTS, context_grid, gpu_matrix, on_gpus
from resources.gpus import find_gpus
from resources.plan import find_gpu

WINDOWED = {
    "model_type": "gemma3_text", "hidden_size": 256, "vocab_size": 1000, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 64, "intermediate_size": 512, "sliding_window": 512, "num_hidden_layers": 8, "max_position_embeddings": 65536,
    "layer_types": (["sliding_attention"] * 3 + ["full_attention"]) * 2, "torch_dtype": "bfloat16",
}  # fmt: skip
MIXTURE = {
    "model_type": "qwen3_moe", "hidden_size": 256, "vocab_size": 1000, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 64, "intermediate_size": 512, "num_hidden_layers": 4, "num_experts": 8, "num_experts_per_tok": 2,
    "moe_intermediate_size": 128, "decoder_sparse_step": 1, "mlp_only_layers": [], "max_position_embeddings": 65536,
    "tie_word_embeddings": False, "torch_dtype": "bfloat16",
}  # fmt: skip
MODELS = [read_config(WINDOWED), read_config(MIXTURE)]
CARD = "GeForce RTX 4090"


@given(st.integers(-50, 50), st.integers(-9, 9), st.integers(-50, 50), st.integers(-9, 9), st.integers(-30, 30))
def test_within_the_reach_every_comparison_comes_out_alike(at, rise, other_at, other_rise, blocks) -> None:
    """Rule: two lines compare at each number of blocks in their reach as they compare where they were compared."""
    comparisons = {
        "<=": lambda one, other: one <= other,
        ">": lambda one, other: one > other,
        "==": lambda one, other: one == other,
        "0": lambda one, other: bool(one - other),
    }
    for compare in comparisons.values():
        reach = Reach(-30, 30)
        found = compare(Line(at, rise, reach), Line(other_at, other_rise, reach))
        assert found == compare(at, other_at)
        if reach.low <= blocks <= reach.high:
            assert compare(at + rise * blocks, other_at + other_rise * blocks) == found
        assert reach.low <= 0 <= reach.high


@settings(max_examples=60)
@given(
    model=st.sampled_from(MODELS),
    devices=st.integers(0, 2),
    gpu_layers=st.integers(-1, 9),
    sequences=st.sampled_from([1, 3]),
    flash=st.booleans(),
    kind=st.sampled_from([LOOPBACK, CUDA]),
    blocks=st.lists(st.integers(1, 300), min_size=3, max_size=6),
)
def test_a_course_is_at_every_point_the_graph_played_there(model, devices, gpu_layers, sequences, flash, kind, blocks) -> None:
    """Rule: all else equal, buffers are lines in the cells as far as the allocator's comparisons come out alike."""
    context = context_of({"n_ctx": 2**20, "n_seq_max": sequences, "n_outputs_max": 1, "flash_attn": flash}, None)
    placement = placement_of(len(model.decoder.layers), devices, gpu_layers, 0, kind)
    course = course_of(model, FAMILIES[model.model_type], replace(context, cells=0), placement)
    for count in blocks:
        assert course.at(count) == played(*course.write(count), placement.alignments)


def asked(options: dict, **inference: object):
    work = {"engine": "llama.cpp", "prompt_tokens": 1000, "new_tokens": 100, "engine_options": options, **inference}
    document = {"version": 1, "model": "m", "task": "inference", "weights": "gguf:Q4_K_M", "inference": work}
    return parse_scenario(document | {"hardware": {"gpu": CARD, "gpus": 2}})


DRAFT = {"speculation": {"method": "draft", "tokens": 4, "draft": MIXTURE}}


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.model_type)
@pytest.mark.parametrize(
    ("options", "inference"),
    [
        ({}, {}),
        ({"kv_unified": True, "n_gpu_layers": 3}, {}),
        ({"flash_attn": False, "n_ubatch": 1024}, DRAFT),
        ({"n_ctx": 7000}, {}),
    ],
)
def test_a_cell_of_a_grid_is_its_point(model, options, inference) -> None:
    scenario, gpu = asked(options, **inference), find_gpu(CARD)
    batches, contexts = [1, 3, 300], [2, 700, 2500, 90_000]
    grid = context_grid(scenario, model, gpu, None, batches, contexts)
    for row, context in enumerate(contexts):
        for column, batch in enumerate(batches):
            new = min(100, context - 1)
            work = replace(scenario.inference, batch=batch, prompt_tokens=context - new, new_tokens=new)
            try:
                point = answer_alone(replace(scenario, inference=work), model, gpu, None, "cuda")
            except Faults:
                assert VERDICTS[grid.verdict[row, column]] == "unknown"
                assert grid.device[row, column] == -1
                continue
            assert grid.device[row, column] == max(found.peak.device for found in point.gpus)
            assert grid.headroom[row, column] == point.headroom_bytes
            assert VERDICTS[grid.verdict[row, column]] == point.verdict


def test_a_matrix_of_gpus_is_made_of_points() -> None:
    gpus = find_gpus("RTX 40")
    found = gpu_matrix(asked({}), MODELS[0], None, gpus, [1, 2, 4])
    for row in (0, len(gpus) - 1):
        for column, count in enumerate((1, 2, 4)):
            point = answer_alone(on_gpus(asked({}), gpus[row], count), MODELS[0], gpus[row], None, "cuda")
            assert found.device[row, column] == max(gpu.peak.device for gpu in point.gpus)
            assert found.headroom[row, column] == point.headroom_bytes


def test_a_known_grid_takes_a_tenth_of_a_second(benchmark) -> None:
    scenario, gpu = asked({}), find_gpu(CARD)
    batches, contexts = range(1, 101), range(256, 25_857, 256)
    context_grid(scenario, MODELS[1], gpu, None, batches[:2], contexts)
    found = benchmark.pedantic(context_grid, (scenario, MODELS[1], gpu, None, batches, contexts), rounds=3, warmup_rounds=1)
    assert found.device.size > 10_000
    assert benchmark.disabled or benchmark.stats["median"] < 0.1
