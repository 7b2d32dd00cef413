"""What a training changes: the parameters that get a gradient and optimizer states, by method.

Sources: PEFT 0.21 (``tuners/tuners_utils.py`` for how targets are matched and adapters cast, ``tuners/lora``, ``tuners/ia3``,
``tuners/prompt_tuning``, ``tuners/prefix_tuning``).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from math import isqrt, prod
from typing import NamedTuple

from planner.architecture.counts import decoder_weights, is_routed, iter_weights, layer_groups, layer_weights, parameter_count
from planner.architecture.layers import Architecture, Attention, DenseMLP, Layer, MixtureOfExperts, Stack, Weight
from planner.components.targets import ALL_LINEAR, LOW_RANK, Targets, adaptable, bears, stacked_parts, targets_of
from planner.memo import remember_by_identity
from planner.modelled import NotModelled
from planner.scenario import Lora, Training

FP32_BYTES, HALF_BYTES = 4, 2
OTHERS = ("vera", "loha", "lokr")
"""Methods whose adapters are no low-rank product of their own (:mod:`planner.components.other_adapters`)."""
ADAPTED = (*LOW_RANK, "ia3", *OTHERS)
"""Methods that change linear layers by name."""
VIRTUAL = ("prompt", "prefix")


class Trainable(NamedTuple):
    """``times`` parameters of one shape that a training changes."""

    shape: tuple[int, ...]
    dtype_bytes: int
    times: int
    name: str

    @property
    def numel(self) -> int:
        """Elements of one."""
        return prod(self.shape)


def trainable_tensors(architecture: Architecture, training: Training, dtype_bytes: int) -> tuple[Trainable, ...]:
    """Every parameter that gets a gradient from text. ``dtype_bytes``: of a plain parameter of the base.

    Raises :class:`NotModelled` for targets that no linear layer of the decoder bears.
    """
    adapter_bytes = adapter_dtype_bytes(training, dtype_bytes)
    return _tensors(
        architecture, training.method, training.lora, training.trainable, training.virtual_tokens, dtype_bytes, adapter_bytes
    )


def trainable_parameters(architecture: Architecture, training: Training) -> int:
    """How many parameters the method trains; those of towers, which text does not reach, are among them."""
    if training.method == "full":
        return parameter_count(architecture)
    found = sum(tensor.times * tensor.numel for tensor in trainable_tensors(architecture, training, 2))
    if training.method in ADAPTED:
        found += sum(tensor.times * tensor.numel for tensor in tower_adapters(architecture, training, 2))
    return found


def tower_adapters(architecture: Architecture, training: Training, dtype_bytes: int) -> tuple[Trainable, ...]:
    """Adapters of towers, whose modules bear the targets' names too: they are held and get no gradient from text."""
    if training.method not in ADAPTED:
        return ()
    own, targets = len(list(decoder_weights(architecture))), targets_of(architecture, training.method, training.lora.targets)
    width = adapter_dtype_bytes(training, dtype_bytes)
    rest = list(iter_weights(architecture))[own:]
    feed_forward = {id(weight) for tower in architecture.towers for weight in feed_forward_weights(tower)}
    return tuple(
        tensor
        for path, weight, times in rest
        if targets.adapts(weight, path)
        for tensor in adapters_of(
            path, weight, times, training.method, training.lora, width, feeds_forward=id(weight) in feed_forward
        )
    )


def adapter_dtype_bytes(training: Training, dtype_bytes: int) -> int:
    """PEFT makes adapters in the base's dtype, fp32 over a quantised one, and casts 16 bit to fp32 unless told not to.

    TRL's trainers cast those over a quantised base to bf16 (TRL 1.16 ``trainer/dpo_trainer.py``).
    """
    casts = training.engine_options.get("autocast_adapter_dtype", True)
    if training.method == "qlora" and training.objective != "sft":
        return HALF_BYTES
    return FP32_BYTES if casts or training.method in ("qlora", *VIRTUAL) else dtype_bytes


def _require_linears(architecture: Architecture, targets: Targets) -> None:
    """Raise :class:`NotModelled` for targets beside the linears of layers, whose adapters are laid elsewhere."""
    for path, weight, _ in _parameters(architecture):
        if weight.role in ("head", "embedding", "conv") and bears(weight, path, targets.names):
            raise NotModelled(f"training.lora.targets: an adapter of {weight.name} has no closed form yet")
        if weight.role != "router" or weight.name.endswith(("shared_expert_gate.weight", ".gate.wg.weight")):
            continue
        if targets.adapts(weight, path) or bears(weight, path, targets.names):
            if weight.is_linear and weight.name.endswith(".router.weight"):
                raise NotModelled(
                    f"training.lora.targets: PEFT adds to what a linear returns, and {weight.name.removesuffix('.weight')} returns "
                    "scores and choices at once, so that it cannot be adapted: name the other linears"
                )
            every = f"{ALL_LINEAR} names the router too, and " if targets.names == (ALL_LINEAR,) else ""
            raise NotModelled(f"training.lora.targets: {every}an adapter of {weight.name} has no closed form yet: name the linears")


