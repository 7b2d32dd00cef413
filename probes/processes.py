"""Child processes that leave nothing behind: own group, marked environment, ended to the last descendant."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sysconfig
import time
import uuid
from collections.abc import Mapping, Sequence

import psutil

from probes.worker import guardian
from probes.worker.guardian import MARK

_POSIX = os.name == "posix"


class ProcessGroup:
    """A child process that leads its own group, with pipes on its three streams.

    A guardian beside it (:mod:`probes.worker.guardian`) ends it, and all that it started, when this process is killed.
    """

    def __init__(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        """Start it. Raises OSError when there is no such program."""
        self.mark = uuid.uuid4().hex
        self._guardian = guardian.start(self.mark, subprocess.PIPE)  # first, so that there is no moment without it
        try:
            self.process = subprocess.Popen(  # noqa: S603  a list of arguments of our own making, no shell
                list(command),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env={**environment, MARK: self.mark},
                start_new_session=_POSIX,
                creationflags=0 if _POSIX else getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
            )
        except BaseException:
            self._dismiss()
            raise
        if self._guardian is not None and self._guardian.stdin is not None:
            with contextlib.suppress(OSError):
                self._guardian.stdin.write(b"%d\n" % self.pid)
                self._guardian.stdin.flush()

    @property
    def pid(self) -> int:
        """The leader's process id, which is the group's."""
        return self.process.pid

    def status(self) -> int | None:
        """The leader's exit status (minus the signal that ended it), None while it runs."""
        return self.process.poll()

    def interrupt(self) -> None:
        """Ask the whole group to end, as Ctrl-C does."""
        self._send(signal.SIGINT if _POSIX else getattr(signal, "CTRL_BREAK_EVENT", signal.SIGTERM))

    def terminate(self) -> None:
        """Tell the whole group to end."""
        self._send(signal.SIGTERM)

    def kill(self) -> None:
        """End the whole group; a stopped process too."""
        self._send(signal.SIGKILL if _POSIX else signal.SIGTERM)

    def sweep(self, timeout_s: float = 2.0) -> int:
        """Kill what is left of the group and whoever carries its mark; how many had to be. Call it after the leader's end.

        The mark catches descendants that made their own session or were adopted by init.
        """
        if _POSIX:
            self.kill()
        killed, deadline = 0, time.monotonic() + timeout_s
        while left := [process for process in psutil.process_iter() if self._is_marked(process)]:
            for process in left:
                with contextlib.suppress(psutil.Error):
                    process.kill()
            killed = max(killed, len(left))
            if time.monotonic() > deadline:
                break
            psutil.wait_procs(left, timeout=0.2)
        return killed

    def close(self) -> None:
        """Let go of the pipes and of the guardian: after :meth:`sweep`."""
        self._dismiss()
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()

    def _dismiss(self) -> None:
        """End the guardian by what it can't answer; were it told by the end of its pipe, it would do its duty."""
        if self._guardian is not None:
            self._guardian.kill()
            self._guardian.wait()
            if self._guardian.stdin is not None:
                with contextlib.suppress(OSError):
                    self._guardian.stdin.close()

    def _send(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if _POSIX:
                os.killpg(self.pid, number)
            else:
                self.process.send_signal(number)

    def _is_marked(self, process: psutil.Process) -> bool:
        try:
            return bool(process.status() != psutil.STATUS_ZOMBIE and process.environ().get(MARK) == self.mark)
        except (psutil.Error, OSError):
            return False


def project_environment(root: str, extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process's environment, with ``root`` importable and a native crash of Python leaving its traceback."""
    installed = root in (sysconfig.get_path("purelib"), sysconfig.get_path("platlib"))
    paths = [*([] if installed else [root]), *filter(None, [os.environ.get("PYTHONPATH")])]
    path = {"PYTHONPATH": os.pathsep.join(paths)} if paths else {}
    return {**os.environ, "PYTHONFAULTHANDLER": "1", **path, **(extra or {})}
