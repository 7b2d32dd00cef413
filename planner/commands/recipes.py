"""Keys of torchtune's recipes and of axolotl that map to a plan; what has no key is left to those tools."""

from __future__ import annotations

from typing import TYPE_CHECKING

from planner.commands.command import Command, model_name

if TYPE_CHECKING:
    from planner.scenario import Scenario

TORCHTUNE = "0.6"
AXOLOTL = "0.12"
TORCHTUNE_MODULES = {"q_proj": "q_proj", "k_proj": "k_proj", "v_proj": "v_proj", "o_proj": "output_proj"}
MLP_MODULES = ("gate_proj", "up_proj", "down_proj")
AXOLOTL_OPTIMIZERS = {
    "adamw_fused": "adamw_torch_fused", "adamw_foreach": "adamw_torch", "adamw": "adamw_torch", "adamw_8bit": "adamw_8bit",
    "paged_adamw_8bit": "paged_adamw_8bit", "adafactor": "adafactor", "lion": "lion_pytorch", "sgd": "sgd", "muon": "muon",
}  # fmt: skip


def torchtune(scenario: Scenario) -> tuple[Command, ...]:
    """Overrides of a torchtune config. Methods it has no recipe for give none."""
    ask = scenario.training
    if ask.method not in ("full", "lora", "qlora", "dora"):
        return ()
    adamw = {"adamw_fused": ("fused", True), "adamw_foreach": ("foreach", True), "adamw": ("foreach", False)}
    lines = [
        f"batch_size: {ask.batch}",
        f"gradient_accumulation_steps: {ask.gradient_accumulation}",
        "tokenizer:",
        f"  max_seq_len: {ask.sequence or 2048}",
        f"dtype: {'fp32' if ask.precision == 'fp32' else 'bf16'}",
        f"enable_activation_checkpointing: {_yaml(ask.checkpointing != 'none')}",
    ]
    if ask.optimizer in adamw:
        name, value = adamw[ask.optimizer]
        lines += ["optimizer:", "  _component_: torch.optim.AdamW", f"  {name}: {_yaml(value)}"]
    elif "8bit" in ask.optimizer:
        kind = "PagedAdamW8bit" if ask.optimizer.startswith("paged") else "AdamW8bit"
        lines += ["optimizer:", f"  _component_: bitsandbytes.optim.{kind}"]
    if ask.loss in ("chunked", "fused"):
        lines += ["loss:", "  _component_: torchtune.modules.loss.LinearCrossEntropyLoss"]
    if ask.method != "full":
        named = (*TORCHTUNE_MODULES, *MLP_MODULES) if ask.lora.targets == ("all-linear",) else ask.lora.targets
        targets = [TORCHTUNE_MODULES[name] for name in named if name in TORCHTUNE_MODULES]
        lines += [
            "model:",
            f"  lora_attn_modules: [{', '.join(targets)}]",
            f"  apply_lora_to_mlp: {_yaml(any(name in MLP_MODULES for name in named))}",
            f"  lora_rank: {ask.lora.rank}",
            f"  lora_alpha: {ask.lora.alpha or 2 * ask.lora.rank}",
            f"  use_dora: {_yaml(ask.method == 'dora')}",
        ]
    notes = ("merge into the recipe's config of your model (tune cp)",)
    return (Command("Keys of torchtune", "torchtune", TORCHTUNE, "yaml", "\n".join((*lines, "")), "torchtune.yaml", notes),)


def axolotl(scenario: Scenario) -> tuple[Command, ...]:
    """An axolotl config without its datasets. Methods that it has no key for give none."""
    ask = scenario.training
    if ask.method not in ("full", "lora", "qlora", "dora"):
        return ()
    lines = [
        f"base_model: {model_name(scenario)}",
        f"sequence_len: {ask.sequence or 2048}",
        f"micro_batch_size: {ask.batch}",
        f"gradient_accumulation_steps: {ask.gradient_accumulation}",
        f"bf16: {_yaml(ask.precision in ('bf16', 'amp-bf16'))}",
        f"gradient_checkpointing: {_yaml(ask.checkpointing != 'none')}",
        f"flash_attention: {_yaml(ask.attention == 'flash')}",
    ]
    if ask.optimizer in AXOLOTL_OPTIMIZERS:
        lines.append(f"optimizer: {AXOLOTL_OPTIMIZERS[ask.optimizer]}")
    every = ask.lora.targets == ("all-linear",)
    if ask.method in ("lora", "qlora", "dora"):
        lines += [
            f"adapter: {'qlora' if ask.method == 'qlora' else 'lora'}",
            f"load_in_4bit: {_yaml(ask.method == 'qlora')}",
            f"lora_r: {ask.lora.rank}",
            f"lora_alpha: {ask.lora.alpha or 2 * ask.lora.rank}",
            f"lora_dropout: {ask.lora.dropout:g}",
            "lora_target_linear: true" if every else f"lora_target_modules: [{', '.join(ask.lora.targets)}]",
        ]
        if ask.method == "dora":
            lines.append("peft_use_dora: true")
        if ask.lora.rslora:
            lines.append("peft_use_rslora: true")
    if ask.loss == "fused":
        lines += ["plugins:", "  - axolotl.integrations.liger.LigerPlugin", "liger_fused_linear_cross_entropy: true"]
    notes = ("add your datasets",)
    return (Command("Keys of axolotl", "axolotl", AXOLOTL, "yaml", "\n".join((*lines, "")), "axolotl.yaml", notes),)


def _yaml(value: object) -> str:
    return str(value).lower()
