"""Measuring with bitsandbytes' own linears, against the closed form; and what is said where it is not installed."""

from __future__ import annotations

import importlib.util
import json

import pytest

pytest.importorskip("torch")

from planner.scenario import parse_scenario
from probes.worker.main import serve
from resources.plan import make_plan
from tests.probes.worker.conftest import GPT2, LLAMA, Events, order_json

MODEL = LLAMA | {"hidden_size": 256, "intermediate_size": 512, "vocab_size": 1000, "tie_word_embeddings": False}
WORK = {"batch": 1, "prompt_tokens": 16, "new_tokens": 2}
QLORA = {
    "batch": 1, "sequence": 32, "method": "qlora", "lora": {"rank": 4, "targets": ["q_proj", "v_proj"]},
    "optimizer": "adamw_foreach",
}  # fmt: skip
is_installed = importlib.util.find_spec("bitsandbytes") is not None


def measure(config, weights, task="inference", work=WORK):
    events = Events()
    status = serve(json.dumps(order_json("measure", config, task, work, scenario={"weights": weights})).encode(), events)
    return status, events


@pytest.mark.skipif(is_installed, reason="bitsandbytes is installed")
@pytest.mark.parametrize(("weights", "task", "work"), [("nf4", "inference", WORK), ("nf4", "training", QLORA)])
def test_what_is_missing_is_named(weights, task, work):
    status, events = measure(MODEL, weights, task, work)
    assert (status, events[-1][1]["kind"], events[-1][1]["field"]) == (3, "missing_package", "scenario.weights")
    assert "python -m pip install bitsandbytes, or rehearse" in events[-1][1]["message"]


@pytest.mark.skipif(not is_installed, reason="needs bitsandbytes")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("weights", ["nf4", "nf4-dq", "fp4", "int8"])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_what_it_holds_is_what_is_predicted(name, weights):
    """Parameters and the bytes of the weights exactly; what is allocated in every phase to a few percent of a tiny model."""
    config = {"llama": MODEL, "gpt2": GPT2 | {"torch_dtype": "bfloat16"}}[name]
    status, events = measure(config, weights)
    assert status == 0, events[-1]
    scenario = {"version": 1, "model": {"config": config}, "weights": weights, "task": "inference", "inference": WORK}
    footprint = make_plan(parse_scenario(scenario), network=False, device="cpu").footprint
    told = events.result
    assert (told["parameters"], told["weight_bytes"]) == (footprint.parameters, footprint.weight_bytes)
    predicted = {phase.name: phase.allocated for phase in footprint.gpus[0].phases}
    for phase in told["phases"]:
        turned = name == "gpt2" and phase["name"] == "load"  # its weights lie the other way round and are copied
        near = 0.04 if name == "llama" else 0.08
        assert turned or phase["allocated"] == pytest.approx(predicted[phase["name"]], rel=near), phase["name"]
        assert phase["name"] == "load" or phase["components"]["quantization_state"] > 0


@pytest.mark.skipif(not is_installed, reason="needs bitsandbytes")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("weights", ["nf4", "native"])
def test_qlora_over_it_takes_what_is_predicted(weights):
    """PEFT over bitsandbytes, both themselves: allocated of every phase of the second step to a thousandth."""
    status, events = measure(MODEL, weights, "training", QLORA)
    assert status == 0, events[-1]
    scenario = {"version": 1, "model": {"config": MODEL}, "weights": "nf4", "task": "training", "training": QLORA}
    footprint = make_plan(parse_scenario(scenario), network=False, device="cpu").footprint
    predicted = {phase.name: phase.allocated for phase in footprint.gpus[0].phases}
    assert events.result["trainable_parameters"] == footprint.trainable_parameters
    for phase in events.result["phases"]:
        if phase["step"] != 1:
            assert phase["allocated"] == pytest.approx(predicted[phase["name"]], rel=0.001), phase["name"]
