"""How each family of models is read from its config; one file per kinship."""

from planner.architecture.families import (
    audio_towers,
    compressed,
    encoder,
    encoder_kin,
    gemma,
    gpt_like,
    latent,
    linear_attention,
    llama_like,
    llama_towers,
    moe,
    moe_variants,
    multimodal,
    phi_like,
    recurrent,
    seq2seq,
    state_space,
    towers,
    zamba,
)
from planner.architecture.families.by_keys import by_keys
from planner.architecture.families.defaults import NOT_READ
from planner.architecture.families.registry import FAMILIES, SUB_CONFIGS, defaults_of, parts_of

__all__ = [
    "FAMILIES",
    "NOT_READ",
    "SUB_CONFIGS",
    "audio_towers",
    "by_keys",
    "compressed",
    "defaults_of",
    "encoder",
    "encoder_kin",
    "gemma",
    "gpt_like",
    "latent",
    "linear_attention",
    "llama_like",
    "llama_towers",
    "moe",
    "moe_variants",
    "multimodal",
    "parts_of",
    "phi_like",
    "recurrent",
    "seq2seq",
    "state_space",
    "towers",
    "zamba",
]
