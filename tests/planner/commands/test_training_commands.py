"""A training's files do what was planned: the scripts run, and the libraries read the arguments, JSON and YAML."""

from __future__ import annotations

import ast
import dataclasses
import json
import runpy
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.commands import Command, commands_of
from planner.scenario import OPTIMIZERS, parse_scenario

ZERO_KEYS = {
    "stage", "contiguous_gradients", "reduce_bucket_size", "allgather_bucket_size", "overlap_comm", "offload_param",
    "offload_optimizer", "sub_group_size", "stage3_prefetch_bucket_size", "stage3_param_persistence_threshold",
    "stage3_max_live_parameters", "stage3_max_reuse_distance", "stage3_gather_16bit_weights_on_model_save",
}  # fmt: skip
"""Fields and aliases of ``DeepSpeedZeroConfig`` (DeepSpeed 0.19 deepspeed/runtime/zero/config.py), which refuses others."""
OFFLOAD_KEYS = {"device", "nvme_path", "pin_memory", "ratio"}
"""Of deepspeed/runtime/zero/offload_config.py."""
OLD_NAME = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")
"""Releases before 5.23 have no other name for checkpointing, and TRL's have none."""
TRL_KEYS = {
    "DPOConfig": {"max_length", "precompute_ref_log_probs"},
    "GRPOConfig": {
        "max_completion_length", "num_generations", "steps_per_generation", "beta", "use_vllm", "vllm_mode",
        "vllm_gpu_memory_utilization", "vllm_max_model_length", "vllm_enable_sleep_mode",
    },
}  # fmt: skip
"""Fields beyond ``TrainingArguments`` that the scripts set (TRL trl/trainer/dpo_config.py and grpo_config.py)."""
CONFIG = {
    "vocab_size": 64, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 2, "max_position_embeddings": 64,
}  # fmt: skip


def files_of(model: object = "org/model", weights: str = "native", **rest: Any) -> dict[str, Command]:
    parts = {name: rest.pop(name) for name in ("parallel", "hardware", "offload") if name in rest}
    document = {"version": 1, "model": model, "task": "training", "weights": weights, "training": rest}
    return {command.file or command.title: command for command in commands_of(parse_scenario(document | parts))}


def keywords(text: str, function: str) -> dict[str, Any]:
    calls = (node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call))
    call = next(node for node in calls if getattr(node.func, "id", None) == function)
    return {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in call.keywords}


def notes(files: dict[str, Command]) -> str:
    return "\n".join(note for command in files.values() for note in command.notes)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of two narrow layers, as a script loads it."""
    transformers = pytest.importorskip("transformers")
    path = tmp_path_factory.mktemp("narrow model's")
    transformers.LlamaForCausalLM(transformers.LlamaConfig(**CONFIG)).save_pretrained(path)
    return path


@OLD_NAME
@pytest.mark.parametrize(
    "work",
    [
        {"method": "lora", "optimizer": "adamw", "checkpointing": "selective", "lora": {"targets": ["all-linear"]}},
        {"method": "freeze", "trainable": ["layers.1"], "data": "flattened", "batch": 2},
        {"method": "prefix", "gradient_accumulation": 2, "engine_options": {"max_grad_norm": 0.5}},
    ],
    ids=str,
)
def test_the_script_trains(folder: Path, work: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It runs from end to end on a model in a folder, and asks for the steps, the optimizer and the clipping of the plan."""
    text = files_of({"path": str(folder)}, sequence=8, **work, precision="fp32")["train.py"].text
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.py").write_text(text.replace('report_to="none"', 'report_to="none", use_cpu=True, save_strategy="no"'))
    trained = runpy.run_path(str(tmp_path / "train.py"))
    names = [name for name, parameter in trained["model"].named_parameters() if parameter.requires_grad]
    assert names
    kind = {"lora": "lora_", "freeze": "layers.1.", "prefix": "prompt_encoder"}[str(work["method"])]
    assert all(kind in name for name in names)
    assert trained["arguments"].max_grad_norm == work.get("engine_options", {}).get("max_grad_norm", 0.0)


