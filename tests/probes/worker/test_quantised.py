"""Bytes of quantised bases and 8-bit optimizers."""

import pytest
import torch

from probes.worker.errors import WorkerError
from probes.worker.optimizers import BitsandbytesLayout, make_optimizers
from probes.worker.quantised import parameters_of, quantise


@pytest.mark.parametrize(
    ("weights", "bits"),
    [
        ("nf4", 4.5),
        ("fp4", 4.5),
        ("nf4-dq", 4 + 8 / 64 + 32 / (64 * 256)),
        ("int8", 8 + 32 / 4096),
        ("fp8", 8.0),
        ("fp8-block", 8 + 32 / 128**2),
        # A 16-bit scale and a packed zero for each group, and which group each input is of.
        ("gptq-int4-g128", 4 + (16 + 4) / 128 + 32 / 4096),
        ("gptq-int8-g-1", 8 + (16 + 8) / 4096 + 32 / 4096),
        ("awq-int4-g64", 4 + (16 + 4) / 64),
    ],
)
def test_bits_of_a_weight(weights, bits):
    """Values, and what each layout keeps beside them; packed ones still count as the parameters they stand for."""
    model = torch.nn.ModuleDict({"0": torch.nn.Linear(4096, 4096, bias=False, device="meta")})
    quantise(model, weights, ())
    stored = sum(t.numel() * t.element_size() for t in [*model.parameters(), *model.buffers()])
    assert stored * 8 / 4096**2 == pytest.approx(bits, rel=0.0005)
    assert parameters_of(model) == (4096**2, stored)


def test_nested_scales_share_one_code():
    """bitsandbytes makes its 8-bit map once: 256 fp32 values for all layers (functional.py, name2qmap)."""
    model = torch.nn.Sequential(*(torch.nn.Linear(64, 64, bias=False, device="meta") for _ in range(3)))
    quantise(model, "nf4-dq", ())
    assert len({id(layer.nested_code) for layer in model}) == 1


