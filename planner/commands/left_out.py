"""What a plan of a training asks for and a framework has no switch for, by the fields of the scenario."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from planner.scenario import Scenario

ZERO = ("zero1", "zero2", "zero3")
RELEASES = {"version": "transformers", "bitsandbytes_version": "bitsandbytes", "trl_version": "trl"}
"""Options that name a release, by the package that it is of."""
SPLITS = ("pipeline", "context", "expert")


def by_trainer(scenario: Scenario, sharding: str) -> tuple[str, ...]:
    """What transformers' Trainer, and TRL's, leave out of a plan that is sharded by ``sharding``."""
    ask = scenario.training
    options, ranks = ask.engine_options, scenario.hardware.gpus * scenario.hardware.nodes
    notes = [
        f"training.engine_options.{name}: the plan is of {package} {options[name]}; install that release"
        for name, package in RELEASES.items()
        if options.get(name)
    ]
    notes += [
        f"parallel.{name}: the Trainer splits nothing by {name}; the script runs without"
        for name in SPLITS
        if getattr(scenario.parallel, name) > 1
    ]
    if options.get("ema"):
        notes.append(
            "training.engine_options.ema: the Trainer keeps no average; update torch.optim.swa_utils.AveragedModel in a callback"
        )
    if options.get("compile"):
        notes.append(
            "training.engine_options.compile: call torch.compile on each layer; torch_compile=True compiles the model whole"
        )
    if "repeat_keys" in options:
        notes.append("training.engine_options.repeat_keys: the script gives attention what transformers' own code gives it")
    if "lora" in str(options.get("fused_kernels", "")):
        notes.append(
            "training.engine_options.fused_kernels: adapters as one function come with Unsloth or fms-acceleration; "
            "the script runs PEFT's"
        )
    if options.get("gradient_as_bucket_view") and ranks > 1 and sharding == "none":
        notes.append(
            "training.engine_options.gradient_as_bucket_view: the Trainer hands no such argument to DDP; "
            "take accelerate's DistributedDataParallelKwargs"
        )
    if (scenario.offload.weights or scenario.offload.optimizer) and sharding == "none":
        notes.append("offload: without ZeRO or FSDP the Trainer keeps everything on the GPU")
    if ask.lengths and ask.data != "packed":
        notes.append("training.lengths: every example of the script has the length of the longest, which decides the peak")
    return (*notes, *_by_trl(scenario)) if ask.objective != "sft" else tuple(notes)


def _by_trl(scenario: Scenario) -> tuple[str, ...]:
    """What TRL's trainers of other objectives decide themselves."""
    ask, notes = scenario.training, []
    if ask.data != "padded":
        notes.append(f"training.data: the script leaves TRL's rows padded, not {ask.data}")
    if "autocast_adapter_dtype" in ask.engine_options:
        notes.append("training.engine_options.autocast_adapter_dtype: TRL decides the dtype of its adapters itself")
    return tuple(notes)


def by_zero(scenario: Scenario, stage: int) -> tuple[str, ...]:
    """What DeepSpeed leaves out: parameters leave the GPU whole, and by stage 3 alone; so do parts of the states."""
    offload, notes = scenario.offload, []
    if offload.weights and stage < 3:
        notes.append(f"offload.weights: ZeRO-{stage} keeps parameters on the GPU; stage 3 offloads them")
    elif 0 < offload.weights < 1:
        notes.append("offload.weights: DeepSpeed offloads all parameters, whatever fraction is planned")
    if 0 < offload.optimizer < 1 and stage < 3:
        notes.append(f"offload.optimizer: ZeRO-{stage} offloads all states, whatever fraction is planned; stage 3 has a ratio")
    if offload.to == "nvme" and (offload.optimizer or (offload.weights and stage == 3)):
        notes.append("offload.to: put the folder of your drive for /local_nvme")
    if scenario.training.precision == "fp8":
        notes.append("training.precision: DeepSpeed computes in no fp8")
    return tuple(notes)


def by_fsdp(scenario: Scenario) -> tuple[str, ...]:
    """What accelerate's plugin has no key for."""
    ask, offload, notes = scenario.training, scenario.offload, []
    options = ask.engine_options
    flat = options.get("fsdp_version") == 1
    if ask.checkpointing == "selective" and not flat:
        notes.append("training.checkpointing: accelerate checkpoints every layer whole, nothing selectively")
    if options.get("use_reentrant") and ask.checkpointing != "none" and not flat:
        notes.append("training.engine_options.use_reentrant: accelerate's checkpoints are not reentrant with fsdp_version 2")
    if options.get("checkpoint_offload") and flat:
        notes.append("training.engine_options.checkpoint_offload: accelerate offloads checkpoints with fsdp_version 2 alone")
    if "reduce_dtype" in options:
        notes.append("training.engine_options.reduce_dtype: accelerate reduces in the dtype it computes in")
    if options.get("separate_ends") is False:
        notes.append("training.engine_options.separate_ends: accelerate wraps embedding and head as units of their own")
    if max(offload.weights, offload.optimizer) > 0 and min(offload.weights, offload.optimizer) < 1:
        notes.append("offload: FSDP offloads shards, gradients and states together, all of them")
    if offload.to == "nvme" and (offload.weights or offload.optimizer):
        notes.append("offload.to: FSDP offloads to the machine's memory alone")
    return tuple(notes)


def by_megatron(scenario: Scenario) -> tuple[str, ...]:
    """What ``pretrain_gpt.py`` has no option for."""
    ask = scenario.training
    plain = {"method": "full", "objective": "sft", "loss": "default"}
    notes = [
        f"training.{name}: pretrain_gpt.py has no {getattr(ask, name)}; the line leaves it out"
        for name, value in plain.items()
        if getattr(ask, name) != value
    ]
    if not ask.optimizer.startswith(("adamw", "sgd")) or "8bit" in ask.optimizer:
        notes.append(f"training.optimizer: pretrain_gpt.py has no {ask.optimizer}; the line takes its Adam")
    if scenario.offload != type(scenario.offload)():
        notes.append("offload: the line keeps everything on the GPU")
    return tuple(notes)


def by_launch(scenario: Scenario) -> tuple[str, ...]:
    """What has to be filled in on several machines."""
    if scenario.hardware.nodes == 1:
        return ()
    return ("run it on every node; FIRST_NODE is the name of the first, NUMBER_OF_NODE where it stands counts them from 0",)
