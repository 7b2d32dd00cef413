"""Repeated layers that are written down from a few traced ones come out as if each had been traced."""

from __future__ import annotations

import pytest

from probes.worker import run as worker_run
from probes.worker.kinds import members_of
from probes.worker.order import parse_order
from probes.worker.wire import HeldWire
from tests.probes.worker.conftest import CONFIGS, GEMMA3, GPT2, LLAMA, MIXTRAL, Events, order_json

pytestmark = pytest.mark.filterwarnings("ignore")
INFERENCE = {"batch": 2, "prompt_tokens": 20, "new_tokens": 3}
TRAINING = {"batch": 2, "sequence": 20}
LAYERS = 9

DEEPSEEK = LLAMA | {
    "model_type": "deepseek_v3", "architectures": ["DeepseekV3ForCausalLM"], "num_key_value_heads": 4, "q_lora_rank": 24,
    "kv_lora_rank": 16, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 16, "n_routed_experts": 8, "n_group": 2,
    "topk_group": 1, "num_experts_per_tok": 2, "n_shared_experts": 1, "moe_intermediate_size": 32, "first_k_dense_replace": 2,
    "num_nextn_predict_layers": 1,
}  # fmt: skip
FALCON = {
    "model_type": "falcon", "architectures": ["FalconForCausalLM"], "hidden_size": 64, "num_attention_heads": 4, "vocab_size": 517,
    "parallel_attn": True, "multi_query": True, "bias": False, "alibi": False, "new_decoder_architecture": False,
    "torch_dtype": "bfloat16",
}  # fmt: skip
GRANITE = LLAMA | {
    "model_type": "granitemoehybrid", "architectures": ["GraniteMoeHybridForCausalLM"], "num_local_experts": 4,
    "num_experts_per_tok": 2, "shared_intermediate_size": 32, "mamba_n_heads": 4, "mamba_n_groups": 1, "mamba_d_state": 8,
    "mamba_d_head": 32, "mamba_d_conv": 4, "mamba_expand": 2, "mamba_chunk_size": 16,
    "layer_types": ["mamba", "mamba", "mamba", "attention", "mamba", "mamba", "mamba", "attention", "mamba"],
}  # fmt: skip
QWEN3_NEXT = LLAMA | {
    "model_type": "qwen3_next", "architectures": ["Qwen3NextForCausalLM"], "head_dim": 16, "num_experts": 4,
    "num_experts_per_tok": 2, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 32, "linear_num_key_heads": 2,
    "linear_num_value_heads": 4, "linear_key_head_dim": 16, "linear_value_head_dim": 16, "decoder_sparse_step": 1,
}  # fmt: skip
MAMBA = {
    "model_type": "mamba", "architectures": ["MambaForCausalLM"], "hidden_size": 32, "state_size": 8, "expand": 2,
    "conv_kernel": 4, "time_step_rank": 4, "vocab_size": 517, "torch_dtype": "bfloat16",
}  # fmt: skip
MODELS = {
    "llama": LLAMA,
    "mixtral": MIXTRAL,
    "gemma3": GEMMA3 | {"sliding_window": 22, "layer_types": (["sliding_attention"] * 2 + ["full_attention"]) * 3},
    "gpt2": GPT2 | {"n_layer": LAYERS},
    "falcon": FALCON,
    "deepseek_v3": DEEPSEEK,
    "granite hybrid": GRANITE,
    "qwen3_next": QWEN3_NEXT,
    "mamba": MAMBA,
}
WORKLOADS = [
    ("llama", {"checkpointing": "full", "gradient_accumulation": 2}),
    ("llama", {"checkpointing": "full", "engine_options": {"use_reentrant": True}, "optimizer": "adamw_foreach"}),
    ("llama", {"checkpointing": "selective", "optimizer": "adafactor", "loss": "chunked"}),
    ("llama", {"precision": "amp-bf16", "optimizer": "sgd_momentum", "engine_options": {"max_grad_norm": 1.0}}),
    ("llama", {"method": "lora", "checkpointing": "full"}),
    ("llama", {"method": "freeze"}),
    ("gpt2", {"attention": "eager"}),
]


