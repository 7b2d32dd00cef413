"""A training scenario laid out in phases: which step its choices make, and what none of the derivations covers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from planner.architecture.counts import parameter_count
from planner.architecture.layers import Architecture
from planner.components.adapters import adapter_tensors, adapters_for, hold_adapters, hold_shared
from planner.components.autocast import HALF_BYTES, has_wide_norms, require_autocast
from planner.components.checkpointing import Checkpointing, checkpointing_of
from planner.components.float8 import float8_of
from planner.components.fused_kernels import fused_kernels_of, require_fusable
from planner.components.optimizers import (
    DEFAULT_RANK,
    FP32_BYTES,
    OPTIMIZERS,
    host_states,
    in_module_order,
    optimizer_states,
    step_transient,
)
from planner.components.quantised import QuantisedWeights
from planner.components.tape import BLOCK_BYTES, Level, Size
from planner.components.trainable import OTHERS, Trainable, head_names, trainable_parameters, trainable_tensors
from planner.engine_options import whole
from planner.engines.around import ALONE, Around
from planner.engines.objectives import EXTRAS, hold_others, objective_of, require_modelled_objective
from planner.engines.prefix import prefix_of
from planner.engines.releases import Release, has_single_experts, is_reentrant, release_of
from planner.engines.training_loss import CHUNK_TOKENS, Loss
from planner.engines.transformers import Step
from planner.engines.transformers_training import TrainingStep, training_phases
from planner.engines.trl import casts_ends_back
from planner.modelled import NotModelled
from planner.scenario import CHECKPOINTINGS, LOSSES, Scenario, Training

if TYPE_CHECKING:
    from planner.engines.ppo import Proximal


def training_steps(
    scenario: Scenario, architecture: Architecture, weights: Level, dtype_bytes: int, around: Around = ALONE, *, cuda: bool,
    quantised: QuantisedWeights | None = None, capacity_bytes: int = 0,
) -> list[Step]:  # fmt: skip
    """The phases of a training step. ``weights``: what stays from loading; ``dtype_bytes``: of a plain parameter.

    ``capacity_bytes``: of the card, of which an engine that generates beside the trainer takes a share.
    """
    ask, loaded, weights = scenario.training, weights, weights.fork()
    trained, rank = trained_tensors(scenario, architecture, dtype_bytes)
    tensors = around.owned(trained)
    autocast = _autocast(scenario, architecture, dtype_bytes)
    if autocast and dtype_bytes == FP32_BYTES and quantised is None:
        weights.relabel("weights", "master_weights")
    proximal = _proximal(scenario, architecture, dtype_bytes)
    tensors = (*tensors, *proximal.trained) if proximal is not None else tensors
    states = optimizer_states(tensors, ask.optimizer, rank, cuda=cuda)
    prepared = quantised is not None and prepares(ask) and ask.precision != "fp32"
    widens = autocast and quantised is not None and not prepares(ask) and has_wide_norms(architecture)
    work = TrainingStep(
        *shape_of(ask), FP32_BYTES if widens else dtype_bytes, trained_checkpointing(scenario, architecture),
        ask.gradient_accumulation, cuda=cuda,
        eager=ask.attention == "eager", flash=ask.attention == "flash",
        adapters=adapters_for(architecture, _without_dropout(ask), dtype_bytes),
        names=(ask.trainable or head_names(architecture)) if ask.method == "freeze" else (), trained=trained, quantised=quantised,
        autocast=autocast, compute_bytes=HALF_BYTES if widens or prepared else 0,
        narrow_ends=widens or (quantised is not None and quantised.has_narrow_ends),
        hands_out_keys=_release(scenario, architecture).hands_out_keys and ask.objective == "sft",
        experts_in_turn=has_single_experts(scenario, architecture),
        repeats_keys=_repeats_keys(scenario, architecture),
        virtual_tokens=ask.virtual_tokens if ask.method == "prompt" else 0, prefix=prefix_of(ask, architecture),
        fused=_fused(scenario, architecture), float8=float8_of(scenario, architecture),
        loss=_loss(scenario, architecture), objective=objective_of(scenario, architecture, capacity_bytes),
    )  # fmt: skip
    hold_adapters(weights, around.stored(adapter_tensors(architecture, ask, dtype_bytes)))
    hold_shared(weights, architecture, ask, dtype_bytes)
    if ask.engine_options.get("ema"):
        states = _with_average(states, weights, around)
    hold_others(weights, loaded, work.objective)
    _require_plain_experts(work, around)
    clips = bool(ask.engine_options.get("max_grad_norm"))
    transient = step_transient(tensors, ask.optimizer, rank, clips=clips, cuda=cuda)
    if architecture.kind != "decoder":
        if work.checkpointing not in (Checkpointing(), Checkpointing(1)) or ask.loss != "default":
            raise NotModelled(f"{architecture.model_class}: this checkpointing or loss is derived for decoders alone")
        from planner.engines.encoder_training import encoder_training_phases  # noqa: PLC0415  loaded for those who ask

        return encoder_training_phases(architecture, weights, states, work, transient)
    _require_next_tokens(architecture)
    if proximal is not None:
        from planner.engines.ppo import hold_scorers, ppo_phases  # noqa: PLC0415  loaded for those who ask

        hold_scorers(weights, proximal.scorer, dtype_bytes)
        return ppo_phases(architecture, weights, states, work, transient, proximal)
    return training_phases(architecture, weights, states, work, transient, around)


def _proximal(scenario: Scenario, architecture: Architecture, dtype_bytes: int) -> Proximal | None:
    """What PPO adds; None for another objective."""
    ask = scenario.training
    if ask.objective != "ppo":
        return None
    from planner.engines.ppo import ROLLOUT_ROWS, Proximal, scorer_of  # noqa: PLC0415  loaded for those who ask

    require_modelled_objective(scenario, architecture)
    scorer = scorer_of(architecture)
    whole_model = replace(scenario, training=replace(ask, method="full", objective="sft"))
    trained, _ = trained_tensors(whole_model, scorer, dtype_bytes)
    at_once = whole(ask.engine_options, "local_rollout_forward_batch_size", ROLLOUT_ROWS)
    return Proximal(ask.batch * ask.gradient_accumulation, at_once, ask.prompt_tokens or 1, scorer, trained, ask.reference)


def trained_count(scenario: Scenario, architecture: Architecture) -> int:
    """Trained parameters, those of PPO's value model among them."""
    count = trainable_parameters(architecture, scenario.training)
    if scenario.training.objective != "ppo":
        return count
    from planner.engines.ppo import scorer_of  # noqa: PLC0415  loaded for those who ask

    return count + parameter_count(scorer_of(architecture))


