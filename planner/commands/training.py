"""What runs a planned training: the Trainer script, the launch line, and the sharding's own config file."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from planner.commands.command import Command, model_notes, shell_line
from planner.commands.left_out import by_fsdp, by_launch, by_megatron, by_trainer, by_zero
from planner.commands.optimizers import optimizer_arguments
from planner.commands.recipes import axolotl, torchtune
from planner.commands.transformers import VERSION, loading
from planner.components.checkpointing import SELECTIVE_EVERY
from planner.components.float8 import DEFAULT_RECIPE, MULTIPLE
from planner.components.fused_kernels import KERNELS
from planner.engine_options import ZERO

if TYPE_CHECKING:
    from planner.scenario import Scenario, Training

ACCELERATE = "1.15"
DEEPSPEED = "0.19"
MEGATRON = "core 0.14"
PRECISIONS: dict[str, dict[str, object]] = {"amp-bf16": {"bf16": True}, "amp-fp16": {"fp16": True}}
"""Arguments of a precision; plain bf16 and fp32 are the dtype the model is loaded in."""
PEFT_CONFIGS = {
    "lora": "LoraConfig", "qlora": "LoraConfig", "dora": "LoraConfig", "ia3": "IA3Config", "prompt": "PromptTuningConfig",
    "prefix": "PrefixTuningConfig", "vera": "VeraConfig", "loha": "LoHaConfig", "lokr": "LoKrConfig",
}  # fmt: skip
FEED_FORWARD = ("down_proj", "fc2", "fc_out", "dense_4h_to_h", "w2", "wo", "output_linear")
"""The last linear of a feed-forward block by its names: IA³ scales what it reads."""
BY_ACCELERATE = (
    "the plan is of a loop like torchtitan's: mixed precision reduces gradients in fp32, and micro-batches leave shards; "
    "accelerate reduces in the dtype it computes in and leaves whole gradients (training.engine transformers plans that)"
)
ZERO_STAGE = {"zero1": 1, "zero2": 2, "zero3": 3}


def training(scenario: Scenario) -> tuple[Command, ...]:
    """The script, how to launch it on the planned GPUs, and the sharding's file; then other frameworks' keys."""
    if scenario.training.engine == "megatron":
        return (_megatron(scenario),)
    files: list[Command] = [_script(scenario)]
    sharding = _sharding(scenario)
    if sharding in ZERO_STAGE:
        files.append(_deepspeed(scenario, ZERO_STAGE[sharding]))
    elif sharding == "fsdp":
        files.append(_fsdp(scenario))
    files.append(_launch(scenario, sharding))
    if scenario.training.objective != "sft":
        return tuple(files)
    return (*files, *torchtune(scenario, sharding), *axolotl(scenario, sharding))


def _sharding(scenario: Scenario) -> str:
    chosen = scenario.parallel.sharding
    if chosen != "none":
        return chosen
    return {"deepspeed": "zero2", "fsdp": "fsdp"}.get(scenario.training.engine, "none")


def _ranks(scenario: Scenario) -> int:
    return scenario.hardware.gpus * scenario.hardware.nodes


def _script(scenario: Scenario) -> Command:
    ask = scenario.training
    if ask.objective != "sft":
        return _objective(scenario)
    imports, load = loading(scenario, ask.attention, device_map="cuda" if ask.method == "qlora" and _ranks(scenario) == 1 else None)
    notes = [*model_notes(scenario), *by_trainer(scenario, _sharding(scenario))]
    collator = ["DataCollatorWithFlattening"] if ask.data == "flattened" else []
    lines = ["import torch"]
    if ask.method in PEFT_CONFIGS:
        prepare = ", prepare_model_for_kbit_training" if _prepares(scenario) else ""
        lines.append(f"from peft import {PEFT_CONFIGS[ask.method]}, get_peft_model{prepare}")
    lines.append(f"from transformers import {', '.join([*imports, *collator, 'Trainer', 'TrainingArguments'])}")
    # The arguments first: they bind the process to its GPU and tell loading how weights are sharded.
    lines += [
        "",
        *_arguments(scenario, notes),
        *load,
        *_adapters(scenario),
        *_frozen(scenario),
        *_in_8_bit(scenario, notes),
        "",
        *_dataset(scenario),
    ]
    trained = ["model=model", "args=arguments", "train_dataset=dataset"]
    trained += [f"data_collator={name}()" for name in collator]
    if ask.optimizer == "adamw":
        trained.append('optimizer_cls_and_kwargs=(torch.optim.AdamW, {"lr": arguments.learning_rate, "foreach": False})')
    lines.append("Trainer(\n" + "".join(f"    {argument},\n" for argument in trained) + ").train()")
    lines += ['print(f"peak allocated {torch.cuda.max_memory_allocated() / 2**30:.2f} GiB")', ""]
    title = "Train with transformers and PEFT" if ask.method in PEFT_CONFIGS else "Train with transformers"
    return Command(title, "transformers", VERSION, "python", "\n".join(lines), "train.py", tuple(notes))


def _objective(scenario: Scenario) -> Command:
    """TRL's trainer of the objective with the same arguments and adapters."""
    from planner.commands.trl import objective_script  # noqa: PLC0415  loaded for those who ask

    ask, notes = scenario.training, list(by_trainer(scenario, _sharding(scenario)))
    if ask.optimizer == "adamw":
        notes.append("training.optimizer: TRL's trainers take adamw_torch, by foreach; hand them optimizers=(…) for a loop")
    adapters = f"{PEFT_CONFIGS[ask.method]}({_adapter_arguments(ask)})" if ask.method in PEFT_CONFIGS else ""
    arguments = {"gradient_checkpointing": False} | _training_arguments(scenario, notes)
    imported = ["from peft import prepare_model_for_kbit_training"] if _prepares(scenario) else []
    prepared = [*_prepared(scenario), *_frozen(scenario)]
    return objective_script(scenario, arguments, adapters, _literal, notes, imported=imported, prepared=prepared)


