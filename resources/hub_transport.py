"""One gate through which every request to the Hub goes: bounded in time and bytes, its failures worded.

The session, the headers with the token, and the reading of statuses are huggingface_hub's own.
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
from typing import TypeVar

from resources.hub_errors import BadData, BadToken, Gated, Missing, Offline, RateLimited, ServerError, Slow

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
MAX_PARALLEL = 8


@dataclass(frozen=True, slots=True)
class Reply:
    """A body, and the size of the whole file where the server told it."""

    data: bytes
    size_bytes: int | None


def get(path: str, what: str, deadline: float, max_bytes: int, offset: int | None = None) -> Reply:
    """One GET of at most ``max_bytes``, from ``offset`` as a range if given. Raises :class:`HubError`."""
    headers = {**build_hf_headers(library_name="highwater"), "Accept-Encoding": "identity"}
    if offset is not None:
        headers["Range"] = f"bytes={offset}-{offset + max_bytes - 1}"
    left = deadline - time.monotonic()
    if left <= 0:
        raise Slow(what)
    with _worded(what), get_session().stream("GET", constants.ENDPOINT + path, headers=headers, timeout=left) as response:
        if response.status_code == 416:
            return Reply(b"", _total(response.headers.get("Content-Range", "")))
        if response.status_code >= 400:
            _raise_for_status(response, what)
        if offset is not None and response.status_code != 206 and _exceeds(response, offset, max_bytes):
            raise BadData(what, "the server does not serve byte ranges")
        _check_range(response, what, offset)
        data = _read(response, what, max_bytes, deadline)
    return Reply(data, _size(response, offset))


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
        raise Offline(what, "HF_HUB_OFFLINE is set", "Unset it to ask the Hub") from None
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


def within(timeout_s: float, what: str, ask: Callable[[float], T]) -> T:
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


def side_by_side(names: tuple[str, ...], read: Callable[[str], T], deadline: float) -> list[T]:
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