def is_named(weight: Weight, path: str, names: Sequence[str]) -> bool:
    """Whether a weight lies in one of the modules ``names``: a run of parts of its path, as ``layers.3`` or ``lm_head``."""
    whole = f".{path}{weight.name}."
    return any(f".{name}." in whole for name in names)


def adapters_of(
    path: str, weight: Weight, times: int, method: str, lora: Lora, dtype_bytes: int, *, feeds_forward: bool
) -> Iterator[Trainable]:
    """The adapter's parameters beside one linear layer (out_features, in_features).

    IA³ scales what a feed-forward block's layer reads (``feeds_forward``) and what another's makes.
    """
    outputs, inputs = weight.shape
    module, count = f"{path}{weight.name}".rpartition(".")[0], times * weight.count
    if method == "ia3":
        yield Trainable((1, inputs) if feeds_forward else (outputs, 1), dtype_bytes, count, f"{module}.ia3_l")
        return
    if method in OTHERS:
        for name, shape in _shapes_of(method, lora.rank, weight):
            yield Trainable(shape, dtype_bytes, count, f"{module}.{name}")
        return
    yield Trainable((lora.rank, inputs), dtype_bytes, count, f"{module}.lora_A")
    yield Trainable((outputs, lora.rank), dtype_bytes, count, f"{module}.lora_B")
    if method == "dora":
        yield Trainable((outputs,), dtype_bytes, count, f"{module}.lora_magnitude_vector")


def nearest_factors(extent: int) -> tuple[int, int]:
    """The two factors nearest to the root, the smaller first (PEFT ``lokr/layer.py``, ``factorization`` by default)."""
    smaller = next(factor for factor in range(isqrt(extent), 0, -1) if extent % factor == 0)
    return smaller, extent // smaller


def is_factored(rank: int, rows: int, columns: int) -> bool:
    """Whether LoKr's second matrix is a product of two of a rank."""
    return rank < max(rows, columns) / 2


