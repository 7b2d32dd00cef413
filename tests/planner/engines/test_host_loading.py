"""System memory while transformers loads: mapped pages, what is converted on the way, what stays."""

from __future__ import annotations

from pathlib import Path

import pytest

from planner.engines.host_loading import WORKERS
from planner.footprint import Footprint
from planner.predict import answer_alone
from planner.scenario import parse_scenario
from resources.plan import find_gpu, find_model

CARD = "A100 SXM4 80GB"
LLAMA = "meta-llama/Llama-3.1-8B"
EMBEDDING = 128256 * 4096
FEED_FORWARD = 14336 * 4096


def predicted(dtype: str = "bf16", model: str = LLAMA, **offload: object) -> Footprint:
    found = find_model(model, network=False)
    document = {
        "version": 1, "model": model, "task": "inference", "weights": dtype, "inference": {"prompt_tokens": 9, "new_tokens": 3},
        "hardware": {"gpu": CARD}, "offload": offload,
    }  # fmt: skip
    return answer_alone(parse_scenario(document), found.architecture, find_gpu(CARD), found.native, "cuda")


@pytest.mark.parametrize("offload", [{}, {"weights": 0.5}, {"weights": 0.5, "to": "nvme"}], ids=str)
@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32"])
def test_terms_add_up_to_what_loading_takes(dtype: str, offload: dict[str, object]) -> None:
    """Rule: every byte of ``load_bytes`` has a term with its source, and the JSON shows them."""
    host = predicted(dtype, **offload).host
    assert sum(term.bytes for term in host.terms) == host.load_bytes
    assert all(term.because for term in host.terms)
    assert host.to_json()["terms"] == [term.to_json() for term in host.terms]


@pytest.mark.parametrize("offload", [0.0, 0.5])
def test_a_file_in_the_planned_dtype_is_mapped_and_never_copied(offload: float) -> None:
    """Rule: views of the mapped file go to the GPU as they are, and those that stay on the host stay views."""
    found = predicted(weights=offload)
    assert found.host.load_bytes == found.weight_bytes
    assert bool(found.host.bytes) == bool(offload)


def test_another_dtype_is_made_on_the_host_by_each_thread() -> None:
    """Rule: the largest tensors are converted at once, as many as there are threads; one where tensors go to disk."""
    file_bytes = predicted().weight_bytes
    assert file_bytes is not None
    assert predicted("fp32").host.load_bytes == file_bytes + 4 * (2 * EMBEDDING + (WORKERS - 2) * FEED_FORWARD)
    assert predicted("fp32", weights=0.5, to="nvme").host.load_bytes == file_bytes + 4 * EMBEDDING
    kept = predicted("fp32", weights=0.5).host
    assert kept.load_bytes == predicted("fp32").host.load_bytes + kept.bytes


def test_what_is_quantised_at_load_is_read_as_it_was_trained() -> None:
    """Rule: bitsandbytes quantises on the GPU; the file has 16 bits a weight."""
    assert predicted("nf4").host.load_bytes == predicted().weight_bytes


def test_experts_that_are_merged_on_the_host_are_not_known() -> None:
    assert predicted(model="Qwen/Qwen3-30B-A3B", weights=0.5).host.load_bytes is None
    assert predicted(model="Qwen/Qwen3-30B-A3B").host.load_bytes


def test_the_libraries_load_as_the_formula_says(tmp_path) -> None:
    """Rule: a tensor of a mapped file is a view of it, in another dtype a copy; so many threads convert."""
    torch = pytest.importorskip("torch")
    safetensors = pytest.importorskip("safetensors.torch")
    loading = pytest.importorskip("transformers.core_model_loading")
    path = tmp_path / "model.safetensors"
    safetensors.save_file({"weight": torch.ones(64, 64)}, path)
    with pytest.importorskip("safetensors").safe_open(path, framework="pt", device="cpu") as file:
        read = loading._materialize_copy(file.get_slice("weight"), "cpu", torch.float32)
        converted = loading._materialize_copy(file.get_slice("weight"), "cpu", torch.bfloat16)
        assert is_mapped(read, path)
        assert not is_mapped(converted, path)
    assert loading.GLOBAL_WORKERS <= WORKERS


def is_mapped(tensor, path) -> bool:
    """Whether the tensor's memory is in a mapping of the file."""
    address = tensor.data_ptr()
    try:
        lines = Path("/proc/self/maps").read_text().splitlines()
    except OSError:
        pytest.skip("mappings are read from /proc")
    for line in lines:
        start, stop = (int(edge, 16) for edge in line.split()[0].split("-"))
        if start <= address < stop:
            return line.endswith(str(path))
    return False


@pytest.mark.parametrize("bits", [4, 8])
def test_a_checkpoint_saved_quantised_is_read_as_it_is(bits: int) -> None:
    """Rule: bitsandbytes' own files hold packed values and their scales; four threads load them."""
    quantised = {"quant_method": "bitsandbytes", f"load_in_{bits}bit": True, "bnb_4bit_quant_type": "nf4"}
    config = dict(find_model(LLAMA, network=False).source.config) | {"quantization_config": quantised}
    document = {"version": 1, "model": {"config": config}, "task": "inference", "hardware": {"gpu": CARD}}
    scenario = parse_scenario(document)
    found = find_model(scenario.model, network=False)
    saved = answer_alone(scenario, found.architecture, find_gpu(CARD), found.native, "cuda")
    assert saved.host.load_bytes == saved.weight_bytes
    assert saved.weight_bytes == predicted("nf4" if bits == 4 else "int8").weight_bytes
