"""Rules that every training keeps, whatever it trains, how and with which objective."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.architecture import read_config
from planner.footprint import Footprint
from planner.predict import predict
from planner.scenario import parse_scenario
from resources.gpus import gpu

CARD = gpu("H200 SXM 141GB")
CONFIG: dict[str, Any] = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 128, "intermediate_size": 320,
    "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 1003,
    "max_position_embeddings": 4096, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
}  # fmt: skip
MODEL = read_config(CONFIG)
ADAPTED = ("lora", "dora", "qlora")
WORKS: tuple[dict[str, Any], ...] = (
    {}, {"method": "freeze"}, {"method": "freeze", "trainable": ["layers.2"]}, {"method": "lora"}, {"method": "dora"},
    {"method": "qlora"}, {"method": "ia3", "lora": {"targets": ["k_proj", "v_proj", "down_proj"]}}, {"method": "prompt"},
    {"method": "prefix"}, {"objective": "dpo"}, {"objective": "dpo", "method": "lora"}, {"objective": "grpo"},
    {"objective": "grpo", "method": "lora", "reference": "adapter"},
)  # fmt: skip
WORK = st.sampled_from(WORKS)
"""Every method, and every objective that is derived."""
PARTITIONED = ("zero1", "zero2", "zero3")
SHARDINGS = ("none", "zero1", "zero2", "zero3", "fsdp")
BLOCKS = 512 * 64
"""Room for what the allocator rounds: a block for each of the model's tensors."""


def footprint(work: dict[str, Any], gpus: int = 1, sharding: str = "none", *, known: bool = True, **more: Any) -> Footprint:
    training = {"batch": 2, "sequence": 64, "prompt_tokens": 8, "lora": {"targets": ["all-linear"]}} | work | more
    if training.get("objective", "sft") == "sft":
        del training["prompt_tokens"]
    document = {
        "version": 1, "model": {"config": CONFIG}, "task": "training", "training": training,
        "hardware": {"gpu": CARD.name, "gpus": gpus}, "parallel": {"sharding": sharding},
    }  # fmt: skip
    found = predict(parse_scenario(document), MODEL, CARD)
    assert not known or found.gpus[0].phases, found.notes
    return found


def allocated(found: Footprint) -> dict[str, int]:
    return {phase.name: phase.allocated for phase in found.gpus[0].phases}


def component(found: Footprint, phase: str, name: str) -> int:
    return next(each for each in found.gpus[0].phases if each.name == phase).components.get(name, 0)


@settings(max_examples=15)
@given(WORK, st.sampled_from(["none", "full"]), st.integers(1, 5), st.integers(16, 300), st.integers(1, 40))
def test_the_peak_grows_with_batch_sequence_and_rank(
    work: dict[str, Any], checkpointing: str, batch: int, sequence: int, rank: int
) -> None:
    """Monotone in batch, sequence and rank, phase by phase."""
    work = work | {"checkpointing": "none" if work.get("method") == "prefix" else checkpointing}
    lora = {"lora": {"rank": rank, "targets": ["all-linear"]}} if work.get("method") in ADAPTED else {}
    small = allocated(footprint(work, batch=batch, sequence=sequence, **lora))
    larger = [{"batch": batch + 1}, {"sequence": sequence + 1}]
    if lora:
        larger.append({"lora": lora["lora"] | {"rank": rank + 1}})
    for more in larger:
        large = allocated(footprint(work, **({"batch": batch, "sequence": sequence} | lora | more)))
        assert all(large[name] >= small[name] for name in small), more


@settings(max_examples=20)
@given(WORK, st.integers(2, 40))
def test_accumulation_changes_nothing_but_its_buffers(work: dict[str, Any], steps: int) -> None:
    """Between micro-batches the gradients wait, and nothing else; how many there are is of no account.

    TRL's GRPO makes the completions of all micro-batches at once, which ``rollout.steps`` keeps as many; what DPO and GRPO
    remember of micro-batches is theirs.
    """
    work = work | ({"rollout": {"steps": 1}} if work.get("objective") == "grpo" else {})
    one, two, many = (footprint(work, gradient_accumulation=count) for count in (1, 2, steps))
    waiting = component(one, "optimizer", "gradients")
    kept = 0 if work.get("objective", "sft") == "sft" else BLOCKS * steps
    for name, size in allocated(one).items():
        assert abs(allocated(many)[name] - allocated(two)[name]) <= kept, name
        assert size <= allocated(many)[name] <= size + waiting + kept, name
    for name in ("weights", "adapters", "optimizer_state", "gradients", "master_weights"):
        assert component(many, "optimizer", name) == component(one, "optimizer", name)


LAST_ALONE = ({"method": "freeze"}, {"method": "freeze", "trainable": ["layers.2"]})
"""Only the end of the model trains: without checkpoints the layers before it keep nothing."""