def rehearse(name, task, workload, traced_layers):
    """The stream and the result of a rehearsal, and how many calls of layers were written."""
    events = Events()
    config = {"num_hidden_layers": LAYERS} | MODELS[name]
    config |= {"num_hidden_layers": LAYERS} if "num_hidden_layers" in MODELS[name] else {}
    order = parse_order(order_json("rehearse", config, task, workload, traced_layers=traced_layers))
    run = worker_run.Run(order, events)
    run.run()
    return [entry for entry in events if entry[0] == "storage"], events.result, run.folded_calls


def expect_equal(name, task, workload):
    """Every birth, death and label in the same order under the same number: what the allocator does is then the same too."""
    every, full, _ = rehearse(name, task, workload, "all")
    folded, result, calls = rehearse(name, task, workload, "auto")
    assert folded == every
    assert [phase["allocated"] for phase in result["phases"]] == [phase["allocated"] for phase in full["phases"]]
    assert [phase["components"] for phase in result["phases"]] == [phase["components"] for phase in full["phases"]]
    assert result["notes"] == full["notes"]
    assert calls


@pytest.mark.parametrize("name", MODELS)
def test_a_folded_generation_equals_one_with_every_layer_traced(name):
    expect_equal(name, "inference", INFERENCE)


@pytest.mark.parametrize("name", [name for name in MODELS if name not in ("mamba", "mixtral", "falcon")])
def test_folded_training_equals_one_with_every_layer_traced(name):
    expect_equal(name, "training", TRAINING)


@pytest.mark.parametrize(("name", "workload"), WORKLOADS)
def test_whatever_the_way_to_train(name, workload):
    expect_equal(name, "training", TRAINING | workload)


def test_layers_that_look_alike_but_are_not_are_all_traced(monkeypatch):
    from transformers.models.llama.modeling_llama import LlamaMLP

    forward = LlamaMLP.forward

    def uneven(self, x):
        calls.append(1)
        # The last layer of a pass does more, for no reason that its settings tell.
        return forward(self, x + 1) if len(calls) % LAYERS == 0 or sum(calls) in skipped else forward(self, x)

    calls, skipped = [], {4}
    monkeypatch.setattr(LlamaMLP, "forward", uneven)
    _, result, _ = rehearse("llama", "inference", INFERENCE | {"new_tokens": 1}, "auto")
    assert any("Every layer was traced" in note for note in result["notes"])


def test_layers_are_alike_by_what_they_are_and_not_by_their_place():
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    def kinds(raw):
        raw = dict(raw) | {"num_hidden_layers": LAYERS + 6}
        config = AutoConfig.for_model(raw.pop("model_type"), **raw)
        with torch.device("meta"):
            return members_of(AutoModelForCausalLM.from_config(config))

    assert {member.kind for member in kinds(CONFIGS["llama"])} == {0}
    gemma = kinds(GEMMA3 | {"layer_types": (["sliding_attention"] * 2 + ["full_attention"]) * 5})
    assert [member.kind for member in gemma] == [0, 0, 1] * 5
    assert [member.index for member in gemma if member.last] == [13, 14]
    deepseek = kinds(DEEPSEEK)
    assert [member.index for member in deepseek] == list(range(2, LAYERS + 6))
    assert deepseek[0].path == "model.layers.2"


def test_what_is_held_comes_whole_and_in_order_or_not_at_all():
    events = Events()
    held = HeldWire(events)
    held.send("phase", name="load", state="begin")
    held.send("progress", what="prefill", done=0)
    held.send("storage", strings=["a"], batch=[["a", 0, 1, 0, 0, 0]])
    assert [event for event, _ in events] == ["progress"]
    held.release()
    held.release()
    assert [event for event, _ in events] == ["progress", "phase", "storage"]
    assert events[2][1] == {"strings": ["a"], "batch": [["a", 0, 1, 0, 0, 0]]}


def test_layers_that_hand_something_on_beside_their_result_are_all_traced(monkeypatch):
    from transformers.models.llama import modeling_llama

    class Leaky(modeling_llama.LlamaDecoderLayer):
        def forward(self, hidden_states, *args, **kwargs):
            out = super().forward(hidden_states, *args, **kwargs)
            before = handed[-1] if self.self_attn.layer_idx else out
            handed[:] = [out * before]
            return out + before

    handed = []
    monkeypatch.setattr(modeling_llama, "LlamaDecoderLayer", Leaky)
    full = rehearse("llama", "training", TRAINING, "all")[1]
    folded = rehearse("llama", "training", TRAINING, "auto")[1]
    assert [phase["allocated"] for phase in folded["phases"]] == [phase["allocated"] for phase in full["phases"]]