def _in_8_bit(scenario: Scenario, notes: list[str]) -> list[str]:
    """torchao's conversion of the linears that accelerate takes: all but the first and the last, of dimensions that fit."""
    ask = scenario.training
    if ask.precision != "fp8":
        return []
    if ask.batch * (ask.sequence or MULTIPLE) % MULTIPLE:
        notes.append(f"training.sequence: products in FP8 take micro-batches of a multiple of {MULTIPLE} tokens")
    recipe = ask.engine_options.get("fp8_recipe", DEFAULT_RECIPE)
    return [
        "from torchao.float8 import Float8LinearConfig, convert_to_float8_training",
        "",
        "linears = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]",
        "convert_to_float8_training(",
        "    model,",
        f'    config=Float8LinearConfig.from_recipe_name("{recipe}"),',
        "    module_filter_fn=lambda module, name: name not in (linears[0], linears[-1])",
        "    and not (module.in_features % 16 or module.out_features % 16),",
        ")",
    ]


def _adapters(scenario: Scenario) -> list[str]:
    ask = scenario.training
    if ask.method not in PEFT_CONFIGS:
        return []
    lines = _prepared(scenario)
    lines.append(f"adapters = {PEFT_CONFIGS[ask.method]}({_adapter_arguments(ask)})")
    plain = ", autocast_adapter_dtype=False" if ask.engine_options.get("autocast_adapter_dtype") is False else ""
    lines.append(f"model = get_peft_model(model, adapters{plain})")
    return lines


def _prepared(scenario: Scenario) -> list[str]:
    if not _prepares(scenario):
        return []
    checkpointed = scenario.training.checkpointing != "none"
    return [f"model = prepare_model_for_kbit_training(model, use_gradient_checkpointing={checkpointed})"]


def _prepares(scenario: Scenario) -> bool:
    """Whether what is not quantised is cast to fp32, as the plan says."""
    ask = scenario.training
    return ask.method == "qlora" and bool(ask.engine_options.get("prepare_for_kbit_training"))


