"""Kernels in place of transformers' code, held to published runs that had them and to what they leave out."""

from __future__ import annotations

from typing import Any

import pytest

from planner.scenario import parse_scenario
from resources.plan import make_plan

BASE: dict[str, Any] = {
    "model": "meta-llama/Llama-3.1-8B", "task": "training", "weights": "bf16", "hardware": {"gpu": "A100 SXM4 80GB"},
    "training": {
        "batch": 8, "sequence": 4096, "method": "lora", "checkpointing": "full", "attention": "flash", "optimizer": "adamw_foreach",
        "lora": {"rank": 16, "alpha": 16, "dropout": 0.1, "targets": ["q_proj", "k_proj", "v_proj", "o_proj"]},
    },
}  # fmt: skip
ALL = "rms_norm, rope, swiglu, lora, cross_entropy"


def scenario(model: str = "", weights: str = "bf16", **training: Any) -> dict[str, Any]:
    return BASE | {"model": model or BASE["model"], "weights": weights, "training": BASE["training"] | training}


def footprint(document: dict[str, Any]) -> Any:
    return make_plan(parse_scenario(document), network=False, calibrated=False).footprint


def peak(document: dict[str, Any]) -> int:
    return max(phase.allocated for phase in footprint(document).gpus[0].phases)


# fms-acceleration, scripts/benchmarks/refs: a100_80gb_liger.csv and a100_80gb.csv, one A100 each.
RUNS = {
    "norms and rotations, Liger's loss": (
        scenario("NousResearch/Meta-Llama-3-8B", precision="amp-bf16", loss="fused",
                 engine_options={"version": "4.45.2", "fused_kernels": "rms_norm, rope"}),
        33_567_698_944,
    ),
    "norms, rotations and loss": (
        scenario("NousResearch/Meta-Llama-3-8B", precision="amp-bf16",
                 engine_options={"version": "4.45.2", "fused_kernels": "rms_norm, rope, cross_entropy"}),
        59_017_447_424,
    ),
    "adapters over 4-bit weights": (
        scenario("mistralai/Mistral-7B-v0.1", "nf4-dq", method="qlora", precision="amp-bf16", loss="fused",
                 engine_options={"version": "4.45.2", "fused_kernels": "rms_norm, rope, lora"}),
        21_761_798_656,
    ),
    "everything over 4-bit weights": (
        scenario("mistralai/Mistral-7B-v0.1", "nf4-dq", method="qlora", precision="amp-bf16",
                 engine_options={"version": "4.48.1", "fused_kernels": "rms_norm, rope, lora, cross_entropy"}),
        23_922_438_144,
    ),
}  # fmt: skip


@pytest.mark.parametrize("run", RUNS)
def test_published_runs_are_met(run: str) -> None:
    document, measured = RUNS[run]
    if document["model"].startswith("NousResearch"):
        document = document | {"model": "meta-llama/Llama-3.1-8B"}  # of the same shape
    assert abs(peak(document) / measured - 1) < 0.0002


@pytest.mark.parametrize("kernel", ["rms_norm", "rope", "swiglu", "cross_entropy"])
def test_a_kernel_raises_no_peak(kernel: str) -> None:
    """Each keeps what the written-out code keeps, or less, and makes its gradients in place."""
    for checkpointing in ("none", "full"):
        plain = scenario(batch=1, checkpointing=checkpointing)
        fused = scenario(batch=1, checkpointing=checkpointing, engine_options={"fused_kernels": kernel})
        assert peak(fused) <= peak(plain)
    assert peak(scenario(batch=1, checkpointing="none", engine_options={"fused_kernels": ALL})) < peak(
        scenario(batch=1, checkpointing="none")
    )


def test_swiglu_keeps_no_activated_gate() -> None:
    """Layers · tokens · intermediate size · 2 B less is kept: silu's result is made again inside the kernel."""
    document = scenario(batch=1, checkpointing="none", loss="chunked")
    fused = scenario(batch=1, checkpointing="none", loss="chunked", engine_options={"fused_kernels": "swiglu"})
    kept = [footprint(each).gpus[0].phases[1].components["activations"] for each in (document, fused)]
    assert kept[0] - kept[1] == pytest.approx(32 * 4096 * 14336 * 2, rel=0.01)


