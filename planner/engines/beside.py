"""Models beside the one asked for, given by a config.json inside the scenario: drafts, embedding models."""

from __future__ import annotations

from collections.abc import Mapping

from planner.architecture import read_config
from planner.architecture.config import UnknownArchitecture
from planner.architecture.layers import Architecture
from planner.faults import Fault, Faults

DRAFT, EMBEDDER = "inference.speculation.draft", "inference.embedder.config"


def read_beside(config: Mapping[str, object], path: str) -> Architecture:
    """What a config says; :class:`planner.faults.Faults` under the scenario's ``path`` where it says nothing that is known."""
    try:
        return read_config(dict(config))
    except UnknownArchitecture as error:
        raise Faults([Fault(path, str(error))]) from error
    except Faults as error:
        raise Faults(Fault(f"{path}.{fault.path}", fault.message) for fault in dict.fromkeys(error.faults)) from error
