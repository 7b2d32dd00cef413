"""What changed between releases of transformers and moves the memory of a training step, each with the file it was read from.

A release takes the newest entry that is not newer than itself.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Literal

from planner.architecture.layers import Architecture
from planner.components.experts_in_turn import FAMILIES
from planner.faults import Fault, Faults
from planner.formats.format import LINEARS, LINEARS_AND_EXPERTS, Format
from planner.record import record
from planner.scenario import Scenario

LossCopies = Literal["labels", "logits", "widened_logits", "narrow_logits"]
_NUMBER = re.compile(r"(\d+)\.(\d+)(?:\.(\d+))?")


@record
class Release:
    """One range of releases. ``copies``: what is laid out anew to predict the next token.

    ``labels``: labels are shifted, logits stay as they are. ``logits``: all logits but the last, in fp32, beside the
    model's own. ``widened_logits``: the same, after the model has replaced its own logits by fp32 ones. ``narrow_logits``: all
    logits but the last in their own dtype, in which the loss is computed.
    ``hands_out_keys``: checkpointed layers hand out keys and values all the same; these are views of the fused projection's
    output, which stays with them until the model's outputs go.
    ``repeats_keys``: by FlashAttention keys and values are copied for every query head all the same.
    """

    since: tuple[int, int]
    copies: LossCopies
    source: str
    hands_out_keys: bool = False
    repeats_keys: bool = False


RELEASES = (
    Release((0, 0), "widened_logits", "transformers 4.45 modeling_llama.py, LlamaForCausalLM.forward"),
    Release((4, 46), "logits", "transformers 4.46 loss/loss_utils.py, ForCausalLMLoss"),
    Release((4, 50), "labels", "transformers 4.50 loss/loss_utils.py, ForCausalLMLoss"),
)
_PRESENTS = "transformers modeling_gpt_bigcode.py until 4.52, GPTBigCodeModel.forward (presents)"
_REPEATS = "transformers modeling_mistral.py until 4.47 and what was copied from it, MistralFlashAttention2.forward (repeat_kv)"
_REPEATING = (
    Release((0, 0), "widened_logits", f"transformers 4.45 MistralForCausalLM.forward; {_REPEATS}", repeats_keys=True),
    Release((4, 46), "logits", f"transformers 4.46 loss/loss_utils.py; {_REPEATS}", repeats_keys=True),
    Release((4, 48), "logits", "transformers 4.48 integrations/flash_attention.py, flash_attention_forward"),
    RELEASES[-1],
)
OF_FAMILIES = {
    **dict.fromkeys(("mistral", "mixtral", "qwen2", "qwen2_moe", "phi3"), _REPEATING),
    "gpt_bigcode": (
        Release((0, 0), "narrow_logits", f"GPTBigCodeForCausalLM.forward until 4.48; {_PRESENTS}", hands_out_keys=True),
        Release((4, 49), "logits", f"transformers 4.49 loss/loss_utils.py; {_PRESENTS}", hands_out_keys=True),
        Release((4, 50), "labels", f"transformers 4.50 loss/loss_utils.py; {_PRESENTS}", hands_out_keys=True),
        Release((4, 53), "labels", "transformers 4.53 modeling_gpt_bigcode.py, GPTBigCodeBlock(GradientCheckpointingLayer)"),
    ),
}
"""Families whose class computed its loss itself, or ran otherwise than the others."""


REENTRANT_BEFORE = (5, 0)
"""Until then gradient checkpointing is reentrant unless it is told otherwise (transformers pull request 43203)."""

CALLED_BY_CHECKPOINTS = (4, 52)
"""Before it checkpoints call layers from outside, with what wraps them; since then layers call them inside themselves
(modeling_layers.py, GradientCheckpointingLayer; pull request 37223)."""

INPUTS_SAVED_BEFORE = (0, 43, 2)
"""bitsandbytes autograd/_functions.py, MatMul4Bit.forward: ctx.tensors = (A, B) until pull request 1270."""


SINGLE_EXPERTS_BEFORE = (5, 0)
"""Until then experts are a list of modules, each with linears of its own, which quantisers replace one by one."""


def has_single_experts(scenario: Scenario, architecture: Architecture) -> bool:
    """Whether the release that a training names keeps a model's experts apart and runs them one after another."""
    version = scenario.training.engine_options.get("version") if scenario.task == "training" else None
    return bool(version) and architecture.model_type in FAMILIES and _number(version) < SINGLE_EXPERTS_BEFORE


def format_of_release(scenario: Scenario, architecture: Architecture, fmt: Format) -> Format:
    """How weights are stored by the release that a scenario names: a scheme of linears takes experts that are linears."""
    if fmt.quantizes != LINEARS or not has_single_experts(scenario, architecture):
        return fmt
    return replace(fmt, quantizes=LINEARS_AND_EXPERTS, notes=())


def saves_inputs(version: object) -> bool:
    """Whether products of 4-bit weights keep their inputs in a release of bitsandbytes that a scenario names."""
    if not version:
        return False
    found = _NUMBER.match(str(version).removeprefix("v"))
    if found is None:
        message = f"{str(version)[:40]!r} is no bitsandbytes release; write it like 0.43.1"
        raise Faults([Fault("training.engine_options.bitsandbytes_version", message)])
    return (int(found[1]), int(found[2]), int(found[3] or 0)) < INPUTS_SAVED_BEFORE


def is_reentrant(version: object) -> bool:
    """Whether a release that a scenario names checkpoints by the reentrant implementation of its own accord."""
    return bool(version) and _number(version) < REENTRANT_BEFORE


def wraps_units(version: object) -> bool:
    """Whether checkpoints of a release that a scenario names hold the units of FSDP, which then run again inside them."""
    return bool(version) and _number(version) < CALLED_BY_CHECKPOINTS


def release_of(version: object, model_type: str = "") -> Release:
    """The entry of a release for a family, by default the newest. Raises :class:`planner.faults.Faults` for what is no release."""
    if not version:
        return RELEASES[-1]
    number = _number(version)
    known = OF_FAMILIES.get(model_type, RELEASES)
    return max((release for release in known if release.since <= number), key=lambda release: release.since)


def _number(version: object) -> tuple[int, int]:
    found = _NUMBER.match(str(version).removeprefix("v"))
    if found is None:
        message = f"{str(version)[:40]!r} is no transformers release; write it like 4.48.1"
        raise Faults([Fault("training.engine_options.version", message)])
    return int(found[1]), int(found[2])
