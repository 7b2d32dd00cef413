"""Reading what verbs are given: a scenario from a file or standard input, and the plan it asks for."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

from planner.architecture import UnknownArchitecture
from planner.faults import Fault, Faults
from planner.scenario import Scenario, parse_scenario
from resources import strict_json
from resources.catalog import UnknownModel
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


def detected_gpu() -> str | None:
    """The catalog's name of the first NVIDIA GPU here, None without one."""
    from probes.nvml import Nvml  # noqa: PLC0415  loads the driver's library
    from resources.gpus import UnknownGpu, gpu  # noqa: PLC0415

    nvml = Nvml()
    try:
        readings = nvml.readings() if nvml.open().available else ()
        return gpu(readings[0].name, int(readings[0].memory.total_bytes)).name if readings else None
    except (UnknownGpu, ValueError):
        return None
    finally:
        nvml.close()


def messages_of(error: Exception) -> tuple[str, ...]:
    """What to tell of an error: a line for each fault."""
    if isinstance(error, Faults):
        return tuple(str(fault) for fault in error.faults)
    return (str(error),)


BAD_INPUT = (Faults, UnknownModel, UnknownArchitecture)
"""Errors of what was asked, as against what could not be done here."""
