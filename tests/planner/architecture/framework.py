"""What transformers builds from a config, on the meta device: the oracle the readers are held to."""

from __future__ import annotations

import re
from collections import Counter
from math import prod
from typing import Any

import torch
import transformers
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from planner.architecture import Architecture
from planner.architecture.counts import iter_weights
from tests.planner.architecture.generate_defaults import READ_AS

Parameters = Counter[tuple[str, tuple[int, ...]]]
_INDEX = re.compile(r"(?<=\.)\d+(?=\.|$)")


def fold(name: str) -> str:
    """A parameter's name with every index replaced by ``*``."""
    return _INDEX.sub("*", name)


def build(config: dict[str, Any], class_name: str) -> torch.nn.Module:
    """The model on the meta device: names and shapes without memory."""
    settings = CONFIG_MAPPING[READ_AS.get(config["model_type"], config["model_type"])].from_dict(dict(config))
    settings.dtype = None
    with torch.device("meta"):
        return getattr(transformers, class_name)(settings)


def framework_parameters(model: torch.nn.Module, known: frozenset[str] = frozenset()) -> Parameters:
    """Folded name and shape of every parameter, tied ones once → how often; of a tied one's names one that is ``known``."""
    names: dict[int, list[str]] = {}
    shapes: dict[int, tuple[int, ...]] = {}
    for name, value in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(value), []).append(fold(name))
        shapes[id(value)] = tuple(value.shape)
    return Counter((next((name for name in found if name in known), found[0]), shapes[key]) for key, found in names.items())


def read_parameters(architecture: Architecture) -> Parameters:
    """The same of an architecture, experts as they are named there."""
    found: Parameters = Counter()
    for prefix, weight, times in iter_weights(architecture):
        if not weight.is_buffer:
            found[fold(prefix + weight.name), weight.shape] += times * weight.count
    return found


def differences(architecture: Architecture, model: torch.nn.Module) -> list[str]:
    """What the two do not share: names and shapes, the experts by their total, as checkpoints name those otherwise."""
    ours = read_parameters(architecture)
    theirs = framework_parameters(model, frozenset(name for name, _ in ours))
    expert_names = (".experts.", ".input_linear.", ".output_linear.")

    def plain(found: Parameters) -> Parameters:
        kept: Parameters = Counter()
        for (name, shape), count in found.items():
            if not any(part in f".{name}" for part in expert_names):
                kept[name, tuple(sorted(shape))] += count
        return kept

    def total(found: Parameters) -> int:
        return sum(prod(shape) * count for (_, shape), count in found.items())

    lines = [f"missing {count} x {name} {shape}" for (name, shape), count in (plain(theirs) - plain(ours)).items()]
    lines += [f"too many {count} x {name} {shape}" for (name, shape), count in (plain(ours) - plain(theirs)).items()]
    if total(theirs) != total(ours):
        lines.append(f"total {total(ours)} instead of {total(theirs)}")
    return lines
