"""The bundled models: complete, searchable, quick to load."""

from __future__ import annotations

import json

import pytest

from resources import catalog
from resources.catalog import UnknownModel, catalog_model, find_models, model_ids
from tests.timing import quickest_s


def test_every_model_says_where_it_comes_from() -> None:
    assert len(model_ids()) == 126
    for model in find_models():
        assert model.config["model_type"], model.id
        assert model.provenance, model.id
        assert model.provenance != "copy" or str(model.url).startswith("https://"), model.id
        assert model.published_parameters is None or model.published_parameters > 10**7, model.id


def test_configs_hold_nothing_that_is_not_json() -> None:
    json.dumps([dict(model.config) for model in find_models()], allow_nan=False)


def test_companion_files_are_kept() -> None:
    found = {model.id for model in find_models() if model.hf_quant_config is not None}
    assert found == {"nvidia/Llama-3.1-70B-Instruct-FP8", "nvidia/Qwen3-30B-A3B-NVFP4"}


def test_gates_and_licences() -> None:
    llama = catalog_model("meta-llama/Llama-3.1-8B")
    assert (llama.gated, llama.license, llama.published_parameters) == (True, "llama3.1", 8_030_261_248)
    assert catalog_model("Qwen/Qwen3-8B").gated is False


def test_ids_are_found_whatever_their_case() -> None:
    assert catalog_model("META-llama/llama-3.1-8b").id == "meta-llama/Llama-3.1-8B"


@pytest.mark.parametrize(
    ("wanted", "close"),
    [
        ("Llama-3.1-8B", "meta-llama/Llama-3.1-8B"),
        ("mistralai/Mistral-7B-v0.2", "mistralai/Mistral-7B-v0.1"),
        ("qwen3 8b", "Qwen/Qwen3-8B"),
    ],
)
def test_an_unknown_id_names_the_nearest(wanted: str, close: str) -> None:
    with pytest.raises(UnknownModel) as caught:
        catalog_model(wanted)
    assert close in caught.value.close
    assert close in str(caught.value)


def test_search_takes_words_in_any_order_and_puts_beginnings_first() -> None:
    assert find_models("mixtral")[0].id.startswith("mistralai/Mixtral")
    assert {model.id for model in find_models("moe qwen3 coder")} == {
        "Qwen/Qwen3-Coder-30B-A3B-Instruct",
        "Qwen/Qwen3-Coder-480B-A35B-Instruct",
    }
    assert find_models("no such model") == []


def test_sizes_stand_as_people_count_them() -> None:
    found = [model.id for model in find_models("Qwen/Qwen3-")]
    assert found.index("Qwen/Qwen3-4B") < found.index("Qwen/Qwen3-30B-A3B") < found.index("Qwen/Qwen3-235B-A22B")


def test_loading_is_quick() -> None:
    def load() -> None:
        catalog._rows.cache_clear()
        model_ids()

    assert quickest_s(load, 0.03) < 0.03
