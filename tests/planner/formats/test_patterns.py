"""Skip lists: what they name, and that no pattern can make matching slow."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.formats.patterns import matches, matches_any, names_layers

NAMED = [
    ("lm_head", "lm_head"),
    ("lm_head", "re:.*lm_head"),
    ("model.layers.3.mlp.gate", "mlp.gate"),
    ("model.layers.3.mlp.gate", "re:.*mlp.gate$"),
    ("model.layers.*.self_attn.q_proj", "model.layers.*.self_attn"),
    ("layer.1.attn", "layer.1"),
    ("model.layers.5.mlp.down_proj", r"re:model\.layers\.\d+\.mlp\..*"),
    ("model.layers.5.mlp.down_proj", "model.layers.[0-9]+.mlp.down_proj"),
    ("model.layers.2.mlp.up_proj", "model.layers.(0|1|2).mlp"),
    ("model.visual.blocks.0.attn.qkv", "*visual*"),
    ("model.decoder.layers.23.fc1", "fc1"),
    ("a.b", "^a.b$"),
]
NOT_NAMED = [
    ("model.layers.3.mlp.gate_proj", "mlp.gate"),
    ("model.layers.3.mlp.gate_proj", "re:.*mlp.gate$"),
    ("layer.11.attn", "layer.1"),
    ("model.layers.3.mlp.up_proj", "model.layers.(0|1|2).mlp"),
    ("model.layers.a.mlp", r"model\.layers\.\d+\.mlp"),
    ("lm_head", "head_of"),
]


@pytest.mark.parametrize(("module", "pattern"), NAMED)
def test_named(module: str, pattern: str) -> None:
    assert matches(module, pattern)


@pytest.mark.parametrize(("module", "pattern"), NOT_NAMED)
def test_not_named(module: str, pattern: str) -> None:
    assert not matches(module, pattern)


def test_an_evil_pattern_takes_no_time() -> None:
    """Nested and repeated quantifiers are matched in time linear in the name."""
    start = time.process_time()
    for pattern in (".*a" * 150 + "b", "(a+)+" * 80 + "$", "(a|b|c|d)" * 50, "(" * 500, "\\" * 500):
        matches("a" * 300, pattern)
    assert time.process_time() - start < 1.0


segments = st.lists(st.sampled_from(["model", "layers", "7", "12", "mlp", "gate", "self_attn", "q_proj"]), min_size=1, max_size=5)


@given(segments, st.lists(st.sampled_from(["model", "layers", r"\d+", ".*", "mlp", "gate", "self_attn"]), min_size=1, max_size=4))
def test_agrees_with_regular_expressions_on_the_subset(path: list[str], parts: list[str]) -> None:
    """transformers' rule: the pattern matches from the start up to a module's boundary, or is the name's ending."""
    module, pattern = ".".join(path), r"\.".join(parts)
    boundary = r"(?:(?<=\.)|(?=\.|$))"
    assert matches(module, pattern) == bool(re.match(rf"(?:{pattern}){boundary}", module) or module.endswith(pattern))


@given(
    segments,
    st.lists(st.one_of(segments.map(".".join), st.just(r"re:.*gate$"), st.just("model.*"), st.just("gate.weight")), max_size=6),
)
def test_a_list_names_what_one_of_its_patterns_names(path: list[str], patterns: list[str]) -> None:
    module = ".".join(path)
    assert matches_any(module, tuple(patterns)) == any(matches(module, pattern) for pattern in patterns)


def test_patterns_that_name_single_layers() -> None:
    assert names_layers(("model.layers.0.mlp",))
    assert not names_layers(("lm_head", "model.layers.*.self_attn", "fc1"))
