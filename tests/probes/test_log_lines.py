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
            {"": {"weights": gib(2.89), "cuda_context": gib(0.01), "activations": gib(2.02), "kv_cache": gib(2.36)}},
            {"max_model_len": 32768, "max_concurrency": 2.69},
        ),
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
    ids=["vllm-v1", "vllm-v0", "sglang", "sglang-hybrid", "tensorrt-llm", "llama.cpp", "ollama"],
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
