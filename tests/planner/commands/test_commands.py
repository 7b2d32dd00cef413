"""Commands say the plan in the engine's own words: quoted, complete, and nothing dropped without a note."""

from __future__ import annotations

import ast
import json
import shlex

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.commands import Command, commands_of
from planner.predict import answer_alone
from planner.scenario import INFERENCE_ENGINES, METHODS, OPTIMIZERS, PRECISIONS, SHARDINGS, TRAINING_ENGINES, parse_scenario
from resources.plan import find_gpu, find_model

CARD = "A100 SXM4 80GB"


def inference(engine: str, *, weights: str = "bf16", model: object = "org/model", **rest: object) -> tuple[Command, ...]:
    parts = {name: rest.pop(name) for name in ("parallel", "hardware", "offload") if name in rest}
    document = {"version": 1, "model": model, "task": "inference", "weights": weights, "inference": {"engine": engine, **rest}}
    return commands_of(parse_scenario(document | parts))


def training(weights: str = "native", **rest: object) -> tuple[Command, ...]:
    parts = {name: rest.pop(name) for name in ("parallel", "hardware", "offload") if name in rest}
    document = {"version": 1, "model": "org/model", "task": "training", "weights": weights, "training": rest}
    return commands_of(parse_scenario(document | parts))


def words(command: Command) -> list[str]:
    return shlex.split(command.text)


def option(command: Command, name: str) -> str | None:
    found = words(command)
    return found[found.index(name) + 1] if name in found else None


@given(st.text(st.characters(blacklist_categories=("Cs", "Cc")), min_size=1, max_size=40), st.sampled_from(INFERENCE_ENGINES))
def test_a_path_survives_the_shell_and_python(path: str, engine: str) -> None:
    """Rule: what a shell or Python reads back is the path that was planned with, whatever characters it has."""
    command = inference(engine, model={"path": path})[-1]
    shown = path.removesuffix("/config.json") if engine != "llama.cpp" else path
    if command.language == "shell":
        assert shown in words(command)
    else:
        strings = [node.value for node in ast.walk(ast.parse(command.text)) if isinstance(node, ast.Constant)]
        assert shown in strings


def test_vllm_gets_every_switch_of_the_plan() -> None:
    options = {"gpu_memory_utilization": 0.85, "max_num_seqs": 64, "enforce_eager": True, "enable_prefix_caching": False}
    (command,) = inference(
        "vllm", weights="fp8", kv_cache="fp8", prompt_tokens=4000, new_tokens=96, max_model_len=4096, engine_options=options,
        parallel={"tensor": 4, "pipeline": 2, "expert": 4},
    )  # fmt: skip
    assert words(command)[:3] == ["vllm", "serve", "org/model"]
    expected = {
        "--quantization": "fp8", "--kv-cache-dtype": "fp8", "--max-model-len": "4096", "--max-num-seqs": "64",
        "--gpu-memory-utilization": "0.85", "--tensor-parallel-size": "4", "--pipeline-parallel-size": "2",
    }  # fmt: skip
    assert {name: option(command, name) for name in expected} == expected
    assert {"--enforce-eager", "--no-enable-prefix-caching", "--enable-expert-parallel"} <= set(words(command))
    assert "--dtype" not in words(command)
    assert not command.notes


@pytest.mark.parametrize("engine", [name for name in INFERENCE_ENGINES if name not in ("transformers", "llama.cpp")])
def test_what_an_engine_has_no_switch_for_is_said(engine: str) -> None:
    notes = " ".join(inference(engine, weights="hqq-int4-g64", kv_cache="nvfp4", offload={"weights": 0.5})[-1].notes)
    assert "weights" in notes
    assert "offload.weights" in notes


def test_llama_server_reserves_the_context_of_all_slots() -> None:
    options = {"n_gpu_layers": 20, "flash_attn": True, "type_k": "q8_0", "type_v": "q8_0", "kv_unified": True}
    (command,) = inference(
        "llama.cpp", model={"path": "/m/x.gguf"}, batch=4, prompt_tokens=1000, new_tokens=24, engine_options=options
    )
    expected = {
        "--model": "/m/x.gguf",
        "--ctx-size": "4096",
        "--parallel": "4",
        "--n-gpu-layers": "20",
        "--flash-attn": "on",
        "--cache-type-k": "q8_0",
    }
    assert {name: option(command, name) for name in expected} == expected
    assert "--kv-unified" in words(command)


