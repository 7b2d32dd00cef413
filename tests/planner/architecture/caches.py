"""What transformers' caches hold after a prefill of a small random model, on the CPU."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from tests.planner.architecture.generate_defaults import READ_AS


def tensors_of(value: Any, seen: set[int]) -> list[torch.Tensor]:
    """Every tensor reachable from a cache object, bookkeeping numbers left out."""
    if isinstance(value, torch.Tensor):
        return [value] if value.is_floating_point() and id(value) not in seen and not seen.add(id(value)) else []
    if isinstance(value, dict):
        return [tensor for item in value.values() for tensor in tensors_of(item, seen)]
    if isinstance(value, list | tuple):
        return [tensor for item in value for tensor in tensors_of(item, seen)]
    if hasattr(value, "__dict__") and type(value).__module__.startswith("transformers") and "Config" not in type(value).__name__:
        return tensors_of(vars(value), seen) if id(value) not in seen and not seen.add(id(value)) else []
    return []


def prefill_cache(config: dict[str, Any], class_name: str, batch: int, tokens: int) -> tuple[int, int]:
    """Bytes the cache's tensors show and bytes of the storages they hold, in fp32."""
    settings = CONFIG_MAPPING[READ_AS.get(config["model_type"], config["model_type"])].from_dict(dict(config))
    settings._attn_implementation = "eager"
    torch.manual_seed(0)
    model = getattr(transformers, class_name)(settings).eval()
    ids = torch.randint(1, 90, (batch, tokens))
    with torch.no_grad():
        found = model(input_ids=ids, use_cache=True)
    cache = found.get("past_key_values", found.get("cache_params", found.get("state")))
    tensors = tensors_of(cache, set())
    logical = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    held = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return logical, sum(held.values())