@OLD_NAME
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_trainer_takes_the_arguments(optimizer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    transformers = pytest.importorskip("transformers")
    monkeypatch.chdir(tmp_path)
    given = keywords(files_of(optimizer=optimizer, checkpointing="full", loss="fused")["train.py"].text, "TrainingArguments")
    arguments = transformers.TrainingArguments(**given, use_cpu=True)
    assert arguments.gradient_checkpointing
    assert ("optim" in given) or "training.optimizer" in notes(files_of(optimizer=optimizer))


def test_adamw_in_a_loop_is_asked_for_by_its_class() -> None:
    """``optim_args`` tell ``adamw_torch`` nothing (``trainer_optimizer._get_adamw_torch``)."""
    assert '(torch.optim.AdamW, {"lr": arguments.learning_rate, "foreach": False})' in files_of(optimizer="adamw")["train.py"].text
    assert "training.optimizer" in notes(files_of(optimizer="adamw", objective="dpo"))


def test_gradients_are_projected_inside_the_layers() -> None:
    """The Trainer's own match takes the linears that the prediction projects, at the planned rank."""
    utils = pytest.importorskip("transformers.trainer_utils")
    found = keywords(files_of(optimizer="galore", engine_options={"projection_rank": 32})["train.py"].text, "TrainingArguments")
    assert found["optim_args"] == "rank=32"
    matches = [
        utils.check_target_module_exists(found["optim_target_modules"], name)
        for name in ("model.layers.0.mlp.up_proj", "transformer.h.11.attn.c_attn", "lm_head", "model.embed_tokens")
    ]
    assert matches == [True, True, False, False]


@pytest.mark.parametrize("stage", [1, 2, 3])
@pytest.mark.parametrize("to", ["cpu", "nvme"])
def test_deepspeed_knows_every_key(stage: int, to: str) -> None:
    files = files_of(
        engine="deepspeed", parallel={"sharding": f"zero{stage}"}, hardware={"gpus": 4}, precision="amp-bf16",
        offload={"optimizer": 0.5, "weights": 0.5, "to": to},
        engine_options={"sub_group_size": 10**6, "stage3_max_reuse_distance": 10**6, "max_grad_norm": 0.5},
    )  # fmt: skip
    document = json.loads(files["deepspeed.json"].text)
    zero = document["zero_optimization"]
    assert zero.keys() <= ZERO_KEYS
    for part in ("offload_optimizer", "offload_param"):
        assert zero.get(part, {}).keys() <= OFFLOAD_KEYS
    assert document["gradient_clipping"] == keywords(files["train.py"].text, "TrainingArguments")["max_grad_norm"] == 0.5
    said = notes(files)
    assert ("offload_param" in zero) is (stage == 3)
    assert ("ratio" in zero["offload_optimizer"]) is (stage == 3)
    assert "offload.weights" in said
    assert ("offload.optimizer" in said) is (stage < 3)


def test_zero_on_one_gpu_is_launched_as_a_process_group() -> None:
    launch = files_of(engine="deepspeed", parallel={"sharding": "zero2"})["Launch"]
    assert launch.text == "torchrun --nproc-per-node 1 train.py\n"


@pytest.mark.parametrize("objective", ["sft", "dpo"])
def test_the_arguments_stand_before_the_model(objective: str) -> None:
    """They bind a process to its GPU, and ZeRO-3 cuts weights while they load."""
    text = files_of(objective=objective, engine="deepspeed", parallel={"sharding": "zero3"}, hardware={"gpus": 2})["train.py"].text
    assert text.index("arguments = ") < text.index("from_pretrained(")


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("precision", ["bf16", "amp-bf16", "amp-fp16", "fp32"])
def test_accelerate_reads_its_file(flat: bool, precision: str, tmp_path: Path) -> None:
    """By its own class; every key of FSDP is an option of ``accelerate launch``."""
    config_args = pytest.importorskip("accelerate.commands.config.config_args")
    from accelerate.commands.launch import launch_command_parser

    options = {"checkpoint_offload": True} | ({"fsdp_version": 1} if flat else {})
    text = files_of(
        parallel={"sharding": "fsdp"}, hardware={"gpus": 4, "nodes": 2}, precision=precision, checkpointing="full",
        engine_options=options,
    )["fsdp.yaml"].text  # fmt: skip
    (tmp_path / "fsdp.yaml").write_text(text)
    read = config_args.ClusterConfig.from_yaml_file(str(tmp_path / "fsdp.yaml"))
    assert (read.num_processes, read.num_machines) == (8, 2)
    known = {option for action in launch_command_parser()._actions for option in action.option_strings}
    assert {f"--{key}" for key in read.fsdp_config} <= known
    assert read.fsdp_config.get("fsdp_activation_checkpointing_offload", False) is not flat


def test_what_a_plan_asks_for_and_no_file_does_is_said() -> None:
    said = notes(files_of(
        checkpointing="selective", parallel={"sharding": "fsdp", "context": 2}, hardware={"gpus": 4, "nodes": 2},
        engine_options={"ema": True, "reduce_dtype": "fp32", "separate_ends": False, "version": "4.50"}, lengths=[7, 9],
        offload={"weights": 0.5, "to": "nvme"},
    ))  # fmt: skip
    for words in (
        "training.checkpointing: accelerate", "parallel.context", "ema: the Trainer", "reduce_dtype", "separate_ends",
        "plan is of transformers 4.50", "training.lengths", "offload: FSDP", "offload.to: FSDP", "run it on every node",
    ):  # fmt: skip
        assert words in said
    chosen = files_of(objective="dpo", data="packed", engine_options={"autocast_adapter_dtype": False})
    assert "TRL's rows padded, not packed" in notes(chosen)
    assert "TRL decides the dtype" in notes(chosen)
    reentrant = {"checkpointing": "full", "engine_options": {"use_reentrant": True}}
    assert "are not reentrant" in notes(files_of(parallel={"sharding": "fsdp"}, hardware={"gpus": 2}, **reentrant))
    assert "offload: without ZeRO" in notes(files_of(offload={"optimizer": 1.0}))


def test_a_plain_plan_is_realised_without_a_word() -> None:
    assert not files_of(method="lora", checkpointing="full", sequence=128)["train.py"].notes


@pytest.mark.parametrize("objective", ["dpo", "grpo"])
def test_trl_freezes_and_prepares_as_planned(objective: str) -> None:
    frozen = files_of(objective=objective, method="freeze")["train.py"].text
    assert "model.requires_grad_(False)" in frozen
    prepared = files_of(objective=objective, method="qlora", engine_options={"prepare_for_kbit_training": True})["train.py"].text
    assert "model = prepare_model_for_kbit_training(model" in prepared
    ast.parse(prepared)


@pytest.mark.parametrize("objective", ["dpo", "grpo"])
def test_trl_knows_every_argument(objective: str) -> None:
    transformers = pytest.importorskip("transformers")
    name = f"{objective.upper()}Config"
    for rollout in ({}, {"engine": "vllm", "sleep": True}, {"engine": "server"}):
        given = keywords(files_of(objective=objective, checkpointing="full", rollout=rollout)["train.py"].text, name)
        assert given.keys() - TRL_KEYS[name] <= transformers.TrainingArguments.__dataclass_fields__.keys()


def test_layers_are_checkpoints_once_under_fsdp() -> None:
    """The Trainer refuses to do it beside accelerate's plugin."""
    sharded = {"parallel": {"sharding": "fsdp"}, "hardware": {"gpus": 4}, "checkpointing": "full"}
    assert keywords(files_of(objective="dpo", **sharded)["train.py"].text, "DPOConfig")["gradient_checkpointing"] is False


@pytest.mark.parametrize("weights", ["int8", "nf4", "nf4-dq", "fp4"])
def test_bitsandbytes_is_told_what_it_takes(weights: str) -> None:
    transformers = pytest.importorskip("transformers")
    text = files_of(
        method="qlora", weights=weights, parallel={"sharding": "fsdp"}, hardware={"gpus": 2},
        engine_options={"quant_skip_modules": "lm_head, gate", "fsdp_version": 1},
    )["train.py"].text  # fmt: skip
    call = next(node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Assign) and node.targets[0].id == "quantization")
    given = {keyword.arg: keyword.value for keyword in call.value.keywords}
    assert ast.literal_eval(given["llm_int8_skip_modules"]) == ["lm_head", "gate"]
    assert ("bnb_4bit_quant_storage" in given) is (weights != "int8")
    assert {str(name) for name in given} <= set(transformers.BitsAndBytesConfig.__init__.__annotations__) | set(
        transformers.BitsAndBytesConfig.__init__.__code__.co_varnames
    )


