"""Every state of the Hub, asked of a real server on loopback through huggingface_hub's own endpoint and session."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from functools import cache

import pytest
from huggingface_hub import constants
from huggingface_hub.utils import close_session

from planner.faults import Faults
from resources import hub
from resources.hub_errors import BadData, BadToken, Gated, HubError, Missing, Offline, RateLimited, ServerError, Slow
from resources.sources import ModelSource, resolve
from tests.resources.checkpoints import LLAMA, gguf_header, llama_tensors, product, safetensors_header
from tests.resources.hub_server import SHA, File, Hub, Repository, running
from tests.timing import quickest_s

SECRET = "hf_thisTokenMustNeverBeShown"
BIG = {**LLAMA, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
       "num_key_value_heads": 8, "vocab_size": 128256}  # fmt: skip
FILE_FAULTS = ("hang", "drip", "truncated", "short range", "wrong length", "wrong range", "no ranges", "loop", "500", "limited")


def json_file(value: object) -> File:
    data = json.dumps(value).encode()
    return File(data, len(data))


def weights(shapes: dict[str, tuple[int, ...]]) -> File:
    head, data_bytes = safetensors_header(shapes)
    return File(head, len(head) + data_bytes)


@cache
def single_files() -> dict[str, File]:
    return {"config.json": json_file(BIG), "model.safetensors": weights(llama_tensors(BIG))}


def single(fault: str = "") -> Repository:
    return Repository(single_files(), fault=fault)


@cache
def sharded() -> Repository:
    shapes, files, weight_map = list(llama_tensors(BIG).items()), {"config.json": json_file(BIG)}, {}
    for number in range(4):
        name = f"model-{number + 1:05d}-of-00004.safetensors"
        part = dict(shapes[number::4])
        files[name] = weights(part)
        weight_map |= dict.fromkeys(part, name)
    files["model.safetensors.index.json"] = json_file({"metadata": {}, "weight_map": weight_map})
    files["hf_quant_config.json"] = json_file({"quantization": {"quant_algo": "FP8"}})
    return Repository(files)


GGUF_METADATA = {
    "general.architecture": "llama", "llama.block_count": 2, "llama.embedding_length": 2048, "llama.context_length": 4096,
    "llama.feed_forward_length": 8192, "llama.attention.head_count": 32, "llama.attention.head_count_kv": 8,
    "tokenizer.ggml.tokens": [f"token {number}" for number in range(3000)],
}  # fmt: skip
GGUF_SHAPES = {"token_embd.weight": (3000, 2048), "blk.0.ffn_up.weight": (8192, 2048), "output.weight": (3000, 2048)}


@cache
def gguf() -> Repository:
    head, data_bytes = gguf_header(GGUF_METADATA, GGUF_SHAPES, "Q8_0")
    file = File(head, len(head) + data_bytes)
    half = dict(list(GGUF_SHAPES.items())[:1]), dict(list(GGUF_SHAPES.items())[1:])
    files = {"m-Q8_0.gguf": file, "m-Q4_K_M.gguf": file, "m-Q4_K_S.gguf": file, "mmproj.gguf": file}
    for number, shapes in enumerate(half):
        split = {"split.no": number, "split.count": 2, "split.tensors.count": 3}
        head, data_bytes = gguf_header({**(GGUF_METADATA if number == 0 else {}), **split}, shapes, "F16")
        files[f"big/m-F16-0000{number + 1}-of-00002.gguf"] = File(head, len(head) + data_bytes)
    return Repository(files)


@pytest.fixture(scope="module")
def running_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    repositories = {
        "acme/single": single(),
        "acme/sharded": sharded(),
        "acme/gguf": gguf(),
        "acme/moved": Repository(moved_to="acme/single"),
        "acme/gated": Repository(single_files(), fault="gated", gated="manual"),
        "acme/empty": Repository({"README.md": File(b"", 0)}),
        **{f"acme/{fault.replace(' ', '-')}": single(fault) for fault in FILE_FAULTS},
        **{f"acme/api-{fault.replace(' ', '-')}": Repository(api_fault=fault) for fault in (*FILE_FAULTS, "not json")},
        "acme/api-limited-until": Repository(api_fault="limited until"),
        "acme/api-bad-token": Repository(api_fault="bad token"),
        "acme/api-404": Repository(api_fault="404"),
    }
    with pytest.MonkeyPatch.context() as patch, running(repositories) as found:
        patch.setenv("HF_HUB_CACHE", str(tmp_path_factory.mktemp("hub")))
        patch.setenv("HF_TOKEN", SECRET)
        patch.setattr(constants, "ENDPOINT", found.endpoint)
        yield found
        close_session()


@pytest.fixture
def server(running_server: Hub) -> Hub:
    running_server.forget()
    return running_server


def test_config_and_header_of_a_single_file(server: Hub) -> None:
    source = resolve("acme/single")
    assert source.config == BIG
    assert source.tensors is not None
    assert source.tensors.parameters == sum(map(product, llama_tensors(BIG).values())) == 8_030_261_248
    assert source.tensors.total_bytes == 16_060_522_496
    assert (source.origin, source.revision, source.license, source.gated) == ("hub", SHA, "apache-2.0", False)
    assert source.came_from == {
        "config": f"config.json (Hub, acme/single at {SHA[:12]})",
        "tensors": f"safetensors headers (Hub, acme/single at {SHA[:12]})",
    }


def test_no_weight_is_ever_sent(server: Hub) -> None:
    resolve("acme/single")
    resolve("acme/sharded")
    resolve("acme/gguf:Q8_0")
    single_head, _ = safetensors_header(llama_tensors(BIG))
    assert server.sent_of("acme/single", ".safetensors") == len(single_head)
    heads = sum(len(file.head) for name, file in sharded().files.items() if name.endswith("0004.safetensors"))
    assert server.sent_of("acme/sharded", ".safetensors") == heads
    head, data_bytes = gguf_header(GGUF_METADATA, GGUF_SHAPES, "Q8_0")
    assert len(head) <= server.sent_of("acme/gguf", ".gguf") <= max(2 * len(head), 2**16) < data_bytes / 100


def test_shards_are_read_together_with_the_companion_file(server: Hub) -> None:
    source = resolve("acme/sharded")
    assert source.tensors is not None
    assert source.tensors.tensor_count == len(llama_tensors(BIG))
    assert source.tensors.parameters == 8_030_261_248
    up = next(group for group in source.tensors.groups if group.name == "model.layers.*.mlp.up_proj.weight")
    assert (up.count, up.layers, up.shape) == (32, tuple(range(32)), (14336, 4096))
    assert source.hf_quant_config == {"quantization": {"quant_algo": "FP8"}}


def test_gguf_header_gives_config_and_exact_bytes(server: Hub) -> None:
    source = resolve("acme/gguf:Q8_0")
    assert source.tensors is not None
    assert source.tensors.total_bytes == sum(map(product, GGUF_SHAPES.values())) // 32 * 34
    assert source.tensors.bytes_by_dtype == {"Q8_0": source.tensors.total_bytes}
    assert source.config["model_type"] == "llama"
    assert source.config["vocab_size"] == 3000
    assert source.config["num_key_value_heads"] == 8


def test_split_gguf_is_read_whole(server: Hub) -> None:
    source = resolve("acme/gguf:F16")
    assert source.tensors is not None
    assert source.tensors.total_bytes == 2 * sum(map(product, GGUF_SHAPES.values()))


def test_an_ambiguous_gguf_is_listed(server: Hub) -> None:
    with pytest.raises(Missing, match=r"one GGUF file must be chosen.*m-Q4_K_M\.gguf, m-Q4_K_S\.gguf"):
        resolve("acme/gguf:Q4_K")
    with pytest.raises(Missing, match="one GGUF file must be chosen"):
        resolve("acme/gguf")


def test_a_renamed_model_is_followed(server: Hub) -> None:
    assert resolve("acme/moved").config == BIG


def test_headers_can_be_left_out(server: Hub) -> None:
    source = resolve("acme/single", headers=False)
    assert source.tensors is None
    assert server.requests[f"/acme/single/resolve/{SHA}/model.safetensors"] == 0


def test_a_gated_model_is_described_but_not_read(server: Hub) -> None:
    assert hub.describe_model("acme/gated").gated is True
    with pytest.raises(Gated, match=r"Ask for it at .*/acme/gated, then log in with: hf auth login"):
        resolve("acme/gated")


@pytest.mark.parametrize(
    ("repo", "revision", "error", "words"),
    [
        ("acme/nowhere", None, Missing, "not found"),
        ("acme/single", "no-such-branch", Missing, "no such revision"),
        ("acme/empty", None, Missing, "no config.json and no GGUF"),
        ("acme/api-404", None, Missing, "not found"),
        ("acme/api-500", None, ServerError, "status 500"),
        ("acme/api-limited", None, RateLimited, "Try again in 7 s"),
        ("acme/api-limited-until", None, RateLimited, "Try again in (59|60) s"),
        ("acme/api-bad-token", None, BadToken, "hf auth login"),
        ("acme/api-truncated", None, BadData, "broke off"),
        ("acme/api-wrong-length", None, BadData, "not JSON"),
        ("acme/api-loop", None, BadData, "redirects without end"),
        ("acme/api-not-json", None, BadData, "not JSON"),
    ],
)
def test_each_state_has_its_own_error(server: Hub, repo: str, revision: str | None, error: type[HubError], words: str) -> None:
    with pytest.raises(error, match=words) as caught:
        resolve(repo, revision=revision)
    assert caught.value.remedy
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("fault", [fault for fault in FILE_FAULTS if fault not in ("hang", "drip")])
def test_a_config_survives_headers_that_can_not_be_read(server: Hub, fault: str) -> None:
    repo = f"acme/{fault.replace(' ', '-')}"
    source = resolve(repo)
    assert source.config == BIG
    assert source.tensors is None
    assert "tensor headers could not be read" in source.notes[0]
    assert server.sent_of(repo, ".safetensors") < 2**22  # socket buffers of a connection that was hung up on


@pytest.mark.parametrize("repo", ["acme/hang", "acme/drip"])
def test_a_config_is_not_lost_to_slow_headers(server: Hub, repo: str) -> None:
    found: list[ModelSource] = []
    assert quickest_s(lambda: found.append(resolve(repo, timeout_s=1.0)), 1.0) < 1.0
    for source in found:
        assert source.config == BIG
        assert "no complete answer within the time allowed" in source.notes[0]


@pytest.mark.parametrize("repo", ["acme/api-hang", "acme/api-drip"])
def test_nothing_waits_longer_than_its_time_out(server: Hub, repo: str) -> None:
    def ask() -> None:
        with pytest.raises(Slow, match=r"within 0\.5 s"):
            resolve(repo, timeout_s=0.5)

    assert quickest_s(ask, 0.75) < 0.5 + 0.25


def test_search_completes_and_is_bounded(server: Hub) -> None:
    assert [model.id for model in hub.search("SHARD")] == ["acme/sharded"]

    def ask() -> None:
        with pytest.raises(Slow):
            hub.search("hang", timeout_s=0.3)

    assert quickest_s(ask, 0.6) < 0.6


def test_the_token_goes_only_into_the_request(server: Hub) -> None:
    source = resolve("acme/single")
    assert all(headers.get("authorization", headers.get("Authorization")) == f"Bearer {SECRET}" for headers in server.headers)
    assert SECRET not in repr(source)


def test_a_dead_endpoint_is_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(Offline, match="can't be reached"):
        resolve("acme/single")


def test_offline_mode_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(Offline, match="HF_HUB_OFFLINE is set"):
        resolve("acme/single")


@pytest.mark.parametrize("model", ["../../etc/passwd", "a/b/c", "acme/x?y=1", "acme/..", "", "acme/\n"])
def test_ids_that_are_none_never_reach_the_server(server: Hub, model: str) -> None:
    with pytest.raises((LookupError, Faults)):
        resolve(model)
    assert not server.requests


def test_the_endpoint_comes_from_the_environment(server: Hub) -> None:
    code = "from resources.sources import resolve; s = resolve('acme/sharded'); print(s.tensors.total_bytes, s.origin)"
    environment = {**os.environ, "HF_ENDPOINT": server.endpoint}
    ran = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert (ran.stdout.split(), ran.returncode) == (["16060522496", "hub"], 0), ran.stderr
