"""Small random configs of a model type, made from the fields of transformers' configuration class."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from planner.architecture.families.registry import parts_of
from planner.architecture.noise import cannot_change_sizes
from tests.planner.architecture.generate_defaults import READ_AS, field_defaults

STRUCTURE = {
    "hidden_size": (64, 96, 128),
    "num_attention_heads": (4, 8),
    "num_key_value_heads": (1, 2, 4),
    "num_hidden_layers": (5, 7, 8),
    "vocab_size": (96, 200),
    "intermediate_size": (48, 112),
    "head_dim": (8, 24),
    "num_heads": (4, 8),
    "embed_dim": (64, 96),
    "depth": (3, 4),
    "image_size": (56, 84),
    "patch_size": (7, 14),
    "hidden_dim": (64,),
    "d_model": (64, 96),
    "encoder_layers": (2, 3),
    "encoder_attention_heads": (4, 8),
    "encoder_ffn_dim": (48, 80),
    "n_routed_experts": (8, 12),
    "num_experts": (8, 12),
    "num_local_experts": (8, 12),
    "num_experts_per_tok": (1, 2, 3),
}


def _kinds(*names: str) -> Callable[[dict[str, Any], random.Random], list[str]]:
    return lambda found, random_: [random_.choice(names) for _ in range(found["num_hidden_layers"])]


CONSISTENT: dict[str, Callable[[dict[str, Any], random.Random], dict[str, Any]]] = {
    "mamba2": lambda found, random_: {"expand": 2, "head_dim": 16, "num_heads": found["hidden_size"] // 8, "n_groups": 2},
    "granitemoehybrid": lambda found, random_: {
        "mamba_expand": 2,
        "mamba_d_head": "auto",
        "mamba_n_heads": found["hidden_size"] // 8,
        "layer_types": _kinds("mamba", "attention")(found, random_),
    },
    "falcon_h1": lambda found, random_: {"mamba_d_ssm": 96, "mamba_d_head": 16, "mamba_n_heads": 6},
    "bamba": lambda found, random_: {"mamba_expand": 2, "mamba_d_head": "auto", "mamba_n_heads": 8, "attn_layer_indices": [1, 3]},
    "zamba": lambda found, random_: {"n_mamba_heads": 2, "mamba_expand": 2, "attn_layer_period": 3, "attn_layer_offset": 1},
    "zamba2": lambda found, random_: {
        "layers_block_type": _kinds("mamba", "hybrid")(found, random_) + ["hybrid"] * 2,
        "num_hidden_layers": found["num_hidden_layers"] + 2,
        "mamba_expand": 2,
        "n_mamba_heads": 8,
    },
    "lfm2_moe": lambda found, random_: {"layer_types": _kinds("conv", "full_attention")(found, random_), "num_dense_layers": 2},
    "jamba": lambda found, random_: {
        "attn_layer_period": 3,
        "attn_layer_offset": 1,
        "expert_layer_period": 2,
        "expert_layer_offset": 1,
    },
    "gpt_neo": lambda found, random_: {"attention_types": [[["global", "local"], 4]], "num_layers": 8},
    "gemma3n_text": lambda found, random_: {
        "num_hidden_layers": 11,
        "num_kv_shared_layers": random_.choice((0, 3)),
        "intermediate_size": 96,
    },
    "gemma4_text": lambda found, random_: {
        "num_hidden_layers": 14,
        "num_kv_shared_layers": random_.choice((0, 5)),
        "global_head_dim": 32,
        "num_global_key_value_heads": 2,
        "num_experts": 8,
        "top_k_experts": 2,
        "moe_intermediate_size": 40,
        "sliding_window": 16,
    },
    "gemma4_unified_text": lambda found, random_: {"num_hidden_layers": 14, "global_head_dim": 32, "sliding_window": 16},
    "dots1": lambda found, random_: {"n_shared_experts": 2, "n_routed_experts": 8, "first_k_dense_replace": 2},
    "dbrx": lambda found, random_: {
        "d_model": 64,
        "n_heads": 4,
        "attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0},
        "ffn_config": {"ffn_hidden_size": random_.choice((48, 80)), "moe_num_experts": 4, "moe_top_k": 2},
    },
    "kimi_linear": lambda found, random_: {
        "linear_num_heads": 4,
        "linear_head_dim": 16,
        "num_attention_heads": 4,
        "num_hidden_layers": 6,
    },
    "nemotron_h": lambda found, random_: {"hybrid_override_pattern": "".join(random_.choice("ME*-") for _ in range(9))},
}
"""Fields that must agree with one another, and lists with one entry for each layer."""


def vary(model_type: str, seed: int, share: float = 0.4, *, small: bool = False) -> dict[str, Any]:
    """A config of ``model_type``: structure made small, ``share`` of the other fields changed at random.

    ``small``: every wide field is changed, so that the model runs in a moment.
    """
    random_ = random.Random(f"{model_type} {seed}")
    found = vary_class(CONFIG_MAPPING[READ_AS.get(model_type, model_type)], random_, share, small=small)
    for key, (usual, follows, _) in parts_of(model_type).items():
        part = vary(usual, seed, share, small=small)
        found[key] = part if follows else {name: value for name, value in part.items() if name != "model_type"}
    found["model_type"] = model_type
    found["pad_token_id"] = 0
    if "kv_lora_rank" in found or "qk_rope_head_dim" in found:
        found |= {"num_key_value_heads": found["num_attention_heads"], "qk_rope_head_dim": 16, "qk_nope_head_dim": 24}
    if model_type in CONSISTENT:
        found |= CONSISTENT[model_type](found, random_)
    return found


def is_wide(default: object) -> bool:
    """Whether a number is a width rather than a count."""
    return isinstance(default, int) and not isinstance(default, bool) and default > 48


def vary_class(config_class: Any, random_: random.Random, share: float, *, small: bool = False) -> dict[str, Any]:
    """The fields of one configuration class."""
    aliases = dict(config_class.attribute_map.items())
    native = {aliases.get(name, name): choices for name, choices in STRUCTURE.items()}
    found: dict[str, Any] = {}
    for name, default in field_defaults(config_class).items():
        if name in native:
            found[name] = random_.choice(native[name])
        elif cannot_change_sizes(name) or (random_.random() > share and not (small and is_wide(default))):
            continue
        elif isinstance(default, bool):
            found[name] = not default
        elif isinstance(default, int) and default > 0:
            found[name] = vary_integer(name, default, random_)
    return found


def vary_integer(name: str, default: int, random_: random.Random) -> int:
    """Another number of the same kind: small counts stay small, dimensions stay even."""
    if default <= 8:
        return random_.randint(1, max(2, default + 1))
    return random_.choice((8, 16, 24, 32))
