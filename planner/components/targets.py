"""What PEFT 0.21 adapts: linears by name, and of mixtures of experts whole parameters, which it adds adapters up with.

Sources: PEFT ``tuners/tuners_utils.py`` (``check_target_module_exists``, ``_check_lora_target_modules_mamba``),
``utils/transformers_weight_conversion.py`` (``_convert_peft_config_moe``): transformers 5 keeps the experts of a layer in two
parameters; where version 4 had linears, names of those linears turn into names of the parameters, and the linears that
bear the same names outside of the experts are adapted no more.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

from planner.architecture.counts import iter_weights
from planner.architecture.layers import Architecture, MixtureOfExperts, Weight
from planner.modelled import NotModelled
from planner.record import record

ALL_LINEAR = "all-linear"
LOW_RANK = ("lora", "dora", "qlora")
"""Methods that put a low-rank adapter beside a linear layer."""
Part = Literal["router", "up", "down"]
EXPERTS: tuple[Part, ...] = ("up", "down")
PARTS_OF_MIXTRAL: dict[str, Part] = {"gate": "router", "w1": "up", "w3": "up", "w2": "down"}
NAMES_OF_MIXTRAL = {"gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"}
PARTS_OF_QWEN2_MOE: dict[str, Part] = {"gate": "router", "gate_proj": "up", "up_proj": "up", "down_proj": "down"}
TURNED: dict[str, dict[str, Part]] = {
    **dict.fromkeys(("minimax", "minimax_m2", "mixtral"), PARTS_OF_MIXTRAL),
    **dict.fromkeys(
        (
            "afmoe", "beam", "cohere2_moe", "deepseek_v2", "deepseek_v3", "deepseek_v32", "dots1", "ernie4_5_moe", "exaone_moe",
            "flex_olmo", "glm4_moe", "glm4_moe_lite", "glm4v_moe", "glm_moe_dsa", "hunyuan_v1_moe", "kimi_k2", "longcat_flash",
            "mellum", "olmoe", "qwen3_moe", "qwen3_next", "qwen3_omni_moe", "qwen3_omni_moe_text", "qwen3_omni_moe_thinker",
            "solar_open",
        ),
        PARTS_OF_QWEN2_MOE,
    ),
}  # fmt: skip
"""Types whose names of linears turn into parts of stacked experts (``_MODEL_TO_CONVERSION_PATTERN``); kimi_k2 is deepseek_v3."""
FUSED = 2
"""Gate and up are one parameter, whose adapter has the rank of both."""
OF_MAMBA = ("falcon_h1", "mamba", "mamba2", "falcon_mamba", "nemotron_h")
REFUSED_OF_MAMBA = ("out_proj", "conv1d")
READ_BY_THE_MODEL = {"mamba": "dt_proj", "falcon_mamba": "dt_proj"}
"""Linears of which the model multiplies the weight itself (``MambaMixer``): an adapter beside them is never reached."""


@record
class Targets:
    """Linears by ``names`` (or every one), without those whose last name is in ``left_out``; and ``parts`` of the experts."""

    names: tuple[str, ...]
    left_out: frozenset[str] = frozenset()
    parts: frozenset[Part] = frozenset()

    def adapts(self, weight: Weight, path: str) -> bool:
        """Whether an adapter stands beside a weight's linear: its path is a name or ends in one."""
        if weight.role != "linear" and not weight.is_linear:
            return False
        module = f"{path}{weight.name}".rpartition(".")[0]
        if self.names == (ALL_LINEAR,):
            return module.rpartition(".")[2] not in self.left_out
        return bears(weight, path, self.names)

    def changes(self, weight: Weight) -> bool:
        """Whether a weight of a mixture of experts is one that adapters are added to."""
        return part_of(weight) in self.parts


