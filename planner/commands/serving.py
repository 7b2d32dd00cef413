"""Servers that hold a pool of cache blocks: ``vllm serve``, SGLang, ``trtllm-serve``, TGI.

Options are those of vLLM's ``engine/arg_utils.py``, SGLang's ``server_args.py``, TensorRT-LLM's ``commands/serve.py`` and
TGI's ``launcher/src/main.rs`` at the versions named. What the plan leaves to the server is left to it here as well.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from planner.commands.command import Command, model_name, model_notes, shell_line
from planner.commands.served_requests import sglang_requests, tgi_requests, untold_requests, vllm_requests
from planner.engines import tensorrt_llm as tensorrt_llm_engine
from planner.engines import tgi as tgi_engine
from planner.engines.sglang import releases as sglang_releases
from planner.engines.vllm import versions as vllm_versions
from planner.engines.vllm.cache import SCALED_CACHES

if TYPE_CHECKING:
    from collections.abc import Mapping

    from planner.scenario import Scenario

Options = list[tuple[str, object]]
VERSIONS = {
    "vllm": vllm_versions.DEFAULT_VERSION, "sglang": sglang_releases.DEFAULT_VERSION,
    "tensorrt-llm": tensorrt_llm_engine.VERSION, "tgi": tgi_engine.VERSION,
}  # fmt: skip
"""Releases that predictions are made for; ``engine_options.version`` of the plan goes before."""

DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
VLLM_QUANTIZATION = {"fp8": "fp8", "nf4": "bitsandbytes", "nf4-dq": "bitsandbytes"}
SGLANG_QUANTIZATION = {"fp8": "fp8", "int8": "w8a8_int8", "nf4": "bitsandbytes", "nf4-dq": "bitsandbytes"}
TGI_QUANTIZATION = {
    "fp8": "fp8",
    "int8": "bitsandbytes",
    "nf4": "bitsandbytes-nf4",
    "nf4-dq": "bitsandbytes-nf4",
    "fp4": "bitsandbytes-fp4",
}
VLLM_CACHE = {
    **dict.fromkeys(("bf16", "bfloat16"), "bfloat16"), **dict.fromkeys(("fp16", "float16"), "float16"),
    **{name: name for name in ("fp8", "fp8_e4m3", "fp8_e5m2", *SCALED_CACHES)},
}  # fmt: skip
SGLANG_CACHE = {"bf16": "bf16", "fp8": "fp8_e4m3", "fp8_e4m3": "fp8_e4m3", "fp8_e5m2": "fp8_e5m2"}
TGI_CACHE = {"fp8": "fp8_e4m3fn", "fp8_e4m3": "fp8_e4m3fn", "fp8_e5m2": "fp8_e5m2"}
PLAIN_CACHE = ("auto", "bf16", "fp16", "fp32")
STORED_SO = ("native", "gptq", "awq", "mxfp4", "nvfp4", "compressed", "hqq")
"""Formats a checkpoint is stored in: the server reads them from its config, no option asks for them."""


def vllm(scenario: Scenario) -> tuple[Command, ...]:
    """``vllm serve``."""
    ask, spread, set_options = scenario.inference, scenario.parallel, dict(scenario.inference.engine_options)
    notes = list(model_notes(scenario))
    prefix_caching = set_options.get("enable_prefix_caching")
    options: Options = [
        *_weights(scenario, "--dtype", "--quantization", VLLM_QUANTIZATION, notes),
        ("--max-model-len", ask.max_model_len),
        ("--max-num-seqs", set_options.get("max_num_seqs")),
        ("--max-num-batched-tokens", set_options.get("max_num_batched_tokens")),
        ("--gpu-memory-utilization", set_options.get("gpu_memory_utilization")),
        ("--kv-cache-dtype", _cache(scenario, VLLM_CACHE, notes)),
        ("--block-size", set_options.get("block_size")),
        ("--tensor-parallel-size", _ways(spread.tensor)),
        ("--pipeline-parallel-size", _ways(spread.pipeline)),
        ("--data-parallel-size", _ways(spread.data)),
        ("--decode-context-parallel-size", _ways(spread.context)),
        ("--enable-expert-parallel", spread.expert > 1),
        ("--enforce-eager", set_options.get("enforce_eager")),
        ("--enable-prefix-caching" if prefix_caching else "--no-enable-prefix-caching", prefix_caching is not None),
        ("--no-enable-chunked-prefill", ask.chunked_prefill is False),
        ("--disable-hybrid-kv-cache-manager", set_options.get("disable_hybrid_kv_cache_manager")),
        ("--kv-cache-memory-bytes", set_options.get("kv_cache_memory_bytes")),
        *vllm_requests(scenario, notes),
    ]
    if set_options.get("swap_space"):
        notes.append("swap_space: since its V1 engine vLLM recomputes preempted requests and swaps nothing")
    if scenario.offload.kv_cache:
        notes.append("offload.kv_cache: needs a KV connector of vLLM's (--kv-transfer-config), which a plan does not choose")
    if scenario.offload.weights:
        notes.append("offload.weights: give --cpu-offload-gb the GiB of the weights that stay on the host")
    return (_served("vllm", "vllm serve", ("vllm", "serve", model_name(scenario)), options, scenario, notes),)


def sglang(scenario: Scenario) -> tuple[Command, ...]:
    """``python -m sglang.launch_server``."""
    ask, spread, set_options = scenario.inference, scenario.parallel, dict(scenario.inference.engine_options)
    notes = list(model_notes(scenario))
    options: Options = [
        ("--model-path", model_name(scenario)),
        *_weights(scenario, "--dtype", "--quantization", SGLANG_QUANTIZATION, notes),
        ("--context-length", ask.max_model_len),
        ("--max-running-requests", set_options.get("max_running_requests")),
        ("--mem-fraction-static", set_options.get("mem_fraction_static")),
        ("--chunked-prefill-size", -1 if ask.chunked_prefill is False else set_options.get("chunked_prefill_size")),
        ("--kv-cache-dtype", _cache(scenario, SGLANG_CACHE, notes)),
        ("--tp-size", _ways(spread.tensor)),
        ("--pp-size", _ways(spread.pipeline)),
        ("--dp-size", _ways(spread.data)),
        ("--ep-size", _ways(spread.expert)),
        ("--disable-cuda-graph", set_options.get("disable_cuda_graph")),
        (_largest_captured(set_options.get("version")), set_options.get("cuda_graph_max_bs")),
        ("--page-size", set_options.get("page_size")),
        ("--max-total-tokens", set_options.get("max_total_tokens")),
        ("--swa-full-tokens-ratio", set_options.get("swa_full_tokens_ratio")),
        ("--mamba-full-memory-ratio", set_options.get("mamba_full_memory_ratio")),
        ("--max-mamba-cache-size", set_options.get("max_mamba_cache_size")),
        *sglang_requests(scenario, notes),
        *_nodes(scenario, "--nnodes", notes),
    ]
    _offload_notes(scenario, notes)
    return (_served("sglang", "SGLang server", ("python", "-m", "sglang.launch_server"), options, scenario, notes),)


def _largest_captured(version: object) -> str:
    """The flag that names the largest captured batch: of decoding alone since prefills are captured by their lengths."""
    renamed = sglang_releases.version_of(version) >= sglang_releases.GRAPH_FLAGS_SINCE
    return "--cuda-graph-max-bs-decode" if renamed else "--cuda-graph-max-bs"


def tensorrt_llm(scenario: Scenario) -> tuple[Command, ...]:
    """``trtllm-serve`` on its PyTorch backend."""
    ask, spread, set_options = scenario.inference, scenario.parallel, dict(scenario.inference.engine_options)
    notes = list(model_notes(scenario))
    if _stored_otherwise(scenario.weights):
        notes.append(f"weights: {scenario.weights} must be what the checkpoint is stored in; trtllm-serve quantises nothing itself")
    options: Options = [
        ("--backend", "pytorch"),
        ("--max_batch_size", set_options.get("max_batch_size")),
        ("--max_num_tokens", set_options.get("max_num_tokens")),
        ("--max_seq_len", ask.max_model_len),
        ("--kv_cache_free_gpu_memory_fraction", set_options.get("free_gpu_memory_fraction")),
        ("--tp_size", _ways(spread.tensor)),
        ("--pp_size", _ways(spread.pipeline)),
        ("--ep_size", _ways(spread.expert)),
    ]
    extra = {
        "dtype": ask.kv_cache if ask.kv_cache not in PLAIN_CACHE else None,
        "tokens_per_block": set_options.get("tokens_per_block"),
    }
    lines = [f"  {key}: {value}" for key, value in extra.items() if value]
    files: tuple[Command, ...] = ()
    if lines:
        options.append(("--extra_llm_api_options", "llm-options.yaml"))
        text = "\n".join(("kv_cache_config:", *lines, ""))
        files = (Command("Options that have no switch", "tensorrt-llm", _version(scenario), "yaml", text, "llm-options.yaml"),)
    _offload_notes(scenario, notes)
    untold_requests(scenario, notes)
    program = ("trtllm-serve", model_name(scenario))
    return (*files, _served("tensorrt-llm", "trtllm-serve", program, options, scenario, notes))


def tgi(scenario: Scenario) -> tuple[Command, ...]:
    """``text-generation-launcher``."""
    ask, spread, set_options = scenario.inference, scenario.parallel, dict(scenario.inference.engine_options)
    notes = list(model_notes(scenario))
    options: Options = [
        ("--model-id", model_name(scenario)),
        *_weights(scenario, "--dtype", "--quantize", TGI_QUANTIZATION, notes),
        ("--num-shard", _ways(spread.tensor)),
        ("--max-total-tokens", set_options.get("max_total_tokens", ask.max_model_len)),
        ("--max-batch-prefill-tokens", set_options.get("max_batch_prefill_tokens")),
        ("--max-concurrent-requests", ask.batch if ask.batch > 128 else None),
        ("--kv-cache-dtype", _cache(scenario, TGI_CACHE, notes)),
        ("--cuda-memory-fraction", set_options.get("cuda_memory_fraction")),
        ("--max-batch-total-tokens", set_options.get("max_batch_total_tokens")),
        ("--max-batch-size", set_options.get("max_batch_size")),
        *tgi_requests(scenario, notes),
    ]
    if (spread.pipeline, spread.expert, spread.data, spread.context) != (1, 1, 1, 1):
        notes.append("parallel: TGI shards tensors only; other ways of the plan are not realised")
    _offload_notes(scenario, notes)
    return (_served("tgi", "Text Generation Inference", ("text-generation-launcher",), options, scenario, notes),)


def _served(engine: str, title: str, program: tuple[str, ...], options: Options, scenario: Scenario, notes: list[str]) -> Command:
    return Command(title, engine, _version(scenario), "shell", shell_line(program, options) + "\n", notes=tuple(notes))


def _version(scenario: Scenario) -> str:
    engine = scenario.inference.engine
    return str(scenario.inference.engine_options.get("version") or VERSIONS[engine])


def _ways(count: int) -> int | None:
    return count if count > 1 else None


def _stored_otherwise(weights: str) -> bool:
    return weights not in DTYPES and weights != "native"


def _weights(
    scenario: Scenario,
    dtype: str,
    quantization: str,
    names: Mapping[str, str],
    notes: list[str],
) -> Options:
    """The dtype, or the quantisation the server applies while it loads; a stored format needs no option."""
    weights = scenario.weights
    if weights in DTYPES:
        return [(dtype, DTYPES[weights])]
    if weights in names:
        return [(quantization, names[weights])]
    if not weights.startswith(STORED_SO):
        notes.append(f"weights: {weights} must be what the checkpoint is stored in; no option asks for it")
    elif weights != "native":
        notes.append(f"weights: name a checkpoint that is stored as {weights}; the server reads the format from its config")
    return []


def _cache(scenario: Scenario, names: Mapping[str, str], notes: list[str]) -> str | None:
    asked = scenario.inference.kv_cache
    if asked not in names and asked not in PLAIN_CACHE:
        notes.append(f"inference.kv_cache: {scenario.inference.engine} has no option for {asked}")
    return names.get(asked)


def _nodes(scenario: Scenario, option: str, notes: list[str]) -> Options:
    if scenario.hardware.nodes == 1:
        return []
    notes.append("run it on every node, each with its --node-rank and the first node's --dist-init-addr")
    return [(option, scenario.hardware.nodes)]


def _offload_notes(scenario: Scenario, notes: list[str]) -> None:
    asked = (name for name in ("weights", "kv_cache") if getattr(scenario.offload, name))
    notes.extend(f"offload.{name}: {scenario.inference.engine} is not told by this line" for name in asked)
