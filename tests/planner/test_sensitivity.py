"""A control that drives a plan adds what is said of it, and fits up to where it is said."""

from __future__ import annotations

from dataclasses import replace

from planner.footprint import Verdict
from planner.scenario import Hardware, Inference, Scenario
from planner.sensitivity import Driver, drivers_of
from planner.solve import Asked, with_context, with_values
from resources.plan import make_plan

TOO_LONG = Scenario(
    "meta-llama/Llama-3.1-8B", "inference", hardware=Hardware("GeForce RTX 4090"),
    inference=Inference(batch=8, prompt_tokens=6000, new_tokens=64),
)  # fmt: skip


def drivers(scenario: Scenario) -> tuple[Asked, dict[str, Driver]]:
    plan = make_plan(scenario, network=False)
    asked = Asked(scenario, plan.architecture, plan.gpu, plan.model.native)
    return asked, {one.control: one for one in drivers_of(asked, plan.footprint)}


def test_a_driver_fits_up_to_where_it_says_and_no_further() -> None:
    asked, found = drivers(TOO_LONG)
    assert set(found) == {"context", "batch"}
    context, batch = found["context"].most, found["batch"].most

    def verdicts(*scenarios: Scenario) -> list[Verdict | None]:
        return [asked.verdict(scenario) for scenario in scenarios]

    assert verdicts(with_context(TOO_LONG, context), with_context(TOO_LONG, context + 1)) == ["tight", "does_not_fit"]
    assert asked.fits(with_values(TOO_LONG, batch=batch))
    assert verdicts(with_values(TOO_LONG, batch=batch + 1)) == ["does_not_fit"]


def test_what_adds_nothing_drives_nothing() -> None:
    _, found = drivers(replace(TOO_LONG, inference=replace(TOO_LONG.inference, batch=1)))
    assert "batch" not in found
