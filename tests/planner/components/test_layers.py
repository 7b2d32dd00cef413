"""Layers of every way of writing them: what a forward leaves, what a backward uses up, how the peak grows."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.architecture import read_config
from planner.architecture.counts import layer_groups
from planner.architecture.layers import Layer
from planner.components.graph import Graph
from planner.components.layer import layer_backward, layer_forward, layer_recomputed, require_modelled
from planner.components.run import Run
from planner.components.tape import Held
from planner.modelled import NotModelled

BASE = {
    "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "vocab_size": 300, "max_position_embeddings": 256, "num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2,
    "moe_intermediate_size": 48,
}  # fmt: skip
LATENT = {
    "q_lora_rank": 32, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 8, "n_routed_experts": 4,
    "n_shared_experts": 1, "first_k_dense_replace": 0,
}  # fmt: skip
GPT = {"n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": 300, "n_positions": 256, "rotary_dim": 8}
CONFIGS = {
    "llama": BASE,
    "qwen3": BASE | {"head_dim": 16},
    "phi": BASE | {"partial_rotary_factor": 0.5},
    "phi3": BASE,
    "glm": BASE | {"head_dim": 16},
    "cohere": BASE,
    "falcon": BASE | {"new_decoder_architecture": True, "num_kv_heads": 2},
    "gemma2": BASE | {"head_dim": 16, "sliding_window": 32, "attn_logit_softcapping": 50.0},
    "gemma3_text": BASE | {"head_dim": 16, "sliding_window": 32, "layer_types": ["sliding_attention", "full_attention"]},
    "olmo2": BASE,
    "opt": BASE | {"ffn_dim": 160, "word_embed_proj_dim": 64},
    "gpt2": GPT,
    "gptj": GPT,
    "bloom": {"hidden_size": 64, "n_layer": 2, "n_head": 4, "vocab_size": 300},
    "mixtral": BASE,
    "gpt_oss": BASE | {"head_dim": 16, "sliding_window": 32},
    "deepseek_v2": BASE | LATENT,
    "deepseek_v3": BASE | LATENT | {"n_group": 2, "topk_group": 1},
}
CASES = [(name, index) for name in CONFIGS for index in range(2)]


def layer_of(name: str, index: int, **shape: int) -> tuple[Layer, Run]:
    architecture = read_config({"model_type": name} | CONFIGS[name])
    code = require_modelled(architecture)
    groups = layer_groups(architecture.decoder)
    layer = groups[min(index, len(groups) - 1)][0]
    return layer, Run(**{"batch": 2, "sequence": 40, "hidden_size": architecture.hidden_size, "code": code} | shape)


@pytest.mark.parametrize(("name", "index"), CASES)
def test_a_forward_without_autograd_leaves_its_output_alone(name: str, index: int) -> None:
    layer, run = layer_of(name, index)
    live = layer_forward(layer, run, saving=False).live
    assert set(live) <= {"x", "earlier probabilities"}
    assert live["x"].size.bytes == run.hidden().bytes


@pytest.mark.parametrize(("name", "index"), CASES)
def test_a_forward_leaves_the_cache_it_was_asked_for(name: str, index: int) -> None:
    layer, run = layer_of(name, index)
    live = layer_forward(layer, replace(run, cached=True), saving=False).live
    cached = [held for held in live.values() if held.component == "kv_cache"]
    assert len(cached) == 2
    assert len(live) - len(cached) in (1, 2)


@pytest.mark.parametrize(("name", "index"), CASES)
def test_a_backward_uses_up_what_its_forward_saved(name: str, index: int) -> None:
    """Of the saved tensors none outlives the nodes that asked for them; gradients of every weight and of the input stay."""
    layer, run = layer_of(name, index)
    forward = layer_forward(layer, run, saving=True)
    assert any(held.component == "activations" for held in forward.live.values())
    left = layer_backward(run, forward).live
    assert {name for name, held in left.items() if held.component != "gradients"} == {"d"}
    assert left["d"].size.bytes == run.hidden().bytes


@pytest.mark.parametrize(("name", "index"), CASES)
def test_every_weight_gets_a_gradient_of_its_size(name: str, index: int) -> None:
    layer, run = layer_of(name, index)
    left = layer_backward(run, layer_forward(layer, run, saving=True)).live
    weights = {
        f"grad {weight.name}"
        for part in (*layer.sequence, *layer.channel, *layer.norms)
        for weight in part.weights
        if not weight.is_buffer
    }
    assert weights - set(left) <= {name for name in weights if name.endswith(("bias", "sinks"))}


@pytest.mark.parametrize(("name", "index"), CASES)
def test_recomputing_ends_where_the_plain_backward_ends(name: str, index: int) -> None:
    """A checkpointed layer leaves what the plain backward leaves, and holds more for it: the second forward."""
    layer, run = layer_of(name, index)
    plain = layer_backward(run, layer_forward(layer, run, saving=True))
    recomputed = layer_recomputed(layer, run, layer_forward(layer, run, saving=False, keeps_input=True))
    assert recomputed.live.keys() == plain.live.keys()
    assert recomputed.peak > 0


@settings(max_examples=40)
@given(case=st.sampled_from(CASES), batch=st.integers(1, 8), sequence=st.integers(1, 200), saving=st.booleans())
def test_the_peak_grows_with_batch_and_sequence(case: tuple[str, int], batch: int, sequence: int, saving: bool) -> None:
    """Monotone in batch and context; what stays never exceeds the peak.

    Eight tokens more: a mask whose rows are no multiple of 8 is copied into wider ones, so that one token more may take less.
    """
    spans = []
    for more in (0, 1):
        layer, run = layer_of(*case, batch=batch + more, sequence=sequence + 8 * more)
        spans.append(layer_forward(layer, run, saving=saving).span)
    assert 0 <= spans[0].end <= spans[0].peak
    assert spans[0].peak <= spans[1].peak


def test_a_layer_with_a_mixer_nobody_derived_is_not_modelled() -> None:
    with pytest.raises(NotModelled, match="no closed form"):
        require_modelled(read_config({"model_type": "rwkv", "hidden_size": 64, "num_hidden_layers": 2, "vocab_size": 300}))


class TestGraph:
    """Names, references and saved tensors."""

    RUN = Run(1, 8, 16)

    def test_a_storage_goes_with_its_last_name(self) -> None:
        g = Graph(self.RUN, start={"x": Held(self.RUN.hidden(), "workspace")})
        g.view("half", "x")
        g.free("x")
        assert set(g.span().live) == {"x"}
        g.free("half")
        assert not g.span().live

    def test_what_is_saved_outlives_its_names_and_counts_as_activation(self) -> None:
        g = Graph(self.RUN, saving=True, start={"x": Held(self.RUN.hidden(), "workspace")})
        g.make("y", self.RUN.hidden(), ("x",), ("x",))
        g.free("x", "y")
        assert {name: held.component for name, held in g.span().live.items()} == {"x": "activations"}

    def test_a_name_can_be_taken_while_its_tensor_is_kept(self) -> None:
        g = Graph(self.RUN, saving=True, start={"x": Held(self.RUN.hidden(), "workspace")})
        g.make("y", self.RUN.hidden(), ("x",), ("x",))
        g.rename("y", "x")
        assert set(g.span().live) == {"x", "x before"}

    def test_two_gradients_of_one_tensor_are_summed_in_a_third(self) -> None:
        g = Graph(self.RUN, saving=True, start={"x": Held(self.RUN.hidden(), "workspace")})
        for name in ("a", "b"):
            g.make(name, self.RUN.hidden(), ("x",))
        g.make("y", self.RUN.hidden(), ("a", "b"))
        backward = Graph(self.RUN, start={"d": Held(self.RUN.hidden(), "workspace")})
        assert backward.backward(g.record, {"y": "d"}) == {"x": "d x sum"}
        assert backward.span().peak == 2 * self.RUN.hidden().bytes
