"""Keys of torchtune's recipes and of axolotl that map to a plan; what has no key is said."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

from planner.commands.command import Command, model_name
from planner.commands.optimizers import OPTIMIZERS, PROJECTING, optimizer_arguments

if TYPE_CHECKING:
    from collections.abc import Sequence

    from planner.scenario import Scenario, Training

TORCHTUNE = "0.6"
AXOLOTL = "0.18"
RECIPES = ("full", "lora", "qlora", "dora")
"""Methods that both have recipes for."""
TORCHTUNE_MODULES = {"q_proj": "q_proj", "k_proj": "k_proj", "v_proj": "v_proj", "o_proj": "output_proj"}
MLP_MODULES = ("gate_proj", "up_proj", "down_proj")
TORCHTUNE_OPTIMIZERS: dict[str, tuple[str, ...]] = {
    "adamw_fused": ("torch.optim.AdamW", "fused: true"),
    "adamw_foreach": ("torch.optim.AdamW", "foreach: true"),
    "adamw": ("torch.optim.AdamW", "foreach: false"),
    "adamw_8bit": ("bitsandbytes.optim.AdamW8bit",),
    "paged_adamw_8bit": ("bitsandbytes.optim.PagedAdamW8bit",),
    "paged_adamw_32bit": ("bitsandbytes.optim.PagedAdamW32bit",),
    "lion": ("bitsandbytes.optim.Lion32bit",),
    "lion_8bit": ("bitsandbytes.optim.Lion8bit",),
    "paged_lion_8bit": ("bitsandbytes.optim.PagedLion8bit",),
    "sgd": ("torch.optim.SGD",),
    "sgd_momentum": ("torch.optim.SGD", "momentum: 0.9"),
}
"""Classes that its recipes instantiate, with their arguments."""
AXOLOTL_PRECISIONS = {"bf16": "bfloat16", "amp-bf16": "bf16", "amp-fp16": "fp16", "fp32": "float32", "fp8": "fp8"}
AXOLOTL_ATTENTION = {"flash": "flash_attention_2", "sdpa": "sdpa", "eager": "eager"}


def torchtune(scenario: Scenario, sharding: str = "none") -> tuple[Command, ...]:
    """Overrides of a torchtune config. Methods it has no recipe for give none."""
    ask = scenario.training
    if ask.method not in RECIPES:
        return ()
    options = ask.engine_options
    lines = [
        f"batch_size: {ask.batch}",
        f"gradient_accumulation_steps: {ask.gradient_accumulation}",
        "tokenizer:",
        f"  max_seq_len: {ask.sequence or 2048}",
        f"dtype: {'fp32' if ask.precision == 'fp32' else 'bf16'}",
        f"enable_activation_checkpointing: {_yaml(ask.checkpointing != 'none')}",
        f"enable_activation_offloading: {_yaml(options.get('checkpoint_offload', False))}",
        f"clip_grad_norm: {_yaml(options.get('max_grad_norm') or 'null')}",
    ]
    if ask.data == "packed":
        lines += ["dataset:", "  packed: true"]
    if sharding == "fsdp":
        offloads = bool(scenario.offload.weights or scenario.offload.optimizer)
        lines += [
            f"fsdp_reshard_after_forward: {_yaml(options.get('reshard_after_forward', True))}",
            f"fsdp_cpu_offload: {_yaml(offloads)}",
        ]
    if ask.optimizer in TORCHTUNE_OPTIMIZERS:
        name, *given = TORCHTUNE_OPTIMIZERS[ask.optimizer]
        lines += ["optimizer:", f"  _component_: {name}", *(f"  {argument}" for argument in given)]
    if ask.loss in ("chunked", "fused"):
        lines += ["loss:", "  _component_: torchtune.modules.loss.LinearCrossEntropyLoss"]
    if ask.method != "full":
        lines += _torchtune_adapters(ask)
    notes = ("merge into the recipe's config of your model (tune cp)", *_left_out_by_torchtune(scenario, sharding))
    return (Command("Keys of torchtune", "torchtune", TORCHTUNE, "yaml", "\n".join((*lines, "")), "torchtune.yaml", notes),)


def _torchtune_adapters(ask: Training) -> list[str]:
    named = (*TORCHTUNE_MODULES, *MLP_MODULES) if ask.lora.targets == ("all-linear",) else ask.lora.targets
    targets = [TORCHTUNE_MODULES[name] for name in named if name in TORCHTUNE_MODULES]
    return [
        "model:",
        f"  lora_attn_modules: [{', '.join(targets)}]",
        f"  apply_lora_to_mlp: {_yaml(any(name in MLP_MODULES for name in named))}",
        f"  lora_rank: {ask.lora.rank}",
        f"  lora_alpha: {ask.lora.alpha or 2 * ask.lora.rank}",
        f"  lora_dropout: {ask.lora.dropout:g}",
        f"  use_dora: {_yaml(ask.method == 'dora')}",
        *(["  quantize_base: true"] if ask.method == "qlora" else []),
    ]


def _left_out_by_torchtune(scenario: Scenario, sharding: str) -> tuple[str, ...]:
    ask = scenario.training
    adapted = ask.method != "full"
    unknown = [name for name in ask.lora.targets if name not in (*TORCHTUNE_MODULES, *MLP_MODULES, "all-linear")]
    partly = 0 < len([name for name in MLP_MODULES if name in ask.lora.targets]) < len(MLP_MODULES)
    said = {
        f"training.precision: the recipes have no {ask.precision}; bf16 is computed and kept": ask.precision
        not in ("bf16", "fp32"),
        f"training.optimizer: name the class of {ask.optimizer} as optimizer._component_": ask.optimizer
        not in TORCHTUNE_OPTIMIZERS,
        "training.checkpointing: the recipes checkpoint every layer": ask.checkpointing == "selective",
        "training.loss: the recipes take a chunked loss; the plan's logits are whole": ask.loss == "default",
        "training.data: the recipes flatten nothing; pack or pad": ask.data == "flattened",
        f"training.lora.targets: torchtune adapts no {', '.join(unknown)}": adapted and bool(unknown),
        "training.lora.targets: torchtune adapts all of a feed-forward block or nothing of it": adapted and partly,
        "training.lora.rslora: torchtune has no such scaling": adapted and ask.lora.rslora,
        f"parallel.sharding: torchtune has no {sharding}; its distributed recipes shard by FSDP2": sharding not in ("none", "fsdp"),
        **_left_out_by_both(scenario),
    }
    return tuple(note for note, applies in said.items() if applies)


def _left_out_by_both(scenario: Scenario) -> dict[str, bool]:
    split = [name for name in ("tensor", "pipeline", "context", "expert") if getattr(scenario.parallel, name) > 1]
    return {
        "training.engine_options.ema: there is no key for an average": bool(scenario.training.engine_options.get("ema")),
        f"parallel: these keys split nothing by {', '.join(split)}": bool(split),
    }


def axolotl(scenario: Scenario, sharding: str = "none") -> tuple[Command, ...]:
    """An axolotl config without its datasets. Methods that it has no key for give none."""
    ask = scenario.training
    if ask.method not in RECIPES:
        return ()
    options = ask.engine_options
    lines = [
        f"base_model: {_string(model_name(scenario))}",
        f"sequence_len: {ask.sequence or 2048}",
        f"sample_packing: {_yaml(ask.data != 'padded')}",
        f"micro_batch_size: {ask.batch}",
        f"gradient_accumulation_steps: {ask.gradient_accumulation}",
        *(f"{key}: {_yaml(AXOLOTL_PRECISIONS[ask.precision] == key)}" for key in ("bf16", AXOLOTL_PRECISIONS[ask.precision])),
        f"gradient_checkpointing: {_yaml(ask.checkpointing != 'none')}",
        *_axolotl_checkpoints(ask),
        f"max_grad_norm: {_yaml(options.get('max_grad_norm', 0.0))}",
    ]
    lines = list(dict.fromkeys(lines))
    if ask.attention in AXOLOTL_ATTENTION:
        lines.append(f"attn_implementation: {AXOLOTL_ATTENTION[ask.attention]}")
    lines += _axolotl_optimizer(ask)
    if ask.method != "full":
        lines += _axolotl_adapters(ask)
    if ask.loss == "fused":
        lines += ["plugins:", "  - axolotl.integrations.liger.LigerPlugin", "liger_fused_linear_cross_entropy: true"]
    elif ask.loss == "chunked":
        lines.append("chunked_cross_entropy: true")
    lines += _axolotl_sharding(scenario, sharding)
    notes = ("add your datasets", *_left_out_by_axolotl(scenario))
    return (Command("Keys of axolotl", "axolotl", AXOLOTL, "yaml", "\n".join((*lines, "")), "axolotl.yaml", notes),)


def _axolotl_checkpoints(ask: Training) -> list[str]:
    """What checkpoints are told, where there are any."""
    options = ask.engine_options
    if ask.checkpointing == "none":
        return []
    told = [f"  use_reentrant: {_yaml(options['use_reentrant'])}"] if "use_reentrant" in options else []
    offloads = ["activation_offloading: true"] if options.get("checkpoint_offload") else []
    return [*(["gradient_checkpointing_kwargs:", *told] if told else []), *offloads]


def _axolotl_optimizer(ask: Training) -> list[str]:
    """By transformers' names; Muon is axolotl's own."""
    if ask.optimizer == "muon":
        return ["optimizer: muon"]
    found = optimizer_arguments(ask, [])
    if not found:
        return []
    lines = [f"optimizer: {found['optim']}"]
    if "optim_args" in found:
        lines.append(f"optim_args: {_string(str(found['optim_args']))}")
    return [*lines, "optim_target_modules: all_linear"] if ask.optimizer in PROJECTING else lines


def _axolotl_adapters(ask: Training) -> list[str]:
    targets: Sequence[str] = ask.lora.targets
    return [
        f"adapter: {'qlora' if ask.method == 'qlora' else 'lora'}",
        f"load_in_4bit: {_yaml(ask.method == 'qlora')}",
        f"lora_r: {ask.lora.rank}",
        f"lora_alpha: {ask.lora.alpha or 2 * ask.lora.rank}",
        f"lora_dropout: {ask.lora.dropout:g}",
        "lora_target_linear: true" if targets == ("all-linear",) else f"lora_target_modules: {json.dumps(list(targets))}",
        *(["peft_use_dora: true"] if ask.method == "dora" else []),
        *(["peft_use_rslora: true"] if ask.lora.rslora else []),
    ]


def _axolotl_sharding(scenario: Scenario, sharding: str) -> list[str]:
    """The file of ZeRO, or FSDP's keys (``axolotl/utils/schemas/fsdp.py``)."""
    ask, flat = scenario.training, scenario.training.engine_options.get("fsdp_version") == 1
    if sharding.startswith("zero"):
        return ["deepspeed: deepspeed.json"]
    if sharding != "fsdp":
        return []
    return [
        f"fsdp_version: {1 if flat else 2}",
        "fsdp_config:",
        f"  reshard_after_forward: {_yaml(ask.engine_options.get('reshard_after_forward', True))}",
        f"  offload_params: {_yaml(bool(scenario.offload.weights or scenario.offload.optimizer))}",
        "  auto_wrap_policy: TRANSFORMER_BASED_WRAP",
        "  state_dict_type: SHARDED_STATE_DICT",
    ]


