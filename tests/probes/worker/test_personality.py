"""What CUDA allocates where the CPU does otherwise."""

import pytest
import torch

from probes.worker import personality

A100, H100, T4 = (8, 0), (9, 0), (7, 5)


def tensors(dtype=torch.bfloat16, heads=8, kv_heads=8, width=64, value_width=64, length=32):
    make = lambda count, last: torch.empty(1, count, length, last, dtype=dtype, device="meta")  # noqa: E731
    return make(heads, width), make(kv_heads, width), make(kv_heads, value_width)


@pytest.mark.parametrize(
    ("qkv", "mask", "grouped", "capability", "expected"),
    [
        (tensors(), False, False, A100, "flash"),
        (tensors(kv_heads=2), False, True, A100, "flash"),
        (tensors(), True, False, A100, "efficient"),
        (tensors(torch.float32), False, False, A100, "efficient"),
        (tensors(width=192, value_width=128), False, False, A100, "efficient"),
        (tensors(width=512, value_width=512), False, False, A100, "efficient"),
        (tensors(width=60, value_width=60), True, False, A100, "math"),
        (tensors(), False, False, T4, "math"),
        (tensors(torch.float16), False, False, T4, "efficient"),
    ],
)
def test_attention_is_chosen_as_cuda_chooses(qkv, mask, grouped, capability, expected):
    given = torch.empty(1, 1, 32, 32, dtype=torch.bool, device="meta") if mask else None
    assert personality.choose_attention(*qkv, given, not mask, grouped, capability) == expected


def test_flash_backward_scratch_counts_accumulators_and_expanded_heads():
    query, key, _ = tensors(kv_heads=2, length=100)
    rows = 8 * 128
    expected = rows * 4 + rows * 64 * 4 + 2 * 8 * 100 * 64 * 2
    assert personality.flash_backward_scratch_bytes((query, query, key), {}, None) == expected


def test_embedding_backward_scratch_only_for_many_indices():
    grad = torch.empty(1, 4096, 64, dtype=torch.bfloat16, device="meta")
    few, many = (torch.empty(1, count, dtype=torch.int64, device="meta") for count in (3072, 4096))
    assert personality.embedding_backward_scratch_bytes((grad, few, 1000), {}, None) == 0
    assert personality.embedding_backward_scratch_bytes((grad, many, 1000), {}, None) == 2 * 4096 * 8 + 1409 * 64 * 4


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("capability", "workspace_bytes"), [([8, 0], 8_519_680), ([9, 0], 33_554_432)])
def test_each_thread_with_matrix_products_takes_a_cublas_workspace(run_worker, capability, workspace_bytes):
    training = run_worker("rehearse", "llama", "training", {"sequence": 32}, compute_capability=capability)
    inference = run_worker("rehearse", "llama", "inference", {"prompt_tokens": 32}, compute_capability=capability)
    assert training.phases["optimizer", 2][1]["workspace"] == 2 * workspace_bytes
    assert workspace_bytes <= inference.phases["decode", 0][1]["workspace"] < workspace_bytes + 100_000


@pytest.mark.filterwarnings("ignore")
def test_dropout_keeps_one_byte_an_element(run_worker):
    cuda = run_worker("rehearse", "gpt2", "training", {"sequence": 64, "precision": "fp32"})
    cpu = run_worker("rehearse", "gpt2", "training", {"sequence": 64, "precision": "fp32"}, personality="cpu")
    assert cuda.phases["forward", 1][1]["activations"] < cpu.phases["forward", 1][1]["activations"]