def _require_next_tokens(architecture: Architecture) -> None:
    """Raise :class:`NotModelled` for a decoder whose class has no head over the vocabulary: its loss is another, or none."""
    others = ("score.", "classifier.", "qa_outputs.")
    if not (architecture.head or architecture.tied_head) or any(weight.name.startswith(others) for weight in architecture.head):
        raise NotModelled(f"{architecture.model_class}: without a head over the vocabulary its loss has no closed form")


def _without_dropout(training: Training) -> Training:
    """TRL's DPO and PPO switch off the dropout of adapters too (``DPOConfig.disable_dropout``, ``disable_dropout_in_model``)."""
    if training.objective not in ("dpo", "ppo") or not training.lora.dropout:
        return training
    return replace(training, lora=replace(training.lora, dropout=0.0))


def prepares(training: Training) -> bool:
    """Whether PEFT casts what is not quantised to fp32 first (``prepare_model_for_kbit_training``)."""
    return bool(training.engine_options.get("prepare_for_kbit_training"))


def has_narrow_ends(training: Training) -> bool:
    """Whether the trainer casts embeddings and head of a 4-bit model back to 16 bit after that."""
    casts = casts_ends_back(training.engine_options.get("trl_version"))
    return casts and prepares(training) and training.precision == "amp-bf16" and training.objective == "sft"


def _autocast(scenario: Scenario, architecture: Architecture, dtype_bytes: int) -> bool:
    """Whether products run in 16 bit by ``torch.autocast``. Raises :class:`NotModelled` where what that makes is not derived."""
    ask = scenario.training
    if not (ask.precision.startswith("amp") or (ask.precision == "fp8" and dtype_bytes == FP32_BYTES)):
        return False
    masters = dtype_bytes == FP32_BYTES and ask.method != "qlora"
    if masters and ask.loss != "default":
        raise NotModelled(f"training.precision: {ask.precision} with this loss has no closed form yet")
    if prepares(ask):
        _require_prepared(scenario)
    if ask.method == "qlora" and has_wide_norms(architecture) and not scenario.weights.startswith(("nf4", "fp4")):
        raise NotModelled(f"training.precision: {ask.precision} with layer norms over {scenario.weights} has no closed form yet")
    checkpointed = bool(checkpointing_of(ask, architecture))
    require_autocast(
        architecture,
        eager=ask.attention == "eager",
        quantised=ask.method == "qlora",
        prepared=prepares(ask),
        checkpointed=checkpointed,
        narrow_ends=has_narrow_ends(ask),
        masters=masters,
    )
    return True


