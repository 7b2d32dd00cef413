"""From a scenario to its plan where files are at hand: what their headers say goes before what a config lets one derive."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from planner.architecture import read_config
from planner.formats import checkpoint_bytes, gguf_tensors
from planner.scenario import parse_scenario
from resources.plan import make_plan
from tests.resources.checkpoints import LLAMA, gguf_header, llama_tensors, safetensors_header

METADATA = {
    "general.architecture": "llama", "llama.block_count": LLAMA["num_hidden_layers"],
    "llama.embedding_length": LLAMA["hidden_size"],
    "llama.feed_forward_length": LLAMA["intermediate_size"], "llama.attention.head_count": LLAMA["num_attention_heads"],
    "llama.attention.head_count_kv": LLAMA["num_key_value_heads"], "llama.context_length": 512,
}  # fmt: skip


def gguf_file(folder: Path, dtype: str, file_type: int) -> tuple[Path, int]:
    """A file whose every tensor is of one type, whatever mix its metadata names."""
    tensors = gguf_tensors(read_config(LLAMA), "F16")
    head, data_bytes = gguf_header(METADATA | {"general.file_type": file_type}, {t.name: t.shape for t in tensors}, dtype)
    (folder / "m.gguf").write_bytes(head + bytes(data_bytes))
    return folder / "m.gguf", data_bytes


def plan_of(path: Path, engine: str):
    inference = {"engine": engine, "batch": 1, "prompt_tokens": 16, "new_tokens": 4}
    document = {"version": 1, "model": {"path": str(path)}, "task": "inference", "inference": inference}
    return make_plan(parse_scenario(document), network=False)


def test_llama_cpp_sizes_a_gguf_file_by_its_own_header(tmp_path: Path) -> None:
    """A Q4_K_M whose tensors are all F16 (as a mix of one's own may be) is as large as its tensors."""
    path, data_bytes = gguf_file(tmp_path, "F16", file_type=15)
    plan = plan_of(path, "llama.cpp")
    assert plan.model.native.name == "gguf:Q4_K_M"
    assert plan.footprint.scenario["weights"] == "native"
    assert plan.footprint.weight_bytes == pytest.approx(data_bytes, rel=0.02)
    weights = plan.footprint.gpus[0].phases[-1].components["weights"] + plan.footprint.host.components["weights"]
    assert weights == plan.footprint.weight_bytes


def test_a_format_only_a_header_can_size_is_sized_by_it(tmp_path: Path) -> None:
    shapes = llama_tensors()
    config = LLAMA | {"quantization_config": {"quant_method": "aqlm"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    header, data_bytes = safetensors_header(shapes)
    (tmp_path / "model.safetensors").write_bytes(header + bytes(data_bytes))
    plan = plan_of(tmp_path, "transformers")
    assert plan.footprint.weight_bytes == data_bytes
    found = checkpoint_bytes(plan.architecture, plan.model.native)
    assert found.notes == ("sizes are from the file's header",)
