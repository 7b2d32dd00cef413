"""The bundled GPUs: figures that hang together, and names as people and drivers write them."""

from __future__ import annotations

import pytest

from planner.gpu import Gpu, metal_working_set_bytes
from resources.gpus import UnknownGpu, corrections, find_gpus, gpu, gpu_names

GIB = 2**30


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("h100", "H100 SXM5 80GB"), ("NVIDIA H100 80GB HBM3", "H100 SXM5 80GB"), ("NVIDIA H100 PCIe", "H100 PCIe 80GB"),
        ("NVIDIA H100 NVL", "H100 NVL 94GB"), ("a100", "A100 SXM4 80GB"), ("NVIDIA A100-SXM4-40GB", "A100 SXM4 40GB"),
        ("NVIDIA A100 80GB PCIe", "A100 PCIe 80GB"), ("NVIDIA A100-PCIE-40GB", "A100 PCIe 40GB"), ("4090", "GeForce RTX 4090"),
        ("RTX 4090", "GeForce RTX 4090"), ("rtx4090", "GeForce RTX 4090"),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", "GeForce RTX 4090 Laptop"), ("NVIDIA GeForce RTX 3060", "GeForce RTX 3060 12GB"),
        ("NVIDIA GeForce RTX 3060 Ti", "GeForce RTX 3060 Ti"), ("NVIDIA H200", "H200 SXM 141GB"),
        ("NVIDIA H200 NVL", "H200 NVL 141GB"), ("NVIDIA B200", "B200 SXM 180GB"), ("NVIDIA B300 SXM6 AC", "B300 SXM6 288GB"),
        ("NVIDIA GB200", "GB200 (per GPU)"), ("NVIDIA GH200 480GB", "GH200 96GB"),
        ("NVIDIA GH200 144G HBM3e", "GH200 144GB HBM3e"), ("Tesla T4", "T4"), ("Tesla V100-SXM2-32GB", "Tesla V100 SXM2 32GB"),
        ("NVIDIA RTX 6000 Ada Generation", "RTX 6000 Ada"), ("NVIDIA A10", "A10"), ("NVIDIA A10G", "A10G"),
        ("NVIDIA L40S", "L40S"), ("NVIDIA RTX PRO 6000 Blackwell Workstation Edition", "RTX PRO 6000 Blackwell Workstation"),
        ("NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition", "RTX PRO 6000 Blackwell Max-Q"),
        ("NVIDIA GB10", "DGX Spark / GB10"), ("AMD Instinct MI300X", "Instinct MI300X"),
        ("Intel(R) Arc(TM) A770 Graphics", "Intel Arc A770 16GB"), ("m5 max 128gb", "Apple M5 Max 128GB"),
        ("H100 80 GB", "H100 SXM5 80GB"),
    ],
)  # fmt: skip
def test_names_people_and_drivers_use(name: str, found: str) -> None:
    assert gpu(name).name == found


@pytest.mark.parametrize("name", gpu_names())
def test_every_name_finds_itself(name: str) -> None:
    assert gpu(name).name == name


@pytest.mark.parametrize(
    "name",
    [
        "Quadro RTX 6000",
        "NVIDIA GeForce RTX 4090 D",
        "Tesla V100-SXM2-16GB",
        "NVIDIA GeForce RTX 3080 Laptop GPU",
        "H1000",
        "",
        "rtx",
        "x" * 9999,
    ],
)
def test_another_card_is_not_taken_for_a_known_one(name: str) -> None:
    with pytest.raises(UnknownGpu):
        gpu(name)


def test_an_unknown_name_suggests() -> None:
    with pytest.raises(UnknownGpu, match=r"hardware\.gpu: no GPU is called 'RTX 4091'; did you mean .*GeForce RTX 4090"):
        gpu("RTX 4091")