@record
class Stacked:
    """A parameter (experts, out_features, in_features) and the rank of each expert's adapter."""

    experts: int
    outputs: int
    inputs: int
    rank: int

    @property
    def shapes(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """A and B of all experts, side by side."""
        ranks = self.rank * self.experts
        return (ranks, self.inputs), (self.outputs, ranks)


def stacked_of(mixer: MixtureOfExperts, part: Part, rank: int) -> Stacked:
    """A part of a layer's experts as one parameter; the router's weight is one of a single expert."""
    weights = [weight for weight in mixer.weights if part_of(weight) == part]
    outputs, inputs = sum(weight.shape[0] for weight in weights), weights[0].shape[1]
    return Stacked(weights[0].count, outputs, inputs, FUSED * rank if part == "up" else rank)


def stacked_parts(mixer: MixtureOfExperts, targets: Targets, rank: int) -> list[tuple[Part, Stacked]]:
    """The parameters of a layer's experts that adapters are added to."""
    there = {part_of(weight) for weight in mixer.weights}
    parts: tuple[Part, ...] = ("router", *EXPERTS)
    return [(part, stacked_of(mixer, part, rank)) for part in parts if part in targets.parts and part in there]


def bears(weight: Weight, path: str, names: Sequence[str]) -> bool:
    """Whether the path of a weight's module is one of ``names`` or ends in one."""
    module = f"{path}{weight.name}".rpartition(".")[0]
    return any(module == name or module.endswith(f".{name}") for name in names)


def part_of(weight: Weight) -> Part | None:
    """Which stacked parameter of a layer's experts a weight is in, or whether it is their router's own."""
    if weight.role == "router":
        return "router" if weight.name.endswith(".gate.weight") else None
    if weight.role != "expert":
        return None
    return "down" if "down_proj" in weight.name or ".w2" in weight.name else "up"


def targets_of(architecture: Architecture, method: str, names: tuple[str, ...]) -> Targets:
    """What a method adapts of a model. Raises :class:`NotModelled` for what PEFT refuses."""
    if method not in LOW_RANK:
        return Targets(names)
    _refuse_of_mamba(architecture, names)
    turned = TURNED.get(architecture.model_type)
    if turned is None:
        return Targets(names)
    if names == (ALL_LINEAR,):
        return _with_experts(architecture, Targets(names, frozenset(turned), frozenset(turned.values())))
    named = {name: turned.get(name.rpartition(".")[2]) for name in names}
    missing = [name for name, part in turned.items() if part == "up" and not any(_is(found, name) for found in names)]
    if missing and "up" in named.values():
        raise NotModelled(
            f"training.lora.targets: PEFT refuses one of the experts' {' and '.join(n for n, p in turned.items() if p == 'up')} "
            f"without the other, as transformers keeps them in one parameter: add {', '.join(missing)}"
        )
    kept = tuple(name for name, part in named.items() if part is None)
    return _with_experts(architecture, Targets(kept, parts=frozenset(part for part in named.values() if part is not None)))


def mixtures(architecture: Architecture) -> Iterator[MixtureOfExperts]:
    """The mixtures of experts of a decoder, once for each layer."""
    for layer in architecture.decoder.layers:
        yield from (channel for channel in layer.channel if isinstance(channel, MixtureOfExperts))


def _is(name: str, last: str) -> bool:
    return name == last or name.endswith(f".{last}")


def _with_experts(architecture: Architecture, found: Targets) -> Targets:
    """Only the parts that the model has."""
    there = {part_of(weight) for mixer in mixtures(architecture) for weight in mixer.weights}
    return Targets(found.names, found.left_out, frozenset(part for part in found.parts if part in there))


def _refuse_of_mamba(architecture: Architecture, names: tuple[str, ...]) -> None:
    """PEFT refuses what Mamba's kernel reads by itself."""
    if architecture.model_type not in OF_MAMBA:
        return
    every = names == (ALL_LINEAR,)
    refused = REFUSED_OF_MAMBA[:1] if every else [name for name in names if name.rpartition(".")[2] in REFUSED_OF_MAMBA]
    if refused:
        raise NotModelled(
            f"training.lora.targets: PEFT refuses to adapt {', '.join(refused)} of {architecture.model_type}"
            f"{', which all-linear names too' if every else ''}: name other linear layers"
        )
    idle = READ_BY_THE_MODEL.get(architecture.model_type)
    if any(name.rpartition(".")[2] == idle for name in names):
        raise NotModelled(f"training.lora.targets: {architecture.model_type} reads {idle} past its adapter: leave it out")


def adaptable(architecture: Architecture) -> Iterator[tuple[str, Weight, int]]:
    """What targets can name: the path of each linear without its parameter, its weight, and how many there are of it.

    Among them experts and routers whose names PEFT turns; without linears that it refuses or never reaches.
    """
    turned = TURNED.get(architecture.model_type, {})
    left_out = REFUSED_OF_MAMBA if architecture.model_type in OF_MAMBA else ()
    for path, weight, times in iter_weights(architecture):
        module = f"{path}{weight.name}".removesuffix(".weight")
        last = module.rpartition(".")[2]
        if not weight.name.endswith(".weight") or last in (*left_out, READ_BY_THE_MODEL.get(architecture.model_type)):
            continue
        if turned and part_of(weight) is not None:
            old = NAMES_OF_MIXTRAL.get(last, last) if "w1" in turned else last
            yield f"{module.rpartition('.')[0]}.{old}", weight, times * weight.count
        elif last not in turned and (weight.role == "linear" or weight.is_linear):
            yield module, weight, times * weight.count
