"""Loads that need no model: a ramp of plain allocations, the card's own figures, and a script of the user's.

Orders of these modes have ``mode``, ``device`` and ``budget_bytes`` as the others do, and

``ramp``       ``block_bytes``: allocate so much at a time until no more is to be had; ``result`` has ``available_bytes`` and
               ``stopped_by`` (out_of_memory, budget, machine: a tenth of the system's memory is left)
``calibrate``  nothing: ``result`` has ``calibration`` {cublas_workspace_bytes|null, graph_bytes|null,
               bandwidth_bytes_per_s, flops_per_s {dtype}}
``script``     ``script`` (a file) or ``module`` (a name), and ``arguments``: run as ``python SCRIPT`` would, on torch's counters.
               What it prints goes to standard error.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import platform
import runpy
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from .errors import OutOfMemory, WorkerError
from .wire import Wire

MODES = ("ramp", "calibrate", "script")
MIB = 2**20
_LEFT_SHARE = 0.1
_SMALLEST_BLOCK_BYTES = 2 * MIB
_GRAPHS = 32
"""Enough for the driver's steps of 2 MiB to even out."""
_KERNELS = 320
"""Of a decoder of 32 layers with ten kernels each."""


def run(order: Mapping[str, Any], wire: Wire) -> None:
    """Run an order of one of :data:`MODES` and send its result. Raises :class:`WorkerError`."""
    mode, device = order["mode"], order.get("device") or "cpu"
    kind, _, index = str(device).partition(":")
    if kind not in ("cpu", "cuda", "xpu", "mps") or (index and not index.isdigit()):
        raise WorkerError("bad_order", f'device: must be "cpu" or "cuda:N" ("xpu:N", "mps"), got {device!r}', "device")
    if mode == "calibrate" and kind in ("xpu", "mps"):
        raise WorkerError("unsupported", "calibrating needs a CUDA device; predictions know no others' overheads", "device")
    _check(order)
    try:
        import torch
    except ImportError as error:
        raise WorkerError("missing_package", "torch is not installed here: python -m pip install torch") from error
    from . import device as devices
    from . import outside

    wire.send("progress", what="importing", done=1, total=1)
    outside.start(order, wire)
    versions = {"python": platform.python_version(), "torch": torch.__version__, "cuda": torch.version.cuda}
    wire.send("hello", protocol=1, pid=os.getpid(), rank=0, world=1, versions=versions, device=devices.describe(str(device)))
    Load(order, wire).run({"ramp": _ramp, "calibrate": _calibrate, "script": _script}[mode])


def _check(order: Mapping[str, Any]) -> None:
    """Raise :class:`WorkerError` for what makes no sense, before anything is loaded."""
    block = order.get("block_bytes", _SMALLEST_BLOCK_BYTES)
    if order["mode"] == "ramp" and (not isinstance(block, int) or block < _SMALLEST_BLOCK_BYTES):
        raise WorkerError("bad_order", f"block_bytes: must be at least {_SMALLEST_BLOCK_BYTES}, got {block!r}", "block_bytes")
    if order["mode"] != "script":
        return
    script, module = order.get("script"), order.get("module")
    if bool(script) == bool(module):
        raise WorkerError("bad_order", "script: name a script or a module, not both", "script")
    if script and not Path(str(script)).is_file():
        raise WorkerError("bad_order", f"script: there is no file {script}", "script")
    sys.path.insert(0, str(Path(str(script)).resolve().parent) if script else "")
    if module and not _is_module(str(module)):
        raise WorkerError("bad_order", f"module: there is no module {module}", "module")


