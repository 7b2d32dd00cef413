"""How each family of models is read from its config; one file per kinship."""

from planner.architecture.families import llama_like as llama_like
from planner.architecture.families.registry import FAMILIES, Family

__all__ = ["FAMILIES", "Family"]
