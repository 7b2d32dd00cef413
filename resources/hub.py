"""The Hugging Face Hub through huggingface_hub's own session: search, configs, and headers by byte range.

Every call ends within its ``timeout_s``, whatever the server does, with an answer or a :class:`HubError`. Weights are
never downloaded: of a weight file only the header's range is asked for, and a server that sends more is hung up on.
The token is the library's own (``hf auth login``, ``HF_TOKEN``); it is only ever put into a request.
"""

from __future__ import annotations

import contextlib
import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar
from urllib.parse import quote, urlencode

from planner.faults import Fault, Faults
from resources import gguf_header, safetensors_header
from resources.hub_errors import (
    BadData,
    BadToken,
    Gated,
    HubError,
    Missing,
    Offline,
    RateLimited,
    ServerError,
    Slow,
)
from resources.strict_json import CONFIG, INDEX, Limits, parse
from resources.tensors import StoredTensor

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

import httpx2
from huggingface_hub import constants
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status  # type: ignore[attr-defined]

T = TypeVar("T")
SEARCH_TIMEOUT_S = 3.0
MODEL_TIMEOUT_S = 20.0
"""For everything one model takes: its description, its config, and the headers of all its files."""
HEADERS_GIVE_UP = 0.2
"""Share of the time left kept back from the headers, so that a config in hand is returned when they are too slow."""
MAX_PARALLEL = 8
ANSWER = Limits(max_bytes=8 * 2**20, max_items=200_000)
REPO_ID = re.compile(r"[A-Za-z0-9][\w.\-]{0,95}(?:/[A-Za-z0-9][\w.\-]{0,95})?", re.ASCII)
REVISION = re.compile(r"[A-Za-z0-9][\w.\-/]{0,199}", re.ASCII)


@dataclass(frozen=True, slots=True)
class HubModel:
    """One model as the Hub describes it. ``gated``: ``auto`` and ``manual`` are both True."""

    id: str
    revision: str | None
    gated: bool
    license: str | None
    files: tuple[str, ...] = ()
    downloads: int | None = None


def is_repo_id(text: str) -> bool:
    """Whether ``text`` can be the id of a model on the Hub (``name`` or ``owner/name``)."""
    return bool(REPO_ID.fullmatch(text)) and ".." not in text and "--" not in text and not text.endswith((".git", ".", "-"))


def search(query: str, limit: int = 20, timeout_s: float = SEARCH_TIMEOUT_S) -> list[HubModel]:
    """Models whose id matches ``query``, most downloaded first; for completion as one types. Raises :class:`HubError`."""
    expand = [("expand", name) for name in ("downloads", "gated", "tags")]
    parameters = urlencode([("search", query[:200]), ("limit", limit), ("sort", "downloads"), *expand])

    def ask(deadline: float) -> list[HubModel]:
        data = _get(f"/api/models?{parameters}", f"search for {query[:60]!r}", deadline, ANSWER.max_bytes).data
        found = _json(data, "search", ANSWER)
        return [_described(entry) for entry in _rows(found) if isinstance(entry.get("id"), str)][:limit]

    return _within(timeout_s, f"search for {query[:60]!r}", ask)


def describe_model(repo: str, revision: str | None = None, timeout_s: float = 5.0) -> HubModel:
    """A model's revision, licence, gate and files, in one request. Raises :class:`HubError`."""
    return _within(timeout_s, repo, lambda deadline: _describe(repo, revision, deadline))


@dataclass(frozen=True, slots=True)
class HubCheckpoint:
    """What one visit to a model brought: the description, its JSON files as bytes, and its headers."""

    model: HubModel
    json_files: Mapping[str, bytes]
    tensors: tuple[StoredTensor, ...] | None
    container: str | None
    gguf: gguf_header.GgufHeader | None = None
    header_problem: HubError | Faults | None = None


def visit(
    repo: str, revision: str | None = None, gguf: str | None = None, *, headers: bool = True, timeout_s: float = MODEL_TIMEOUT_S
) -> HubCheckpoint:
    """Config and headers of one model at one commit.

    ``gguf`` names a GGUF file of the repository, or part of its name (``Q4_K_M``). A checkpoint whose config could be
    read but whose headers could not comes back with ``header_problem``. Raises :class:`HubError` or :class:`Faults`.
    """

    def ask(deadline: float) -> HubCheckpoint:
        model = _describe(repo, revision, deadline)
        files = _ggufs(model.files)
        if gguf is not None or (files and "config.json" not in model.files):
            return _visit_gguf(model, _choose_gguf(repo, files, gguf), deadline)
        wanted = [name for name in ("config.json", "hf_quant_config.json") if name in model.files]
        if "config.json" not in wanted:
            raise Missing(repo, "has no config.json and no GGUF file")
        json_files: dict[str, bytes] = {name: _file(model, name, deadline, CONFIG.max_bytes) for name in wanted}
        if not headers:
            return HubCheckpoint(model, json_files, None, None)
        return _visit_safetensors(model, json_files, deadline)

    return _within(timeout_s, repo, ask)


