"""From a config to an :class:`Architecture`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from planner.architecture.config import Config, UnknownArchitecture
from planner.architecture.layers import Architecture
from planner.faults import Fault, Faults, describe


def read_config(config: Mapping[str, object], *, model_class: str | None = None) -> Architecture:
    """Read a model's config (the object in ``config.json``) into its architecture.

    ``model_class``: the transformers class to read it for; by default the first of ``architectures``, else the type's
    usual one. Raises :class:`planner.faults.Faults` naming every field that is wrong, and :class:`UnknownArchitecture`
    when the model type is not known and the keys do not suffice.
    """
    # the readers of all families and their table are loaded with the first config, not with the program
    from planner.architecture.families import FAMILIES, NOT_READ, by_keys  # noqa: PLC0415

    if not isinstance(config, Mapping):
        raise Faults([Fault("", f"must be an object, got {describe(config)}")])
    model_type = config.get("model_type")
    if model_type is not None and not isinstance(model_type, str):
        raise Faults([Fault("model_type", f"must be a name, got {describe(model_type)}")])
    if model_type is None or model_type not in FAMILIES:
        if model_type in NOT_READ:
            raise UnknownArchitecture(f"model_type {describe(model_type)}: transformers has a class for it, which is not read yet")
        return by_keys(config, model_class or _named_class(config))
    reading = _reading(config, model_type, model_class)
    found = FAMILIES[model_type](reading)
    if "per_layer_config" in config and "per_layer_config" not in reading.read:
        raise UnknownArchitecture(f"per_layer_config: layers that differ one by one are not read for {model_type}")
    reading.reader.raise_faults()
    notes = [*found.notes, *reading.notes]
    if unread := reading.unread():
        notes.append(f"not read for this model type, could change sizes elsewhere: {', '.join(unread[:40])}")
    if foreign := _is_foreign(config, model_type):
        notes.append(f"auto_map: {describe(_named_class(config))} is code of the checkpoint's own; read as {model_type}")
    return replace(
        found,
        verified=found.verified and not foreign,
        notes=tuple(notes),
        sources=reading.sources,
        rope_factor_values=rope_factor_values(config),
        keeps_cache=config.get("use_cache") is not False,
    )


_HEADS = {
    "Model": "",
    "LMHeadModel": "lm_head",
    "MTModel": "lm_head",
    "ForCausalLM": "lm_head",
    "ForConditionalGeneration": "lm_head",
    "ForMaskedLM": "lm_head",
    "ForPreTraining": "lm_head",
    "ForSequenceClassification": "score",
    "ForTokenClassification": "score",
    "ForQuestionAnswering": "qa_outputs",
}


def _is_foreign(config: Mapping[str, object], model_type: str) -> bool:
    """Whether a checkpoint brings a class of its own (``auto_map``) under a name that is not one of its type's."""
    from planner.architecture.families import defaults_of  # noqa: PLC0415 - see read_config

    usual = defaults_of(model_type).model_class
    head = max((suffix for suffix in _HEADS if usual.endswith(suffix)), key=len, default="")
    named = _named_class(config)
    return bool(config.get("auto_map") and named and usual) and not named.startswith(usual.removesuffix(head))


def _reading(config: Mapping[str, object], model_type: str, model_class: str | None) -> Config:
    """The config with its type's defaults, for the class that is asked for or named."""
    from planner.architecture.families import defaults_of  # noqa: PLC0415 - see read_config

    defaults = defaults_of(model_type)
    wanted = model_class or _named_class(config) or defaults.model_class
    suffixes = [suffix for suffix in _HEADS if wanted.endswith(suffix)]
    notes = []
    if not suffixes:
        notes.append(f"architectures: {describe(wanted)} is not known; read as {defaults.model_class}")
        wanted = defaults.model_class
        suffixes = [suffix for suffix in _HEADS if wanted.endswith(suffix)] or ["Model"]
    head = _HEADS[max(suffixes, key=len)]
    base = f"{defaults.base}." if head and defaults.base else ""
    found = Config(config, replace(defaults, model_class=wanted), base=base, head=head)
    found.notes.extend(notes)
    return found


def _named_class(config: Mapping[str, object]) -> str:
    named = config.get("architectures")
    first = named[0] if isinstance(named, list | tuple) and named else ""
    return first if isinstance(first, str) and len(first) <= 256 else ""


def rope_factor_values(config: Mapping[str, object]) -> int:
    """How many rotary factors a config scales: Llama 3's frequencies, LongRoPE's two lists."""
    text = config.get("text_config")
    keys = text if isinstance(text, dict) else config
    rope = keys.get("rope_scaling") or keys.get("rope_parameters")
    if not isinstance(rope, dict):
        return 0
    kind = rope.get("rope_type") or rope.get("type")
    if kind == "llama3":
        hidden, heads, width = (keys.get(key) for key in ("hidden_size", "num_attention_heads", "head_dim"))
        if not isinstance(width, int) and isinstance(hidden, int) and isinstance(heads, int) and heads > 0:
            width = hidden // heads
        return width // 2 if isinstance(width, int) and 0 < width < 2**20 else 0
    factors = (rope.get("long_factor"), rope.get("short_factor"))
    return sum(len(values) for values in factors if isinstance(values, list)) if kind in ("longrope", "su") else 0
