"""A small Hub on loopback: real headers, bodies that exist only as ranges, every way a server can misbehave.

What it sends is counted per path, so a test can tell that no weights were fetched.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

SHA = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class File:
    """A file: some real bytes, then zeros up to ``size``."""

    head: bytes
    size: int

    def range(self, start: int, end: int) -> bytes:
        have = self.head[start:end]
        return have + bytes(end - start - len(have))


@dataclass
class Repository:
    """A model, and how its server behaves: ``fault`` is for its files, ``api_fault`` for its description."""

    files: dict[str, File] = field(default_factory=dict)
    fault: str = ""
    api_fault: str = ""
    gated: str | bool = False
    moved_to: str = ""


@dataclass
class Hub:
    """The running server and what it counted."""

    endpoint: str
    repositories: dict[str, Repository]
    sent: Counter[str] = field(default_factory=Counter)
    requests: Counter[str] = field(default_factory=Counter)
    headers: list[dict[str, str]] = field(default_factory=list)
    stopping: threading.Event = field(default_factory=threading.Event)

    def sent_of(self, repo: str, ending: str) -> int:
        """Bytes of bodies sent for paths of ``repo`` that end so."""
        return sum(count for path, count in self.sent.items() if path.startswith(f"/{repo}/") and path.endswith(ending))

    def forget(self) -> None:
        """Counts anew."""
        self.sent.clear()
        self.requests.clear()
        self.headers.clear()


class Handler(BaseHTTPRequestHandler):
    """Answers for the repositories of ``hub``."""

    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: object) -> None:
        """Quiet."""

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        path = unquote(url.path)
        self.hub.requests[path] += 1
        self.hub.headers.append(dict(self.headers.items()))
        with suppress(BrokenPipeError, ConnectionResetError):
            if path == "/api/models":
                self._search(parse_qs(url.query))
            elif path.startswith("/api/models/"):
                self._describe(path.removeprefix("/api/models/").split("/revision/"))
            else:
                self._resolve(path)

    def _search(self, query: dict[str, list[str]]) -> None:
        wanted = query["search"][0].lower()
        if wanted == "hang":
            self.hub.stopping.wait(30)
        found = [name for name in self.hub.repositories if wanted in name.lower()]
        self._json([{"id": name, "downloads": 5, "tags": ["license:mit"], "gated": False} for name in found])

    def _describe(self, parts: list[str]) -> None:
        name, revision = parts[0], [*parts, "main"][1]
        repository = self.hub.repositories.get(name)
        if repository is None:
            self._error(401, "RepoNotFound")
            return
        if repository.moved_to:
            self._redirect(f"/api/models/{repository.moved_to}")
            return
        if revision not in ("main", SHA):
            self._error(404, "RevisionNotFound")
            return
        if repository.api_fault:
            self._misbehave(repository.api_fault, File(b"{}", 2))
            return
        siblings = [{"rfilename": file} for file in repository.files]
        self._json({"id": name, "sha": SHA, "gated": repository.gated, "tags": ["license:apache-2.0"], "siblings": siblings})

    def _resolve(self, path: str) -> None:
        name, _, rest = path.strip("/").partition("/resolve/")
        repository = self.hub.repositories.get(name)
        if repository is None or "/" not in rest:
            self._error(404, "RepoNotFound")
            return
        file = repository.files.get(rest.partition("/")[2])
        if file is None:
            self._error(404, "EntryNotFound")
            return
        if repository.fault and (repository.fault == "gated" or not path.endswith(".json")):
            self._misbehave(repository.fault, file)
            return
        self._file(file)

    def _misbehave(self, fault: str, file: File) -> None:
        if fault == "hang":
            self.hub.stopping.wait(30)
        elif fault == "drip":
            self._drip(file)
        elif fault == "truncated":
            self._start(200, {"Content-Length": "1000000"})
            self._send(b"{")
            self.close_connection = True
        elif fault == "short range":
            self._start(206, {"Content-Length": "3", "Content-Range": f"bytes 0-2/{file.size}"})
            self._send(b"abc")
        elif fault == "wrong length":
            self._start(206, {"Content-Length": "4", "Content-Range": f"bytes 0-7/{file.size}"})
            self._send(file.range(0, 8))
            self.close_connection = True
        elif fault == "wrong range":
            self._start(206, {"Content-Length": "8", "Content-Range": f"bytes 100-107/{file.size}"})
            self._send(bytes(8))
        elif fault == "no ranges":
            self._everything(file)
        elif fault == "loop":
            self._redirect(self.path)
        elif fault == "not json":
            self._start(200, {"Content-Length": "9"})
            self._send(b"<html></a")
        elif fault == "limited":
            self._error(429, "", {"Retry-After": "7"})
        elif fault == "limited until":
            self._error(429, "", {"Retry-After": time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + 60))})
        elif fault == "gated":
            self._error(403 if "Authorization" in self.headers else 401, "GatedRepo")
        elif fault == "bad token":
            self._error(401, "", {"X-Error-Message": "Invalid credentials in Authorization header"})
        else:
            self._error(int(fault), "")

    def _file(self, file: File) -> None:
        asked = self.headers.get("Range")
        if asked is None:
            self._start(200, {"Content-Length": str(file.size)})
            self._send(file.range(0, file.size))
            return
        first, last = asked.removeprefix("bytes=").split("-")
        start, end = int(first), min(int(last) + 1, file.size)
        if start >= file.size:
            self._error(416, "", {"Content-Range": f"bytes */{file.size}"})
            return
        self._start(206, {"Content-Length": str(end - start), "Content-Range": f"bytes {start}-{end - 1}/{file.size}"})
        self._send(file.range(start, end))

    def _drip(self, file: File) -> None:
        if "Range" in self.headers:
            self._start(206, {"Content-Length": "8", "Content-Range": f"bytes 0-7/{file.size}"})
        else:
            self._start(200, {"Content-Length": "10000"})
        for _ in range(8):
            if self.hub.stopping.wait(0.2):
                return
            self._send(b" ")

    def _everything(self, file: File) -> None:
        self._start(200, {"Content-Length": str(file.size)})
        at = 0
        while at < file.size:
            self._send(file.range(at, at + 2**16))
            at += 2**16

    def _redirect(self, to: str) -> None:
        self._start(307, {"Location": to, "Content-Length": "0"})

    def _json(self, value: object) -> None:
        body = json.dumps(value).encode()
        self._start(200, {"Content-Length": str(len(body)), "Content-Type": "application/json"})
        self._send(body)

    def _error(self, status: int, code: str, headers: dict[str, str] | None = None) -> None:
        self._start(status, {"Content-Length": "0", **({"X-Error-Code": code} if code else {}), **(headers or {})})

    def _start(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.end_headers()

    def _send(self, data: bytes) -> None:
        # counted before: who has read it all may look before this thread goes on
        self.hub.sent[urlsplit(self.path).path] += len(data)
        self.wfile.write(data)


class QuietServer(ThreadingHTTPServer):
    """Clients hanging up is what many tests are about."""

    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Quiet, except for faults of the server itself."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


@contextmanager
def running(repositories: dict[str, Repository]) -> Iterator[Hub]:
    """A Hub of these repositories on a free port of loopback."""
    handler = type("BoundHandler", (Handler,), {})
    server = QuietServer(("127.0.0.1", 0), handler)
    hub = Hub(f"http://127.0.0.1:{server.server_port}", repositories)
    handler.hub = hub
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.stopping.set()
        server.shutdown()
        server.server_close()
        thread.join()
