"""Bytes of quantised bases and 8-bit optimizers."""

import pytest
import torch

from probes.worker.errors import WorkerError
from probes.worker.optimizers import Adam8bitLayout
from probes.worker.quantised import quantise


@pytest.mark.parametrize(("weights", "bits"), [("nf4", 4.5), ("fp4", 4.5), ("nf4-dq", 4 + 8 / 64 + 32 / (64 * 256)), ("int8", 8.0)])
def test_bits_of_a_weight(weights, bits):
    """bitsandbytes: 4-bit values with an fp32 scale each 64, or an 8-bit scale with an fp32 one each 256 scales."""
    model = torch.nn.Sequential(torch.nn.Linear(4096, 4096, bias=False, device="meta"))
    quantise(model, weights, ())
    stored = sum(t.numel() * t.element_size() for t in [*model.parameters(), *model.buffers()])
    assert stored * 8 / 4096**2 == pytest.approx(bits, rel=0.002)


def test_skipped_layers_stay():
    model = torch.nn.ModuleDict({"lm_head": torch.nn.Linear(8, 8), "proj": torch.nn.Linear(8, 8)})
    quantise(model, "nf4", ("lm_head",))
    assert type(model["lm_head"]) is torch.nn.Linear
    assert type(model["proj"]) is not torch.nn.Linear


def test_unknown_format_names_the_field():
    with pytest.raises(WorkerError, match=r"scenario\.weights"):
        quantise(torch.nn.Sequential(), "gguf:Q4_K_M", ())


@pytest.mark.parametrize(("paged", "expected"), [(False, 2 * 2**20 + 2 * 4096 * 4), (True, 2 * 4096 * 4)])
def test_eight_bit_states(paged, expected):
    """Two bytes a value and two fp32 scales each 256; paged values are outside the allocator; small tensors stay fp32."""
    large, small = torch.nn.Parameter(torch.zeros(1024, 1024)), torch.nn.Parameter(torch.zeros(64))
    optimizer = Adam8bitLayout([large, small], paged=paged)
    large.grad, small.grad = torch.zeros_like(large), torch.zeros_like(small)
    optimizer.step()
    size = lambda states: sum(t.numel() * t.element_size() for t in states.values())  # noqa: E731
    assert size(optimizer.state[large]) == expected
    assert size(optimizer.state[small]) == 2 * 64 * 4


@pytest.mark.filterwarnings("ignore")
def test_qlora_holds_a_quantised_base_and_one_dequantised_weight(run_worker):
    targets = {"rank": 4, "targets": ["q_proj", "v_proj"]}
    workload = {"sequence": 32, "method": "qlora", "lora": targets}
    events = run_worker("rehearse", "llama", "training", workload, scenario={"weights": "nf4"})
    components = events.phases["optimizer", 2][1]
    assert events.result["trainable_parameters"] == 3 * 4 * (64 + 64 + 64 + 32)
    assert 0 < components["quantization_state"] < components["weights"]
    assert components["adapters"] == components["gradients"]
