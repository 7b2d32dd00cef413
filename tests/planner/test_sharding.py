"""Shares of weights: what tensor-, pipeline- and expert-parallel ranks hold adds up to the model and what is copied."""

from __future__ import annotations

from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.architecture import Architecture, read_config
from planner.formats import BytesUnknown, checkpoint_bytes, parse_format
from planner.sharding import Split, pipeline_layers, rank_kv_heads, split_faults, stage_weights
from resources.catalog import catalog_model

MODELS = (
    "meta-llama/Llama-3.1-8B", "Qwen/Qwen2.5-7B", "Qwen/Qwen3-30B-A3B", "deepseek-ai/DeepSeek-V2-Lite", "openai/gpt-oss-20b",
    "bigscience/bloom-7b1", "google/gemma-3-1b-it", "ibm-granite/granite-4.0-h-tiny",
)  # fmt: skip


@cache
def model(name: str) -> Architecture:
    return read_config(dict(catalog_model(name).config))


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("fmt", ["bf16", "fp8", "awq-int4-g128"])
def test_one_gpu_holds_what_the_checkpoint_holds(name, fmt):
    (stage,) = stage_weights(model(name), parse_format(fmt), Split())
    assert stage.rank_bytes == stage.whole_bytes == checkpoint_bytes(model(name), parse_format(fmt)).total_bytes


@settings(max_examples=40)
@given(name=st.sampled_from(MODELS), tensor=st.sampled_from([1, 2, 4]), pipeline=st.integers(1, 4))
def test_shares_add_up_to_the_whole_plus_what_is_copied(name, tensor, pipeline):
    """Σ ranks = whole + (ranks − 1) · copied parts, keys and values of too few heads copied as well."""
    architecture = model(name)
    if split_faults(architecture, Split(tensor, pipeline)):
        return
    stages = stage_weights(architecture, parse_format("bf16"), Split(tensor, pipeline))
    for stage in stages:
        together = tensor * stage.rank_bytes
        assert together >= stage.whole_bytes + (tensor - 1) * stage.copied_bytes
        extra = sum(
            (tensor * part.rank_bytes - part.whole_bytes) * part.times
            for part in stage.parts
            if not part.copied and tensor * part.rank_bytes != part.whole_bytes
        )
        assert together == stage.whole_bytes + (tensor - 1) * stage.copied_bytes + extra
        assert extra == 0 or any(part.tensor.endswith(("qkv_proj.weight", "query_key_value.weight")) for part in stage.parts)


@settings(max_examples=30)
@given(layers=st.integers(1, 130), stages=st.integers(1, 16))
def test_every_layer_lies_on_one_stage(layers, stages):
    """Stages are runs one after another that cover every layer; their lengths differ by one at most."""
    if stages > layers:
        return
    found = pipeline_layers(layers, stages)
    assert [index for part in found for index in part] == list(range(layers))
    assert max(map(len, found)) - min(map(len, found)) <= 1


def test_what_is_left_over_goes_before_the_last_stage():
    assert [len(part) for part in pipeline_layers(35, 4)] == [9, 9, 9, 8]
    assert [len(part) for part in pipeline_layers(34, 4)] == [8, 9, 9, 8]


@settings(max_examples=30)
@given(name=st.sampled_from(MODELS), tensor=st.sampled_from([1, 2]))
def test_more_ranks_never_hold_more_each(name, tensor):
    """A rank's share falls as ranks are added."""
    architecture = model(name)
    if split_faults(architecture, Split(2 * tensor)):
        return
    few, many = (stage_weights(architecture, parse_format("bf16"), Split(ways))[0].rank_bytes for ways in (tensor, 2 * tensor))
    assert 0 < many < few


def test_key_value_heads_are_copied_when_there_are_too_few():
    assert [rank_kv_heads(8, ways) for ways in (1, 2, 8, 16)] == [8, 4, 1, 1]
    eight, sixteen = (stage_weights(model("meta-llama/Llama-3.1-8B"), parse_format("bf16"), Split(ways))[0] for ways in (8, 16))
    keys = [next(part for part in stage.parts if part.name == "self_attn.k_proj.weight") for stage in (eight, sixteen)]
    assert keys[0].rank_bytes == keys[1].rank_bytes == 128 * 4096 * 2


def test_experts_are_laid_out_by_number_or_by_width_in_equal_bytes():
    architecture = model("Qwen/Qwen3-30B-A3B")
    by_width, by_number = (stage_weights(architecture, parse_format("bf16"), Split(4, experts=ways))[0] for ways in (1, 4))
    assert by_width.rank_bytes == by_number.rank_bytes


def test_the_latent_is_on_every_rank():
    (stage,) = stage_weights(model("deepseek-ai/DeepSeek-V2-Lite"), parse_format("bf16"), Split(4))
    latent = next(part for part in stage.parts if part.name == "self_attn.kv_a_proj_with_mqa.weight")
    assert latent.copied
    assert latent.rank_bytes == latent.whole_bytes


def test_a_tied_head_is_held_by_both_ends_of_a_pipeline():
    architecture = model("google/gemma-3-1b-it")
    alone = stage_weights(architecture, parse_format("bf16"), Split())[0].rank_bytes
    spread = sum(stage.rank_bytes for stage in stage_weights(architecture, parse_format("bf16"), Split(pipeline=2)))
    assert spread - alone == architecture.vocab_size * architecture.hidden_size * 2


@pytest.mark.parametrize(
    ("split", "path", "words"),
    [
        (Split(3), "parallel.tensor", "does not divide the 32 attention heads; use 2"),
        (Split(pipeline=40), "parallel.pipeline", "32 layers"),
    ],
)
def test_splits_that_do_not_work_are_refused_with_a_way_out(split, path, words):
    found = split_faults(model("meta-llama/Llama-3.1-8B"), split)
    assert any(fault.path == path and words in fault.message for fault in found)


def test_a_format_only_a_header_can_size_is_unknown():
    with pytest.raises(BytesUnknown):
        stage_weights(model("meta-llama/Llama-3.1-8B"), parse_format("gguf:Q4_K_M"), Split())
