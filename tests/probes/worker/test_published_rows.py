"""Published measurements of training: each row is a scenario, or has its reason."""

from planner.scenario import parse_scenario


def test_every_published_row_is_a_scenario_or_has_a_reason():
    from tests.accuracy import published_training as published

    rows = published.rows()
    assert len({row.id for row in rows}) == len(rows) == 540
    kept = [row for row in rows if published.reason(row) is None]
    scenarios = {row.id: parse_scenario(published.scenario_of(row)) for row in kept}
    assert {row.method for row in kept} == {"full", "lora", "qlora"}
    assert all(scenario.task == "training" for scenario in scenarios.values())
    assert all(published.release_of(row) != "not stated" for row in kept)