@settings(max_examples=40)
@given(st.text(st.characters(blacklist_categories=("Cs", "Cc")), min_size=1, max_size=30))
def test_a_path_survives_every_file(path: str) -> None:
    """Rule: Python, YAML and the shell read back the path that was planned with, whatever characters it has."""
    yaml = pytest.importorskip("yaml")
    shown = path.removesuffix("/config.json")
    files = files_of({"path": path})
    assert yaml.safe_load(files["axolotl.yaml"].text)["base_model"] == shown
    for objective in ("sft", "dpo"):
        text = files_of({"path": path}, objective=objective, method="lora", reference="adapter" if objective == "dpo" else "auto")
        strings = [node.value for node in ast.walk(ast.parse(text["train.py"].text)) if isinstance(node, ast.Constant)]
        assert shown in strings


def test_megatron_is_told_every_way_of_the_plan() -> None:
    files = files_of(
        engine="megatron", hardware={"gpus": 8, "nodes": 2}, parallel={"tensor": 2, "pipeline": 4, "data": 2, "sharding": "zero1"},
        engine_options={"virtual_pipeline": 2, "sequence_parallel": False, "global_batch": 96}, precision="amp-fp16", sequence=4096,
        optimizer="sgd_momentum", loss="fused",
    )  # fmt: skip
    line = files["Megatron-LM"].text.replace("\\\n", " ")
    words = " ".join(line.split())
    for option in (
        "--nnodes 2", "--num-virtual-stages-per-pipeline-rank 2", "--global-batch-size 96", "--fp16", "--optimizer sgd",
        "--use-distributed-optimizer",
    ):  # fmt: skip
        assert option in words
    assert "--sequence-parallel" not in words
    assert "training.loss" in notes(files)
    assert "--sgd-momentum 0" in files_of(engine="megatron", optimizer="sgd")["Megatron-LM"].text.replace("\\\n ", "")