def _require_prepared(scenario: Scenario) -> None:
    """Raise :class:`NotModelled` where autocast over fp32 norms and head is not derived."""
    ask = scenario.training
    partly = ask.lora.targets != ("all-linear",) and ask.checkpointing != "none"
    if (
        ask.loss != "default"
        or not ask.engine_options.get("autocast_adapter_dtype", True)
        or (partly and scenario.weights == "int8")
    ):
        raise NotModelled(
            f"training.precision: {ask.precision} with prepare_for_kbit_training has no closed form for this loss, "
            "16-bit adapters, or int8 weights that are adapted in part and checkpointed"
        )


def _require_plain_experts(work: TrainingStep, around: Around) -> None:
    """Raise :class:`NotModelled` where adapters that are added to experts are not derived."""
    if work.adapters is None or not work.adapters.targets.parts:
        return
    if work.autocast or work.quantised is not None or around is not ALONE:
        raise NotModelled(
            "training.lora.targets: adapters of experts have no closed form yet under mixed precision, over quantised weights or "
            "on several ranks: name other linears"
        )


def _with_average(states: Level, weights: Level, around: Around) -> Level:
    """The states and a moving average of the model, a copy of all that was loaded (``torch.optim.swa_utils.AveragedModel``)."""
    if around is not ALONE:
        raise NotModelled("training.engine_options.ema: an average of sharded parameters has no closed form yet")
    states = states.fork()
    size = Size.stated(weights.total + BLOCK_BYTES, "everything that was loaded, and a counter", loaded_bytes=weights.total)
    states.change("optimizer_state", "averaged parameters", size, 1)
    return states


def _loss(scenario: Scenario, architecture: Architecture) -> Loss:
    options, ask = scenario.training.engine_options, scenario.training
    if ask.objective == "ppo":
        return Loss("drawn", prompt_tokens=ask.prompt_tokens or 1)
    if ask.objective != "sft":
        return Loss("scores", prompt_tokens=ask.prompt_tokens or 1, extras=EXTRAS.get(ask.objective, 0))
    in_place = "cross_entropy" in fused_kernels_of(options)
    return Loss(ask.loss, whole(options, "chunk_tokens", CHUNK_TOKENS), _release(scenario, architecture).copies, in_place=in_place)


def _repeats_keys(scenario: Scenario, architecture: Architecture) -> bool:
    """Whether keys and values are copied for every query head where the kernel could take them grouped."""
    ask = scenario.training
    by_release = ask.attention == "flash" and _release(scenario, architecture).repeats_keys
    return bool(ask.engine_options.get("repeat_keys", by_release))


def _fused(scenario: Scenario, architecture: Architecture) -> tuple[str, ...]:
    """Kernels in place of transformers' own code, of which the loss knows its own."""
    ask = scenario.training
    names = fused_kernels_of(ask.engine_options)
    masters = ask.precision.startswith("amp") and ask.method != "qlora"
    require_fusable(architecture, names, loss=ask.loss if ask.objective == "sft" else ask.objective, masters=masters)
    return names


def _release(scenario: Scenario, architecture: Architecture) -> Release:
    """What the release of transformers does that the scenario names."""
    return release_of(scenario.training.engine_options.get("version"), architecture.model_type)


def trained_checkpointing(scenario: Scenario, architecture: Architecture) -> Checkpointing:
    """What is recomputed; releases before 5 do it by the reentrant implementation unless the scenario says otherwise."""
    options = scenario.training.engine_options
    found = checkpointing_of(scenario.training, architecture)
    if not found or found.keeps or "use_reentrant" in options or not is_reentrant(options.get("version")):
        return found
    return replace(found, reentrant=True)


