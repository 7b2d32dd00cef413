"""What the readers of quantisation configs share."""

from __future__ import annotations

from collections.abc import Mapping

from planner.faults import Fault, Faults, Reader
from planner.formats.format import Format
from planner.formats.storage import Plain

MAX_NODES = 100_000
MAX_DEPTH = 16
MAX_NAMES = 20_000


def from_header_only(method: str, reason: str) -> Format:
    """A format that a config names but whose bytes it does not tell."""
    shown = method[:60]
    return Format(f"{shown} (from header only)", shown, Plain("bf16"), unknown=reason)


def unquantized() -> Format:
    """Every weight in the model's own dtype."""
    return Format("native", "as the checkpoint stores it", Plain("bf16"))


def module_names(reader: Reader, key: str) -> tuple[str, ...]:
    """A list of module names or patterns; an empty one is allowed."""
    value = reader.raw(key)
    if not isinstance(value, list | tuple) or not all(isinstance(name, str) and 0 < len(name) <= 4096 for name in value):
        reader.fault(key, "must be a list of module names")
        return ()
    if len(value) > MAX_NAMES:
        reader.fault(key, f"must hold at most {MAX_NAMES} names, got {len(value)}")
        return ()
    return tuple(value)


def reject_huge(document: object, path: str) -> None:
    """Refuse a document too deep or too large to be a quantisation config, before anything walks it."""
    level: list[object] = [document]
    seen = 0
    for _ in range(MAX_DEPTH):
        level = [child for node in level for child in _children(node)]
        seen += len(level)
        if not level:
            return
        if seen > MAX_NODES:
            raise Faults([Fault(path, f"must hold at most {MAX_NODES} values")])
    raise Faults([Fault(path, f"must not be nested deeper than {MAX_DEPTH} levels")])


def _children(node: object) -> list[object]:
    if isinstance(node, Mapping):
        return list(node.values())
    return list(node) if isinstance(node, list | tuple) else []
