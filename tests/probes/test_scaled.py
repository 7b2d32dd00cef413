from __future__ import annotations

import importlib.util
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.footprint import Footprint
from planner.scenario import parse_scenario
from probes.measurement import Measurement
from probes.request import predict_run, request
from probes.scaled import NotLinear, extrapolate, find_scale, scale_of
from resources.plan import Plan, find_model, make_plan

TINY = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 64, "intermediate_size": 128,
    "num_hidden_layers": 6, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 256,
    "max_position_embeddings": 4096, "tie_word_embeddings": False,
}  # fmt: skip
WORKLOADS: dict[str, dict[str, Any]] = {
    "inference": {"batch": 2, "prompt_tokens": 64, "new_tokens": 4},
    "training": {"batch": 2, "sequence": 96, "precision": "bf16"},
}


def plan_of(config: dict[str, Any], task: str = "inference") -> Plan:
    document = {"version": 1, "model": {"config": config}, "weights": "bf16", "task": task, task: WORKLOADS[task]}
    return make_plan(parse_scenario(document), network=False)


def config_of(model: str) -> dict[str, Any]:
    return dict(find_model(model, network=False).source.config)


@pytest.mark.parametrize(
    ("model", "sizes", "factor"),
    [
        ("meta-llama/Llama-3.1-8B", (1, 2, 32), Fraction(31)),
        ("deepseek-ai/DeepSeek-V3", (4, 5, 61), Fraction(57)),  # three dense layers come first
        ("google/gemma-3-1b-it", (8, 14, 26), Fraction(3)),  # every sixth layer is global
        ("ai21labs/AI21-Jamba-Mini-1.5", (8, 16, 32), Fraction(3)),  # eight layers make a period
    ],
)
def test_the_smallest_sizes_hold_every_kind_in_proportion(model: str, sizes: tuple[int, int, int], factor: Fraction) -> None:
    scale = find_scale(config_of(model))
    assert ((scale.small, scale.large, scale.whole), scale.factor) == (sizes, factor)


@pytest.mark.parametrize(
    ("model", "sizes", "words"),
    [
        ("meta-llama/Llama-3.1-8B", (2, 2), "the smaller first"),
        ("meta-llama/Llama-3.1-8B", (2, 33), "the model has 32"),
        ("deepseek-ai/DeepSeek-V3", (1, 3), "hold none of this kind: MLA"),
        ("deepseek-ai/DeepSeek-V3", (3, 4), "hold none of this kind"),
        ("google/gemma-3-1b-it", (6, 8), "both sizes hold as many of this kind"),
        ("google/gemma-3-1b-it", (6, 13), "do not grow alike"),
    ],
)
def test_what_is_not_linear_is_refused_with_the_reason(model: str, sizes: tuple[int, int], words: str) -> None:
    with pytest.raises(NotLinear, match=words):
        scale_of(config_of(model), *sizes)


def test_a_peak_that_moves_is_refused() -> None:
    """With one layer a training step peaks at the logits, with all at the layers."""
    plan = plan_of(TINY | {"vocab_size": 50_000, "num_hidden_layers": 40}, "training")
    with pytest.raises(NotLinear, match="the peak lies elsewhere"):
        scale_of(plan.source.config, 1, 2, _bent(plan))


def _bent(plan: Plan) -> Any:
    """The closed form, with a phase that is the larger of a constant and a line."""
    from dataclasses import replace

    def predict(size: int | None) -> Footprint:
        footprint = predict_run(plan, "cpu", size)
        (gpu,) = footprint.gpus
        phases = tuple(replace(phase, allocated=max(10**7, (size or 40) * 10**6)) for phase in gpu.phases)
        return replace(footprint, gpus=(replace(gpu, phases=phases),))

    return predict


def measured(prediction: Footprint) -> Measurement:
    """A run that takes what the closed form says."""
    run = Measurement({})
    run.add({"event": "hello", "t": 0.0, "device": {"type": "cpu"}})
    for index, phase in enumerate(prediction.gpus[0].phases):
        told = {"event": "phase", "name": phase.name, "step": 0}
        run.add({**told, "state": "begin", "t": float(index)})
        meters = {"allocated": phase.allocated, "reserved": phase.allocated, "device": phase.allocated}
        run.add({**told, "state": "end", "t": index + 0.5, **meters, "components": dict(phase.components)})
    run.add({"event": "result", "t": 9.0, "outcome": "completed", "parameters": prediction.parameters})
    return run


@settings(max_examples=30)
@given(st.integers(1, 4), st.integers(1, 4), st.sampled_from(["inference", "training"]))
def test_what_is_linear_in_layers_is_told_exactly(small: int, more: int, task: str) -> None:
    """Where the closed form is a line, the whole from two sizes equals it within the bend that the band tells."""
    plan = plan_of(TINY | {"num_hidden_layers": 48}, task)
    scale = scale_of(plan.source.config, small, small + more, lambda size: predict_run(plan, "cpu", size))
    runs = [measured(predict_run(plan, "cpu", size)) for size in (scale.small, scale.large)]
    whole = extrapolate(scale, *runs, predict_run(plan, "cpu"))
    predicted = {phase.name: phase.allocated for phase in predict_run(plan, "cpu").gpus[0].phases}
    assert {phase.name for phase in whole.gpus[0].phases} == predicted.keys()
    for phase in whole.gpus[0].phases:
        assert abs(phase.allocated - predicted[phase.name]) <= scale.bends[phase.name]


def test_parameters_that_leave_the_line_are_refused() -> None:
    plan = plan_of(TINY)
    scale = scale_of(plan.source.config, 1, 2)
    small, large = (measured(predict_run(plan, "cpu", size)) for size in (1, 3))
    with pytest.raises(NotLinear, match="parameters of both sizes lead to"):
        extrapolate(scale, small, large, predict_run(plan, "cpu"))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("torch", "transformers")),
    reason="needs torch and transformers, which the extra `probe` installs",
)
def test_the_whole_of_a_real_model_is_what_two_sizes_told(run_here: Any) -> None:
    """Six layers from two and three: measured allocated of every phase within the band, in real runs on the CPU."""
    plan = plan_of(TINY, "training")
    scale = scale_of(plan.source.config, 2, 3, lambda size: predict_run(plan, "cpu", size))
    runs = []
    for size in (2, 3, None):
        asked = request(plan, "cpu", size)
        run = Measurement(asked.order["scenario"], asked.prediction.to_json())
        run_here(asked.order, run.add)
        runs.append(run)
    whole = extrapolate(scale, runs[0], runs[1], predict_run(plan, "cpu"))
    direct = {step.name: step.meters["allocated"] for step in runs[2].phases}
    for phase in whole.gpus[0].phases:
        assert phase.allocated == pytest.approx(direct[phase.name], abs=scale.bends[phase.name] + 1024)
    assert set(direct) == {phase.name for phase in whole.gpus[0].phases}
