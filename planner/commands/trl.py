"""TRL's scripts for objectives that hold several models or learn from completions: DPO and GRPO."""

from __future__ import annotations

import json
import shlex
from typing import TYPE_CHECKING

from planner.commands.command import Command, model_name, model_notes
from planner.commands.transformers import loading
from planner.defaults import DEFAULT_SEQUENCE_TOKENS
from planner.engines.trl import NEWEST

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from planner.scenario import Scenario, Training

TRAINERS = {"dpo": "DPO", "grpo": "GRPO"}
GRPO_BETA = 0.04
"""Any weight of the reference but 0 loads one (DeepSeekMath, section 4.2, takes this)."""


def objective_script(
    scenario: Scenario, arguments: Mapping[str, object], adapters: str, literal: Callable[[object], str], notes: list[str],
    *, imported: Sequence[str] = (), prepared: Sequence[str] = (),
) -> Command:  # fmt: skip
    """``train.py`` with TRL's trainer. ``arguments``: of ``TrainingArguments``; ``adapters``: a PEFT config, empty without.

    ``prepared``: lines that cast or freeze the loaded model, and ``imported`` what they call.
    """
    ask = scenario.training
    if ask.objective not in TRAINERS:
        notes.append(
            "training.objective: TRL dropped its PPO trainer with release 1.12; pin trl==1.11 and write the script by its docs"
        )
        return Command("Train with TRL", "trl", "1.11", "python", "\n", "train.py", (*model_notes(scenario), *notes))
    name = TRAINERS[ask.objective]
    device_map = "cuda" if ask.method == "qlora" and scenario.hardware.gpus * scenario.hardware.nodes == 1 else None
    imports, load = loading(scenario, ask.attention, device_map=device_map)
    more = _preference(ask) if ask.objective == "dpo" else _policy(scenario, notes)
    written = "".join(f"    {key}={literal(value)},\n" for key, value in ({"bf16": False, **arguments} | more).items())
    trained = _trained(scenario, notes, adapters=bool(adapters))
    lines = [
        "import torch",
        "from datasets import Dataset",
        *([f"from peft import {adapters.partition('(')[0]}"] if adapters else []),
        *imported,
        f"from transformers import {', '.join(imports)}",
        f"from trl import {name}Config, {name}Trainer",
        "",
        f"arguments = {name}Config(\n{written})",
        *load,
        *prepared,
        *([f"adapters = {adapters}"] if adapters else []),
        "",
        *_dataset(ask),
        f"{name}Trainer(\n    model=model,\n{trained}    args=arguments,\n    train_dataset=dataset,\n).train()",
        'print(f"peak allocated {torch.cuda.max_memory_allocated() / 2**30:.2f} GiB")',
        "",
    ]
    return Command(
        f"Train with TRL ({name})", "trl", NEWEST, "python", "\n".join(lines), "train.py", (*model_notes(scenario), *notes)
    )


def _trained(scenario: Scenario, notes: list[str], *, adapters: bool) -> str:
    """Arguments of the trainer: the reference where TRL would not make it itself, adapters, a reward."""
    ask, lines = scenario.training, []
    if adapters:
        lines.append("peft_config=adapters")
    if ask.objective == "dpo" and ask.reference == "model" and adapters:
        name = json.dumps(model_name(scenario), ensure_ascii=False)
        lines.append(f"ref_model=AutoModelForCausalLM.from_pretrained({name}, dtype=model.dtype)")
    if ask.objective == "grpo":
        lines.append("reward_funcs=lambda completions, **_: [float(len(text)) for text in completions]")
        notes.append("the reward stands in for your own; answers that end early take less than the plan")
    return "".join(f"    {line},\n" for line in lines)


def _preference(ask: Training) -> dict[str, object]:
    return {"max_length": sum(_lengths(ask)), "precompute_ref_log_probs": ask.reference == "precomputed"}


def _policy(scenario: Scenario, notes: list[str]) -> dict[str, object]:
    ask, rollout = scenario.training, scenario.training.rollout
    steps = rollout.steps or ask.gradient_accumulation
    completions = ask.batch * steps * scenario.hardware.gpus * scenario.hardware.nodes
    if completions % rollout.generations:
        notes.append(
            f"training.rollout.generations: TRL refuses {completions} completions of a generation in groups of "
            f"{rollout.generations}; choose a divisor, or more micro-batches"
        )
    found: dict[str, object] = {
        "max_completion_length": _lengths(ask)[1],
        "num_generations": rollout.generations,
        "steps_per_generation": steps,
        "beta": 0.0 if ask.reference in ("none", "auto") else GRPO_BETA,
    }
    if rollout.engine == "vllm":
        found |= {
            "use_vllm": True,
            "vllm_mode": "colocate",
            "vllm_gpu_memory_utilization": rollout.gpu_memory_utilization,
            "vllm_max_model_length": sum(_lengths(ask)),
            "vllm_enable_sleep_mode": rollout.sleep,
        }
    elif rollout.engine == "server":
        found |= {"use_vllm": True, "vllm_mode": "server"}
        notes.append(f"start the server elsewhere first: trl vllm-serve --model {shlex.quote(model_name(scenario))}")
    return found


def _lengths(ask: Training) -> tuple[int, int]:
    """Tokens of a prompt and of its completion."""
    sequence = ask.sequence or DEFAULT_SEQUENCE_TOKENS
    prompt = ask.prompt_tokens or max(1, sequence // 2)
    return prompt, max(1, sequence - prompt)


def _dataset(ask: Training) -> list[str]:
    """Repeated words that are cut to the planned lengths stand in for texts."""
    prompt, rest = _lengths(ask)
    columns = [f'"prompt": " a" * {prompt}']
    if ask.objective == "dpo":
        columns += [f'"{kind}": " {word}" * {rest}' for kind, word in (("chosen", "b"), ("rejected", "c"))]
    return [
        "# repeated words of about the planned length stand in for your dataset: the memory is the same",
        f"dataset = Dataset.from_list([{{{', '.join(columns)}}}] * 64)",
    ]
