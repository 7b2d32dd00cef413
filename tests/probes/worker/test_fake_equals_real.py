"""A rehearsal with the CPU's own operators equals a measurement on CPU to the byte: phases, components, modules."""

import pytest

INFERENCE = {"batch": 2, "prompt_tokens": 48, "new_tokens": 2}
TRAINING = {"batch": 2, "sequence": 48}
CASES = [
    ("llama", "inference", INFERENCE),
    ("llama", "inference", INFERENCE | {"engine_options": {"cache_implementation": "static"}}),
    ("llama", "inference", INFERENCE | {"attention": "eager"}),
    ("mixtral", "inference", INFERENCE),
    ("gemma3", "inference", INFERENCE),
    ("gpt2", "inference", INFERENCE),
    ("t5", "inference", INFERENCE),
    ("jamba", "inference", INFERENCE),
    ("llama", "training", TRAINING),
    ("llama", "training", TRAINING | {"checkpointing": "full", "optimizer": "adamw_foreach"}),
    ("llama", "training", TRAINING | {"checkpointing": "full", "engine_options": {"use_reentrant": True}}),
    ("llama", "training", TRAINING | {"checkpointing": "selective", "optimizer": "adafactor"}),
    ("llama", "training", TRAINING | {"gradient_accumulation": 2, "optimizer": "adamw"}),
    ("llama", "training", TRAINING | {"precision": "amp-bf16", "optimizer": "sgd_momentum"}),
    ("llama", "training", TRAINING | {"precision": "fp32", "optimizer": "lion", "loss": "chunked"}),
    ("llama", "training", TRAINING | {"method": "lora", "optimizer": "sgd"}),
    ("llama", "training", TRAINING | {"method": "dora", "engine_options": {"max_grad_norm": 1.0}}),
    ("llama", "training", TRAINING | {"method": "freeze", "optimizer": "muon"}),
    ("mixtral", "training", TRAINING),
    ("gemma3", "training", TRAINING),
    ("gpt2", "training", TRAINING),
    ("t5", "training", TRAINING),
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("name", "task", "workload"), CASES, ids=lambda value: value if isinstance(value, str) else None)
def test_rehearsal_with_cpu_operators_equals_measurement(run_worker, name, task, workload):
    measured = run_worker("measure", name, task, workload)
    rehearsed = run_worker("rehearse", name, task, workload, personality="cpu")
    assert rehearsed.phases == measured.phases
    for figure in ("parameters", "trainable_parameters", "weight_bytes", "layers", "model_class"):
        assert rehearsed.result[figure] == measured.result[figure]
    assert len(measured.phases) == {"inference": 3, "training": 7}[task]
    assert all(sum(components.values()) == allocated for allocated, components in measured.phases.values())
