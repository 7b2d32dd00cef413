"""What serving programs say in their logs about memory, read into measured components.

Each pattern names the file that prints the line and the releases in which it was found. A size is as exact as it was printed:
``resolution_bytes`` is half a unit of its last digit.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from planner.units import GIB, MIB

Engine = Literal["vllm", "sglang", "tensorrt-llm", "llama.cpp", "ollama"]
UNITS = {"B": 1, "bytes": 1, "KiB": 2**10, "MiB": MIB, "GiB": GIB, "TiB": 2**40, "KB": 2**10, "MB": MIB, "GB": GIB}
"""vLLM before 0.8 and SGLang divide by 2**30 and print GB (model_runner.py; utils/common.py, get_available_gpu_memory)."""
MAX_LINE = 4000
_NUMBER = r"(-?[\d,]+(?:\.\d+)?)"
_SIZE = rf"{_NUMBER} ?([KMGT]?i?B|bytes)"
_ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_RANK = re.compile(r"\b(?:Worker_)?((?:DP\d+[ _])?(?:TP\d+)(?:[ _](?:EP|PP)\d+)*)\b|\[gpu_id=(\d+)\]|\[RANK (\d+)\]")


@dataclass(frozen=True, slots=True)
class Pattern:
    """A line of a log. Its groups come in pairs (number, unit) for the ``components`` in order, then one for each of ``facts``.

    ``adds``: every such line is a buffer of its own; otherwise the last one said counts. ``device``: the line's first group
    names the device. Components met twice on a line are added.
    """

    engine: Engine
    text: re.Pattern[str]
    components: tuple[str, ...]
    source: str
    versions: str
    facts: tuple[str, ...] = ()
    adds: bool = False
    device: bool = False


def _pattern(engine: Engine, text: str, components: tuple[str, ...], source: str, versions: str, **more: Any) -> Pattern:
    return Pattern(
        engine, re.compile(text.replace("<size>", _SIZE).replace("<number>", _NUMBER)), components, source, versions, **more
    )


_LLAMA_DEVICE = r": +(\S+(?:\[[^\]]*\])?) +"
PATTERNS = (
    _pattern(
        "vllm", r"(?:Model loading|Loading model weights) took <size>", ("weights",),
        "vllm/v1/worker/gpu_model_runner.py, load_model; vllm/worker/model_runner.py", "0.6 and later",
    ),
    _pattern(
        "vllm", r"Available KV cache memory: <size>", ("kv_cache",),
        "vllm/v1/worker/gpu_worker.py, determine_available_memory", "0.8 and later",
    ),
    _pattern(
        "vllm", r"GPU KV cache size: <number> tokens", (), "vllm/v1/core/kv_cache_utils.py", "0.8 and later", facts=("kv_tokens",),
    ),
    _pattern(
        "vllm", r"Maximum concurrency for <number> tokens per request: <number>x", (),
        "vllm/v1/core/kv_cache_utils.py; vllm/executor/executor_base.py", "0.6 and later",
        facts=("max_model_len", "max_concurrency"),
    ),
    _pattern(
        "vllm", r"Graph capturing finished in [\d.]+ secs, took <size>", ("cuda_graphs",),
        "vllm/v1/worker/gpu_model_runner.py, capture_model", "0.6 and later",
    ),
    _pattern(
        "vllm", r"CUDA graph pool memory: <size> \(actual\)", ("cuda_graphs",),
        "vllm/v1/worker/gpu_worker.py, compile_or_warm_up_model", "0.17 and later",
    ),
    _pattern(
        "vllm",
        r"Actual usage is <size> for weight, <size> for peak activation, <size> for non-torch memory, "
        r"and <size> for CUDAGraph memory",
        ("weights", "activations", "cuda_context", "cuda_graphs"),
        "vllm/v1/worker/gpu_worker.py, compile_or_warm_up_model", "0.10.2 to 0.19",
    ),
    _pattern(
        "vllm", r"for consumed memory \(weights \+ non-torch\), <size> for peak activation, and <size> for CUDAGraph memory",
        ("activations", "cuda_graphs"), "vllm/v1/worker/gpu_worker.py, compile_or_warm_up_model", "0.20 and later",
    ),
    _pattern(
        "vllm", r"Current kv cache memory in use is <size>", ("kv_cache",),
        "vllm/v1/worker/gpu_worker.py, compile_or_warm_up_model", "0.10.2 and later",
    ),
    _pattern(
        "vllm", r"# GPU blocks: <number>", (), "vllm/engine/llm_engine.py; vllm/executor/executor_base.py", "0.1 to 0.9",
        facts=("kv_blocks",),
    ),
    _pattern(
        "vllm", r"Memory profiling results: .*\bnon_torch_memory=<size> kv_cache_size=<size>", ("cuda_context", "kv_cache"),
        "vllm/worker/worker.py, determine_num_available_blocks", "0.6.3 to 0.6.5",
    ),
    _pattern(
        "vllm",
        r"model weights take <size>; (?:non_torch_memory takes )?<size>; PyTorch activation peak memory takes <size>; "
        r"the rest of the memory reserved for KV Cache is <size>",
        ("weights", "cuda_context", "activations", "kv_cache"),
        "vllm/worker/worker.py, determine_num_available_blocks (engine V0)", "0.6 to 0.9",
    ),
    _pattern(
        "sglang", r"Load weight end\..* mem usage=<size>", ("weights",),
        "sglang/srt/model_executor/model_runner.py, load_model; a draft model's line follows", "0.4 and later", adds=True,
    ),
    _pattern(
        "sglang", r"KV Cache is allocated\..* K size: <size>, V size: <size>", ("kv_cache", "kv_cache"),
        "sglang/srt/mem_cache/memory_pool.py, MHATokenToKVPool", "0.4 and later", adds=True,
    ),
    _pattern(
        "sglang", r"KV Cache is allocated\..* KV size: <size>", ("kv_cache",),
        "sglang/srt/mem_cache/memory_pool.py, MLATokenToKVPool", "0.4 and later", adds=True,
    ),
    _pattern(
        "sglang", r"max_total_num_tokens=<number>", (), "sglang/srt/managers/scheduler.py", "0.3 and later", facts=("kv_tokens",),
    ),
    _pattern(
        "sglang", r"Mamba Cache is allocated\..* conv_state size: <size>, ssm_state size: <size>(?!.*intermediate)",
        ("recurrent_state", "recurrent_state"), "sglang/srt/mem_cache/memory_pool.py, MambaPool", "0.5 and later",
    ),
    _pattern(
        "sglang",
        r"Mamba Cache is allocated\..* conv_state size: <size>, ssm_state size: <size>,? "
        r"intermediate_ssm_state_cache size: <size>,? intermediate_conv_window_cache size: <size>",
        ("recurrent_state",) * 4, "sglang/srt/mem_cache/memory_pool.py, MambaPool, with speculation", "0.5.4 and later",
    ),
    _pattern(
        "sglang", r"Capture (?:[a-z]+ )*(?:cuda|CUDA|npu) graph end\..* mem usage=<size>", ("cuda_graphs",),
        "sglang/srt/model_executor/model_runner.py, init_device_graphs", "0.4 and later", adds=True,
    ),
    _pattern(
        "tensorrt-llm", r"\[MemUsageChange\] Allocated <size> for max tokens in paged KV cache \(<number>\)", ("kv_cache",),
        "cpp/tensorrt_llm/batch_manager/kvCacheManager.cpp, allocatePools", "0.9 and later", facts=("kv_tokens",),
    ),
    _pattern(
        "tensorrt-llm", r"Allocate <size> for k/v cache", ("kv_cache",), "cpp/tensorrt_llm/batch_manager", "0.5 to 0.8",
    ),
    _pattern(
        "tensorrt-llm", r"Using <number> tokens in paged KV cache", (), "cpp/tensorrt_llm/batch_manager", "0.5 to 0.8",
        facts=("kv_tokens",),
    ),
    _pattern(
        "tensorrt-llm", r"Memory used after loading model weights \(inside torch\) in memory usage profiling: <size>",
        ("weights",), "tensorrt_llm/_torch/pyexecutor/_util.py", "0.19 and later",
    ),
    _pattern(
        "tensorrt-llm", r"Memory dynamically allocated during inference \(inside torch\) in memory usage profiling: <size>",
        ("activations",), "tensorrt_llm/_torch/pyexecutor/_util.py", "0.19 and later",
    ),
    _pattern(
        "tensorrt-llm", r"Loaded engine size: <size>", ("weights",), "TensorRT, deserialisation of an engine", "0.9 to 1.0",
    ),
    _pattern(
        "tensorrt-llm", r"\[MemUsageChange\] Allocated <size> for execution context memory", ("workspace",),
        "cpp/tensorrt_llm/runtime/tllmRuntime.cpp", "0.9 to 1.0",
    ),
    *(
        _pattern(
            "llama.cpp", rf"{_LLAMA_DEVICE}{word} buffer size = +<size>", (part,), source, "b3000 and later",
            adds=True, device=True,
        )
        for word, part, source in (
            ("model", "weights", "src/llama-model.cpp, load_tensors"),
            ("KV", "kv_cache", "src/llama-kv-cache.cpp"),
            ("RS", "recurrent_state", "src/llama-memory-recurrent.cpp"),
            ("compute", "workspace", "src/llama-context.cpp, sched_reserve"),
            ("output", "logits", "src/llama-context.cpp, output_reserve"),
        )
    ),
    _pattern(
        "llama.cpp", rf"load_tensors{_LLAMA_DEVICE}buffer size = +<size>", ("weights",), "llama.cpp, llm_load_tensors",
        "b1850 to b4400", adds=True, device=True,
    ),
    *(
        _pattern("llama.cpp", text, (part,), f"llama.cpp, {function}", "b1500 to b1850", device=True)
        for text, part, function in (
            (r"llm_load_tensors: (VRAM) used: <size>", "weights", "llm_load_tensors"),
            (r"llama_kv_cache_init: (VRAM) kv self = <size>", "kv_cache", "llama_kv_cache_init"),
            (r"llama_new_context_with_model: (VRAM) scratch buffer: <size>", "workspace", "llama_new_context_with_model"),
        )
    ),
    *(
        _pattern(
            "ollama", rf'msg="{words}" (?:device|buffer|backend=\S+ buffer_type)=(\S+) size="?<size>"?', (part,),
            "ollama: ml/device.go, Log; ml/backend/ggml/ggml.go", "0.5 and later", device=True,
        )
        for words, part in (("model weights", "weights"), ("kv cache", "kv_cache"), ("compute graph", "workspace"))
    ),
)  # fmt: skip
"""ollama also lets llama.cpp print its lines; its own count then (:class:`LogReader`)."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What one line says: bytes of a component on a device (empty: the only one, or all alike), or a fact such as kv_tokens."""

    engine: Engine
    name: str
    value: float
    device: str
    source: str
    resolution_bytes: int = 0
    is_component: bool = True
    adds: bool = False

    def to_json(self) -> dict[str, object]:
        """JSON-ready data."""
        return {
            "engine": self.engine, "name": self.name, "value": self.value, "device": self.device, "source": self.source,
            "resolution_bytes": self.resolution_bytes, "is_component": self.is_component, "adds": self.adds,
        }  # fmt: skip