@pytest.mark.parametrize(
    ("model", "training"),
    [
        ("google/gemma-2-9b", {"engine_options": {"fused_kernels": "rms_norm"}}),
        ("meta-llama/Llama-3.1-8B", {"engine_options": {"fused_kernels": "gelu"}}),
        ("meta-llama/Llama-3.1-8B", {"precision": "amp-bf16", "method": "full", "engine_options": {"compile": True}}),
        ("meta-llama/Llama-3.1-8B", {"loss": "chunked", "engine_options": {"fused_kernels": "cross_entropy"}}),
        ("google/gemma-2-9b", {"engine_options": {"fused_kernels": "swiglu"}}),
    ],
)
def test_other_code_is_unknown(model: str, training: dict[str, Any]) -> None:
    found = footprint(scenario(model, **training))
    assert not found.gpus or not found.gpus[0].phases
    assert any("fused_kernels" in note or "compile" in note for note in found.notes)


def test_norms_that_train_have_the_same_gradients() -> None:
    """A kernel changes what is kept, not what is trained."""
    plain, fused = (
        footprint(scenario(batch=1, method="full", engine_options=options)) for options in ({}, {"fused_kernels": "rms_norm"})
    )
    assert plain.trainable_parameters == fused.trainable_parameters
    gradients = [found.gpus[0].phases[-1].components["gradients"] for found in (plain, fused)]
    assert gradients[0] == gradients[1]


def test_repeated_keys_are_kept_for_every_query_head() -> None:
    """2 · layers · tokens · (32 − 8 heads) · 128 · 2 B more are kept of Llama-3.1-8B, whose keys serve four queries."""
    plain = scenario(batch=1, checkpointing="none", attention="sdpa")
    repeated = scenario(batch=1, checkpointing="none", attention="sdpa", engine_options={"repeat_keys": True})
    kept = [footprint(each).gpus[0].phases[1].components["activations"] for each in (plain, repeated)]
    assert kept[1] - kept[0] == 2 * 32 * 4096 * 24 * 128 * 2


def compiled(**options: Any) -> dict[str, Any]:
    return {
        "model": "meta-llama/Llama-3.2-3B", "task": "training", "weights": "bf16", "hardware": {"gpu": "A100 SXM4 80GB"},
        "training": {
            "batch": 2, "sequence": 4096, "method": "full", "optimizer": "adamw_fused",
            "engine_options": {"repeat_keys": True} | options,
        },
    }  # fmt: skip


@pytest.mark.parametrize(("options", "measured_gib"), [({}, 60.0), ({"compile": True}, 51.0)])
def test_torchtunes_table_is_met(options: dict[str, Any], measured_gib: float) -> None:
    """torchtune README, "Optimization flags": Llama-3.2-3B, packed, batch 2 of 4096, without and with torch.compile."""
    assert abs(peak(compiled(**options)) / (measured_gib * 2**30) - 1) < 0.01


def test_compiled_layers_keep_what_products_read() -> None:
    """By layer and token: two norms' inputs and results, queries, attention's result; keys and values; three of the MLP's.

    As ``torch.compile(layer, backend="aot_eager_decomp_partition")`` keeps of a ``LlamaDecoderLayer`` in torch 2.13.
    """
    found = footprint(compiled(compile=True) | {"training": compiled(compile=True)["training"] | {
        "engine_options": {"compile": True}, "loss": "chunked"}})  # fmt: skip
    kept, tokens = found.gpus[0].phases[1].components["activations"], 2 * 4096
    layer = 6 * 3072 * 2 + 2 * 1024 * 2 + 3 * 8192 * 2 + 24 * 4 + 2 * 4
    assert kept == pytest.approx(28 * tokens * layer, rel=0.01)
