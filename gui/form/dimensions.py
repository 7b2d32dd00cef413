"""The dimensions of a config that can be edited by hand: where each stands, and the config with one changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

Group = Literal["Size", "Attention", "Feed-forward", "Experts", "Vocabulary"]


@dataclass(frozen=True, slots=True)
class _Known:
    """A dimension under the names that configs store it; ``always``: offered though the config leaves it out."""

    label: str
    names: tuple[str, ...]
    group: Group
    always: bool = False
    flag: bool = False


_KNOWN: tuple[_Known, ...] = (
    _Known("Hidden size", ("hidden_size", "n_embd", "d_model", "dim"), "Size", always=True),
    _Known("Layers", ("num_hidden_layers", "n_layer", "n_layers", "num_layers"), "Size", always=True),
    _Known("Context", ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length"), "Size"),
    _Known("Heads", ("num_attention_heads", "n_head", "n_heads", "num_heads"), "Attention", always=True),
    _Known("KV heads", ("num_key_value_heads", "num_kv_heads", "multi_query_group_num"), "Attention", always=True),
    _Known("Head size", ("head_dim", "d_kv", "kv_channels"), "Attention", always=True),
    _Known("Window", ("sliding_window",), "Attention"),
    _Known("Q rank", ("q_lora_rank",), "Attention"),
    _Known("KV rank", ("kv_lora_rank",), "Attention"),
    _Known("No-RoPE size", ("qk_nope_head_dim",), "Attention"),
    _Known("RoPE size", ("qk_rope_head_dim",), "Attention"),
    _Known("Value size", ("v_head_dim",), "Attention"),
    _Known("Intermediate", ("intermediate_size", "n_inner", "ffn_dim", "d_ff", "ffn_hidden_size"), "Feed-forward", always=True),
    _Known("Experts", ("num_local_experts", "num_experts", "n_routed_experts"), "Experts"),
    _Known("Per token", ("num_experts_per_tok", "moe_topk", "moe_k"), "Experts"),
    _Known("Expert size", ("moe_intermediate_size",), "Experts"),
    _Known("Shared", ("n_shared_experts", "num_shared_experts"), "Experts"),
    _Known("Shared size", ("shared_expert_intermediate_size",), "Experts"),
    _Known("Vocabulary", ("vocab_size", "padded_vocab_size"), "Vocabulary", always=True),
    _Known("Tied head", ("tie_word_embeddings",), "Vocabulary", always=True, flag=True),
)
_NESTED = ("text_config", "llm_config", "language_config")
_LAYERS = next(known.names for known in _KNOWN if known.label == "Layers")


@dataclass(frozen=True, slots=True)
class Dimension:
    """One dimension of one config. ``path``: its key, dotted when it stands in an inner object; None: left out."""

    path: str
    label: str
    group: Group
    value: object
    flag: bool = False


def dimensions_of(config: Mapping[str, object]) -> tuple[Dimension, ...]:
    """What can be edited in ``config``: what it has, and what every model has though a config may leave it out."""
    return tuple(found for known in _KNOWN if (found := _find(config, known)) is not None)


def with_dimension(config: Mapping[str, object], path: str, value: object) -> dict[str, object]:
    """A copy with the key at ``path`` set; None takes it out, so that the type's default holds.

    Lists with one entry for each layer follow a changed number of layers: they are cut, or go on in their period.
    """
    head, _, rest = path.partition(".")
    changed = dict(config)
    if rest:
        inner = config.get(head)
        changed[head] = with_dimension(inner if isinstance(inner, Mapping) else {}, rest, value)
        return changed
    if value is None:
        changed.pop(head, None)
    else:
        changed[head] = value
    before = config.get(head)
    if head in _LAYERS and _is_count(before) and _is_count(value):
        for key, each in config.items():
            if isinstance(each, list) and len(each) == before:
                changed[key] = _refit(each, int(str(value)))
    return changed


def _find(config: Mapping[str, object], known: _Known) -> Dimension | None:
    for prefix, values in _places(config):
        for name in known.names:
            if name in values and _is_plain(values[name]):
                return Dimension(prefix + name, known.label, known.group, values[name], known.flag)
    prefix = _home(config)
    return Dimension(prefix + known.names[0], known.label, known.group, None, known.flag) if known.always else None


def _places(config: Mapping[str, object]) -> list[tuple[str, Mapping[str, object]]]:
    """The objects that a decoder's dimensions may stand in, the inner one first."""
    inner = [(f"{name}.", found) for name in _NESTED if isinstance(found := config.get(name), Mapping)]
    return [*inner, ("", config)]


def _home(config: Mapping[str, object]) -> str:
    return _places(config)[0][0]


def _is_plain(value: object) -> bool:
    return value is None or isinstance(value, bool | int)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value <= 4096


def _refit(values: Sequence[object], length: int) -> list[object]:
    period = next(size for size in range(1, len(values) + 1) if _repeats(values, size))
    return [*values[:length], *(values[index % period] for index in range(len(values), length))]


def _repeats(values: Sequence[object], period: int) -> bool:
    return all(values[index] == values[index - period] for index in range(period, len(values)))