def test_generation_asks_for_the_planned_shape() -> None:
    (command,) = inference("transformers", weights="nf4-dq", batch=3, prompt_tokens=77, new_tokens=5, attention="flash")
    assert "(3, 77)" in command.text
    assert "max_new_tokens=5" in command.text
    assert "bnb_4bit_use_double_quant=True" in command.text
    assert 'attn_implementation="flash_attention_2"' in command.text


@given(
    st.sampled_from(METHODS), st.sampled_from(OPTIMIZERS), st.sampled_from(PRECISIONS), st.sampled_from(SHARDINGS),
    st.sampled_from(TRAINING_ENGINES), st.sampled_from(["none", "full", "selective"]), st.integers(1, 8),
)  # fmt: skip
def test_every_training_plan_gives_files_that_parse(method, optimizer, precision, sharding, engine, checkpointing, gpus) -> None:
    """Rule: whatever is planned, Python compiles, JSON and YAML load, and a shell splits the line."""
    yaml = pytest.importorskip("yaml")
    for command in training(
        method=method, optimizer=optimizer, precision=precision, engine=engine, checkpointing=checkpointing,
        hardware={"gpus": gpus}, parallel={"sharding": sharding},
    ):  # fmt: skip
        {"python": ast.parse, "json": json.loads, "yaml": yaml.safe_load, "shell": shlex.split}[command.language](command.text)
        assert command.version
        assert command.text.endswith("\n")


def keywords(text: str, function: str) -> dict[str, object]:
    calls = (node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call))
    call = next(node for node in calls if getattr(node.func, "id", None) == function)
    return {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in call.keywords}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_arguments_are_those_of_the_installed_libraries(optimizer: str) -> None:
    transformers = pytest.importorskip("transformers")
    peft = pytest.importorskip("peft")
    script = training(method="dora", optimizer=optimizer, precision="amp-bf16", checkpointing="full", loss="fused")[0].text
    arguments = keywords(script, "TrainingArguments")
    fields = transformers.TrainingArguments.__dataclass_fields__
    assert arguments.keys() <= fields.keys()
    if "optim" in arguments:
        assert arguments["optim"] in {kind.value for kind in transformers.training_args.OptimizerNames}
    assert keywords(script, "LoraConfig").keys() <= peft.LoraConfig.__dataclass_fields__.keys()


@pytest.mark.parametrize(("method", "config"), [
    ("lora", "LoraConfig"), ("ia3", "IA3Config"), ("prompt", "PromptTuningConfig"), ("prefix", "PrefixTuningConfig"),
])  # fmt: skip
def test_each_method_writes_its_own_config_of_peft(method: str, config: str) -> None:
    peft = pytest.importorskip("peft")
    script = training(method=method, lora={"targets": ["k_proj", "down_proj"], "rslora": True}, virtual_tokens=7)[0].text
    arguments = keywords(script, config)
    assert arguments.keys() <= getattr(peft, config).__dataclass_fields__.keys()
    assert {"lora": "use_rslora", "ia3": "feedforward_modules"}.get(method, "num_virtual_tokens") in arguments
    assert "get_peft_model(model, adapters)" in script


def test_what_is_frozen_is_what_the_plan_freezes() -> None:
    """Everything but the head, or but the named modules."""
    assert "get_output_embeddings().requires_grad_(True)" in training(method="freeze")[0].text
    assert 'trained = ["layers.31"]' in training(method="freeze", trainable=["layers.31"])[0].text
    options = ({"prepare_for_kbit_training": told} for told in (True, False))
    cast, plain = (training(method="qlora", engine_options=option)[0].text for option in options)
    assert "prepare_model_for_kbit_training(model" in cast
    assert "prepare_model" not in plain


