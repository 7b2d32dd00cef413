"""What is launched is what was planned: the sharding's files say the settings that the prediction took."""

from __future__ import annotations

import json
from typing import Any

from planner.commands.training import training
from planner.engines.sharded.plans import COMPUTED_BYTES, fsdp_policy
from planner.engines.sharded.zero import zero_of
from planner.scenario import Scenario, parse_scenario


def scenario(sharding: str = "none", **more: Any) -> Scenario:
    work = {"batch": 2, "sequence": 1024} | more.pop("training", {})
    document = {
        "version": 1, "model": "meta-llama/Llama-3.1-8B", "task": "training", "training": work,
        "hardware": {"gpu": "H200 SXM 141GB", "gpus": 8}, "parallel": {"sharding": sharding} | more.pop("parallel", {}), **more,
    }  # fmt: skip
    return parse_scenario(document)


def file(asked: Scenario, name: str) -> str:
    return next(command.text for command in training(asked) if command.file == name)


def test_deepspeed_says_the_planned_buckets() -> None:
    """Options that were set stand in the file; what is not set is DeepSpeed's default in both."""
    options = {"reduce_bucket_size": 10_000_000, "stage3_max_live_parameters": 5_000_000}
    asked = scenario("zero3", training={"engine": "deepspeed", "engine_options": options})
    said = json.loads(file(asked, "deepspeed.json"))["zero_optimization"]
    planned = zero_of(asked, 3, 8, COMPUTED_BYTES["bf16"])
    assert said["reduce_bucket_size"] == planned.reduce_bucket_size
    assert said["stage3_max_live_parameters"] == planned.max_live_parameters
    assert said["overlap_comm"] == planned.overlap_comm
    assert (
        "stage3_max_live_parameters"
        not in json.loads(file(scenario("zero2", training={"engine": "deepspeed", "engine_options": options}), "deepspeed.json"))[
            "zero_optimization"
        ]
    )


def test_deepspeed_offloads_what_is_planned() -> None:
    asked = scenario("zero3", offload={"optimizer": 0.5, "weights": 1.0})
    said = json.loads(file(asked, "deepspeed.json"))["zero_optimization"]
    planned = zero_of(asked, 3, 8, 2)
    assert said["offload_optimizer"]["ratio"] == planned.offload_optimizer
    assert ("offload_param" in said) == planned.offload_parameters


def test_accelerate_reshards_as_planned() -> None:
    for value in (True, False):
        asked = scenario("fsdp", training={"engine_options": {"reshard_after_forward": value}})
        assert f"fsdp_reshard_after_forward: {str(value).lower()}" in file(asked, "fsdp.yaml")
        assert fsdp_policy(asked, 8).reshard_after_forward is value


def test_fsdp_1_is_named_by_its_strategy_and_its_checkpoints_by_the_trainer():
    options = {"fsdp_version": 1, "version": "4.48.1"}
    asked = scenario("fsdp", training={"engine": "transformers", "checkpointing": "full", "engine_options": options})
    text = file(asked, "fsdp.yaml")
    assert "  fsdp_version: 1\n  fsdp_sharding_strategy: FULL_SHARD\n" in text
    assert "fsdp_activation_checkpointing: false" in text
    assert any("gradient_checkpointing=True" in command.text for command in training(asked))


def test_buckets_of_replicas() -> None:
    asked = scenario(training={"engine_options": {"bucket_cap_mb": 50}})
    assert "ddp_bucket_cap_mb=50" in file(asked, "train.py")


def test_tensor_parallelism_loads_by_the_models_plan() -> None:
    assert 'tp_plan="auto"' in file(scenario(parallel={"tensor": 8}), "train.py")