def test_the_drivers_total_decides_between_sizes() -> None:
    assert gpu("NVIDIA GeForce RTX 4060 Ti", 16380 * 2**20).name == "GeForce RTX 4060 Ti 16GB"
    assert gpu("Apple M3 Max", 96 * GIB).name == "Apple M3 Max 96GB"
    assert gpu("NVIDIA A100-SXM4-80GB", 81920 * 2**20).name == "A100 SXM4 80GB"


def test_search_is_by_any_word() -> None:
    assert [card.name for card in find_gpus("nvl hopper")] == ["H100 NVL 94GB", "H200 NVL 141GB"]
    assert all(card.vendor == "Apple" for card in find_gpus("apple"))
    assert len(find_gpus("")) == len(gpu_names())


@pytest.mark.parametrize("card", find_gpus(), ids=lambda card: card.name)
def test_figures_hang_together(card: Gpu) -> None:
    """Rules: CUDA's total ≤ NVML's; what a card is sold by stays below NVML's total; FP8 runs once or twice FP16."""
    if card.cuda_total_bytes and card.nvml_total_bytes:
        assert 0.9 * card.nvml_total_bytes < card.cuda_total_bytes < card.nvml_total_bytes
    if card.nvml_total_bytes:
        assert card.memory_bytes < card.nvml_total_bytes < 1.08 * card.memory_bytes
    assert 0.6 * card.memory_bytes < card.capacity_bytes < 1.08 * card.memory_bytes
    assert all(rate > 10**12 for rate in card.flops.values())
    if "fp8" in card.flops:
        assert card.flops["fp8"] / card.flops["fp16"] == pytest.approx(2, rel=0.02) or card.vendor == "Intel"
    assert (card.link is None) == (card.link_bytes_per_s is None)
    assert card.confidence in ("high", "medium", "low")
    assert card.source


def test_known_figures() -> None:
    h200, b200, v100 = gpu("H200"), gpu("B200"), gpu("V100")
    assert (h200.nvml_total_bytes, h200.bandwidth_bytes_per_s, h200.flops["bf16"]) == (
        143771 * 2**20,
        4_800_000_000_000,
        989 * 10**12,
    )
    assert (h200.compute_capability, h200.link_bytes_per_s, h200.target) == ((9, 0), 450_000_000_000, "sm_90")
    assert (b200.capacity_basis, b200.capacity_bytes) == ("cuda", 182642 * 2**20)
    assert h200.pcie_bytes_per_s == pytest.approx(63.0e9, rel=0.001)
    assert (v100.flops_for("bf16"), v100.flops_for("fp16")) == (None, 125 * 10**12)
    assert gpu("GH200").host_bytes_per_s == 450_000_000_000
    assert [profile.name for profile in h200.mig] == ["1g.18gb", "1g.35gb", "2g.35gb", "3g.71gb", "4g.71gb", "7g.141gb"]
    assert (h200.mig[0].count, h200.mig[0].slices) == (7, 1)


def test_metal_offers_a_part_of_memory() -> None:
    """Figures as ggml_metal_init logs them: 10922.67 and 21845.34 MiB of 16 and 32 GiB, 48 GiB of 64."""
    assert metal_working_set_bytes(16 * GIB) == pytest.approx(10922.67 * 2**20, rel=1e-6)
    assert metal_working_set_bytes(32 * GIB) == pytest.approx(21845.34 * 2**20, rel=1e-6)
    assert metal_working_set_bytes(64 * GIB) == 48 * GIB
    assert gpu("Apple M1 Max 64GB").capacity_bytes == 48 * GIB


def test_a_die_of_a_pair_is_a_device() -> None:
    assert gpu("Instinct MI250X").nvml_total_bytes == 65520 * 2**20
    assert gpu("Instinct MI250X").memory_bytes == 64 * 10**9


def test_corrections_name_cards_and_reasons() -> None:
    for change in corrections():
        assert change["because"]
        assert find_gpus(change["gpu"].replace("(2 GCD)", "").replace("(per GPU)", "").replace("(T5000)", "")), change["gpu"]
