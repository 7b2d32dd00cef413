"""The process: reads the order, answers signals, watches its parent, and turns every end into an exit status."""

from __future__ import annotations

import faulthandler
import json
import logging
import os
import select
import signal
import socket
import sys
import threading
import time
import uuid
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NoReturn

from .errors import EXIT_INTERRUPTED, EXIT_RESULT, WorkerError, missing_package
from .guardian import MARK, start
from .wire import Wire, claim_stdout

if TYPE_CHECKING:
    from .order import Order

_PARENT_CHECK_S = 0.5
_INPUT_SILENCE_S = 30.0
"""The sender of a landed worker writes an empty line every few seconds; a connection that died says nothing more."""
_logger = logging.getLogger("probes.worker")


def main(*, landed: bool = False) -> NoReturn:
    """Run one order from standard input to the end of the process.

    ``landed``: the package was sent here over standard input, and whoever sent it holds that open as long as it listens.
    """
    wire = Wire(claim_stdout())
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    answer_signals(wire)
    watch_parent()
    line = sys.stdin.buffer.readline()
    if landed:
        faulthandler.enable()
        watch_input()
    status = serve(line, wire)
    sys.stderr.flush()
    # Interpreters that loaded torch may hang or abort in their finalizers; everything has been said by now.
    os._exit(status)


def serve(line: bytes, wire: Wire) -> int:
    """Answer one order. Returns the exit status."""
    try:
        order_json = _decode(line)
        _settle_environment(order_json)
        wire.send("progress", what="importing", done=0, total=1)
        _run(order_json, wire)
    except WorkerError as error:
        if error.__cause__ is not None:
            _logger.info("the cause of the error that follows", exc_info=error.__cause__)
        wire.close("error", kind=error.kind, message=error.message, field=error.field, **error.told)
        return error.exit_status
    except Exception as error:
        _logger.exception("the run failed")
        internal = WorkerError("internal", f"{type(error).__name__}: {' '.join(str(error).split())[:600]}")
        wire.close("error", kind=internal.kind, message=internal.message, field=None)
        return internal.exit_status
    return EXIT_RESULT


def _mode(order_json: Any) -> Any:
    return order_json.get("mode") if isinstance(order_json, dict) else None


def _run(order_json: Any, wire: Wire) -> None:
    from . import loads, outside, ranks
    from .order import parse_order
    from .parallel import layout_of, world

    if _mode(order_json) in loads.MODES:
        loads.run(order_json, wire)
        return
    order = parse_order(order_json)
    layout = layout_of(order.parallel, order.task, order.ranks) if order.ranks > 1 else None
    if layout is not None and world() == 1:
        ranks.launch(order_json, order.ranks, wire)
        return
    try:
        import torch  # noqa: F401
        import transformers  # noqa: F401
    except ImportError as error:
        raise missing_package(error.name or "torch") from error
    from . import distributed, run

    if layout is not None:
        order = replace(order, device=distributed.join(order.device))
    wire.send("progress", what="importing", done=1, total=1)
    outside.start(order_json, wire)
    run.hello(wire, order)
    run.run(_bounded(order) if order_json.get("meters") is True else order, wire, layout)


def _bounded(order: Order) -> Order:
    """On a CPU elsewhere a tenth of the free memory is left, so that the system's out-of-memory killer stays asleep."""
    from .device import machine_memory

    if order.fake or order.device != "cpu" or order.budget_bytes is not None:
        return order
    return replace(order, budget_bytes=int(machine_memory()[0] * 0.9) or None)


def _decode(line: bytes) -> Any:
    if not line.strip():
        raise WorkerError("bad_order", "no order: write one line of JSON to standard input")
    try:
        return json.loads(line)
    except ValueError as error:
        raise WorkerError("bad_order", f"the order is not JSON: {error}") from error


def _settle_environment(order_json: Any) -> None:
    """No network, no progress bars, whatever the environment says; a rehearsal plays the card that is named, not one here."""
    if _mode(order_json) == "script":
        return  # what the user runs has the user's environment
    if _mode(order_json) == "rehearse":
        for name in ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ZE_AFFINITY_MASK"):
            os.environ[name] = ""
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["TRANSFORMERS_OFFLINE"] = "1"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")


def answer_signals(wire: Wire) -> None:
    """SIGINT and SIGTERM end the process with an ``interrupted`` error, from a thread, so that no line is torn."""
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda _number, _frame: None)

    def wait() -> None:
        received = reader.recv(1)
        writer.fileno()
        wire.close("error", kind="interrupted", message=f"stopped by signal {received[0]}", field=None)
        os._exit(EXIT_INTERRUPTED)

    threading.Thread(target=wait, name="signals", daemon=True).start()


def watch_input() -> None:
    """End with standard input, or when nobody has written to it for long.

    A process of its own sees to that (:mod:`probes.worker.guardian`), which ends a run that hangs or is stopped too. A rank
    leaves it to the process that started it, and holds its link alone.
    """
    if "HIGHWATER_RANKS" not in os.environ:
        mark = os.environ[MARK] = uuid.uuid4().hex
        if start(mark, 0, os.getpid(), _INPUT_SILENCE_S) is not None:
            return

    def watch() -> None:
        while _has_input() and os.read(0, 2**16):
            pass
        os._exit(EXIT_INTERRUPTED)

    threading.Thread(target=watch, name="input", daemon=True).start()


def _has_input() -> bool:
    """Wait for something to read. Windows cannot wait for a pipe: reading it does."""
    return sys.platform == "win32" or bool(select.select([0], [], [], _INPUT_SILENCE_S)[0])


def watch_parent() -> None:
    """End with the parent: its id changes when it dies (POSIX)."""
    if not hasattr(os, "getppid") or sys.platform == "win32":
        return
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_PARENT_CHECK_S)
        os._exit(EXIT_INTERRUPTED)

    threading.Thread(target=watch, name="parent", daemon=True).start()
