"""Lines as real programs printed them, from public logs."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.footprint import COMPONENTS
from planner.units import GIB, MIB
from probes.log_lines import MAX_LINE, PATTERNS, LogReader, on_host, read_line

VLLM_V1 = """
(EngineCore_0 pid=7) INFO 08-18 09:59:50 [gpu_model_runner.py:1953] Model loading took 15.2683 GiB and 4.412051 seconds
INFO 08-18 09:59:58 [gpu_worker.py:276] Available KV cache memory: 20.93 GiB
INFO 08-18 10:00:00 [kv_cache_utils.py:716] GPU KV cache size: 457,343 tokens
INFO 08-18 10:00:00 [kv_cache_utils.py:720] Maximum concurrency for 4,096 tokens per request: 111.66x
INFO 08-18 10:00:21 [gpu_model_runner.py:2567] Graph capturing finished in 21 secs, took 0.52 GiB
"""
VLLM_V0 = """
INFO 05-30 16:23:22 model_runner.py:1115] Loading model weights took 2.8875 GB
INFO 05-30 16:23:28 worker.py:267] Memory profiling takes 5.07 seconds
INFO 05-30 16:23:28 worker.py:267] the current vLLM instance can use total_gpu_memory (14.56GiB) x gpu_memory_utilization (0.50) = 7.28GiB
INFO 05-30 16:23:28 worker.py:267] model weights take 2.89GiB; non_torch_memory takes 0.01GiB; PyTorch activation peak memory takes 2.02GiB; the rest of the memory reserved for KV Cache is 2.36GiB.
INFO 05-30 16:23:28 executor_base.py:115] Maximum concurrency for 32768 tokens per request: 2.69x
"""  # noqa: E501
VLLM_0_5 = """
INFO 08-22 15:27:20 model_runner.py:255] Loading model weights took 14.9888 GB
INFO 08-22 15:27:25 llm_engine.py:196] # GPU blocks: 865, # CPU blocks: 327
"""
VLLM_0_6_4 = """
INFO 12-06 11:39:34 model_runner.py:1077] Loading model weights took 2.6419 GB
INFO 12-06 11:39:36 worker.py:232] Memory profiling results: total_gpu_memory=7.92GiB initial_memory_usage=3.09GiB peak_torch_memory=3.12GiB memory_usage_post_profile=3.12GiB non_torch_memory=0.47GiB kv_cache_size=3.54GiB gpu_memory_utilization=0.90
INFO 12-06 11:39:36 gpu_executor.py:113] # GPU blocks: 1207, # CPU blocks: 1365
INFO 12-06 11:39:36 gpu_executor.py:117] Maximum concurrency for 2048 tokens per request: 9.43x
"""  # noqa: E501
VLLM_0_11 = """
(EngineCore_DP0 pid=3021) INFO 09-23 18:12:39 [gpu_model_runner.py:3118] Graph capturing finished in 5 secs, took 0.67 GiB
(EngineCore_DP0 pid=3021) INFO 09-23 18:12:39 [gpu_worker.py:391] Free memory on device (78.66/79.19 GiB) on startup. Desired GPU memory utilization is (0.9, 71.27 GiB). Actual usage is 14.08 GiB for weight, 1.97 GiB for peak activation, 0.07 GiB for non-torch memory, and 0.67 GiB for CUDAGraph memory. Replace gpu_memory_utilization config with `--kv-cache-memory=58333988249` to fit into requested memory, or `--kv-cache-memory=66273897472` to fully utilize gpu memory. Current kv cache memory in use is 59212694937 bytes.
"""  # noqa: E501
VLLM_0_20 = """
(EngineCore pid=326) INFO 10-06 17:00:11 [model_runner.py:407] Model loading took 15.0 GiB memory and 5.420225 seconds
(EngineCore pid=326) INFO 10-06 17:00:33 [kv_cache_utils.py:2464] GPU KV cache size: 460,496 tokens, Maximum concurrency for 131,072 tokens per request: 3.51x
(EngineCore pid=326) INFO 10-06 17:00:41 [gpu_worker.py:955] Free memory on device (78.84/79.25 GiB) on startup. Desired GPU memory utilization is (0.92, 72.91 GiB). Actual usage is 15.26 GiB for consumed memory (weights + non-torch), 1.44 GiB for peak activation, and 0.23 GiB for CUDAGraph memory.
(EngineCore pid=326) INFO 10-06 17:00:41 [gpu_worker.py:792] CUDA graph pool memory: 0.23 GiB (actual), 0.38 GiB (estimated), difference: 0.15 GiB (65.2%).
(EngineCore pid=326) INFO 10-06 17:00:33 [gpu_worker.py:692] Available KV cache memory: 56.21 GiB
"""  # noqa: E501
TENSORRT_LLM_0_8 = """
[TensorRT-LLM][INFO] Loaded engine size: 6674 MiB
[TensorRT-LLM][INFO] Allocate 69524783104 bytes for k/v cache. 
[TensorRT-LLM][INFO] Using 132608 tokens in paged KV cache.
"""  # noqa: W291
TENSORRT_LLM_TORCH = """
[12/20/2025-04:21:50] [TRT-LLM] [I] Memory used after loading model weights (inside torch) in memory usage profiling: 63.52 GiB
[12/20/2025-04:21:50] [TRT-LLM] [I] Memory used after loading model weights (outside torch) in memory usage profiling: 49.78 GiB
[12/20/2025-04:21:51] [TRT-LLM] [I] Memory dynamically allocated during inference (inside torch) in memory usage profiling: 0.85 GiB
[TensorRT-LLM][INFO] [MemUsageChange] Allocated 78.30 GiB for max tokens in paged KV cache (3731744).
"""
LLAMA_CPP_B3000 = """
llm_load_tensors:        CPU buffer size =   166.92 MiB
llm_load_tensors:      CUDA0 buffer size =  3780.44 MiB
llama_kv_cache_init:      CUDA0 KV buffer size =  2437.52 MiB
llama_new_context_with_model: KV self size  = 2437.50 MiB, K (q8_0): 1593.75 MiB, V (q4_0):  843.75 MiB
llama_new_context_with_model:  CUDA_Host  output buffer size =     0.58 MiB
llama_new_context_with_model:      CUDA0 compute buffer size =    38.10 MiB
"""
LLAMA_CPP_B1600 = """
llm_load_tensors: VRAM used: 12603.02 MiB
llama_kv_cache_init: VRAM kv self = 256.00 MB
llama_new_context_with_model: kv self size  =  256.00 MB
llama_new_context_with_model: compute buffer total size = 76.63 MB
llama_new_context_with_model: VRAM scratch buffer: 70.50 MB
llama_new_context_with_model: total VRAM used: 12929.52 MB (model: 12603.02 MB, context: 326.50 MB)
"""
OLLAMA_0_9 = """
time=2025-07-18T14:50:57.066Z level=INFO source=ggml.go:365 msg="model weights" buffer=CUDA0 size="11.5 GiB"
time=2025-07-18T14:50:57.066Z level=INFO source=ggml.go:365 msg="model weights" buffer=CPU size="680.0 MiB"
time=2025-07-18T14:50:58.130Z level=INFO source=ggml.go:672 msg="compute graph" backend=CUDA0 buffer_type=CUDA0 size="0 B"
time=2025-07-18T14:50:58.330Z level=INFO source=ggml.go:672 msg="compute graph" backend=CUDA0 buffer_type=CUDA0 size="1.3 GiB"
"""
SGLANG_SPECULATIVE = """
[2026-08-28 21:32:38] Load weight end. elapsed=787.55 s, type=HybridModel, quant=modelopt_fp4, quant_algo=NVFP4, avail mem=29.01 GB, mem usage=82.97 GB.
[2026-08-28 21:32:41] Load weight end. elapsed=1.55 s, type=HybridModelNextN, avail mem=28.01 GB, mem usage=0.80 GB.
[2026-01-01 00:01:01] Mamba Cache is allocated. max_mamba_cache_size: 22, conv_state size: 0.06GB, ssm_state size: 3.23GB intermediate_ssm_state_cache size: 1.50GB intermediate_conv_window_cache size: 0.02GB
"""  # noqa: E501
SGLANG = """
[2026-03-11 13:53:21 TP0] Load weight end. elapsed=23.18 s, type=Glm4MoeLiteForCausalLM, avail mem=32.02 GB, mem usage=28.79 GB.
[2026-03-11 13:53:22 TP1] Load weight end. elapsed=23.30 s, type=Glm4MoeLiteForCausalLM, avail mem=32.02 GB, mem usage=28.79 GB.
[2026-03-11 13:53:23 TP0] KV Cache is allocated. #tokens: 383872, KV size: 19.36 GB
[2026-03-11 13:53:32 TP0] Capture npu graph end. Time elapsed: 8.04 s. mem usage=0.80 GB. avail mem=10.30 GB.
[2026-03-11 13:53:33] max_total_num_tokens=383872, chunked_prefill_size=8192, max_prefill_tokens=16384, context_len=131072
[2026-03-11 13:53:33] The server is fired up and ready to roll!
"""
SGLANG_HYBRID = """
[2026-01-01 00:01:00] Load weight end. elapsed=60s, type=HybridModel, quant=fp8, avail mem=60.00 GB, mem usage=20.00 GB.
[2026-01-01 00:01:01] Mamba Cache is allocated. max_mamba_cache_size: 22, conv_state size: 0.06GB, ssm_state size: 3.23GB
[2026-01-01 00:01:02] KV Cache is allocated. dtype: torch.float8_e4m3fn, #tokens: 300000, K size: 3.00 GB, V size: 3.00 GB
[2026-01-01 00:01:03] Capture target decode CUDA graph end. elapsed=25.74 s, mem usage=2.66 GB, avail mem=24.45 GB.
"""
TENSORRT_LLM = """
[TensorRT-LLM][INFO] Loaded engine size: 6214 MiB
[TensorRT-LLM][INFO] [MemUsageChange] Allocated 928.77 MiB for execution context memory.
[TensorRT-LLM][INFO] Number of tokens per block: 64.
[TensorRT-LLM][INFO] [MemUsageChange] Allocated 26.91 GiB for max tokens in paged KV cache (220480).
"""
LLAMA_CPP = """
load_tensors:   CPU_Mapped model buffer size =   682.03 MiB
load_tensors: RPC0[192.168.1.60:50052] model buffer size =  6011.49 MiB
0.00.979.529 I load_tensors:        CUDA0 model buffer size =   763.78 MiB
llama_context:  CUDA_Host  output buffer size =     3.79 MiB
llama_kv_cache_unified:      CUDA0 KV buffer size =    24.00 MiB
llama_kv_cache_unified:      CUDA0 KV buffer size =    16.00 MiB
llama_memory_recurrent:      CUDA0 RS buffer size =    77.06 MiB
sched_reserve:      CUDA0 compute buffer size =    42.58 MiB
sched_reserve:  CUDA_Host compute buffer size =     6.02 MiB
"""
OLLAMA = """
time=2026-05-20T19:18:01.985-03:00 level=INFO source=device.go:240 msg="model weights" device=ROCm0 size="1.5 GiB"
time=2026-05-20T19:18:01.985-03:00 level=INFO source=device.go:245 msg="model weights" device=CPU size="0.5 GiB"
time=2026-05-20T19:18:01.985-03:00 level=INFO source=device.go:251 msg="kv cache" device=ROCm0 size="1.6 GiB"
load_tensors:        ROCm0 model buffer size =  1536.15 MiB
time=2026-05-20T19:18:01.985-03:00 level=INFO source=device.go:262 msg="compute graph" device=ROCm0 size="252.2 MiB"
time=2026-05-20T19:18:01.985-03:00 level=INFO source=device.go:272 msg="total memory" size="3.4 GiB"
"""


def gib(*sizes: float) -> int:
    return sum(round(size * GIB) for size in sizes)


def mib(*sizes: float) -> int:
    return sum(round(size * MIB) for size in sizes)


def read(text: str) -> LogReader:
    reader = LogReader()
    for line in text.strip().splitlines():
        reader.read(line)
    return reader


@pytest.mark.parametrize(
    ("text", "engine", "components", "facts"),
    [
        (
            VLLM_V1, "vllm", {"": {"weights": gib(15.2683), "kv_cache": gib(20.93), "cuda_graphs": gib(0.52)}},
            {"kv_tokens": 457343, "max_model_len": 4096, "max_concurrency": 111.66},
        ),
        (
            VLLM_V0, "vllm",
            {"": {"weights": gib(2.8875), "cuda_context": gib(0.01), "activations": gib(2.02), "kv_cache": gib(2.36)}},
            {"max_model_len": 32768, "max_concurrency": 2.69},
        ),
        (VLLM_0_5, "vllm", {"": {"weights": gib(14.9888)}}, {"kv_blocks": 865}),
        (
            VLLM_0_6_4, "vllm", {"": {"weights": gib(2.6419), "cuda_context": gib(0.47), "kv_cache": gib(3.54)}},
            {"kv_blocks": 1207, "max_model_len": 2048, "max_concurrency": 9.43},
        ),
        (
            VLLM_0_11, "vllm",
            {
                "": {
                    "cuda_graphs": gib(0.67), "weights": gib(14.08), "activations": gib(1.97), "cuda_context": gib(0.07),
                    "kv_cache": 59212694937,
                },
            },
            {},
        ),
        (
            VLLM_0_20, "vllm",
            {"": {"weights": gib(15), "activations": gib(1.44), "cuda_graphs": gib(0.23), "kv_cache": gib(56.21)}},
            {"kv_tokens": 460496, "max_model_len": 131072, "max_concurrency": 3.51},
        ),
        (TENSORRT_LLM_0_8, "tensorrt-llm", {"": {"weights": mib(6674), "kv_cache": 69524783104}}, {"kv_tokens": 132608}),
        (
            TENSORRT_LLM_TORCH, "tensorrt-llm", {"": {"weights": gib(63.52), "activations": gib(0.85), "kv_cache": gib(78.3)}},
            {"kv_tokens": 3731744},
        ),
        (
            LLAMA_CPP_B3000, "llama.cpp",
            {
                "CPU": {"weights": mib(166.92)},
                "CUDA0": {"weights": mib(3780.44), "kv_cache": mib(2437.52), "workspace": mib(38.1)},
                "CUDA_Host": {"logits": mib(0.58)},
            },
            {},
        ),
        (LLAMA_CPP_B1600, "llama.cpp", {"VRAM": {"weights": mib(12603.02), "kv_cache": mib(256), "workspace": mib(70.5)}}, {}),
        (
            OLLAMA_0_9, "ollama", {"CUDA0": {"weights": gib(11.5), "workspace": gib(1.3)}, "CPU": {"weights": mib(680)}}, {},
        ),
        (SGLANG_SPECULATIVE, "sglang", {"": {"weights": gib(82.97, 0.8), "recurrent_state": gib(0.06, 3.23, 1.5, 0.02)}}, {}),
        (
            SGLANG, "sglang",
            {"TP0": {"weights": gib(28.79), "kv_cache": gib(19.36), "cuda_graphs": gib(0.8)}, "TP1": {"weights": gib(28.79)}},
            {"kv_tokens": 383872},
        ),
        (
            SGLANG_HYBRID, "sglang",
            {"": {"weights": gib(20), "recurrent_state": gib(0.06, 3.23), "kv_cache": gib(3, 3), "cuda_graphs": gib(2.66)}}, {},
        ),
        (
            TENSORRT_LLM, "tensorrt-llm", {"": {"weights": mib(6214), "workspace": mib(928.77), "kv_cache": gib(26.91)}},
            {"kv_tokens": 220480},
        ),
        (
            LLAMA_CPP, "llama.cpp",
            {
                "CPU_Mapped": {"weights": mib(682.03)},
                "RPC0[192.168.1.60:50052]": {"weights": mib(6011.49)},
                "CUDA0": {
                    "weights": mib(763.78), "kv_cache": mib(24, 16), "recurrent_state": mib(77.06), "workspace": mib(42.58),
                },
                "CUDA_Host": {"logits": mib(3.79), "workspace": mib(6.02)},
            },
            {},
        ),
        (
            OLLAMA, "ollama",
            {
                "ROCm0": {"weights": gib(1.5), "kv_cache": gib(1.6), "workspace": mib(252.2)},
                "CPU": {"weights": gib(0.5)},
            },
            {},
        ),
    ],
    ids=[
        "vllm-v1", "vllm-v0", "vllm-0.5", "vllm-0.6.4", "vllm-0.11", "vllm-0.20", "tensorrt-llm-0.8", "tensorrt-llm-torch",
        "llama.cpp-b3000", "llama.cpp-b1600", "ollama-0.9", "sglang-speculative", "sglang",
        "sglang-hybrid", "tensorrt-llm", "llama.cpp", "ollama",
    ],
)  # fmt: skip
def test_a_log_is_read_into_components(text: str, engine: str, components: object, facts: object) -> None:
    reader = read(text)
    assert (reader.engine, reader.components, reader.facts) == (engine, components, facts)


def test_the_device_that_holds_most_is_compared() -> None:
    assert set(read(OLLAMA).on_devices()) == {"weights", "kv_cache", "workspace"}
    assert read(LLAMA_CPP).on_devices() == {"weights": mib(6011.49)}
    assert [on_host(device) for device in ("CPU", "CPU_Mapped", "CUDA_Host", "AMX", "CUDA0", "Metal", "")] == [True] * 4 + [
        False
    ] * 3


def test_a_size_is_as_exact_as_it_was_printed() -> None:
    reader = read(VLLM_V1)
    assert reader.resolution_bytes("", "weights") == round(GIB / 10**4 / 2)
    assert reader.resolution_bytes("", "kv_cache") == round(GIB / 100 / 2)
    assert read(SGLANG_HYBRID).resolution_bytes("", "kv_cache") == 2 * round(GIB / 100 / 2)


def test_a_finer_saying_of_the_same_size_stays() -> None:
    again = VLLM_V1 + "Actual usage is 15.27 GiB for weight, 2.0 GiB for peak activation, 0.1 GiB for non-torch memory, "
    again += "and 0.5 GiB for CUDAGraph memory."
    assert read(again).components[""]["weights"] == gib(15.2683)
    assert read(again.replace("15.27", "15.30")).components[""]["weights"] == gib(15.3)


def test_a_restarted_server_counts_once() -> None:
    assert read(VLLM_V1 + VLLM_V1).components == read(VLLM_V1).components


def test_colours_and_progress_bars_are_looked_through() -> None:
    (finding,) = read_line("Loading: 100%|####| 4/4\r\x1b[32mINFO\x1b[0m Available KV cache memory: \x1b[1m20.93\x1b[0m GiB\r\n")
    assert (finding.name, finding.value) == ("kv_cache", gib(20.93))
    assert "gpu_worker.py" in finding.source


def test_a_negative_rest_is_no_size() -> None:
    names = {finding.name for finding in read_line(VLLM_V0.splitlines()[4].replace("2.36GiB", "-0.22GiB"))}
    assert names == {"weights", "cuda_context", "activations"}


def test_every_pattern_speaks_the_common_vocabulary_and_names_its_source() -> None:
    for pattern in PATTERNS:
        assert set(pattern.components) <= set(COMPONENTS)
        assert pattern.source
        assert pattern.versions
        assert pattern.text.groups == int(pattern.device) + 2 * len(pattern.components) + len(pattern.facts)


@given(st.text(max_size=200))
def test_no_line_is_too_strange(line: str) -> None:
    """Whatever a program prints is either read or passed over."""
    read_line(line)
    read_line(line * (1 + MAX_LINE // max(1, len(line))))
