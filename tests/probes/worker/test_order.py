"""Orders are read strictly; a fault names its field."""

import pytest

from probes.worker.errors import WorkerError
from probes.worker.order import parse_order


def document(**changes):
    scenario = {"task": "inference", "inference": {"batch": 1}} | changes.pop("scenario", {})
    return {"version": 1, "mode": "measure", "scenario": scenario, "config": {"model_type": "llama"}} | changes


def test_defaults():
    order = parse_order(document())
    assert (order.device, order.layers, order.budget_bytes, order.personality) == ("cpu", None, None, "cuda")
    assert order.inference.prompt_tokens > 0


@pytest.mark.parametrize(("data", "shape"), [("padded", (4, 256)), ("packed", (4, 256)), ("flattened", (1, 1024))])
def test_flattened_examples_are_one_row(data, shape):
    training = parse_order(document(scenario={"training": {"batch": 4, "sequence": 256, "data": data}})).training
    assert (training.batch, training.sequence) == shape


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"version": 2}, "version"),
        ({"mode": "guess"}, "mode"),
        ({"config": None}, "config"),
        ({"device": "tpu"}, "device"),
        ({"layers": 0}, "layers"),
        ({"budget_bytes": -1}, "budget_bytes"),
        ({"sample_interval_s": 0}, "sample_interval_s"),
        ({"compute_capability": "8.0"}, "compute_capability"),
        ({"scenario": {"task": "dream"}}, "scenario.task"),
        ({"scenario": {"inference": {"batch": 0}}}, "scenario.inference.batch"),
        ({"scenario": {"inference": []}}, "scenario.inference"),
        ({"scenario": {"training": {"lora": {"rank": True}}}}, "scenario.training.lora.rank"),
        ({"scenario": {"training": {"lora": {"targets": "all"}}}}, "scenario.training.lora.targets"),
    ],
)
def test_fault_names_the_field(changes, field):
    with pytest.raises(WorkerError) as caught:
        parse_order(document(**changes))
    assert caught.value.field == field
    assert caught.value.exit_status == 2
    assert field in caught.value.message


@pytest.mark.parametrize("nonsense", [None, [], 3, "order", {"version": 1}])
def test_nonsense_is_one_typed_error(nonsense):
    with pytest.raises(WorkerError):
        parse_order(nonsense)
