"""TRL's scripts for objectives that hold several models or learn from completions: DPO, GRPO and PPO."""

from __future__ import annotations

import json
import shlex
from typing import TYPE_CHECKING

from planner.commands.command import Command, model_name, model_notes
from planner.commands.transformers import loading
from planner.defaults import DEFAULT_SEQUENCE_TOKENS
from planner.engines.ppo import ROLLOUT_ROWS
from planner.engines.trl import NEWEST

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from planner.scenario import Scenario, Training

TRAINERS = {"dpo": "DPO", "grpo": "GRPO"}
LAST_WITH_PPO = "1.11"
"""TRL 1.12 dropped ``experimental/ppo``."""
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
    if ask.objective == "ppo":
        return _ppo_script(scenario, arguments, adapters, literal, notes)
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


def _ppo_script(
    scenario: Scenario, arguments: Mapping[str, object], adapters: str, literal: Callable[[object], str], notes: list[str]
) -> Command:
    """The trainer of the last release that has one (``trl/experimental/ppo``), with models of the planned one's size."""
    ask, name = scenario.training, json.dumps(model_name(scenario), ensure_ascii=False)
    prompt, completion = _lengths(ask)
    own = {key: value for key, value in arguments.items() if key not in ("max_steps", "gradient_checkpointing")}
    rows = own["gradient_accumulation_steps"]
    own |= {
        "bf16": False,
        "response_length": completion,
        "total_episodes": 4 * ask.batch * (rows if isinstance(rows, int) else 1),
        "local_rollout_forward_batch_size": ask.engine_options.get("local_rollout_forward_batch_size", ROLLOUT_ROWS),
        "num_ppo_epochs": 1,
        "num_sample_generations": 0,
    }
    written = "".join(f"    {key}={literal(value)},\n" for key, value in own.items())
    imports, load = loading(scenario, ask.attention, device_map=None)
    scorer = f"AutoModelForSequenceClassification.from_pretrained({name}, num_labels=1, dtype=model.dtype)"
    checkpointed = ["for trained in (model, value):", "    trained.gradient_checkpointing_enable()"]
    notes.append("value and reward model stand in for your own: the planned model with a head of one number")
    lines = [
        "import torch",
        "from datasets import Dataset",
        *([f"from peft import {adapters.partition('(')[0]}"] if adapters else []),
        f"from transformers import {', '.join([*imports, 'AutoModelForSequenceClassification', 'AutoTokenizer'])}",
        "from trl.experimental.ppo import PPOConfig, PPOTrainer",
        "",
        f"arguments = PPOConfig(\n{written})",
        *load,
        f"value = {scorer}",
        f"reward = {scorer}",
        *(checkpointed if ask.checkpointing != "none" else []),
        *(["model.enable_input_require_grads()"] if adapters and ask.checkpointing != "none" else []),
        f"tokenizer = AutoTokenizer.from_pretrained({name})",
        "tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token",
        *([f"adapters = {adapters}"] if adapters else []),
        "",
        "# random tokens of the planned length stand in for your prompts: the memory is the same",
        f"tokens = torch.randint(model.config.get_text_config().vocab_size, (64, {prompt}))",
        'dataset = Dataset.from_dict({"input_ids": tokens.tolist()})',
        "PPOTrainer(",
        "    args=arguments,",
        "    processing_class=tokenizer,",
        "    model=model,",
        "    ref_model=None,",
        "    reward_model=reward,",
        "    value_model=value,",
        "    train_dataset=dataset,",
        "    eval_dataset=dataset,",
        *(["    peft_config=adapters,"] if adapters else []),
        ").train()",
        'print(f"peak allocated {torch.cuda.max_memory_allocated() / 2**30:.2f} GiB")',
        "",
    ]
    return Command(
        "Train with TRL (PPO)", "trl", LAST_WITH_PPO, "python", "\n".join(lines), "train.py", (*model_notes(scenario), *notes)
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