def _left_out_by_axolotl(scenario: Scenario) -> tuple[str, ...]:
    ask = scenario.training
    unnamed = ask.optimizer not in (*OPTIMIZERS, "muon")
    said = {
        f"training.optimizer: axolotl has no name for {ask.optimizer}": unnamed,
        "training.optimizer: axolotl's adamw_torch goes by foreach, not in a loop": ask.optimizer == "adamw",
        "training.optimizer: all_linear projects the head too, which the plan does not": ask.optimizer in PROJECTING,
        "training.checkpointing: axolotl's selective_checkpointing names operators; these keys checkpoint every layer": (
            ask.checkpointing == "selective"
        ),
        "training.precision: axolotl loads 16-bit weights under mixed precision, no fp32 masters": (
            ask.precision.startswith("amp") and ask.method == "full"
        ),
        "training.method: axolotl loads 4 bit here; name another format's keys yourself": (
            ask.method == "qlora" and scenario.weights == "int8"
        ),
        **_left_out_by_both(scenario),
    }
    return tuple(note for note, applies in said.items() if applies)


def _string(text: str) -> str:
    """An id as it stands; whatever else YAML would read otherwise in its double-quoted form, escaped."""
    if re.fullmatch(r"\w[\w.-]*(/[\w.-]+)+", text, re.ASCII):
        return text
    return "".join(char if " " <= char <= "~" else f"\\U{ord(char):08X}" for char in json.dumps(text, ensure_ascii=False))


def _yaml(value: object) -> str:
    return str(value).lower()
