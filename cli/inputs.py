"""Reading what verbs are given: a scenario from a file or standard input, and the plan it asks for."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from cli import exits
from planner.architecture import UnknownArchitecture
from planner.faults import Fault, Faults
from planner.scenario import Scenario, parse_scenario
from resources import strict_json
from resources.catalog import UnknownModel, close_ids
from resources.hub_errors import Gated, HubError, Missing
from resources.plan import Plan, make_plan

MAX_SCENARIO_BYTES = 4 * 2**20


def read_scenario(source: str) -> Scenario:
    """A scenario from a file, ``-`` for standard input. Raises Faults, also for JSON that does not parse."""
    label = "standard input" if source == "-" else source
    if source == "-":
        data = sys.stdin.buffer.read(MAX_SCENARIO_BYTES + 1)
        return parse_scenario(strict_json.parse(data, label))
    try:
        data = strict_json.read_bytes(Path(source), MAX_SCENARIO_BYTES)
    except OSError as error:
        raise Faults([Fault("", f"{source} can't be read: {error.strerror or error}")]) from error
    return parse_scenario(strict_json.parse(data, label))


def plan_of(scenario: Scenario) -> Plan:
    """The plan, on the GPU found here when the scenario names none."""
    if scenario.hardware.gpu is None:
        detected = detected_gpu()
        if detected:
            scenario = replace(scenario, hardware=replace(scenario.hardware, gpu=detected))
    return make_plan(scenario)


def require_layers(plan: Plan, layers: int | None) -> None:
    """Refuse more layers than the model has, by ValueError: what ran would not be what was asked for."""
    whole = len(plan.architecture.decoder.layers)
    if layers is not None and layers > whole:
        message = f"layers: the model has {whole}, got {layers}"
        raise ValueError(message)


def detected_gpu() -> str | None:
    """The catalog's name of the first GPU here that CUDA shows, None without one."""
    from probes.drivers import Drivers, visible  # noqa: PLC0415  loads the driver's library
    from resources.gpus import UnknownGpu, gpu  # noqa: PLC0415

    nvml = Drivers()
    try:
        readings = visible(nvml.readings()) if nvml.open().available else ()
        return gpu(readings[0].name, readings[0].memory.total_bytes).name if readings else None
    except (UnknownGpu, ValueError):
        return None
    finally:
        nvml.close()


ERRORS = (Faults, UnknownModel, UnknownArchitecture, HubError, OSError)
"""What a verb may meet between its arguments and a plan."""


def refuse(error: Exception, reads: Sequence[object] = ()) -> int:
    """Say what is wrong, a line for each fault; the status tells bad input from what could not be done here.

    ``reads`` are the files that were named to be read: one that can't be is bad input.
    """
    asked_wrongly = isinstance(error, Faults | UnknownModel | UnknownArchitecture | Missing)
    asked_wrongly |= isinstance(error, OSError) and error.filename is not None and str(error.filename) in map(str, reads)
    return exits.fail(exits.BAD_INPUT if asked_wrongly else exits.NOT_DONE_HERE, *messages_of(error))


def messages_of(error: Exception) -> tuple[str, ...]:
    """What to tell of an error: a line for each fault, and near names when a model is not found."""
    if isinstance(error, Faults):
        return tuple(str(fault) for fault in error.faults)
    if isinstance(error, HubError) and not isinstance(error, Gated):
        close = close_ids(error.what)
        return (f"model: {error}", *([f"close names in the catalog: {', '.join(close)}"] if close else []))
    if isinstance(error, OSError):
        return (f"{error.filename or 'output'}: {error.strerror or error}",)
    return (str(error),)