class RemoteFile:
    """Ranges of one file of a model at one commit: a ByteSource. Its size is known after the first read."""

    def __init__(self, model: HubModel, name: str, deadline: float) -> None:
        self.name, self.size_bytes = name, None  # type: tuple[str, int | None]
        self._path, self._what, self._deadline = _path(model, name), f"{model.id}/{name}", deadline

    def read(self, offset: int, length: int) -> bytes:
        """Up to ``length`` bytes from ``offset``, fewer only at the end of the file. Raises :class:`HubError`."""
        if length <= 0:
            return b""
        reply = _get(self._path, self._what, self._deadline, length, offset)
        if reply.size_bytes is not None:
            self.size_bytes = reply.size_bytes
        end = offset + length if self.size_bytes is None else min(offset + length, self.size_bytes)
        if len(reply.data) < end - offset:
            raise BadData(self._what, f"sent {len(reply.data)} of {end - offset} bytes")
        return reply.data


@dataclass(frozen=True, slots=True)
class _Reply:
    data: bytes
    size_bytes: int | None


def _visit_safetensors(model: HubModel, json_files: dict[str, bytes], deadline: float) -> HubCheckpoint:
    left = deadline - time.monotonic()
    try:
        tensors = _safetensors(model, deadline - left * HEADERS_GIVE_UP)
    except (HubError, Faults) as problem:
        return HubCheckpoint(model, json_files, None, None, header_problem=problem)
    return HubCheckpoint(model, json_files, tensors, "safetensors" if tensors is not None else None)


def _safetensors(model: HubModel, deadline: float) -> tuple[StoredTensor, ...] | None:
    if safetensors_header.INDEX_NAME in model.files:
        index = _file(model, safetensors_header.INDEX_NAME, deadline, INDEX.max_bytes)
        names = safetensors_header.read_index(index)
    elif safetensors_header.SINGLE_NAME in model.files:
        names = (safetensors_header.SINGLE_NAME,)
    else:
        return None
    tensors: dict[str, StoredTensor] = {}
    shards = _side_by_side(names, lambda name: safetensors_header.read_header(RemoteFile(model, name, deadline)), deadline)
    for name, shard in zip(names, shards, strict=True):
        safetensors_header.add_shard(tensors, name, shard)
    return tuple(tensors.values())


def _visit_gguf(model: HubModel, name: str, deadline: float) -> HubCheckpoint:
    header = gguf_header.read_split(name, lambda part: RemoteFile(model, part, deadline))
    return HubCheckpoint(model, {}, header.tensors, "gguf", header)


def _ggufs(files: tuple[str, ...]) -> list[str]:
    """The GGUF files one can start from: first parts only, without vision projectors and importance matrices."""
    found = [name for name in files if name.endswith(".gguf") and not re.search(r"mmproj|imatrix", name)]
    return [name for name in found if gguf_header.split_names(name)[0] == name]


def _choose_gguf(repo: str, files: list[str], wanted: str | None) -> str:
    matching = [name for name in files if wanted is None or wanted.lower() in name.lower()]
    exact = [name for name in matching if wanted is not None and re.search(rf"[.\-_]{re.escape(wanted)}[.\-]", name, re.IGNORECASE)]
    for choice in (matching, exact):
        if len(choice) == 1:
            return choice[0]
    known = ", ".join((matching or files)[:12]) or "none"
    raise Missing(f"{repo}:{wanted or ''}", f"one GGUF file must be chosen as {repo}:NAME; it has {known}")


