"""Megatron's stages: states by its own rule of bytes a parameter, micro-batches in flight, what a layer saves."""

from __future__ import annotations

from typing import Any

import pytest

from planner.architecture import read_config
from planner.architecture.counts import parameter_count
from planner.faults import Faults
from planner.footprint import Footprint
from planner.predict import predict
from planner.scenario import parse_scenario
from resources.gpus import gpu

H100 = gpu("H100 SXM5 80GB")
HIDDEN, WIDE, LAYERS, VOCABULARY = 512, 1536, 8, 4096
CONFIG: dict[str, Any] = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": HIDDEN, "intermediate_size": WIDE,
    "num_hidden_layers": LAYERS, "num_attention_heads": 8, "num_key_value_heads": 8, "vocab_size": VOCABULARY,
    "max_position_embeddings": 4096, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
}  # fmt: skip
MODEL = read_config(CONFIG)
PARAMETERS = parameter_count(MODEL)
BATCH, SEQUENCE = 2, 1024


def footprint(gpus: int = 1, *, model: Any = MODEL, config: Any = CONFIG, micro: int = 1, **parallel: Any) -> Footprint:
    options = parallel.pop("options", {})
    work = {"engine": "megatron", "batch": BATCH, "sequence": SEQUENCE, "gradient_accumulation": micro, "engine_options": options}
    work |= parallel.pop("work", {})
    document = {
        "version": 1, "model": {"config": config}, "task": "training", "training": work,
        "hardware": {"gpu": H100.name, "gpus": gpus}, "parallel": parallel,
    }  # fmt: skip
    return predict(parse_scenario(document), model, H100)


def held(found: Footprint, name: str, *components: str, index: int = 0) -> int:
    phase = next(each for each in found.gpus[index].phases if each.name == name)
    return sum(phase.components.get(component, 0) for component in components)


STATES = ("weights", "gradients", "master_weights", "optimizer_state")


@pytest.mark.parametrize("replicas", [1, 2, 4])
def test_states_take_eighteen_bytes_or_six_and_a_share_of_twelve(replicas: int) -> None:
    """Megatron's own estimate (``theoretical_memory_usage.py``), the latter with the distributed optimizer."""
    whole, shared = footprint(replicas, data=replicas), footprint(replicas, data=replicas, sharding="zero1")
    assert held(whole, "optimizer", *STATES) == pytest.approx(18 * PARAMETERS, rel=1e-4)
    assert held(shared, "optimizer", *STATES) == pytest.approx((6 + 12 / replicas) * PARAMETERS, rel=1e-4)


def test_a_layer_saves_twenty_h_and_six_f() -> None:
    """With as many key as query heads: two norms' inputs and results (8 h), joint projection (6 h), rotated queries and keys
    (4 h), attention's result (2 h); feed-forward 6 f; log-sum-exp 4 bytes a head; then the head's input twice and token ids."""
    tokens = BATCH * SEQUENCE
    layer = tokens * (20 * HIDDEN + 6 * WIDE + 4 * 8)
    expected = LAYERS * layer + 2 * 2 * tokens * HIDDEN + 8 * tokens
    assert held(footprint(), "forward", "activations") == expected


def test_recomputation_keeps_inputs() -> None:
    found = footprint(work={"checkpointing": "full"})
    tokens = BATCH * SEQUENCE
    assert held(found, "forward", "activations") == (LAYERS + 2) * 2 * tokens * HIDDEN + 8 * tokens


@pytest.mark.parametrize(("micro", "first", "last"), [(1, 1, 1), (2, 2, 1), (16, 4, 1)])
def test_stages_hold_as_many_micro_batches_as_follow(micro: int, first: int, last: int) -> None:
    """1F1B: stage i of p holds min(m, p − i) micro-batches of its layers."""
    found = footprint(4, pipeline=4, micro=micro)
    tokens = BATCH * SEQUENCE
    layer = tokens * (20 * HIDDEN + 6 * WIDE + 4 * 8)
    assert [card.index for card in found.gpus] == [0, 1, 2, 3]
    assert held(found, "forward", "activations") == first * (2 * layer + 8 * tokens)
    assert held(found, "forward", "activations", index=3) == last * 2 * layer + 2 * 2 * tokens * HIDDEN


def test_interleaving_holds_more() -> None:
    """The first of p stages holds 1 + (p − 1) / (p · v) times what all layers save (Narayanan et al. 2021, section 2.2)."""
    plain = held(footprint(2, pipeline=2, micro=16), "forward", "activations")
    chunked = held(footprint(2, pipeline=2, micro=16, options={"virtual_pipeline": 2}), "forward", "activations")
    assert chunked / plain == pytest.approx(1 + 1 / 4, rel=0.01)


def test_stages_add_up_to_the_model() -> None:
    found = footprint(4, pipeline=4)
    assert sum(held(found, "load", "weights", index=stage) for stage in range(4)) == pytest.approx(2 * PARAMETERS, rel=1e-4)


def test_sequence_parallelism_divides_the_rest() -> None:
    """Without it norms and residuals are whole on every rank."""
    cut, whole = (footprint(2, tensor=2, options={"sequence_parallel": value}) for value in (True, False))
    tokens = BATCH * SEQUENCE
    more = held(whole, "forward", "activations") - held(cut, "forward", "activations")
    assert more == (LAYERS * 4 + 2) * 2 * tokens * HIDDEN // 2


def test_context_parallelism_divides_the_sequence() -> None:
    half = held(footprint(2, context=2), "forward", "activations", "logits")
    assert half * 2 == held(footprint(), "forward", "activations", "logits")


def test_experts_are_divided_by_number() -> None:
    """A rank of two holds half of the experts; their masters lie over as many fewer replicas."""
    config = {
        "model_type": "mixtral", "architectures": ["MixtralForCausalLM"], "hidden_size": 256, "intermediate_size": 512,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 4, "vocab_size": 1024, "num_local_experts": 8,
        "num_experts_per_tok": 2, "max_position_embeddings": 4096, "torch_dtype": "bfloat16",
    }  # fmt: skip
    model = read_config(config)
    one, two = (footprint(2, model=model, config=config, expert=ways, sharding="zero1") for ways in (1, 2))
    experts = 2 * 8 * 3 * 256 * 512
    assert held(one, "load", "weights") - held(two, "load", "weights") == experts
    assert held(one, "load", "master_weights") == held(two, "load", "master_weights")


@pytest.mark.parametrize(
    ("gpus", "parallel", "field"),
    [(3, {"pipeline": 3}, "parallel.pipeline"), (3, {"tensor": 3}, "parallel.tensor"), (2, {"expert": 2}, "parallel.expert")],
)
def test_uneven_ways_are_refused(gpus: int, parallel: dict[str, int], field: str) -> None:
    with pytest.raises(Faults) as raised:
        footprint(gpus, **parallel)
    assert field in {fault.path for fault in raised.value.faults}