def test_experts_in_four_bits():
    """MXFP4 packs the stacked experts alone: two values a byte, one exponent for 32 of them."""

    class Experts(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.gate_up_proj = torch.nn.Parameter(torch.empty(4, 64, 2 * 96, device="meta"))
            self.down_proj = torch.nn.Parameter(torch.empty(4, 96, 64, device="meta"))

    model = torch.nn.ModuleDict({"experts": Experts(), "q_proj": torch.nn.Linear(64, 64, bias=False, device="meta")})
    quantise(model, "mxfp4", ())
    assert type(model["q_proj"]) is torch.nn.Linear
    values = 4 * 3 * 64 * 96
    packed = [*model["experts"].parameters(), *model["experts"].buffers()]
    assert sum(t.numel() for t in packed) == values // 2 + values // 32
    assert parameters_of(model)[0] == values + 64 * 64


def test_skipped_layers_stay():
    model = torch.nn.ModuleDict({"lm_head": torch.nn.Linear(8, 8), "proj": torch.nn.Linear(8, 8)})
    quantise(model, "nf4", ("lm_head",))
    assert type(model["lm_head"]) is torch.nn.Linear
    assert type(model["proj"]) is not torch.nn.Linear


def test_unknown_format_names_the_field():
    with pytest.raises(WorkerError, match=r"scenario\.weights"):
        quantise(torch.nn.Sequential(), "gguf:Q4_K_M", ())


@pytest.mark.parametrize(("paged", "expected"), [(False, 2 * 2**20 + 2 * 4096 * 4 + 2 * 1024), (True, 2 * 4096 * 4 + 2 * 1024)])
def test_eight_bit_states(paged, expected):
    """Two bytes a value, two fp32 scales each 256, two maps; paged values are outside the allocator; small tensors stay fp32."""
    large, small = torch.nn.Parameter(torch.zeros(1024, 1024)), torch.nn.Parameter(torch.zeros(64))
    optimizer = BitsandbytesLayout([large, small], 2, 8, paged=paged)
    large.grad, small.grad = torch.zeros_like(large), torch.zeros_like(small)
    optimizer.step()
    size = lambda states: sum(t.numel() * t.element_size() for t in states.values())  # noqa: E731
    assert size(optimizer.state[large]) == expected
    assert size(optimizer.state[small]) == 2 * 64 * 4


@pytest.mark.filterwarnings("ignore")
def test_adapters_over_a_quantised_base_quantise_it(run_worker):
    """LoRA over 4-bit weights is QLoRA by its name; DoRA needs the weights themselves and says so."""
    runs = [
        run_worker("rehearse", "llama", "training", {"sequence": 8, "method": method}, scenario={"weights": "nf4"}).phases
        for method in ("lora", "qlora")
    ]
    assert runs[0] == runs[1]
    with pytest.raises(WorkerError, match="choose qlora"):
        run_worker("rehearse", "llama", "training", {"sequence": 8, "method": "dora"}, scenario={"weights": "nf4"})


@pytest.mark.filterwarnings("ignore")
def test_qlora_holds_a_quantised_base_and_one_dequantised_weight(run_worker):
    targets = {"rank": 4, "targets": ["q_proj", "v_proj"]}
    workload = {"sequence": 32, "method": "qlora", "lora": targets}
    events = run_worker("rehearse", "llama", "training", workload, scenario={"weights": "nf4"})
    components = events.phases["optimizer", 2][1]
    assert events.result["trainable_parameters"] == 3 * 4 * (64 + 64 + 64 + 32)
    assert 0 < components["quantization_state"] < components["weights"]
    assert components["adapters"] == components["gradients"]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("weights", ["nf4-dq", "int8", "gptq-int4-g64", "awq-int4-g64", "fp8-block"])
def test_a_product_that_trains_makes_its_weight_whole_for_a_moment(weights):
    """In the backward at the latest: the gradient of the input is the gradient of the result times the weight."""
    layer = torch.nn.ModuleDict({"0": torch.nn.Linear(64, 128, bias=False, dtype=torch.bfloat16)})
    quantise(layer, weights, ())
    made = []
    original = layer["0"].dequantise
    layer["0"].dequantise = lambda dtype: made.append(dtype) or original(dtype)
    x = torch.ones(8, 64, dtype=torch.bfloat16, requires_grad=True)
    layer["0"](x).sum().backward()
    assert x.grad.shape == x.shape
    assert made
    assert set(made) == {torch.bfloat16}


@pytest.mark.filterwarnings("ignore")
def test_kv_cache_in_four_bits(run_worker):
    """QuantizedCache: half a byte a value, and a 16-bit scale and shift for each group; the newest tokens stay in 16 bit."""
    workload = {"batch": 4, "prompt_tokens": 256, "new_tokens": 1}
    plain = run_worker("rehearse", "llama", "inference", workload).phases["prefill", 0][1]["kv_cache"]
    packed = run_worker("rehearse", "llama", "inference", workload | {"kv_cache": "int4"}).phases["prefill", 0][1]["kv_cache"]
    assert packed == pytest.approx(plain * (0.5 + 4 / 64) / 2, rel=0.001)


@pytest.mark.filterwarnings("ignore")
def test_measuring_a_quantised_cache_needs_its_library(run_worker):
    workload = {"batch": 1, "prompt_tokens": 8, "new_tokens": 1, "engine_options": {"cache_implementation": "quantized"}}
    with pytest.raises(WorkerError, match="pip install optimum-quanto"):
        run_worker("measure", "llama", "inference", workload)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kv_cache", ["fp8", "int4"])
def test_unrolled_steps_of_a_quantised_cache_equal_traced_ones(run_worker, kv_cache):
    """Every 6 tokens the newest are quantised with all others."""
    options = {} if kv_cache == "fp8" else {"engine_options": {"cache_residual_length": 6}}
    workload = {"batch": 1, "prompt_tokens": 64, "new_tokens": 8, "kv_cache": kv_cache, **options}
    unrolled = run_worker("rehearse", "llama", "inference", workload)
    assert unrolled.phases == run_worker("rehearse", "llama", "inference", workload, decode_steps="all").phases


@pytest.mark.parametrize(("random", "name"), [(False, "galore"), (True, "apollo")])
def test_projected_states(random, name):
    """States of the projected gradient: rank times the longer side each, and a projector of rank times the shorter."""
    parameter = torch.nn.Parameter(torch.zeros(32, 16, dtype=torch.bfloat16))
    (optimizer,) = make_optimizers(name, {"layers.0.weight": parameter}, fake=True, rank=4)
    parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    sizes = {key: value.numel() for key, value in optimizer.state[parameter].items()}
    assert sizes == {"projector": 4 * 16, "exp_avg": 32 * 4, "exp_avg_sq": 32 * 4}
