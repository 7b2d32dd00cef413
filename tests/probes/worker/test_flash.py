"""FlashAttention is rehearsed without its package."""

import importlib.util

import pytest

from probes.worker.errors import WorkerError
from tests.probes.worker.conftest import LLAMA

pytestmark = pytest.mark.filterwarnings("ignore")
WORK = {"batch": 1, "sequence": 64}


def test_flash_makes_no_mask_and_keeps_what_sdpas_kernel_keeps(run_worker):
    """Mistral's window makes a mask for SDPA; flash takes the window as a number. All else is the same kernel's."""
    windowed = LLAMA | {"model_type": "mistral", "architectures": ["MistralForCausalLM"], "sliding_window": 32}
    flash = run_worker("rehearse", windowed, "training", WORK | {"attention": "flash"})
    sdpa = run_worker("rehearse", windowed, "training", WORK | {"attention": "sdpa"})
    whole = run_worker("rehearse", LLAMA, "training", WORK | {"attention": "sdpa"})
    peak = lambda events: events.phases["backward", 2][0]  # noqa: E731
    assert peak(flash) == peak(whole) < peak(sdpa)
    assert flash.result["attention"] == "flash_attention_2"
    assert any("flash_attn package is not needed" in note for note in flash.result["notes"])


def test_flash_decodes(run_worker):
    events = run_worker("rehearse", "llama", "inference", {"batch": 2, "prompt_tokens": 16, "new_tokens": 2, "attention": "flash"})
    assert events.result["outcome"] == "completed"


def test_a_model_without_flash_attention_is_told(run_worker):
    with pytest.raises(WorkerError, match="has no flash attention; choose sdpa or eager"):
        run_worker("rehearse", "t5", "inference", {"prompt_tokens": 8, "attention": "flash"})


@pytest.mark.skipif(importlib.util.find_spec("flash_attn") is not None, reason="flash_attn is installed")
def test_measuring_needs_the_package(run_worker):
    with pytest.raises(WorkerError) as caught:
        run_worker("measure", "llama", "inference", {"prompt_tokens": 8, "attention": "flash"})
    assert caught.value.kind == "missing_package"
    assert "flash" in caught.value.message
