"""Where a model can come from on this machine: catalog, cache, folder, file, inline; each refused with file and field."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from planner.faults import Faults
from resources.catalog import UnknownModel
from resources.hub_cache import cached_models
from resources.sources import ModelSource, read_path, resolve
from resources.strict_json import parse_object
from tests.resources.checkpoints import LLAMA, gguf_header, llama_tensors, product, safetensors_header

COMMIT = "a" * 40


def write_weights(path: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    """A file of full length whose data is a hole."""
    head, data_bytes = safetensors_header(shapes)
    path.write_bytes(head)
    os.truncate(path, len(head) + data_bytes)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    model = tmp_path / "my-llama"
    model.mkdir()
    (model / "config.json").write_text(json.dumps(LLAMA))
    shapes = list(llama_tensors().items())
    write_weights(model / "model-00001-of-00002.safetensors", dict(shapes[:5]))
    write_weights(model / "model-00002-of-00002.safetensors", dict(shapes[5:]))
    weight_map = {name: f"model-0000{1 if number < 5 else 2}-of-00002.safetensors" for number, (name, _) in enumerate(shapes)}
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return model


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def check_whole(source: ModelSource) -> None:
    assert source.config == LLAMA
    assert source.tensors is not None
    assert source.tensors.parameters == sum(map(product, llama_tensors().values()))


def test_a_catalog_id() -> None:
    source = resolve("meta-llama/llama-3.1-8b", network=False)
    assert (source.label, source.origin, source.gated) == ("meta-llama/Llama-3.1-8B", "catalog", True)
    assert source.published_parameters == 8_030_261_248
    assert source.came_from == {"config": "bundled catalog (copy)"}


def test_an_id_that_is_nowhere_suggests() -> None:
    with pytest.raises(UnknownModel, match=r"did you mean meta-llama/Llama-3\.1-8B"):
        resolve("meta-llama/Llama-3.1-9B", network=False)


def test_a_folder_and_each_of_its_files(folder: Path) -> None:
    check_whole(resolve({"path": str(folder)}))
    check_whole(resolve({"path": str(folder / "model-00002-of-00002.safetensors")}))
    check_whole(resolve({"path": str(folder / "model.safetensors.index.json")}))
    alone = resolve({"path": str(folder / "config.json")})
    assert (alone.config, alone.tensors, alone.origin) == (LLAMA, None, "file")


def test_a_single_file_checkpoint_and_its_companion(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    (tmp_path / "hf_quant_config.json").write_text('{"quantization": {"quant_algo": "NVFP4"}}')
    write_weights(tmp_path / "model.safetensors", llama_tensors())
    source = read_path(tmp_path)
    check_whole(source)
    assert source.hf_quant_config == {"quantization": {"quant_algo": "NVFP4"}}


def test_a_folder_with_the_config_alone_says_so(folder: Path) -> None:
    (folder / "model-00001-of-00002.safetensors").unlink()
    source = read_path(folder)
    assert source.tensors is None
    assert source.notes == ("1 of 2 weight files are not here: sizes come from the config",)


def test_a_damaged_shard_is_named(folder: Path) -> None:
    shard = folder / "model-00002-of-00002.safetensors"
    os.truncate(shard, shard.stat().st_size - 1)
    with pytest.raises(Faults, match=r"model-00002-of-00002.safetensors: data must be .*cut short"):
        read_path(folder)


def test_a_gguf_file_and_a_folder_of_one(tmp_path: Path) -> None:
    metadata = {"general.architecture": "qwen2", "qwen2.block_count": 1, "general.license": "apache-2.0"}
    head, data_bytes = gguf_header(metadata, {"token_embd.weight": (10, 32)}, "Q8_0")
    (tmp_path / "m.gguf").write_bytes(head + bytes(data_bytes))
    for source in (read_path(tmp_path / "m.gguf"), read_path(tmp_path)):
        assert source.tensors is not None
        assert (source.tensors.total_bytes, source.tensors.parameters) == (340, 320)
        assert source.config["model_type"] == "qwen2"
    (tmp_path / "n.gguf").write_bytes(head)
    with pytest.raises(Faults, match="2 GGUF files: open one of them"):
        read_path(tmp_path)


def test_the_local_hub_cache(cache: Path, folder: Path) -> None:
    repository = cache / "models--acme--tiny"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    (repository / "snapshots").mkdir()
    folder.rename(repository / "snapshots" / COMMIT)
    (cache / "models--acme--empty" / "snapshots" / COMMIT).mkdir(parents=True)
    (cache / "datasets--acme--d").mkdir()
    source = resolve("acme/tiny", network=False)
    check_whole(source)
    assert (source.label, source.origin, source.revision) == ("acme/tiny", "cache", COMMIT)
    assert [model.id for model in cached_models("TINY")] == ["acme/tiny"]
    assert [model.id for model in cached_models()] == ["acme/tiny"]
    (repository / "refs" / "main").unlink()
    assert resolve("acme/tiny", network=False).revision == COMMIT
    assert resolve("acme/tiny", revision=COMMIT, network=False).revision == COMMIT
    (repository / "refs" / "main").write_text("../../../../etc")
    assert resolve("acme/tiny", network=False).revision == COMMIT


def test_an_absent_cache_is_empty() -> None:
    assert cached_models() == []


def test_an_inline_config() -> None:
    source = resolve({"config": LLAMA})
    assert (source.config, source.origin, source.came_from) == (LLAMA, "inline", {"config": "inline"})


def test_the_infinity_of_state_space_models_is_let_through(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "mamba2", "time_step_limit": [0.0, Infinity]}')
    assert read_path(tmp_path).config["time_step_limit"] == [0.0, float("inf")]


def deep(depth: int) -> dict[str, object]:
    value: dict[str, object] = {}
    for _ in range(depth):
        value = {"a": value}
    return value


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (5, "model: must be an id"),
        ({}, "model: must be an id"),
        ({"path": 5}, "model: must be an id"),
        ({"path": "x", "config": {}}, "model: must be an id"),
        ({"path": "/no/such/place"}, "model.path: does not exist"),
        ({"path": "\0"}, "model.path: does not exist"),
        ({"path": "/dev/null"}, "null: is not a file"),
        ({"config": {"a": float("nan")}}, "model.config:a: must be a finite number"),
        ({"config": {"a": {1, 2}}}, "model.config: must be JSON"),
        ({"config": deep(100)}, "is nested deeper than 64 levels"),
        ({"config": deep(5000)}, "model.config: must be JSON|nested deeper"),
        ({"config": {"a": "x" * 5_000_000}}, "model.config: must be at most 4194304 bytes"),
    ],
)
def test_what_is_no_model_is_refused_by_field(model: object, words: str) -> None:
    with pytest.raises(Faults, match=words):
        resolve(model, network=False)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"", "config.json: is not JSON"),
        (b"\xff\xfe{}", "config.json: is not UTF-8"),
        (b"[1]", "config.json: must hold a JSON object, got list"),
        (b'{"a":{"b":1,"b":2}}', "config.json:a.b: is given twice"),
        (b'{"a":[1,{"b":1e999}]}', r"config.json:a\[1\].b: must be a finite number"),
        (b'{"a":NaN}', "config.json:a: must be a finite number"),
        (b'{"a":-Infinity}', "config.json:a: must be a finite number"),
        (rb'{"a":"\ud800"}', "config.json:a: must be valid Unicode"),
        (rb'{"\ud800":1}', "must be valid Unicode"),
        (b"[" * 100_000, "nested deeper than 64 levels"),
        (b'{"a":' + b"9" * 5000 + b"}", "more digits"),
        (b'{"a":[' + b"0," * 200_000 + b"0]}", "at most 200000 items"),
        (b" " * 5_000_000, "at most 4194304 bytes"),
    ],
)
def test_strict_json(text: bytes, words: str) -> None:
    with pytest.raises(Faults, match=words) as caught:
        parse_object(text, "config.json")
    str(caught.value).encode()


def test_every_fault_is_told_at_once() -> None:
    with pytest.raises(Faults) as caught:
        parse_object(b'{"a":NaN,"b":{"c":1,"c":2},"d":[1e999]}', "x")
    assert {fault.path for fault in caught.value.faults} == {"x:a", "x:b.c", "x:d[0]"}


def test_a_pipe_is_never_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.gguf")
    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(Faults, match="is not a file"):
        read_path(tmp_path / "x.gguf")
    with pytest.raises(Faults, match="is not a file"):
        read_path(tmp_path / "config.json")


def test_a_needed_config_is_asked_for(tmp_path: Path) -> None:
    write_weights(tmp_path / "x.safetensors", llama_tensors())
    with pytest.raises(Faults, match=r"needs a config\.json beside x\.safetensors"):
        read_path(tmp_path / "x.safetensors")
