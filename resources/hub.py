"""The Hugging Face Hub through huggingface_hub's own session: search, configs, and headers by byte range.

Every call ends within its ``timeout_s``, whatever the server does, with an answer or a :class:`HubError`. Weights are
never downloaded: of a weight file only the header's range is asked for, and a server that sends more is hung up on.
The token is the library's own (``hf auth login``, ``HF_TOKEN``); it is only ever put into a request.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlencode

from planner.faults import Fault, Faults
from resources import gguf_header, safetensors_header
from resources.hub_errors import (
    BadData,
    HubError,
    Missing,
)
from resources.hub_transport import get, side_by_side, within
from resources.strict_json import CONFIG, INDEX, Limits, parse
from resources.tensors import StoredTensor

SEARCH_TIMEOUT_S = 3.0
MODEL_TIMEOUT_S = 20.0
"""For everything one model takes: its description, its config, and the headers of all its files."""
HEADERS_GIVE_UP = 0.2
"""Share of the time left kept back from the headers, so that a config in hand is returned when they are too slow."""
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
        data = get(f"/api/models?{parameters}", f"search for {query[:60]!r}", deadline, ANSWER.max_bytes).data
        found = _json(data, "search", ANSWER)
        return [_described(entry) for entry in _rows(found) if isinstance(entry.get("id"), str)][:limit]

    return within(timeout_s, f"search for {query[:60]!r}", ask)


def describe_model(repo: str, revision: str | None = None, timeout_s: float = 5.0) -> HubModel:
    """A model's revision, licence, gate and files, in one request. Raises :class:`HubError`."""
    return within(timeout_s, repo, lambda deadline: _describe(repo, revision, deadline))


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

    return within(timeout_s, repo, ask)


class RemoteFile:
    """Ranges of one file of a model at one commit: a ByteSource. Its size is known after the first read."""

    def __init__(self, model: HubModel, name: str, deadline: float) -> None:
        self.name, self.size_bytes = name, None  # type: tuple[str, int | None]
        self._path, self._what, self._deadline = _path(model, name), f"{model.id}/{name}", deadline

    def read(self, offset: int, length: int) -> bytes:
        """Up to ``length`` bytes from ``offset``, fewer only at the end of the file. Raises :class:`HubError`."""
        if length <= 0:
            return b""
        reply = get(self._path, self._what, self._deadline, length, offset)
        if reply.size_bytes is not None:
            self.size_bytes = reply.size_bytes
        end = offset + length if self.size_bytes is None else min(offset + length, self.size_bytes)
        if len(reply.data) < end - offset:
            raise BadData(self._what, f"sent {len(reply.data)} of {end - offset} bytes")
        return reply.data


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
    shards = side_by_side(names, lambda name: safetensors_header.read_header(RemoteFile(model, name, deadline)), deadline)
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


def _describe(repo: str, revision: str | None, deadline: float) -> HubModel:
    if not is_repo_id(repo):
        raise Faults([Fault("model", f"must be a Hub id such as owner/name, got {repo[:120]!r}")])
    if revision is not None and (not REVISION.fullmatch(revision) or ".." in revision):
        raise Faults([Fault("revision", f"must be a branch, tag or commit, got {revision[:120]!r}")])
    at = f"/revision/{quote(revision, safe='')}" if revision else ""
    expand = urlencode([("expand", name) for name in ("sha", "gated", "tags", "siblings")])
    data = get(f"/api/models/{repo}{at}?{expand}", repo, deadline, ANSWER.max_bytes).data
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
    return f"/{model.id}/resolve/{quote(model.revision or 'main', safe='')}/{quote(name)}"


def _file(model: HubModel, name: str, deadline: float, max_bytes: int) -> bytes:
    """A whole small file (JSON), refused when it is larger than ``max_bytes``."""
    reply = get(_path(model, name), f"{model.id}/{name}", deadline, max_bytes + 1)
    if len(reply.data) > max_bytes:
        raise BadData(f"{model.id}/{name}", f"is larger than {max_bytes} bytes")
    return reply.data