def _is_module(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False


class Load:
    """One load on one device, with its meter and its phases."""

    def __init__(self, order: Mapping[str, Any], wire: Wire) -> None:
        import torch

        from . import device as devices
        from . import vendors
        from .phases import Phases

        self.order, self.wire = order, wire
        meter: Any
        self.budget_bytes: int | None = order.get("budget_bytes")
        self.on_cpu = str(order.get("device") or "cpu") == "cpu"
        self.counting: contextlib.AbstractContextManager[object] = contextlib.nullcontext()
        if self.on_cpu:
            self.device, meter = torch.device("cpu"), self._cpu_meter()
        elif str(order["device"]).startswith("cuda"):
            self.device = devices.open_cuda(str(order["device"]), self.budget_bytes)
            meter = devices.CudaMeter(self.device)
        else:
            self.device, meter = vendors.open_device(str(order["device"]), self.budget_bytes)
        self.phases = Phases(wire, meter)

    def _cpu_meter(self) -> Any:
        from . import device as devices
        from .attribution import Attribution
        from .tracker import StorageTracker

        attribution = Attribution()
        tracker = StorageTracker(attribution, budget_bytes=self.budget_bytes)
        attribution.tracker = tracker
        self.counting = tracker
        return devices.CpuMeter(tracker)

    def run(self, work: Callable[[Load], dict[str, Any]]) -> None:
        """Do the work under the sampler, and send what it says as the result. Running out of memory is one."""
        from . import device as devices

        try:
            with self.counting, self._sampling():
                told = {"outcome": "completed", **work(self)}
        except (WorkerError, KeyboardInterrupt):
            raise
        except Exception as error:
            memory = devices.as_out_of_memory(error)
            if memory is None:
                raise
            told = {
                "outcome": "out_of_memory", "requested_bytes": memory.requested_bytes, "free_bytes": memory.free_bytes,
                "message": memory.message, "phase": self.phases.current,
            }  # fmt: skip
        self.wire.close("result", **told, phases=self.phases.results(), notes=[])

    @contextlib.contextmanager
    def _sampling(self) -> Iterator[None]:
        from .phases import Sampler

        sampler = Sampler(self.phases, float(self.order.get("sample_interval_s") or 0.05))
        sampler.start()
        try:
            yield
        finally:
            sampler.stop()


def _ramp(load: Load) -> dict[str, Any]:
    block = load.order.get("block_bytes") or 64 * MIB
    held: list[Any] = []
    taken, reason = 0, ""
    with load.phases.phase("ramp"):
        while not reason:
            reason = _no_more(load, taken, block)
            if reason:
                break
            if _take(load, held, block):
                taken += block
                load.wire.send("progress", what="ramp", done=taken, total=None)
            elif block > _SMALLEST_BLOCK_BYTES:
                block = max(_SMALLEST_BLOCK_BYTES, block // 2)
            else:
                reason = "out_of_memory"
    held.clear()
    return {"available_bytes": taken, "stopped_by": reason}


def _no_more(load: Load, taken: int, block: int) -> str:
    from . import device as devices

    if load.budget_bytes is not None and taken + block > load.budget_bytes:
        return "budget"
    free, total = devices.machine_memory()
    shared = load.on_cpu or load.device.type == "mps"
    return "machine" if shared and total and free - block < _LEFT_SHARE * total else ""


def _take(load: Load, held: list[Any], block: int) -> bool:
    import torch

    from . import device as devices

    try:
        # Filled, because memory that is not written to is only promised.
        held.append(torch.empty(block, dtype=torch.uint8, device=load.device).fill_(1))
    except (RuntimeError, MemoryError, OutOfMemory) as error:
        if devices.as_out_of_memory(error) is None:
            raise
        return False
    return True


def _calibrate(load: Load) -> dict[str, Any]:
    import torch

    flops: dict[str, float] = {}
    with load.phases.phase("workspace"):
        workspace = None if load.on_cpu else _workspace(load)
    with load.phases.phase("graphs"):
        graph = None if load.on_cpu else _graph(load)
    with load.phases.phase("bandwidth"):
        bandwidth = _bandwidth(load)
    with load.phases.phase("flops"):
        for name in ("bf16", "fp16", "fp32"):
            dtype = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[name]
            flops[name] = _flops(load, dtype)
    told = {
        "cublas_workspace_bytes": workspace, "graph_bytes": graph, "bandwidth_bytes_per_s": bandwidth, "flops_per_s": flops,
    }  # fmt: skip
    return {"calibration": told}


def _workspace(load: Load) -> int:
    """What the first matrix product leaves allocated: cuBLAS's workspace of this handle and stream."""
    import torch

    a = torch.ones(256, 256, dtype=torch.bfloat16, device=load.device)
    out = torch.empty_like(a)
    torch.cuda.synchronize(load.device)
    before = torch.cuda.memory_allocated(load.device)
    torch.mm(a, a, out=out)
    torch.cuda.synchronize(load.device)
    return torch.cuda.memory_allocated(load.device) - before


def _graph(load: Load) -> int | None:
    """What the driver takes for a captured graph of as many kernels as a step of a model has; None where none can be captured."""
    import torch

    x = torch.ones(256, dtype=torch.bfloat16, device=load.device)
    x.mul_(1.0)
    torch.cuda.synchronize(load.device)
    pool, graphs = torch.cuda.graph_pool_handle(), []
    before = _outside(load)
    try:
        for _ in range(_GRAPHS):
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=pool):
                for _ in range(_KERNELS):
                    x.mul_(1.0)
            graph.replay()
            graphs.append(graph)
        torch.cuda.synchronize(load.device)
        return max(0, _outside(load) - before) // _GRAPHS
    except RuntimeError:
        return None


def _outside(load: Load) -> int:
    """What is used of the card beside what torch reserves."""
    import torch

    free, total = torch.cuda.mem_get_info(load.device)
    return total - free - torch.cuda.memory_reserved(load.device)


def _bandwidth(load: Load) -> float:
    """Bytes read and written a second by copies too large for any cache."""
    import torch

    size = 64 * MIB if load.on_cpu else 1024 * MIB
    source = torch.ones(size, dtype=torch.uint8, device=load.device)
    target = torch.empty_like(source)
    return 2 * size / _quickest(load, lambda: target.copy_(source))


def _flops(load: Load, dtype: Any) -> float:
    """Operations a second of one square matrix product: 2 · n³."""
    import torch

    n = 512 if load.on_cpu else 8192
    a = torch.ones(n, n, dtype=dtype, device=load.device)
    out = torch.empty_like(a)
    return 2 * n**3 / _quickest(load, lambda: torch.mm(a, a, out=out))


def _quickest(load: Load, work: Callable[[], object], seconds: float = 0.5) -> float:
    """The shortest time of one call, after a first one that loads kernels."""
    import torch

    def settle() -> None:
        if not load.on_cpu:
            torch.cuda.synchronize(load.device)

    work()
    settle()
    times: list[float] = []
    end = time.perf_counter() + seconds
    while not times or time.perf_counter() < end:
        begun = time.perf_counter()
        work()
        settle()
        times.append(time.perf_counter() - begun)
    return min(times)


def _script(load: Load) -> dict[str, Any]:
    script, module = load.order.get("script"), load.order.get("module")
    sys.argv = [str(script or module), *(str(argument) for argument in load.order.get("arguments") or ())]
    with load.phases.phase("script"):
        try:
            if script:
                runpy.run_path(str(script), run_name="__main__")
            else:
                runpy.run_module(str(module), run_name="__main__", alter_sys=True)
        except SystemExit as left:
            if left.code not in (None, 0):
                raise WorkerError("internal", f"the script ended with exit status {left.code}") from left
    return {}
