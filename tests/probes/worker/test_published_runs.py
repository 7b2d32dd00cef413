"""Rehearsals against runs that were measured on real cards.

Full fine-tuning in bf16 on one A100-SXM4-80GB with the Trainer (torch 2.4.1, transformers 4.45 to 4.48), full checkpointing,
torch's AdamW (foreach), sequences packed to 4,096 tokens: peak allocated bytes as printed in the benchmark tables of
foundation-model-stack/fms-acceleration.
"""

import pytest

MISTRAL_7B = {
    "model_type": "mistral", "architectures": ["MistralForCausalLM"], "hidden_size": 4096, "intermediate_size": 14336,
    "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 32000,
    "max_position_embeddings": 32768, "sliding_window": 4096, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
}  # fmt: skip
LLAMA_3_8B = MISTRAL_7B | {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 128256, "max_position_embeddings": 8192,
}  # fmt: skip
RUNS = [(MISTRAL_7B, 4, 72_434_837_504), (MISTRAL_7B, 8, 72_435_230_720), (LLAMA_3_8B, 4, 80_318_097_408)]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("config", "batch", "measured_bytes"), RUNS)
def test_peak_allocated_of_full_fine_tuning_on_an_a100(run_worker, config, batch, measured_bytes):
    workload = {"batch": batch, "sequence": 4096, "optimizer": "adamw_foreach", "checkpointing": "full"}
    events = run_worker("rehearse", config, "training", workload)
    peak_bytes = max(allocated for allocated, _ in events.phases.values())
    assert peak_bytes == pytest.approx(measured_bytes, rel=0.0005)