def _side_by_side(names: tuple[str, ...], read: Callable[[str], T], deadline: float) -> list[T]:
    """``read(name)`` of every name, a few at a time, in order; the first failure or the deadline ends it.

    Daemon threads: an executor's would be waited for when the program ends, however long a server hangs.
    """
    results: dict[str, T] = {}
    problems: list[BaseException] = []
    waiting = iter(names)
    lock = threading.Lock()

    def work() -> None:
        while not problems:
            with lock:
                name = next(waiting, None)
            if name is None:
                return
            try:
                results[name] = read(name)
            except BaseException as error:  # noqa: BLE001  raised again below
                problems.append(error)

    threads = [threading.Thread(target=work, daemon=True, name="hub-header") for _ in range(min(MAX_PARALLEL, len(names)))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    if problems:
        raise problems[0]
    if len(results) < len(set(names)):
        problems.append(Slow("headers"))
        raise problems[0]
    return [results[name] for name in names]


def _describe(repo: str, revision: str | None, deadline: float) -> HubModel:
    if not is_repo_id(repo):
        raise Faults([Fault("model", f"must be a Hub id such as owner/name, got {repo[:120]!r}")])
    if revision is not None and (not REVISION.fullmatch(revision) or ".." in revision):
        raise Faults([Fault("revision", f"must be a branch, tag or commit, got {revision[:120]!r}")])
    at = f"/revision/{quote(revision, safe='')}" if revision else ""
    expand = urlencode([("expand", name) for name in ("sha", "gated", "tags", "siblings")])
    data = _get(f"/api/models/{repo}{at}?{expand}", repo, deadline, ANSWER.max_bytes).data
    found = _json(data, repo, ANSWER)
    if not isinstance(found, dict):
        raise BadData(repo, "sent a description that is not an object")
    return _described({"id": repo, **found})


def _described(entry: Mapping[str, Any]) -> HubModel:
    tags, siblings = entry.get("tags"), entry.get("siblings")
    names = [item.get("rfilename") for item in siblings if isinstance(item, dict)] if isinstance(siblings, list) else []
    licenses = [tag[8:] for tag in tags if isinstance(tag, str) and tag.startswith("license:")] if isinstance(tags, list) else []
    sha, downloads = entry.get("sha"), entry.get("downloads")
    return HubModel(
        id=str(entry["id"])[:200],
        revision=sha if isinstance(sha, str) and re.fullmatch(r"[0-9a-f]{40}", sha) else None,
        gated=bool(entry.get("gated")),
        license=licenses[0] if licenses else None,
        files=tuple(name for name in names if isinstance(name, str) and _is_safe_path(name)),
        downloads=downloads if isinstance(downloads, int) else None,
    )


def _is_safe_path(name: str) -> bool:
    return len(name) < 400 and name.isprintable() and not name.startswith("/") and ".." not in name.split("/")


def _rows(found: object) -> list[Mapping[str, Any]]:
    return [entry for entry in found if isinstance(entry, dict)] if isinstance(found, list) else []


def _json(data: bytes, label: str, limits: Limits) -> object:
    try:
        return parse(data, label, limits)
    except Faults as error:
        raise BadData(label, f"sent what is not JSON ({error.faults[0].message})") from None


def _path(model: HubModel, name: str) -> str:
    return f"/{model.id}/resolve/{quote(model.revision or constants.DEFAULT_REVISION, safe='')}/{quote(name)}"


def _file(model: HubModel, name: str, deadline: float, max_bytes: int) -> bytes:
    """A whole small file (JSON), refused when it is larger than ``max_bytes``."""
    reply = _get(_path(model, name), f"{model.id}/{name}", deadline, max_bytes + 1)
    if len(reply.data) > max_bytes:
        raise BadData(f"{model.id}/{name}", f"is larger than {max_bytes} bytes")
    return reply.data


def _get(path: str, what: str, deadline: float, max_bytes: int, offset: int | None = None) -> _Reply:
    """One GET of at most ``max_bytes``, from ``offset`` as a range if given. Raises :class:`HubError`."""
    headers = {**build_hf_headers(library_name="highwater"), "Accept-Encoding": "identity"}
    if offset is not None:
        headers["Range"] = f"bytes={offset}-{offset + max_bytes - 1}"
    left = deadline - time.monotonic()
    if left <= 0:
        raise Slow(what)
    with _worded(what), get_session().stream("GET", constants.ENDPOINT + path, headers=headers, timeout=left) as response:
        if response.status_code == 416:
            return _Reply(b"", _total(response.headers.get("Content-Range", "")))
        if response.status_code >= 400:
            _raise_for_status(response, what)
        if offset is not None and response.status_code != 206 and _exceeds(response, offset, max_bytes):
            raise BadData(what, "the server does not serve byte ranges")
        _check_range(response, what, offset)
        data = _read(response, what, max_bytes, deadline)
    return _Reply(data, _size(response, offset))


def _exceeds(response: httpx2.Response, offset: int, max_bytes: int) -> bool:
    """Whether a whole body came where a range was asked for; one that is no longer than the range is as good."""
    length = response.headers.get("Content-Length", "")
    return offset > 0 or not re.fullmatch(r"\d{1,9}", length) or int(length) > max_bytes


def _read(response: httpx2.Response, what: str, max_bytes: int, deadline: float) -> bytes:
    """The body up to ``max_bytes``; leaving the stream then closes the connection on the rest."""
    pieces, left = [], max_bytes
    for piece in response.iter_raw(64 * 1024):
        pieces.append(piece[:left])
        left -= len(piece)
        if left <= 0:
            break
        if time.monotonic() > deadline:
            raise Slow(what)
    return b"".join(pieces)


def _raise_for_status(response: httpx2.Response, what: str) -> None:
    status = response.status_code
    if status == 429:
        raise RateLimited(what, _retry_after_s(response.headers))
    url = f"{constants.ENDPOINT}/{'/'.join(what.split('/')[:2])}"
    try:
        hf_raise_for_status(response)
    except GatedRepoError:  # a subclass of RepositoryNotFoundError: must come first
        raise Gated(what, url=url) from None
    except RevisionNotFoundError:
        raise Missing(what, "has no such revision") from None
    except (RepositoryNotFoundError, EntryNotFoundError):
        raise Missing(what) from None
    except HfHubHTTPError:
        if "Invalid credentials" in response.headers.get("X-Error-Message", ""):
            raise BadToken(what) from None
        if status in (401, 403):
            raise Gated(what, url=url) from None
        if status in (404, 410):
            raise Missing(what) from None
        raise ServerError(what, status) from None


@contextlib.contextmanager
def _worded(what: str) -> Iterator[None]:
    try:
        yield
    except OfflineModeIsEnabled:
        raise Offline(what, "HF_HUB_OFFLINE is set") from None
    except httpx2.TimeoutException:
        raise Slow(what) from None
    except (httpx2.ConnectError, httpx2.ProxyError, httpx2.UnsupportedProtocol):
        raise Offline(what, f"{constants.ENDPOINT} can't be reached") from None
    except httpx2.TooManyRedirects:
        raise BadData(what, "the server redirects without end") from None
    except (httpx2.HTTPError, httpx2.InvalidURL, httpx2.StreamError) as error:
        raise BadData(what, f"the connection broke off ({type(error).__name__})") from None


def _check_range(response: httpx2.Response, what: str, offset: int | None) -> None:
    if response.status_code != 206:
        return
    found = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
    if found is None or int(found[1]) != (offset or 0):
        raise BadData(what, "the server sent another range than was asked for")


def _size(response: httpx2.Response, offset: int | None) -> int | None:
    if response.status_code == 206:
        return _total(response.headers.get("Content-Range", ""))
    length = response.headers.get("Content-Length", "")
    return int(length) if offset is not None and re.fullmatch(r"\d{1,18}", length) else None


def _total(content_range: str) -> int | None:
    found = re.fullmatch(r"bytes (?:\d+-\d+|\*)/(\d{1,18})", content_range)
    return int(found[1]) if found else None


def _retry_after_s(headers: Mapping[str, str]) -> float | None:
    """``Retry-After`` in seconds, from either of its forms (RFC 9110, 10.2.3); at most a day."""
    value = headers.get("Retry-After", "").strip()
    if re.fullmatch(r"\d{1,9}", value):
        return min(float(value), 86_400.0)
    try:
        seconds = parsedate_to_datetime(value).timestamp() - time.time()
    except (ValueError, TypeError, OverflowError):
        return None
    return min(max(seconds, 0.0), 86_400.0)


def _within(timeout_s: float, what: str, ask: Callable[[float], T]) -> T:
    """``ask(deadline)`` in a thread that is left behind when the time is up.

    A socket's own time-out starts anew with each byte, and name look-up has none: neither bounds the whole.
    """
    results: list[T] = []
    problems: list[BaseException] = []
    deadline = time.monotonic() + timeout_s

    def run() -> None:
        try:
            results.append(ask(deadline))
        except BaseException as error:  # noqa: BLE001  raised again in the caller's thread
            problems.append(error)

    thread = threading.Thread(target=run, daemon=True, name="hub")
    thread.start()
    thread.join(timeout_s)
    if results:
        return results[0]
    if problems and not isinstance(problems[0], Slow):
        raise problems[0]
    raise Slow(what, timeout_s)