def _shapes_of(method: str, rank: int, weight: Weight) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of the parameters beside one linear (out_features, in_features)."""
    outputs, inputs = weight.shape
    if method == "vera":
        yield "vera_lambda_b", (outputs,)
        yield "vera_lambda_d", (rank,)
        return
    if method == "lokr":
        (rows, inner_rows), (columns, inner_columns) = (nearest_factors(extent) for extent in weight.shape)
        yield "lokr_w1", (rows, columns)
        if not is_factored(rank, inner_rows, inner_columns):
            yield "lokr_w2", (inner_rows, inner_columns)
            return
        yield "lokr_w2_a", (inner_rows, rank)
        yield "lokr_w2_b", (rank, inner_columns)
        return
    for part in ("w1", "w2"):
        yield f"hada_{part}_a", (outputs, rank)
        yield f"hada_{part}_b", (rank, inputs)


@remember_by_identity(64)
def _tensors(
    architecture: Architecture, method: str, lora: Lora, names: tuple[str, ...], virtual_tokens: int, dtype_bytes: int,
    adapter_bytes: int,
) -> tuple[Trainable, ...]:  # fmt: skip
    if method == "full":
        return tuple(_whole(_parameters(architecture), dtype_bytes))
    if method == "freeze":
        return _unfrozen(architecture, names, dtype_bytes)
    if method in VIRTUAL:
        return (_virtual(architecture, method, virtual_tokens),)
    targets = targets_of(architecture, method, lora.targets)
    _require_linears(architecture, targets)
    _require_stackable(targets, method, lora)
    feed_forward = {id(weight) for weight in feed_forward_weights(architecture.decoder)}
    found = tuple(
        tensor
        for path, weight, times in _parameters(architecture)
        if targets.adapts(weight, path)
        for tensor in adapters_of(path, weight, times, method, lora, adapter_bytes, feeds_forward=id(weight) in feed_forward)
    )
    found += tuple(_of_experts(architecture.decoder, targets, lora, adapter_bytes))
    if not found:
        raise NotModelled(
            f"training.lora.targets: no linear layer of {architecture.model_class} is named {', '.join(lora.targets)}; "
            f"it has {', '.join(dict.fromkeys(path.rpartition('.')[2] for path, _, _ in adaptable(architecture)))}"
        )
    return found


def _require_stackable(targets: Targets, method: str, lora: Lora) -> None:
    """Raise :class:`NotModelled` for what PEFT refuses of adapters that are added to a whole parameter."""
    refused = "DoRA" if method == "dora" else "a dropout" if lora.dropout else ""
    if targets.parts and refused:
        raise NotModelled(f"training.lora: PEFT refuses {refused} of adapters of experts and routers: name other linears")


def _of_experts(stack: Stack, targets: Targets, lora: Lora, dtype_bytes: int) -> Iterator[Trainable]:
    """Adapters of the stacked experts, of all experts of a layer side by side, and of their router."""
    for layer, times in layer_groups(stack):
        for mixer in layer.channel:
            for part, stacked in stacked_parts(mixer, targets, lora.rank) if isinstance(mixer, MixtureOfExperts) else ():
                first, second = stacked.shapes
                yield Trainable(first, dtype_bytes, times, f"{stack.name}.*.experts {part}.lora_A")
                yield Trainable(second, dtype_bytes, times, f"{stack.name}.*.experts {part}.lora_B")


def feed_forward_weights(stack: Stack) -> Iterator[Weight]:
    """Weights of the last linear of each dense feed-forward block, which IA³ scales at its input (PEFT's own mapping)."""
    for layer in stack.layers:
        for channel in layer.channel:
            linears = [weight for weight in channel.weights if weight.role == "linear"]
            if isinstance(channel, DenseMLP) and linears:
                yield linears[-1]


def _parameters(architecture: Architecture) -> Iterator[tuple[str, Weight, int]]:
    return (found for found in decoder_weights(architecture) if not found[1].is_buffer)


def _whole(weights: Iterable[tuple[str, Weight, int]], dtype_bytes: int) -> Iterator[Trainable]:
    """The parameters themselves. A layer's experts are one of (experts, out_features, in_features), gate and up in one of both."""
    for (path, times, part), found in groupby(weights, key=lambda each: (each[0], each[2], _stacked_part(each[1]))):
        members = [weight for _, weight, _ in found]
        if not part:
            yield from (Trainable(weight.shape, dtype_bytes, times * weight.count, f"{path}{weight.name}") for weight in members)
            continue
        rows = sum(weight.shape[0] for weight in members)
        yield Trainable((members[0].count, rows, *members[0].shape[1:]), dtype_bytes, times, f"{path}{members[0].name}")


def _stacked_part(weight: Weight) -> str:
    """Which stacked parameter of a layer's experts a weight is in; none: it is one by itself."""
    if not is_routed(weight):
        return ""
    return f"{weight.role} down" if "down_proj" in weight.name or ".w2" in weight.name else f"{weight.role} up"


def head_names(architecture: Architecture) -> tuple[str, ...]:
    """The modules that a head-only training changes; a tied head is the embedding's table."""
    weights = architecture.head or architecture.embeddings[:1]
    return tuple(dict.fromkeys(weight.name.rpartition(".")[0] for weight in weights))


def _unfrozen(architecture: Architecture, names: tuple[str, ...], dtype_bytes: int) -> tuple[Trainable, ...]:
    """The parameters of the named modules, layer by layer where a name says which."""
    wanted = names or head_names(architecture)
    found: list[Trainable] = []
    for path, weight, times in _parameters(architecture):
        if "*" not in path:
            found += _whole([(path, weight, times)] if is_named(weight, path, wanted) else [], dtype_bytes)
    for index, layer in enumerate(architecture.decoder.layers):
        path = f"{architecture.decoder.name}.{index}."
        found += _whole([(path, weight, 1) for weight in _of_layer(layer) if is_named(weight, path, wanted)], dtype_bytes)
    if not found:
        raise NotModelled(f"training.trainable: no module of {architecture.model_class} is named {', '.join(wanted)}")
    return tuple(found)


def _of_layer(layer: Layer) -> Iterator[Weight]:
    return (weight for weight in layer_weights(layer) if not weight.is_buffer)


def _virtual(architecture: Architecture, method: str, tokens: int) -> Trainable:
    """The table of virtual tokens: hidden states, or keys and values of every layer (``PrefixEncoder``)."""
    if method == "prompt":
        return Trainable((tokens, architecture.hidden_size), FP32_BYTES, 1, "prompt_encoder.embedding")
    layers = architecture.decoder.layers
    mixers = [mixer for layer in layers for mixer in layer.sequence if isinstance(mixer, Attention) and mixer.kv == "own"]
    if len(mixers) != len(layers):
        raise NotModelled(f"{architecture.model_class}: prefixes need keys and values of their own in every layer")
    width = 2 * len(layers) * mixers[0].num_kv_heads * mixers[0].head_dim
    return Trainable((tokens, width), FP32_BYTES, 1, "prompt_encoder.embedding")
