"""What a model is: the vocabulary of layers, and reading a config into it."""

from planner.architecture.config import UnknownArchitecture
from planner.architecture.counts import (
    active_parameter_count,
    embedding_parameter_count,
    iter_weights,
    layer_groups,
    layer_indices,
    parameter_count,
)
from planner.architecture.layers import Architecture
from planner.architecture.read import read_config

__all__ = [
    "Architecture",
    "UnknownArchitecture",
    "active_parameter_count",
    "embedding_parameter_count",
    "iter_weights",
    "layer_groups",
    "layer_indices",
    "parameter_count",
    "read_config",
]