@settings(max_examples=20)
@given(
    WORK.filter(lambda work: work not in (*LAST_ALONE, {"method": "prefix"})),
    st.sampled_from(["full", "selective"]),
    st.integers(1, 5),
    st.integers(16, 300),
)
def test_checkpointing_never_raises_what_lives_after_the_forward(
    work: dict[str, Any], checkpointing: str, batch: int, sequence: int
) -> None:
    """A layer's input is one of the tensors that it keeps anyway. PEFT refuses prefixes beside checkpoints."""
    plain, checkpointed = (footprint(work, batch=batch, sequence=sequence, checkpointing=kind) for kind in ("none", checkpointing))
    assert component(checkpointed, "forward", "activations") <= component(plain, "forward", "activations")
    assert allocated(checkpointed)["forward"] <= allocated(plain)["forward"]


@pytest.mark.parametrize("work", LAST_ALONE, ids=str)
def test_checkpoints_of_frozen_layers_hold_what_nothing_else_does(work: dict[str, Any]) -> None:
    """The exception to the rule above, seen in traces of the model.

    Frozen layers before what trains hold nothing: no gradient goes through them. Checkpointing asks for gradients of the
    embedding's output (``enable_input_require_grads``), so that each of their inputs is held.
    """
    plain, checkpointed = (footprint(work, checkpointing=kind) for kind in ("none", "full"))
    assert component(checkpointed, "forward", "activations") > 0
    stream = 2 * 64 * 128 * 2
    inputs, last_norm = 3 * stream, 2 * stream + stream
    assert allocated(checkpointed)["forward"] - allocated(plain)["forward"] <= inputs + last_norm + 8 * 512


NARROW = {"engine_options": {"autocast_adapter_dtype": False}}
SHARDED = ({}, {"method": "lora", **NARROW}, {"method": "dora", **NARROW})
"""Methods that are derived under every sharding; adapters in 16 bit, as DeepSpeed and FSDP keep them."""


@settings(max_examples=20)
@given(st.sampled_from(SHARDED), st.sampled_from(SHARDINGS[1:]), st.sampled_from([2, 4, 8]))
def test_states_of_all_ranks_are_the_whole(work: dict[str, Any], sharding: str, ranks: int) -> None:
    """Moments, and ZeRO's masters, of all ranks are those of every trained parameter, and what alignment adds."""
    found = footprint(work, ranks, sharding)
    width = 4 if sharding in PARTITIONED else 2
    moments = component(found, "optimizer", "optimizer_state") * ranks
    whole = 2 * width * (found.trainable_parameters or 0)
    odd_rows = 2 * 2 * width * 128 * ranks
    assert whole <= moments <= whole + odd_rows + 3 * BLOCKS * ranks
    masters = component(found, "optimizer", "master_weights") * ranks
    wanted = 4 * (found.trainable_parameters or 0) if sharding in PARTITIONED else 0
    assert wanted <= masters <= wanted + (BLOCKS * ranks if wanted else 0)


def difference(work: dict[str, Any], sharding: str, phase: str) -> dict[str, int]:
    """What a sharding over one rank changes, by component; slack is a matter of the allocator's segments."""
    alone, sharded = (
        dict(next(each for each in footprint(work, 1, name).gpus[0].phases if each.name == phase).components)
        for name in ("none", sharding)
    )
    for parts in (alone, sharded):  # stage 3 gathers adapters with the rest
        parts["weights"] += parts.pop("adapters", 0)
    changed = {name: sharded.get(name, 0) - alone.get(name, 0) for name in alone.keys() | sharded.keys()}
    return {name: size for name, size in changed.items() if abs(size) > BLOCKS and name != "allocator_slack"}


@pytest.mark.parametrize("sharding", SHARDINGS)
@pytest.mark.parametrize("work", SHARDED, ids=str)
def test_one_gpu_sharded_is_one_gpu_and_its_stated_buffers(work: dict[str, Any], sharding: str) -> None:
    """None adds nothing, FSDP gathered copies; ZeRO fp32 masters, their moments and gradients, buckets, stage 3 copies."""
    added = set[str]()
    if sharding == "fsdp":
        added = {"weights"}
    elif sharding in PARTITIONED:
        added = {"master_weights", "optimizer_state", "gradients", "communication"}
    if sharding == "zero3":
        added |= {"weights"}
    for phase in ("load", "forward", "optimizer"):
        assert difference(work, sharding, phase).keys() <= added, phase
        assert all(size > 0 for size in difference(work, sharding, phase).values()), phase
    more = difference(work, sharding, "backward")
    # Buckets may make another moment of the backward the highest: by then fewer logits and activations are left.
    assert {name for name, size in more.items() if size > 0} <= added | {"workspace"}
    assert {name for name, size in more.items() if size < 0} <= {"logits", "activations"}


@pytest.mark.parametrize("work", [work for work in WORKS if work.get("method") not in (None, "lora", "dora")], ids=str)
def test_what_is_not_derived_under_a_sharding_has_no_number(work: dict[str, Any]) -> None:
    for sharding in SHARDINGS[1:]:
        found = footprint(work, 2, sharding, known=False)
        assert found.gpus[0].phases or any(note.startswith("unknown") for note in found.notes)