def _adapter_arguments(ask: Training) -> str:
    """Arguments of the PEFT config."""
    if ask.method in ("prompt", "prefix"):
        return f'task_type="CAUSAL_LM", num_virtual_tokens={ask.virtual_tokens}'
    every = ask.lora.targets == ("all-linear",)
    targets = '"all-linear"' if every else json.dumps(list(ask.lora.targets))
    if ask.method == "ia3":
        inner = [name for name in ask.lora.targets if name.rpartition(".")[2] in FEED_FORWARD]
        return f"target_modules={targets}, feedforward_modules={json.dumps(inner)}"
    if ask.method == "vera":
        return f"r={ask.lora.rank}, vera_dropout={ask.lora.dropout:g}, target_modules={targets}"
    if ask.method in ("loha", "lokr"):
        return f"r={ask.lora.rank}, alpha={ask.lora.alpha or 2 * ask.lora.rank}, target_modules={targets}"
    variants = (", use_dora=True" if ask.method == "dora" else "") + (", use_rslora=True" if ask.lora.rslora else "")
    size = f"r={ask.lora.rank}, lora_alpha={ask.lora.alpha or 2 * ask.lora.rank}, lora_dropout={ask.lora.dropout:g}"
    return f"{size}, target_modules={targets}{variants}"


def _frozen(scenario: Scenario) -> list[str]:
    """Everything but the named modules, or the head."""
    ask = scenario.training
    if ask.method != "freeze":
        return []
    lines = ["model.requires_grad_(False)"]
    if not ask.trainable:
        return [*lines, "model.get_output_embeddings().requires_grad_(True)"]
    return [
        *lines,
        f"trained = {json.dumps(list(ask.trainable))}",
        "for path, parameter in model.named_parameters():",
        '    parameter.requires_grad_(any(f".{name}." in f".{path}." for name in trained))',
    ]


def _dataset(scenario: Scenario) -> list[str]:
    """Random tokens of the planned length: replace by one's own; the memory is the same."""
    rows = 'dataset = [{"input_ids": row, "labels": row} for row in tokens]'
    if scenario.training.data == "flattened":
        rows = 'dataset = [{"input_ids": row} for row in tokens.tolist()]'
    return [
        "# random tokens of the planned length stand in for your dataset: the memory is the same",
        f"tokens = torch.randint(model.config.get_text_config().vocab_size, (64, {scenario.training.sequence or 2048}))",
        rows,
    ]


def _arguments(scenario: Scenario, notes: list[str]) -> list[str]:
    arguments = _training_arguments(scenario, notes)
    written = "".join(f"    {name}={_literal(value)},\n" for name, value in arguments.items())
    return [f"arguments = TrainingArguments(\n{written})"]


def _training_arguments(scenario: Scenario, notes: list[str]) -> dict[str, object]:
    ask = scenario.training
    arguments: dict[str, object] = {
        "output_dir": "trained",
        "per_device_train_batch_size": ask.batch,
        "gradient_accumulation_steps": ask.gradient_accumulation,
        "max_steps": 4,
        "report_to": "none",
        "max_grad_norm": ask.engine_options.get("max_grad_norm", 0.0),
        **optimizer_arguments(ask, notes),
        **PRECISIONS.get(ask.precision, {}),
        **_checkpointing(scenario, notes),
    }
    if ask.precision == "fp8" and scenario.weights == "fp32":
        arguments["bf16"] = True
    if "bucket_cap_mb" in ask.engine_options and _sharding(scenario) == "none" and _ranks(scenario) > 1:
        arguments["ddp_bucket_cap_mb"] = ask.engine_options["bucket_cap_mb"]
    kernels = _kernels(ask)
    if any(kernels.values()):
        arguments |= {"use_liger_kernel": True, "liger_kernel_config": kernels}
    if ask.loss == "chunked":
        notes.append("training.loss: a chunked loss is the model's or trainer's own; this script has the default one")
    if _sharding(scenario) in ZERO_STAGE:
        arguments |= {"deepspeed": "deepspeed.json"} | ({"bf16": True} if ask.precision == "bf16" else {})
    return arguments


def _kernels(ask: Training) -> dict[str, object]:
    """Liger's kernels by the names of its patches, which would all run otherwise (``apply_liger_kernel_to_llama``)."""
    named = [name.strip() for name in str(ask.engine_options.get("fused_kernels", "")).split(",")]
    found: dict[str, object] = {name: name in named for name in KERNELS if name != "lora"}
    return found | {"fused_linear_cross_entropy": ask.loss == "fused"}


