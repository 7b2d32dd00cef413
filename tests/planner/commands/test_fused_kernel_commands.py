"""The script runs Liger's kernels that are planned and no others: by default its patch would run all."""

from __future__ import annotations

import pytest

from tests.planner.commands.test_training_commands import files_of, keywords, notes


@pytest.mark.parametrize(
    ("training", "running"),
    [
        ({"loss": "fused"}, ["fused_linear_cross_entropy"]),
        ({"engine_options": {"fused_kernels": "rope, rms_norm"}}, ["rms_norm", "rope"]),
        ({"loss": "fused", "engine_options": {"fused_kernels": "swiglu"}}, ["fused_linear_cross_entropy", "swiglu"]),
    ],
    ids=str,
)
def test_planned_kernels_run(training: dict[str, object], running: list[str]) -> None:
    arguments = keywords(files_of(**training)["train.py"].text, "TrainingArguments")
    assert arguments["use_liger_kernel"] is True
    assert sorted(name for name, runs in arguments["liger_kernel_config"].items() if runs) == running


def test_without_kernels_liger_stays_away() -> None:
    assert "use_liger_kernel" not in keywords(files_of(method="lora")["train.py"].text, "TrainingArguments")


def test_what_liger_has_not_is_said() -> None:
    found = notes(
        files_of(weights="nf4", method="qlora", engine_options={"fused_kernels": "lora", "repeat_keys": True, "version": "4.48.1"})
    )
    assert "fused_kernels" in found
    assert "repeat_keys" in found
    assert "compile" in notes(files_of(engine_options={"compile": True}))
