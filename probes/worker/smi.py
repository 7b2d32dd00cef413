"""What ``nvidia-smi`` tells of the GPUs, where the driver's library can't be loaded but its program runs.

A call takes from twenty milliseconds to a second, so one thread asks twice a second and the last answer is what is read. Sizes
are told in whole MiB. A field in brackets (``[N/A]``, ``[Not Supported]``, ``[Insufficient Permissions]``, ``[GPU is lost]``) is
not known. Instances of a GPU in MIG mode stand in the XML form alone (``-q -x``). nvidia-smi(1).
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from xml.etree import ElementTree as ET

MIB = 2**20
POLL_S = 0.5
_TIMEOUT_S = 20.0
_PLACES = ("/usr/bin", "/usr/local/bin", "/usr/lib/wsl/lib", r"C:\Windows\System32", r"C:\Program Files\NVIDIA Corporation\NVSMI")
_FIELDS = (
    "index", "uuid", "pci.bus_id", "driver_version", "memory.total", "memory.used", "memory.free", "utilization.gpu",
    "power.draw", "temperature.gpu", "mig.mode.current", "name",
)  # fmt: skip
_OLDER_FIELDS = tuple(name for name in _FIELDS if name != "mig.mode.current")
_NOT_A_FIELD = 2
_GONE = ("gpu is lost", "requires reset")


@dataclass(frozen=True)
class Row:
    """One GPU, or one MIG instance of it; None is not told. ``processes`` are (process id, bytes)."""

    index: int
    uuid: str
    pci_bus_id: str
    name: str
    mig_index: int | None = None
    total_bytes: int | None = None
    used_bytes: int | None = None
    free_bytes: int | None = None
    utilization_percent: float | None = None
    power_watts: float | None = None
    temperature_celsius: float | None = None
    processes: tuple[tuple[int, int | None], ...] = ()
    trouble: str = ""


@dataclass(frozen=True)
class Answer:
    """All GPUs at one moment. ``failed`` says why there is no answer: what the program said, or that it ended badly."""

    rows: tuple[Row, ...] = ()
    driver_version: str = ""
    failed: str = ""


def program() -> str | None:
    """Where ``nvidia-smi`` is."""
    return shutil.which("nvidia-smi") or shutil.which("nvidia-smi", path=os.pathsep.join(_PLACES))


def ask(path: str, run: Callable[[Sequence[str]], tuple[int, str]] | None = None) -> Answer:
    """One answer."""
    run = run or _run
    for fields in (_FIELDS, _OLDER_FIELDS):
        status, text = run([path, f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"])
        if status != _NOT_A_FIELD:
            break
    rows = [row for line in text.splitlines() if (row := _row(line, fields)) is not None]
    if not rows:
        return Answer(failed=" ".join(text.split())[:300] or f"nvidia-smi ended with exit status {status}")
    held = _processes(run([path, "--query-compute-apps=gpu_uuid,pid,used_memory", "--format=csv,noheader,nounits"])[1])
    driver = next((told["driver_version"] for told, _ in rows if _is_told(told["driver_version"])), "")
    instances = {}
    if any(told.get("mig.mode.current") == "Enabled" for told, _ in rows):
        instances = _instances(run([path, "-q", "-x"])[1])
    found: list[Row] = []
    for _, whole in rows:
        parts = [replace(part, index=whole.index) for part in instances.get(whole.uuid, ())]
        found += parts or [replace(whole, processes=tuple(held.get(whole.uuid, ())))]
    return Answer(tuple(found), driver)


def _run(words: Sequence[str]) -> tuple[int, str]:
    try:
        done = subprocess.run(
            list(words), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            timeout=_TIMEOUT_S, check=False, env={**os.environ, "LC_ALL": "C"},
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return 1, f"nvidia-smi said nothing for {_TIMEOUT_S:g} s"
    except OSError as error:
        return 1, f"nvidia-smi could not be started: {error.strerror or error}"
    return done.returncode, done.stdout.decode("utf-8", "replace")


def _row(line: str, fields: Sequence[str]) -> tuple[dict[str, str], Row] | None:
    """A line of the table; None for any other (warnings stand among them). The name comes last, so it may have commas."""
    cells = [cell.strip() for cell in line.split(",", len(fields) - 1)]
    told = dict(zip(fields, cells, strict=False))
    if len(cells) != len(fields) or not told["index"].isdigit():
        return None
    trouble = next((cell.strip("[]") for cell in cells if any(words in cell.lower() for words in _GONE)), "")
    total = _bytes(told["memory.total"])
    name = told["name"] if _is_told(told["name"]) else f"GPU {told['index']}"
    return told, Row(
        int(told["index"]), told["uuid"], told["pci.bus_id"], name, None, total,
        _bytes(told["memory.used"], total), _bytes(told["memory.free"], total), _number(told["utilization.gpu"]),
        _number(told["power.draw"]), _number(told["temperature.gpu"]), trouble=trouble,
    )  # fmt: skip


def _processes(text: str) -> dict[str, list[tuple[int, int | None]]]:
    """Of each GPU's UUID the processes on it."""
    found: dict[str, list[tuple[int, int | None]]] = {}
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.split(",")]
        if len(cells) == 3 and cells[1].isdigit():
            found.setdefault(cells[0], []).append((int(cells[1]), _bytes(cells[2])))
    return found