def _checkpointing(scenario: Scenario, notes: list[str]) -> dict[str, object]:
    ask = scenario.training
    options = ask.engine_options
    if ask.checkpointing == "none" or (_sharding(scenario) == "fsdp" and options.get("fsdp_version") != 1):
        return {}
    found: dict[str, object] = {"use_reentrant": bool(options["use_reentrant"])} if "use_reentrant" in options else {}
    by_hand = [name for name in ("checkpoint_modules", "checkpoint_saves") if options.get(name) not in (None, "layers")]
    if ask.checkpointing == "selective" and by_hand:
        offloaded = ", under torch.autograd.graph.save_on_cpu for checkpoint_offload" if options.get("checkpoint_offload") else ""
        notes.append(f"training.engine_options.{by_hand[0]}: wrap the modules by hand with torch.utils.checkpoint{offloaded}")
        return {}
    if ask.checkpointing == "selective":
        found["every_n_layers"] = options.get("checkpoint_every", SELECTIVE_EVERY)
    if options.get("checkpoint_offload"):
        found["offload"] = True
    return {"gradient_checkpointing": True} | ({"gradient_checkpointing_kwargs": found} if found else {})


def _literal(value: object) -> str:
    """Python's own spelling, with double quotes."""
    return json.dumps(value) if isinstance(value, str | list) else repr(value).replace("'", '"')


def _deepspeed(scenario: Scenario, stage: int) -> Command:
    """ZeRO by DeepSpeed's own config keys (``deepspeed/runtime/zero/config.py``)."""
    ask, offload = scenario.training, scenario.offload
    zero: dict[str, object] = {"stage": stage, "overlap_comm": True, "contiguous_gradients": True}
    set_here = {name: value for name, value in ask.engine_options.items() if name in ZERO}
    zero |= {name: value for name, value in set_here.items() if stage == 3 or not name.startswith("stage3_")}
    if stage == 3:
        zero["stage3_gather_16bit_weights_on_model_save"] = True
    device: dict[str, object] = {"device": offload.to, "pin_memory": True}
    if offload.to == "nvme":
        device["nvme_path"] = "/local_nvme"
    if offload.optimizer:
        zero["offload_optimizer"] = device | ({"ratio": offload.optimizer} if offload.optimizer < 1 and stage == 3 else {})
    if offload.weights and stage == 3:
        zero["offload_param"] = device
    document: dict[str, object] = {
        "train_micro_batch_size_per_gpu": ask.batch,
        "gradient_accumulation_steps": ask.gradient_accumulation,
        "zero_optimization": zero,
        "bf16": {"enabled": ask.precision in ("bf16", "amp-bf16")},
    }
    if ask.precision == "amp-fp16":
        document["fp16"] = {"enabled": True}
    if ask.engine_options.get("max_grad_norm"):
        document["gradient_clipping"] = ask.engine_options["max_grad_norm"]
    text = json.dumps(document, indent=2) + "\n"
    return Command(f"DeepSpeed ZeRO-{stage}", "deepspeed", DEEPSPEED, "json", text, "deepspeed.json", by_zero(scenario, stage))


def _fsdp(scenario: Scenario) -> Command:
    """accelerate's FSDP plugin (``accelerate/utils/dataclasses.py``, ``FullyShardedDataParallelPlugin``).

    Of version 1 the sharding has a name, and layers are checkpoints by the trainer: they call the units from outside.
    """
    ask = scenario.training
    gives_up = bool(ask.engine_options.get("reshard_after_forward", True))
    flat = ask.engine_options.get("fsdp_version") == 1
    strategy = "fsdp_sharding_strategy: " + ("FULL_SHARD" if gives_up else "SHARD_GRAD_OP")
    checkpointed = ask.checkpointing != "none" and not flat
    offloads = checkpointed and ask.engine_options.get("checkpoint_offload")
    offloaded = ["  fsdp_activation_checkpointing_offload: true"] if offloads else []
    mixed = {"amp-bf16": "bf16", "amp-fp16": "fp16", "fp8": "fp8", "bf16": "no", "fp32": "no"}[ask.precision]
    text = "\n".join(
        (
            "compute_environment: LOCAL_MACHINE",
            "distributed_type: FSDP",
            f"mixed_precision: {mixed}",
            f"num_machines: {scenario.hardware.nodes}",
            f"num_processes: {_ranks(scenario)}",
            "fsdp_config:",
            f"  fsdp_version: {1 if flat else 2}",
            f"  {strategy if flat else f'fsdp_reshard_after_forward: {str(gives_up).lower()}'}",
            "  fsdp_auto_wrap_policy: TRANSFORMER_BASED_WRAP",
            f"  fsdp_activation_checkpointing: {str(checkpointed).lower()}",
            *offloaded,
            f"  fsdp_offload_params: {str(bool(scenario.offload.weights or scenario.offload.optimizer)).lower()}",
            "  fsdp_cpu_ram_efficient_loading: true",
            "  fsdp_state_dict_type: SHARDED_STATE_DICT",
            "",
        )
    )
    notes = ((BY_ACCELERATE,) if ask.engine == "fsdp" else ()) + by_fsdp(scenario)
    return Command("FSDP by accelerate", "accelerate", ACCELERATE, "yaml", text, "fsdp.yaml", notes)


