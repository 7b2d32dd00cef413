from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.faults import Faults
from planner.link import PREFIX, link_of, scenario_of
from planner.scenario import Hardware, Inference, ModelPath, Scenario, Training

SCENARIOS = st.builds(
    Scenario,
    model=st.sampled_from(["meta-llama/Llama-3.1-8B", "Ünïcode/модель"]),
    task=st.just("inference"),
    inference=st.builds(Inference, batch=st.integers(1, 999), prompt_tokens=st.integers(1, 2**20) | st.none()),
    hardware=st.builds(Hardware, gpus=st.integers(1, 99)),
)


@settings(max_examples=50)
@given(SCENARIOS)
def test_a_link_opens_as_the_scenario_it_was_made_of(scenario: Scenario) -> None:
    """scenario_of(link_of(s)) == s, also after a mail program has broken the line."""
    link = link_of(scenario)
    assert scenario_of(link) == scenario
    assert scenario_of(f" {link[:40]}\n  {link[40:]} ") == scenario


def test_a_path_of_this_machine_is_not_told() -> None:
    scenario = Scenario(ModelPath("/home/somebody/secret-model"), "training", training=Training(batch=2))
    link = link_of(scenario, {"model_type": "llama", "hidden_size": 8})
    opened = scenario_of(link)
    assert opened.model.config == {"model_type": "llama", "hidden_size": 8}
    assert opened.training.batch == 2
    with pytest.raises(Faults, match="can't be linked"):
        link_of(scenario)


@pytest.mark.parametrize("bad", ["", "http://x", PREFIX, PREFIX + "%%%", PREFIX + "QUJD", PREFIX + "A" * 5000])
def test_a_damaged_link_is_one_clear_error(bad: str) -> None:
    with pytest.raises(Faults, match="link"):
        scenario_of(bad)


def test_a_link_does_not_unpack_without_bound() -> None:
    import base64
    import zlib

    bomb = PREFIX + base64.urlsafe_b64encode(zlib.compress(b" " * 50_000_000, 9)).decode()
    with pytest.raises(Faults, match="too long"):
        scenario_of(bomb)