def test_zero_is_written_as_deepspeed_reads_it() -> None:
    files = {command.file: command for command in training(
        parallel={"sharding": "zero3"}, offload={"optimizer": 0.5, "weights": 1.0, "to": "nvme"}, hardware={"gpus": 8}, batch=2,
    )}  # fmt: skip
    document = json.loads(files["deepspeed.json"].text)
    zero = document["zero_optimization"]
    assert (zero["stage"], zero["offload_optimizer"]["ratio"], zero["offload_param"]["device"]) == (3, 0.5, "nvme")
    assert document["train_micro_batch_size_per_gpu"] == 2
    assert keywords(files["train.py"].text, "TrainingArguments")["deepspeed"] == "deepspeed.json"
    assert keywords(files["train.py"].text, "TrainingArguments")["bf16"] is True
    launch = next(command for command in files.values() if command.title == "Launch")
    assert words(launch) == ["torchrun", "--nproc-per-node", "8", "train.py"]


def test_fsdp_checkpoints_itself() -> None:
    """With FSDP the wrapper checkpoints; asking Trainer as well would run every layer a third time."""
    yaml = pytest.importorskip("yaml")
    files = {
        command.file: command
        for command in training(engine="fsdp", checkpointing="full", precision="amp-bf16", hardware={"gpus": 4})
    }
    config = yaml.safe_load(files["fsdp.yaml"].text)
    assert config["fsdp_config"]["fsdp_activation_checkpointing"] is True
    assert config["num_processes"] == 4
    assert "gradient_checkpointing" not in keywords(files["train.py"].text, "TrainingArguments")


def test_a_plan_of_a_config_alone_says_what_to_fill_in() -> None:
    (command,) = inference("vllm", model={"config": {"model_type": "llama"}})
    assert "PATH/TO/MODEL" in words(command)
    assert any("PATH/TO/MODEL" in note for note in command.notes)


def test_llama_server_is_told_how_the_model_is_spread() -> None:
    options = {
        "split_mode": "row", "tensor_split": "3,1", "main_gpu": 1, "n_cpu_moe": 12, "offload_kqv": False, "use_mmap": False,
        "use_mlock": True, "swa_full": True,
    }  # fmt: skip
    (command,) = inference("llama.cpp", prompt_tokens=100, new_tokens=28, engine_options=options)
    expected = {"--split-mode": "row", "--tensor-split": "3,1", "--main-gpu": "1", "--n-cpu-moe": "12", "--n-gpu-layers": "999"}
    assert {name: option(command, name) for name in expected} == expected
    assert {"--no-kv-offload", "--no-mmap", "--mlock", "--swa-full"} <= set(words(command))
    (command,) = inference("llama.cpp", engine_options={"cpu_moe": True, "offload_kqv": True, "use_mmap": True})
    assert "--cpu-moe" in words(command)
    assert not {"--no-kv-offload", "--no-mmap"} & set(words(command))


@pytest.mark.parametrize(("method", "kind"), [("draft", None), ("ngram", "ngram-simple"), ("mtp", "draft-mtp")])
def test_llama_server_is_told_what_proposes_tokens(method: str, kind: str | None) -> None:
    speculation = {"method": method, "tokens": 5, "draft_parameters": 10**9}
    (command,) = inference("llama.cpp", speculation=speculation, engine_options={"type_k_draft": "q8_0"})
    assert option(command, "--spec-type") == kind
    assert option(command, "--draft-max") == "5"
    drafts = method == "draft"
    assert ("--model-draft" in words(command)) == drafts
    assert option(command, "--cache-type-k-draft") == ("q8_0" if drafts else None)
    assert any("draft model" in note for note in command.notes) == drafts


@pytest.mark.parametrize("model", ["meta-llama/Llama-3.1-8B", "openai-community/gpt2", "google/gemma-3-1b-it"])
@pytest.mark.parametrize("fraction", [0.01, 0.45, 1.0])
def test_the_device_map_lays_on_the_host_what_the_prediction_does(model: str, fraction: float) -> None:
    """Rule: every tensor of transformers' model has a place, and those on the host are the bytes of ``footprint.host``."""
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    modeling = pytest.importorskip("accelerate.utils.modeling")
    found = find_model(model, network=False)
    document = {"model": model, "task": "inference", "inference": {"prompt_tokens": 9, "new_tokens": 3}, "weights": "bf16"}
    scenario = parse_scenario({"version": 1, "offload": {"weights": fraction}, "hardware": {"gpu": CARD}, **document})
    footprint = answer_alone(scenario, found.architecture, find_gpu(CARD), found.native, "cuda")
    (command,) = commands_of(parse_scenario(footprint.scenario), found.architecture)
    compile(command.text, "generate.py", "exec")
    places = device_map_of(command.text)
    config = transformers.AutoConfig.for_model(**found.source.config)
    with torch.device("meta"):
        built = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    modeling.check_device_map(built, places)
    sizes = {name: weight.nbytes for name, weight in built.named_parameters()}
    on_host = sum(size for name, size in sizes.items() if place_of(places, name) == "cpu")
    assert on_host == footprint.host.bytes > 0
    assert {places[name] for name in places if name.endswith("rotary_emb")} == ({0} if "gpt2" not in model else set())