def _launch(scenario: Scenario, sharding: str) -> Command:
    """One process a GPU."""
    hardware = scenario.hardware
    if sharding == "fsdp":
        options: list[tuple[str, object]] = [("--config_file", "fsdp.yaml")]
        if hardware.nodes > 1:
            options += [("--main_process_ip", "FIRST_NODE"), ("--main_process_port", 29500), ("--machine_rank", "NUMBER_OF_NODE")]
        line = shell_line(("accelerate", "launch"), options) + " train.py"
        return Command("Launch", "accelerate", ACCELERATE, "shell", line + "\n", notes=by_launch(scenario))
    if _ranks(scenario) == 1 and sharding not in ZERO_STAGE:
        return Command("Launch", "transformers", VERSION, "shell", "python train.py\n")
    line = shell_line(("torchrun",), _torchrun(scenario)) + " train.py\n"
    return Command("Launch", "torchrun", "2.13", "shell", line, notes=by_launch(scenario))


def _torchrun(scenario: Scenario) -> list[tuple[str, object]]:
    hardware = scenario.hardware
    options: list[tuple[str, object]] = [("--nproc-per-node", hardware.gpus)]
    if hardware.nodes > 1:
        options += [("--nnodes", hardware.nodes), ("--rdzv-backend", "c10d"), ("--rdzv-endpoint", "FIRST_NODE:29500")]
    return options


def _megatron(scenario: Scenario) -> Command:
    """Megatron-LM's ``pretrain_gpt.py``: the options that decide memory (``megatron/training/arguments.py``)."""
    ask, spread, given = scenario.training, scenario.parallel, scenario.training.engine_options
    data = max(1, _ranks(scenario) // (spread.tensor * spread.pipeline * spread.context))
    options: list[tuple[str, object]] = [
        ("--tensor-model-parallel-size", spread.tensor),
        ("--sequence-parallel", spread.tensor > 1 and bool(given.get("sequence_parallel", True))),
        ("--pipeline-model-parallel-size", spread.pipeline),
        ("--num-virtual-stages-per-pipeline-rank", given.get("virtual_pipeline") if given.get("virtual_pipeline") != 1 else None),
        ("--context-parallel-size", spread.context if spread.context > 1 else None),
        ("--expert-model-parallel-size", spread.expert if spread.expert > 1 else None),
        ("--micro-batch-size", ask.batch),
        ("--global-batch-size", given.get("global_batch", ask.batch * ask.gradient_accumulation * data)),
        ("--seq-length", ask.sequence),
        ("--max-position-embeddings", ask.sequence),
        ("--bf16", ask.precision in ("bf16", "amp-bf16", "fp8")),
        ("--fp16", ask.precision == "amp-fp16"),
        ("--fp8-format", "hybrid" if ask.precision == "fp8" else None),
        ("--optimizer", "sgd" if ask.optimizer.startswith("sgd") else None),
        ("--sgd-momentum", "0" if ask.optimizer == "sgd" else None),
        ("--use-distributed-optimizer", spread.sharding != "none"),
        ("--recompute-granularity", {"full": "full", "selective": "selective"}.get(ask.checkpointing)),
        ("--recompute-method", "uniform" if ask.checkpointing == "full" else None),
        ("--recompute-num-layers", 1 if ask.checkpointing == "full" else None),
    ]
    launch = " ".join(f"{name} {value}" for name, value in _torchrun(scenario)).split()
    program = ("torchrun", *launch, "pretrain_gpt.py")
    printed = "the model's own dimensions go beside these, as Megatron's converter prints them"
    notes = (*model_notes(scenario), printed, *by_megatron(scenario), *by_launch(scenario))
    return Command("Megatron-LM", "megatron", MEGATRON, "shell", shell_line(program, options) + "\n", notes=notes)