def training_host(scenario: Scenario, architecture: Architecture, dtype_bytes: int) -> dict[str, int]:
    """What a training keeps in host memory, by component."""
    ask, layers = scenario.training, architecture.decoder.layers
    tensors, rank = trained_tensors(scenario, architecture, dtype_bytes)
    width = FP32_BYTES if layers[0].residual_in_fp32 else dtype_bytes
    rows, tokens = shape_of(ask)
    inputs = rows * tokens * architecture.hidden_size * width
    found = {
        "activations": checkpointing_of(ask).host_bytes(inputs, len(layers)),
        "optimizer_state": host_states(tensors, ask.optimizer, rank),
    }
    return {name: size for name, size in found.items() if size}


def shape_of(training: Training) -> tuple[int, int]:
    """Rows of a micro-batch, and tokens of each: flattened, all examples are one row; of pairs each is two."""
    sequence = training.sequence or 1
    if training.objective == "dpo":
        return 2 * training.batch, sequence
    return (1, training.batch * sequence) if training.data == "flattened" else (training.batch, sequence)


def trained_tensors(scenario: Scenario, architecture: Architecture, dtype_bytes: int) -> tuple[tuple[Trainable, ...], int]:
    """The trained parameters as the optimizer meets them, and the rank that it projects to."""
    norm = architecture.final_norm.weights if architecture.final_norm is not None else ()
    last = tuple(weight.name for weight in (*norm, *architecture.head))
    tensors = in_module_order(trainable_tensors(architecture, scenario.training, dtype_bytes), last)
    return tensors, whole(scenario.training.engine_options, "projection_rank", DEFAULT_RANK)


def require_modelled_training(scenario: Scenario) -> None:
    """Raise :class:`NotModelled` for what no derivation covers yet."""
    training = scenario.training
    require_choices({
        "engine": (scenario.engine, ("transformers",)),
        "training.method": (training.method, ("full", "lora", "qlora", "dora", "freeze", "ia3", "prompt", "prefix", *OTHERS)),
        "training.optimizer": (training.optimizer, tuple(OPTIMIZERS)),
        "training.checkpointing": (training.checkpointing, CHECKPOINTINGS),
        "training.loss": (training.loss, LOSSES),
        "training.attention": (training.attention, ("sdpa", "flash", "eager")),
    })  # fmt: skip
    if training.engine_options.get("quant_skip_modules"):
        raise NotModelled("training.engine_options.quant_skip_modules has no closed form yet")
    if prepares(training) and training.method != "qlora":
        raise NotModelled("training.engine_options.prepare_for_kbit_training is modelled for method qlora")
    if training.method in ("prompt", "prefix") and training.loss != "default":
        raise NotModelled(f"training.loss: {training.loss} behind trained vectors has no closed form yet; choose default")
    if training.engine_options.get("ema") and training.method == "qlora":
        raise NotModelled("training.engine_options.ema: an average of quantised parameters has no closed form yet")
    if training.method in OTHERS and training.precision not in ("bf16", "fp32"):
        raise NotModelled(f"training.precision: {training.precision} with {training.method} has no closed form yet; choose bf16")
    if training.method in OTHERS and training.objective != "sft":
        raise NotModelled(f"training.objective: {training.objective} with {training.method} has no closed form yet")
    if training.method in ("loha", "lokr") and training.lora.dropout:
        raise NotModelled("training.lora.dropout: LoHa and LoKr drop ranks or modules at random, which has no closed form; use 0")
    if training.precision == "fp32" and training.attention == "flash":
        raise NotModelled("training.attention: FlashAttention takes no fp32: choose sdpa, or 16-bit or mixed precision")
    if training.data == "flattened" and training.attention != "flash":
        raise NotModelled("training.data: flattened examples are kept apart by attention flash alone; sdpa masks all pairs")
    require_one_gpu(scenario)


def require_choices(asked: Mapping[str, tuple[str, Sequence[str]]]) -> None:
    """Raise :class:`NotModelled` where a field's value is not among those that are derived."""
    for field, (value, modelled) in asked.items():
        if value not in modelled:
            raise NotModelled(f"{field}: {value} has no closed form yet")


def require_one_gpu(scenario: Scenario) -> None:
    """Raise :class:`NotModelled` for several GPUs and for offloading."""
    spread = scenario.parallel, scenario.offload, scenario.hardware.gpus, scenario.hardware.nodes
    if spread != (type(scenario.parallel)(), type(scenario.offload)(), 1, 1):
        raise NotModelled("several GPUs and offloading have no closed form yet")
