"""How each family of models is read from its config; one file per kinship."""

from planner.architecture.families import encoder as encoder
from planner.architecture.families import gemma as gemma
from planner.architecture.families import gpt_like as gpt_like
from planner.architecture.families import latent as latent
from planner.architecture.families import llama_like as llama_like
from planner.architecture.families import moe as moe
from planner.architecture.families import multimodal as multimodal
from planner.architecture.families import recurrent as recurrent
from planner.architecture.families import seq2seq as seq2seq
from planner.architecture.families.registry import FAMILIES, SUB_CONFIGS, defaults_of

__all__ = ["FAMILIES", "SUB_CONFIGS", "defaults_of"]