def _instances(text: str) -> dict[str, list[Row]]:
    """Of each GPU's UUID its MIG instances, with the processes in them."""
    from xml.etree import ElementTree as ET

    try:
        log = ET.fromstring(text[max(0, text.find("<nvidia_smi_log")) :])
    except ET.ParseError:
        return {}
    return {
        gpu.findtext("uuid", ""): [_instance(gpu, part) for part in gpu.iterfind("mig_devices/mig_device")]
        for gpu in log.iter("gpu")
    }


def _instance(gpu: ET.Element, part: ET.Element) -> Row:
    place = [part.findtext(name, "") for name in ("gpu_instance_id", "compute_instance_id")]
    mine = [
        (int(process.findtext("pid", "")), _bytes(process.findtext("used_memory", "")))
        for process in gpu.iterfind("processes/process_info")
        if [process.findtext(name, "") for name in ("gpu_instance_id", "compute_instance_id")] == place
        and process.findtext("pid", "").isdigit()
    ]
    sizes = [part.findtext(f"fb_memory_usage/{name}", "") for name in ("total", "used", "free")]
    total = _bytes(sizes[0])
    return Row(
        0, part.findtext("uuid", ""), gpu.get("id", ""), f"{gpu.findtext('product_name', 'GPU')} MIG",
        int(index) if (index := part.findtext("index", "")).isdigit() else None,
        total, _bytes(sizes[1], total), _bytes(sizes[2], total), processes=tuple(mine),
    )  # fmt: skip


def _is_told(cell: str) -> bool:
    return bool(cell) and not cell.startswith("[") and cell not in ("N/A", "Unknown Error", "ERR!")


def _number(cell: str) -> float | None:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)(?: [A-Za-z%]+)?", cell)
    return float(found[1]) if found else None


def _bytes(cell: str, total: int | None = None) -> int | None:
    """Whole MiB, with or without the unit, as bytes; None above the total, which is a sentinel."""
    found = re.fullmatch(r"(\d+)(?: MiB)?", cell)
    size = int(found[1]) * MIB if found else None
    return None if size is None or (total is not None and size > total) else size


class Smi:
    """The last answer of ``nvidia-smi``, asked again on a thread as long as answers are read."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._closed = threading.Event()
        self._read_at = 0.0
        self.answer = ask(path)

    def read(self) -> Answer:
        """What was told last, about a second ago where the program is quick enough."""
        with self._lock:
            self._read_at = time.monotonic()
            if self._thread is None and not self._closed.is_set():
                self._thread = threading.Thread(target=self._poll, name="nvidia-smi", daemon=True)
                self._thread.start()
        return self.answer

    def close(self) -> None:
        """Ask no more."""
        self._closed.set()

    def _poll(self) -> None:
        """Until nobody has read for some time; the next reading starts it anew."""
        while not self._closed.wait(POLL_S):
            with self._lock:
                if time.monotonic() - self._read_at > 10 * POLL_S:
                    self._thread = None
                    return
            self.answer = _after(self.answer, ask(self._path))


def _after(before: Answer, now: Answer) -> Answer:
    """The new answer; where there is none any more, the GPUs that were there, with what is said of that in place of figures."""
    if now.rows:
        return now
    gone = (
        Row(row.index, row.uuid, row.pci_bus_id, row.name, row.mig_index, row.total_bytes, trouble=now.failed)
        for row in before.rows
    )
    return Answer(tuple(gone), before.driver_version, now.failed)