def read_line(line: str) -> list[Finding]:
    """What a line of a log says; nothing for most lines."""
    line = plain(line)
    return [finding for pattern in PATTERNS if (found := pattern.text.search(line)) for finding in _findings(pattern, found, line)]


def plain(line: str) -> str:
    """A line without colours, and of one that a progress bar was drawn on only what stayed."""
    return _ANSI.sub("", line.rstrip("\r\n")).rsplit("\r", 1)[-1][:MAX_LINE]


def on_host(device: str) -> bool:
    """Whether a device of llama.cpp or ollama is the system's memory: CPU, CPU_Mapped, AMX, CUDA_Host and the like."""
    return device.startswith(("CPU", "AMX", "BLAS")) or device.endswith("_Host")


def _findings(pattern: Pattern, found: re.Match[str], line: str) -> Iterator[Finding]:
    groups = list(found.groups())
    device = groups.pop(0) if pattern.device else _rank(line)
    source = f"{pattern.source} ({pattern.versions})"
    sizes: dict[str, tuple[int, int]] = {}
    for component in pattern.components:
        number, unit = groups.pop(0), groups.pop(0)
        size_bytes, resolution_bytes = sizes.get(component, (0, 0))
        sizes[component] = (size_bytes + _bytes(number, unit), resolution_bytes + _resolution(number, unit))
    for component, (size_bytes, resolution_bytes) in sizes.items():
        if size_bytes >= 0:
            yield Finding(pattern.engine, component, size_bytes, device, source, resolution_bytes, adds=pattern.adds)
    for fact, number in zip(pattern.facts, groups, strict=True):
        yield Finding(pattern.engine, fact, float(number.replace(",", "")), device, source, is_component=False)