def device_map_of(text: str) -> dict[str, object]:
    node = next(node for node in ast.parse(text).body if isinstance(node, ast.Assign) and node.targets[0].id == "device_map")
    return eval(compile(ast.Expression(node.value), "map", "eval"), {"range": range})


def place_of(places: dict[str, object], name: str) -> object:
    return next(place for module, place in places.items() if name.startswith(f"{module}."))


def test_without_the_model_the_script_says_that_its_map_is_not_the_plans() -> None:
    (command,) = inference("transformers", offload={"weights": 0.5})
    assert 'device_map="auto"' in command.text
    assert any(note.startswith("offload.weights") for note in command.notes)


def test_every_linear_is_named_to_torchtune() -> None:
    text = "\n".join(command.text for command in training(method="lora", lora={"targets": ["all-linear"]}))
    assert "lora_attn_modules: [q_proj, k_proj, v_proj, output_proj]" in text
    assert "apply_lora_to_mlp: true" in text


def test_a_quantised_cache_is_asked_for_with_its_settings() -> None:
    (command,) = inference("transformers", kv_cache="int8", engine_options={"cache_residual_length": 32})
    assert 'cache_implementation="quantized"' in command.text
    assert 'cache_config={"backend": "hqq", "nbits": 8, "q_group_size": 64, "residual_length": 32}' in command.text


@pytest.mark.parametrize(
    ("training_of", "config", "arguments"),
    [
        (
            {"objective": "dpo", "sequence": 512, "reference": "precomputed"},
            "DPOConfig",
            {"max_length": 512, "precompute_ref_log_probs": True},
        ),
        (
            {"objective": "dpo", "method": "qlora", "checkpointing": "full"},
            "DPOConfig",
            {"gradient_checkpointing": True, "bf16": False},
        ),
        (
            {"objective": "grpo", "sequence": 512, "prompt_tokens": 100, "batch": 8, "rollout": {"engine": "vllm", "sleep": True}},
            "GRPOConfig",
            {"max_completion_length": 412, "num_generations": 8, "beta": 0.0, "use_vllm": True, "vllm_enable_sleep_mode": True},
        ),
        (
            {"objective": "grpo", "method": "lora", "reference": "adapter", "precision": "amp-bf16"},
            "GRPOConfig",
            {"bf16": True, "beta": 0.04},
        ),
    ],
)
def test_objectives_are_trained_by_trl(training_of: dict[str, object], config: str, arguments: dict[str, object]) -> None:
    script, *_ = training(**training_of)
    calls = [node for node in ast.walk(ast.parse(script.text)) if isinstance(node, ast.Call)]
    named = next(call for call in calls if isinstance(call.func, ast.Name) and call.func.id == config)
    written = {keyword.arg: ast.literal_eval(keyword.value) for keyword in named.keywords}
    assert written.items() >= arguments.items()
    trainer = next(
        call for call in calls if isinstance(call.func, ast.Name) and call.func.id == config.replace("Config", "Trainer")
    )
    assert ("peft_config" in {keyword.arg for keyword in trainer.keywords}) is (training_of.get("method") in ("lora", "qlora"))


def test_groups_that_trl_refuses_are_said() -> None:
    script, *_ = training(objective="grpo", batch=3)
    assert any("3 completions" in note for note in script.notes)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_ppo_is_trained_by_the_last_trl_that_has_it(method: str) -> None:
    script, *_ = training(objective="ppo", method=method, checkpointing="full", sequence=512, prompt_tokens=100, batch=2)
    assert (script.engine, script.version) == ("trl", "1.11")
    compile(script.text, "train.py", "exec")
    for part in ("response_length=412", "value_model=value", "reward_model=reward", "gradient_checkpointing_enable", "(64, 100)"):
        assert part in script.text
    assert ("peft_config=adapters" in script.text) is (method == "lora")
