"""Small real configs, and runs of the worker in this process or as a child."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
# These models are too small for threads: starting and waiting for them costs more than they do, here and in children.
os.environ.setdefault("OMP_NUM_THREADS", "1")
ROOT = Path(__file__).parents[3]

LLAMA = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 64, "intermediate_size": 176,
    "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 517,
    "max_position_embeddings": 512, "rms_norm_eps": 1e-5, "tie_word_embeddings": True, "torch_dtype": "bfloat16",
}  # fmt: skip
MIXTRAL = LLAMA | {
    "model_type": "mixtral", "architectures": ["MixtralForCausalLM"], "num_local_experts": 4, "num_experts_per_tok": 2,
    "tie_word_embeddings": False,
}  # fmt: skip
GEMMA3 = LLAMA | {
    "model_type": "gemma3_text", "architectures": ["Gemma3ForCausalLM"], "head_dim": 16, "sliding_window": 48,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
}  # fmt: skip
GPT2 = {
    "model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": 517,
    "n_positions": 256, "torch_dtype": "float32",
}  # fmt: skip
T5 = {
    "model_type": "t5", "architectures": ["T5ForConditionalGeneration"], "d_model": 64, "d_kv": 16, "d_ff": 128,
    "num_layers": 2, "num_decoder_layers": 2, "num_heads": 4, "vocab_size": 517, "decoder_start_token_id": 0,
    "pad_token_id": 0, "dropout_rate": 0.0, "torch_dtype": "bfloat16",
}  # fmt: skip
JAMBA = LLAMA | {
    "model_type": "jamba", "architectures": ["JambaForCausalLM"], "num_hidden_layers": 4, "attn_layer_offset": 1,
    "attn_layer_period": 2, "expert_layer_offset": 1, "expert_layer_period": 2, "num_experts": 4, "num_experts_per_tok": 2,
    "mamba_d_state": 8, "mamba_d_conv": 4, "mamba_expand": 2, "mamba_dt_rank": 8, "use_mamba_kernels": False,
    "pad_token_id": 0,
}  # fmt: skip
CONFIGS = {"llama": LLAMA, "mixtral": MIXTRAL, "gemma3": GEMMA3, "gpt2": GPT2, "t5": T5, "jamba": JAMBA}


class Events(list):
    """A wire that keeps events as (name, fields)."""

    def send(self, event, **fields):
        json.dumps(fields)
        self.append((event, fields))

    close = send

    @property
    def result(self):
        """The result's fields."""
        return next(fields for event, fields in self if event == "result")

    @property
    def phases(self):
        """Phase figures without the device, which a real process has of its own."""
        return {(p["name"], p["step"]): (p["allocated"], p["components"]) for p in self.result["phases"]}


def order_json(mode, config, task, workload, **extra):
    """An order as the parent writes it."""
    scenario = {"version": 1, "task": task, task: workload, **extra.pop("scenario", {})}
    order = {"version": 1, "mode": mode, "scenario": scenario, "config": config, "device": "cpu", "layers": None}
    return order | {"budget_bytes": None, "sample_interval_s": 0.05} | extra


@pytest.fixture
def run_worker():
    """Run an order in this process: ``run_worker(mode, config name, task, workload, **order)`` -> Events."""

    def run(mode, name, task, workload, **extra):
        from probes.worker import run as worker_run
        from probes.worker.order import parse_order

        events = Events()
        worker_run.run(
            parse_order(order_json(mode, CONFIGS[name] if isinstance(name, str) else name, task, workload, **extra)), events
        )
        return events

    return run


@pytest.fixture
def spawn_worker():
    """Start the worker as a child: ``spawn_worker(line)`` -> Popen with pipes."""
    children = []

    def spawn(line, arguments=("-m", "probes.worker"), cwd=ROOT):
        child = subprocess.Popen(
            [sys.executable, *arguments], cwd=cwd, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        children.append(child)
        child.stdin.write(line if isinstance(line, bytes) else json.dumps(line).encode() + b"\n")
        child.stdin.flush()
        return child

    yield spawn
    for child in children:
        if child.poll() is None:
            child.kill()
        child.communicate()
