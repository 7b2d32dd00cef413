"""``--override-tensor``: tensors kept on another buffer by their names, of which routed experts on the host are derived.

Source: llama.cpp ``common/arg.cpp`` (``parse_tensor_buffer_overrides``), ``src/llama-model-loader.cpp`` (the first pattern found
in a name decides), 0.5.0-dev.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from planner.engines.llama_cpp.buffers import EXPERTS, INPUT_TENSORS
from planner.faults import Fault, Faults
from planner.formats import GgufTensor
from planner.modelled import NotModelled

OPTION = "inference.engine_options.override_tensor"
HOST_BUFFERS = ("CPU", "CUDA_Host")
MOST_CHARACTERS = 2048
REPEATED_GROUP = re.compile(r"\)[*+?{]")
"""Repeats of groups take exponential time on some names, and no name of a tensor needs them."""

Rule = tuple[re.Pattern[str], str]


def host_experts(options: Mapping[str, object], tensors: Sequence[GgufTensor]) -> frozenset[int]:
    """Layers whose routed experts the option keeps on the host.

    Raises :class:`planner.faults.Faults` for what llama.cpp refuses, and :class:`NotModelled` for other tensors and buffers.
    """
    text = str(options.get("override_tensor", ""))
    if not text:
        return frozenset()
    rules = rules_of(text)
    moved: set[str] = set()
    for tensor in tensors:
        buffer = next((buffer for pattern, buffer in rules if pattern.search(tensor.name)), None)
        if buffer is None or (buffer in HOST_BUFFERS and tensor.name in INPUT_TENSORS):
            continue
        if buffer not in HOST_BUFFERS or EXPERTS not in tensor.name:
            raise NotModelled(f"override_tensor: {tensor.name} on {buffer} is not derived; routed experts on CPU are")
        moved.add(tensor.name)
    experts = [tensor for tensor in tensors if EXPERTS in tensor.name]
    layers = frozenset(tensor.layer for tensor in experts if tensor.name in moved)
    split = next((tensor.name for tensor in experts if tensor.layer in layers and tensor.name not in moved), None)
    if split is not None:
        raise NotModelled(f"override_tensor: {split} stays where others of its layer do not, which is not derived")
    return layers


def rules_of(text: str) -> tuple[Rule, ...]:
    """``pattern=buffer`` separated by commas, as llama.cpp takes them."""
    if len(text) > MOST_CHARACTERS:
        raise Faults([Fault(OPTION, f"has {len(text)} characters; at most {MOST_CHARACTERS} are read")])
    rules: list[Rule] = []
    for part in text.split(","):
        pattern, separator, buffer = part.rpartition("=")
        if not separator or not pattern or not buffer:
            raise Faults([Fault(OPTION, r"must be pattern=buffer, such as \.ffn_.*_exps\.=CPU")])
        rules.append((_compiled(pattern), buffer))
    return tuple(rules)


def _compiled(pattern: str) -> re.Pattern[str]:
    if REPEATED_GROUP.search(pattern):
        raise Faults([Fault(OPTION, f"repeats of groups are not read: {pattern[:60]}; write the alternatives out")])
    try:
        return re.compile(pattern)
    except re.error as error:
        raise Faults([Fault(OPTION, f"is no regular expression: {error}")]) from error
