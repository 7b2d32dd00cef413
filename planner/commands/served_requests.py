"""Options of servers for what proposes tokens and for adapters beside the model.

vLLM 0.33 ``engine/arg_utils.py``, ``config/speculative.py``; SGLang 0.5.23 ``arg_groups/fields/spec.py``, ``lora.py``; TGI 3.3
``launcher/src/main.rs``.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from planner.engines.eagle import is_third

if TYPE_CHECKING:
    from planner.scenario import Scenario, Speculation

Options = list[tuple[str, object]]
DRAFT = "PATH/TO/DRAFT"
VLLM_METHODS = {"draft": "draft_model", "eagle": "eagle", "mtp": "mtp", "ngram": "ngram"}
SGLANG_METHODS = {"draft": "STANDALONE", "eagle": "EAGLE", "mtp": "NEXTN", "ngram": "NGRAM"}


def vllm_requests(scenario: Scenario, notes: list[str]) -> Options:
    """``--speculative-config`` and the slots for adapters."""
    adapters = scenario.inference.adapters
    return [
        ("--speculative-config", _vllm_speculation(scenario.inference.speculation, notes)),
        ("--enable-lora", adapters.count > 0),
        ("--max-loras", adapters.count or None),
        ("--max-lora-rank", adapters.rank if adapters.count else None),
    ]


def sglang_requests(scenario: Scenario, notes: list[str]) -> Options:
    """``--speculative-…`` and the slots for adapters."""
    asked, adapters = scenario.inference.speculation, scenario.inference.adapters
    options: Options = []
    if asked.method in SGLANG_METHODS and asked.tokens:
        third = asked.method == "eagle" and is_third(asked.draft or {})
        options = [
            ("--speculative-algorithm", "EAGLE3" if third else SGLANG_METHODS[asked.method]),
            ("--speculative-draft-model-path", _draft(asked, notes)),
            ("--speculative-num-steps", None if asked.method == "ngram" else asked.tokens),
            ("--speculative-eagle-topk", None if asked.method == "ngram" else 1),
            ("--speculative-num-draft-tokens", asked.tokens + 1),
        ]
    if adapters.count:
        notes.append("name the adapters: --lora-paths NAME=PATH …")
        options += [
            ("--enable-lora", True), ("--max-loras-per-batch", adapters.count), ("--max-lora-rank", adapters.rank),
        ]  # fmt: skip
    return options


def tgi_requests(scenario: Scenario, notes: list[str]) -> Options:
    """``--speculate`` of n-grams; adapters are named."""
    asked = scenario.inference.speculation
    if scenario.inference.adapters.count:
        notes.append("name the adapters: --lora-adapters NAME=PATH,…")
    return [("--speculate", asked.tokens if asked.method == "ngram" and asked.tokens else None)]


def untold_requests(scenario: Scenario, notes: list[str]) -> None:
    """In words what a line does not tell a server of these."""
    if scenario.inference.speculation.method != "none":
        notes.append("inference.speculation: write speculative_config into the file of --extra_llm_api_options")
    if scenario.inference.adapters.count:
        notes.append("inference.adapters: write lora_config into the file of --extra_llm_api_options")


def _vllm_speculation(asked: Speculation, notes: list[str]) -> str | None:
    if asked.method not in VLLM_METHODS or not asked.tokens:
        return None
    third = asked.method == "eagle" and is_third(asked.draft or {})
    config: dict[str, object] = {
        "method": "eagle3" if third else VLLM_METHODS[asked.method],
        "num_speculative_tokens": asked.tokens,
    }
    draft = _draft(asked, notes)
    return json.dumps(config if draft is None else config | {"model": draft})


def _draft(asked: Speculation, notes: list[str]) -> str | None:
    if asked.method not in ("draft", "eagle"):
        return None
    notes.append(f"put the checkpoint of what proposes for {DRAFT}")
    return DRAFT
