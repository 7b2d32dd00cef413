"""A scenario as one line of text that can be sent and opened: no token, no host name, no path of a disk."""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Mapping
from dataclasses import replace

from planner.faults import Fault, Faults
from planner.scenario import InlineConfig, ModelPath, Scenario, parse_scenario, to_json

PREFIX = "highwater:1:"
_MAX_BYTES = 1 << 20


def link_of(scenario: Scenario, config: Mapping[str, object] | None = None) -> str:
    """The link. A model that is a path on this machine goes as its ``config``; Faults without one."""
    if isinstance(scenario.model, ModelPath):
        if config is None:
            raise Faults([Fault("model", "a model on this machine can't be linked to before its config is read")])
        scenario = replace(scenario, model=InlineConfig(config))
    text = json.dumps(to_json(scenario), separators=(",", ":"), ensure_ascii=False)
    return PREFIX + base64.urlsafe_b64encode(zlib.compress(text.encode(), 9)).decode().rstrip("=")


def scenario_of(link: str) -> Scenario:
    """The scenario a link stands for. Raises :class:`planner.faults.Faults`."""
    plain = "".join(link.split())
    if not plain.startswith(PREFIX):
        raise Faults([Fault("", f"not a link of a plan: it begins with {PREFIX}")])
    try:
        document = json.loads(_unpacked(plain.removeprefix(PREFIX)))
    except (ValueError, zlib.error, RecursionError) as error:
        raise Faults([Fault("", f"the link is damaged: {error}")]) from error
    return parse_scenario(document)


def _unpacked(body: str) -> bytes:
    """The text, of bounded size whatever was packed."""
    reader = zlib.decompressobj()
    text = reader.decompress(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)), _MAX_BYTES)
    if not reader.eof:
        raise ValueError("it is cut short or too long")
    return text