def _bytes(number: str, unit: str) -> int:
    return round(float(number.replace(",", "")) * UNITS.get(unit, 1))


def _resolution(number: str, unit: str) -> int:
    decimals = len(number.partition(".")[2])
    return round(UNITS.get(unit, 1) * 0.1**decimals / 2)


def _rank(line: str) -> str:
    found = _RANK.search(line)
    return next((group for group in found.groups() if group is not None), "") if found else ""


class LogReader:
    """Adds up what the lines of one program's log say."""

    def __init__(self) -> None:
        self._sizes: dict[Engine, dict[str, dict[str, int]]] = {}
        self._resolutions: dict[tuple[Engine, str, str], int] = {}
        self._facts: dict[str, float] = {}

    def read(self, line: str) -> list[Finding]:
        """Take a line; what it says."""
        findings = read_line(line)
        for finding in findings:
            self.take(finding)
        return findings

    def take(self, finding: Finding) -> None:
        """Take what a line said."""
        if not finding.is_component:
            self._facts[finding.name] = finding.value
            return
        device = self._sizes.setdefault(finding.engine, {}).setdefault(finding.device, {})
        key = (finding.engine, finding.device, finding.name)
        if not finding.adds and self._is_said_finer(key, device.get(finding.name), finding):
            return
        before, resolution = (device.get(finding.name, 0), self._resolutions.get(key, 0)) if finding.adds else (0, 0)
        device[finding.name] = before + int(finding.value)
        self._resolutions[key] = resolution + finding.resolution_bytes

    def _is_said_finer(self, key: tuple[Engine, str, str], known: int | None, finding: Finding) -> bool:
        """Whether the same size was told before with more digits."""
        finer = self._resolutions.get(key, 0) < finding.resolution_bytes
        return known is not None and finer and abs(known - finding.value) <= finding.resolution_bytes

    @property
    def engine(self) -> Engine | None:
        """Whose lines were read; ollama's count before those of the llama.cpp inside it."""
        return "ollama" if "ollama" in self._sizes else next(iter(self._sizes), None)

    @property
    def components(self) -> Mapping[str, Mapping[str, int]]:
        """Bytes of each component by device."""
        engine = self.engine
        return self._sizes[engine] if engine else {}

    @property
    def facts(self) -> Mapping[str, float]:
        """What else was said: kv_tokens, max_model_len, max_concurrency."""
        return self._facts

    def resolution_bytes(self, device: str, component: str) -> int:
        """How exactly a component's size was printed."""
        return self._resolutions.get((self.engine, device, component), 0) if self.engine else 0

    def on_devices(self) -> dict[str, int]:
        """Bytes of each component on the GPU that holds most; what lies in system memory is left out."""
        devices = [sizes for device, sizes in self.components.items() if not on_host(device)]
        heaviest: Mapping[str, int] = max(devices, key=lambda sizes: sum(sizes.values()), default={})
        return dict(heaviest)
