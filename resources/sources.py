"""Any place a model can come from, resolved to one value: its config, what it stores, and where each was read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from planner.faults import Fault, Faults, describe
from resources import gguf_header, safetensors_header
from resources.byte_source import LocalFile
from resources.catalog import UnknownModel, catalog_model, close_ids
from resources.gguf_config import config_of
from resources.hub_cache import cached_model
from resources.hub_errors import HubError
from resources.strict_json import CONFIG, INDEX, parse_object, read_bytes, read_object
from resources.tensors import StoredTensor, StoredTensors, fold

Origin = Literal["catalog", "hub", "cache", "folder", "file", "inline"]
QUANT_CONFIG = "hf_quant_config.json"
QUANT_KEY = "hf_quant_config"
"""Where a config that stands for a whole folder carries that file."""


@dataclass(frozen=True, slots=True)
class ModelSource:
    """A model as found. ``tensors`` are from headers, None where only a config is known.

    ``came_from`` says where each part was read: ``config`` and ``tensors`` -> file, catalog or Hub, in words.
    ``gated`` None: not known. ``published_parameters`` with its note is what the publisher prints (catalog only).
    """

    label: str
    origin: Origin
    config: Mapping[str, Any]
    tensors: StoredTensors | None = None
    license: str | None = None
    gated: bool | None = None
    revision: str | None = None
    hf_quant_config: Mapping[str, Any] | None = None
    published_parameters: int | None = None
    published_note: str | None = None
    came_from: Mapping[str, str] | None = None
    notes: tuple[str, ...] = ()

    @property
    def whole_config(self) -> dict[str, Any]:
        """The config as a scenario carries it inline: with what a quantiser wrote beside it."""
        return {**self.config, **({QUANT_KEY: self.hf_quant_config} if self.hf_quant_config else {})}


def resolve(
    model: str | Mapping[str, Any],
    *,
    revision: str | None = None,
    network: bool = True,
    headers: bool = True,
    timeout_s: float | None = None,
) -> ModelSource:
    """The model that a scenario's ``model`` names.

    A string is a catalog id, else a model in the local Hub cache, else one on the Hub (``owner/name``, with
    ``:Q4_K_M`` one GGUF file of it); an object is ``{"path": …}`` (folder, ``config.json``, ``.safetensors``, ``.gguf``)
    or ``{"config": {…}}``. ``revision`` and ``headers=False`` (config only) apply to cache and Hub.

    Raises :class:`Faults` for bad input, :class:`UnknownModel` for an id that is nowhere, and :class:`HubError`.
    """
    if isinstance(model, str):
        return _by_id(model, revision, network=network, headers=headers, timeout_s=timeout_s)
    if isinstance(model, Mapping) and set(model) == {"path"} and isinstance(model["path"], str):
        return read_path(Path(model["path"]).expanduser(), headers=headers)
    if isinstance(model, Mapping) and set(model) == {"config"} and isinstance(model["config"], Mapping):
        return _inline(model["config"])
    raise Faults([Fault("model", f'must be an id, {{"path": …}} or {{"config": {{…}}}}, got {describe(model)}')])


def read_path(path: Path, *, headers: bool = True) -> ModelSource:
    """A folder, a ``config.json``, a safetensors or a GGUF file. Raises :class:`Faults` naming file and field."""
    try:
        is_folder, exists = path.is_dir(), path.exists()
    except (OSError, ValueError):
        is_folder = exists = False
    if not exists:
        raise Faults([Fault("model.path", f"does not exist: {str(path)[:200]!r}")])
    if is_folder:
        return _folder(path, "folder", headers=headers)
    if path.suffix == ".gguf":
        return _gguf_file(path)
    if path.suffix == ".safetensors" or path.name == safetensors_header.INDEX_NAME:
        return _safetensors_file(path)
    config = read_object(path, CONFIG, infinity=True)
    return ModelSource(path.name, "file", config, hf_quant_config=_quant_config(path.parent), came_from={"config": path.name})


def _by_id(model: str, revision: str | None, *, network: bool, headers: bool, timeout_s: float | None) -> ModelSource:
    repo, _, gguf = model.partition(":")
    if not gguf and revision is None:
        try:
            return _from_catalog(model)
        except UnknownModel:
            pass
    cached = cached_model(repo, revision)
    if cached is not None and not gguf:
        found = _folder(cached.folder, "cache", headers=headers)
        return _relabel(found, repo, cached.revision)
    if not network or not _is_repo_id(repo):
        raise UnknownModel(model, close_ids(model))
    return _from_hub(repo, revision, gguf or None, headers=headers, timeout_s=timeout_s)


def _from_catalog(model: str) -> ModelSource:
    entry = catalog_model(model)
    return ModelSource(
        entry.id,
        "catalog",
        entry.config,
        license=entry.license,
        gated=entry.gated,
        hf_quant_config=entry.hf_quant_config,
        published_parameters=entry.published_parameters,
        published_note=entry.published_note,
        came_from={"config": f"bundled catalog ({entry.provenance})"},
    )


def _relabel(found: ModelSource, repo: str, revision: str) -> ModelSource:
    return ModelSource(
        repo,
        "cache",
        found.config,
        tensors=found.tensors,
        revision=revision,
        hf_quant_config=found.hf_quant_config,
        came_from=found.came_from,
        notes=found.notes,
    )


def _inline(config: Mapping[str, Any]) -> ModelSource:
    try:
        data = json.dumps(config).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise Faults([Fault("model.config", f"must be JSON: {str(error)[:80]}")]) from None
    plain = parse_object(data, "model.config", CONFIG, infinity=True)
    quant = plain.pop(QUANT_KEY, None)
    if quant is not None and not isinstance(quant, Mapping):
        raise Faults([Fault(f"model.config.{QUANT_KEY}", f"must be an object, got {describe(quant)}")])
    return ModelSource("custom architecture", "inline", plain, hf_quant_config=quant, came_from={"config": "inline"})


def _is_repo_id(text: str) -> bool:
    from resources.hub import is_repo_id  # noqa: PLC0415  huggingface_hub takes a quarter second to import

    return is_repo_id(text)


def _from_hub(repo: str, revision: str | None, gguf: str | None, *, headers: bool, timeout_s: float | None) -> ModelSource:
    from resources import hub  # noqa: PLC0415  huggingface_hub takes a quarter second to import

    found = hub.visit(repo, revision, gguf, headers=headers, timeout_s=timeout_s or hub.MODEL_TIMEOUT_S)
    name = f"{repo}:{gguf}" if gguf else repo
    at = f"Hub, {repo} at {(found.model.revision or 'main')[:12]}"
    notes = [f"tensor headers could not be read: {found.header_problem}"] if found.header_problem else []
    if found.gguf is not None:
        config, quant = config_of(found.gguf), None
        came_from = {"config": f"GGUF metadata ({at})", "tensors": f"GGUF header ({at})"}
    else:
        config = parse_object(found.json_files["config.json"], "config.json", CONFIG, infinity=True)
        raw = found.json_files.get(QUANT_CONFIG)
        quant = None if raw is None else parse_object(raw, QUANT_CONFIG, CONFIG)
        came_from = {"config": f"config.json ({at})"} | ({"tensors": f"safetensors headers ({at})"} if found.tensors else {})
    return ModelSource(
        name,
        "hub",
        config,
        tensors=fold(found.tensors, found.container or "") if found.tensors is not None else None,
        license=found.model.license,
        gated=found.model.gated,
        revision=found.model.revision,
        hf_quant_config=quant,
        came_from=came_from,
        notes=tuple(notes),
    )


def _folder(folder: Path, origin: Origin, *, headers: bool) -> ModelSource:
    if not (folder / "config.json").is_file():
        return _gguf_in(folder, origin)
    config = read_object(folder / "config.json", CONFIG, infinity=True)
    came_from = {"config": "config.json"}
    tensors, notes = (None, ()) if not headers else _folder_tensors(folder)
    if tensors is not None:
        came_from["tensors"] = "safetensors headers"
    quant = _quant_config(folder)
    label = folder.name or str(folder)
    return ModelSource(label, origin, config, tensors, hf_quant_config=quant, came_from=came_from, notes=notes)


def _folder_tensors(folder: Path) -> tuple[StoredTensors | None, tuple[str, ...]]:
    """The stored tensors; files that are absent (a cache with the config alone) are a note, damaged ones a fault."""
    names = _shard_names(folder)
    missing = [name for name in names if not (folder / name).is_file()]
    if not names:
        return None, ()
    if missing:
        return None, (f"{len(missing)} of {len(names)} weight files are not here: sizes come from the config",)
    return fold(_read_shards(folder, names), "safetensors"), ()


def _shard_names(folder: Path) -> tuple[str, ...]:
    index = folder / safetensors_header.INDEX_NAME
    if index.is_file():
        return safetensors_header.read_index(read_bytes(index, INDEX.max_bytes))
    return (safetensors_header.SINGLE_NAME,) if (folder / safetensors_header.SINGLE_NAME).exists() else ()


def _read_shards(folder: Path, names: tuple[str, ...]) -> tuple[StoredTensor, ...]:
    return safetensors_header.read_shards(names, lambda name: LocalFile(folder / name))


def _safetensors_file(path: Path) -> ModelSource:
    """A checkpoint named by one of its files: the config beside it is needed, the index beside it is followed."""
    if not (path.parent / "config.json").is_file():
        message = f"needs a config.json beside {path.name}: tensor names alone don't say the architecture"
        raise Faults([Fault("model.path", message)])
    if path.name == safetensors_header.INDEX_NAME or path.name in _shard_names(path.parent):
        return _folder(path.parent, "file", headers=True)
    config = read_object(path.parent / "config.json", CONFIG, infinity=True)
    tensors = fold(safetensors_header.read_header(LocalFile(path)), "safetensors")
    came_from = {"config": "config.json", "tensors": path.name}
    return ModelSource(path.name, "file", config, tensors, hf_quant_config=_quant_config(path.parent), came_from=came_from)


def _gguf_in(folder: Path, origin: Origin) -> ModelSource:
    found = sorted(path for path in folder.glob("*.gguf") if gguf_header.split_names(path.name)[0] == path.name)
    found = [path for path in found if "mmproj" not in path.name]
    if len(found) == 1:
        found_in = _gguf_file(found[0])
        return ModelSource(found_in.label, origin, found_in.config, found_in.tensors, came_from=found_in.came_from)
    what = f"{len(found)} GGUF files: open one of them" if found else "no config.json and no GGUF file"
    raise Faults([Fault("model.path", f"folder {folder.name!r} has {what}")])


def _gguf_file(path: Path) -> ModelSource:
    header = gguf_header.read_split(path.name, lambda name: LocalFile(path.parent / name))
    came_from = {"config": f"metadata of {path.name}", "tensors": f"header of {path.name}"}
    license_name = header.metadata.get("general.license")
    return ModelSource(
        path.name,
        "file",
        config_of(header),
        fold(header.tensors, "gguf"),
        license=license_name if isinstance(license_name, str) else None,
        came_from=came_from,
    )


def _quant_config(folder: Path) -> Mapping[str, Any] | None:
    path = folder / QUANT_CONFIG
    return read_object(path, CONFIG) if path.is_file() else None


__all__ = ["HubError", "ModelSource", "Origin", "UnknownModel", "read_path", "resolve"]