def test_recipes_shard_pack_and_clip_as_planned() -> None:
    yaml = pytest.importorskip("yaml")
    files = files_of(
        data="packed", parallel={"sharding": "fsdp"}, hardware={"gpus": 4}, optimizer="paged_adamw_32bit",
        engine_options={"max_grad_norm": 1.0, "reshard_after_forward": False},
    )  # fmt: skip
    tune, axolotl = (yaml.safe_load(files[name].text) for name in ("torchtune.yaml", "axolotl.yaml"))
    assert (tune["dataset"]["packed"], tune["clip_grad_norm"], tune["fsdp_reshard_after_forward"]) == (True, 1.0, False)
    assert tune["optimizer"] == {"_component_": "bitsandbytes.optim.PagedAdamW32bit"}
    assert (axolotl["sample_packing"], axolotl["max_grad_norm"], axolotl["fsdp_version"]) == (True, 1.0, 2)
    assert axolotl["optimizer"] == "paged_adamw_32bit"
    assert (axolotl["bf16"], axolotl["bfloat16"]) == (False, True)
    zero = files_of(parallel={"sharding": "zero2"}, hardware={"gpus": 4}, method="lora", lora={"targets": ["odd: name"]})
    assert yaml.safe_load(zero["axolotl.yaml"].text)["deepspeed"] == "deepspeed.json"
    assert yaml.safe_load(zero["axolotl.yaml"].text)["lora_target_modules"] == ["odd: name"]
    assert "torchtune has no zero2" in notes(zero)
    assert "torchtune adapts no odd: name" in notes(zero)


def test_each_config_of_peft_is_made() -> None:
    peft = pytest.importorskip("peft")
    for method, name in (
        ("lora", "LoraConfig"),
        ("ia3", "IA3Config"),
        ("prompt", "PromptTuningConfig"),
        ("prefix", "PrefixTuningConfig"),
    ):
        script = files_of(method=method, lora={"targets": ["k_proj", "down_proj"]})["train.py"].text
        assert dataclasses.is_dataclass(getattr(peft, name)(**keywords(script, name)))
