"""Predictions of training methods: what holds for every model and every count."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.architecture import read_config
from planner.footprint import Footprint
from planner.gpu import Gpu
from planner.predict import predict
from planner.scenario import parse_scenario
from resources.plan import find_gpu

CONFIG = {
    "model_type": "llama", "hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 3, "num_attention_heads": 8,
    "num_key_value_heads": 2, "vocab_size": 1200, "torch_dtype": "bfloat16", "tie_word_embeddings": False,
}  # fmt: skip
LLAMA = read_config(CONFIG)
PLAIN = [
    {"method": "lora"}, {"method": "dora"}, {"method": "qlora"}, {"method": "lora", "precision": "amp-bf16"},
    {"method": "lora", "checkpointing": "full"},
]  # fmt: skip
WIDTH = {"method": "ia3"}, {"method": "prompt"}, {"method": "freeze"}, {"precision": "amp-bf16"}


@pytest.fixture(scope="module")
def gpu() -> Gpu:
    return find_gpu("H200 SXM 141GB")


def answer(gpu: Gpu, training: dict[str, object], rank: int = 8, **more: object) -> Footprint:
    lora = {"rank": rank, "targets": ["all-linear"]}
    document = {"version": 1, "model": {"config": CONFIG}, "task": "training", "training": {"lora": lora} | training | more}
    return predict(parse_scenario(document), LLAMA, gpu)


def peaks(footprint: Footprint) -> list[int]:
    assert footprint.gpus[0].phases, footprint.notes
    return [phase.allocated for phase in footprint.gpus[0].phases]


@pytest.mark.parametrize("training", PLAIN, ids=str)
@given(rank=st.integers(1, 64), batch=st.integers(1, 4), sequence=st.integers(1, 300))
@settings(max_examples=8)
def test_the_peak_grows_with_rank_batch_and_sequence(
    gpu: Gpu, training: dict[str, object], rank: int, batch: int, sequence: int
) -> None:
    """Monotone in rank, batch and sequence, in every phase."""
    small = peaks(answer(gpu, training, rank, batch=batch, sequence=sequence))
    for larger in ((rank + 1, batch, sequence), (rank, batch + 1, sequence), (rank, batch, sequence + 1)):
        more = peaks(answer(gpu, training, larger[0], batch=larger[1], sequence=larger[2]))
        assert all(after >= before for before, after in zip(small, more, strict=True))


@pytest.mark.parametrize("training", [*PLAIN, *WIDTH], ids=str)
def test_the_components_of_each_phase_add_up(gpu: Gpu, training: dict[str, object]) -> None:
    """The terms are the peak: no byte without a formula."""
    footprint = answer(gpu, training, batch=2, sequence=100)
    for phase in footprint.gpus[0].phases:
        assert sum(phase.components.values()) == phase.device
        assert sum(term.bytes for term in footprint.terms if term.phase == phase.name) == phase.device
        assert all(size >= 0 for size in phase.components.values())


@pytest.mark.parametrize("training", [*PLAIN, *WIDTH], ids=str)
def test_nothing_of_the_step_is_left_when_the_optimizer_begins(gpu: Gpu, training: dict[str, object]) -> None:
    """What the forward saved is used up by the backward, whatever it trains."""
    phases = {phase.name: phase for phase in answer(gpu, training, batch=2, sequence=100).gpus[0].phases}
    assert phases["optimizer"].components.get("activations", 0) == 0
    assert phases["optimizer"].components.get("logits", 0) == 0


@pytest.mark.parametrize("method", ["lora", "dora", "qlora", "ia3", "prompt"])
def test_a_frozen_base_has_no_gradients_of_its_own(gpu: Gpu, method: str) -> None:
    """Gradients are those of the trained parameters, in their dtype, each rounded up to a block."""
    footprint = answer(gpu, {"method": method}, batch=1, sequence=64)
    optimizer = footprint.gpus[0].phases[-1].components
    assert 4 * footprint.trainable_parameters <= optimizer["gradients"] <= optimizer["adapters"]
    assert optimizer["optimizer_state"] >= 2 * optimizer["gradients"]


def test_rank_stabilised_scaling_sizes_nothing(gpu: Gpu) -> None:
    """Kalajdzievski 2023: only the factor changes."""
    plain, scaled = ({"method": "lora", "lora": {"rank": 8, "rslora": told}} for told in (False, True))
    assert peaks(answer(gpu, plain)) == peaks(answer(gpu, scaled))


@pytest.mark.parametrize("name", ["LlamaModel", "LlamaForTokenClassification", "LlamaForQuestionAnswering"])
def test_a_decoder_without_a_head_over_the_vocabulary_has_another_loss(gpu: Gpu, name: str) -> None:
    config = CONFIG | {"architectures": [name]}
    scenario = parse_scenario({"version": 1, "model": {"config": config}, "task": "training"})
    footprint = predict(scenario, read_config(config), gpu)
    assert not footprint.gpus[0].phases
    assert any("loss" in note for note in footprint.notes)


@pytest.mark.parametrize("part", ["attention", "mlp"])
@pytest.mark.parametrize("method", ["qlora", "lora", "full"])
def test_no_activation_outlives_its_backward(gpu: Gpu, method: str, part: str) -> None:
    """What a part of a layer saved when it ran again goes in its backward, whatever stands behind the last saved tensor."""
    config = CONFIG | {"model_type": "phi3", "pad_token_id": 0}
    training = {
        "method": method, "lora": {"rank": 8, "targets": ["qkv_proj"]}, "batch": 2, "sequence": 300,
        "checkpointing": "selective", "engine_options": {"checkpoint_modules": part},
    }  # fmt: skip
    document = {"version": 1, "model": {"config": config}, "task": "training", "training": training}
    footprint = predict(parse_scenario(document), read_config(config), gpu)
    assert footprint.gpus[0].phases[-1].components.get("activations", 0) == 0, footprint.notes
