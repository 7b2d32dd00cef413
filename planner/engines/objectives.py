"""Objectives with several models, or with answers of their own: what TRL 1.16's trainers add to a training step.

``ppo``, which TRL 1.12 dropped, has four models and a step of its own (:mod:`planner.engines.ppo`).
``dpo`` (``trainer/dpo_trainer.py``): the batch holds pairs; the reference scores the same rows over what the policy saved.
``grpo`` (``trainer/grpo_trainer.py``): all micro-batches' completions are generated at once, then scored by the reference where
there is one, then the policy steps over them. What is loaded, the optimizer's states included, stays throughout.
"""

from __future__ import annotations

from dataclasses import replace

from planner.architecture.counts import layer_indices, parameter_count
from planner.architecture.layers import Architecture, Attention
from planner.components.inputs import SHARED, hold_inputs
from planner.components.layer import layer_forward
from planner.components.run import Run
from planner.components.tape import Course, Level, Peak, Size, highest
from planner.engines.scored_loss import scored_forward
from planner.engines.transformers import Generation, Step, final_norm, generation_phases
from planner.engines.trl import TrlRelease, dropped_ppo, trl_release
from planner.modelled import NotModelled
from planner.record import record
from planner.scenario import Scenario, Training
from planner.symbolic.amount import exceeds, largest

EXTRAS = {"dpo": 2, "grpo": 1}
"""fp32 numbers of each token that the trainer's metrics take beside the log-probabilities (a third of DPO's is a bool)."""
FP32_BYTES, VLLM_BYTES, PERMILLE = 4, 2, 1000
OF_A_MODEL = ("weights", "quantization_state", "workspace")
"""Components of what is loaded of a model; a sharding's buffers are not made for one that does not train."""


@record
class Objective:
    """What one objective adds around a training step.

    ``generated``: rows of one generation by the trained model itself, 0 where another engine generates; ``buffered``:
    micro-batches that lie ready at once; ``amid_gradients``: completions are made anew while gradients of earlier
    micro-batches wait; ``rescored``: their log-probabilities are computed again by the trained model before the first step.
    ``share``: what vLLM holds beside the trainer, and ``sleeps`` whether it gives that back for the training.
    """

    kind: str
    reference: str
    prompt_tokens: int
    generated: int = 0
    buffered: int = 1
    amid_gradients: bool = False
    rescored: bool = False
    share: Level | None = None
    sleeps: bool = False

    @property
    def inputs(self) -> int:
        """Tensors of ids, masks and labels, of a micro-batch's shape: of pairs their completions' mask too."""
        return 3 * self.buffered if self.kind == "dpo" else 2 * self.buffered + 2

    def before(self, course: Course, architecture: Architecture, run: Run) -> list[Step]:
        """Phases before the policy's forward."""
        if self.kind != "grpo":
            return []
        steps = self._generation(course.level, architecture, run)
        if self.reference != "none":
            steps.append(Step("reference", self._scoring(course, architecture, run)))
        return steps

    def between(self, course: Course, architecture: Architecture, run: Run) -> list[Step]:
        """Phases between the policy's forward and its backward."""
        if self.kind != "dpo" or self.reference == "precomputed":
            return []
        return [Step("reference", self._scoring(course, architecture, run))]

    def _scoring(self, course: Course, architecture: Architecture, run: Run) -> Peak:
        """A forward without gradients over the same rows, adapters switched off; its log-probabilities stay."""
        peak = scoring(course.level, architecture, replace(run, adapters=None), self.prompt_tokens)
        positions = largest(1, run.sequence - 1)
        rows = run.batch * self.buffered if self.kind == "grpo" else run.batch
        course.hold("workspace", "reference scores", Size(rows=rows, positions=positions, fp32_bytes=FP32_BYTES))
        return peak

    def _generation(self, level: Level, architecture: Architecture, run: Run) -> list[Step]:
        """Completions are made, by whichever engine, and scored again where that is asked."""
        peaks = self._generated(level, architecture, run) if self.generated else []
        if self.share is not None and self.sleeps:
            awake = level.fork()
            _hold(awake, self.share)
            peaks.append(Peak(awake, "generation by vLLM"))
        if self.rescored:
            peaks.append(scoring(level, architecture, run, self.prompt_tokens))
        return [Step("generation", highest(*peaks))] if peaks else []

    def _generated(self, level: Level, architecture: Architecture, run: Run) -> list[Peak]:
        completion = largest(1, run.sequence - self.prompt_tokens)
        work = Generation(
            self.generated, self.prompt_tokens, largest(1, completion - 1), run.dtype_bytes, cuda=run.cuda, eager=run.eager,
            quantised=run.quantised, adapters=run.adapters, draws=True,
        )  # fmt: skip
        phases = generation_phases(architecture, level, work)
        return [step.peak for step in phases[1 : 2 if exceeds(completion, 1) is False else 3]]


def scoring(level: Level, architecture: Architecture, run: Run, prompt_tokens: int) -> Peak:
    """The highest moment of a forward that scores completions without gradients, above what is held already."""
    course = Course()
    course.level = level.fork()
    course.begin_phase()
    run = replace(run, trainable=False, accumulating=False, names=(), constant_input=False)
    hold_inputs(course, architecture, run)
    kinds = layer_indices(architecture.decoder)
    spans = [layer_forward(layer, run, saving=False).span for layer, _ in kinds]
    course.run_stack([(span, places) for span, (_, places) in zip(spans, kinds, strict=True)], "layers, without gradients")
    course.run(final_norm(architecture, run, saving=False).span, 1, "final norm, without gradients")
    _drop_own(course, level)
    scored_forward(course, run, prompt_tokens, saving=False, extras=0)
    return course.peak


def _drop_own(course: Course, before: Level) -> None:
    """What the layers shared goes; the like that the trained model keeps for its backward stays."""
    for component, name, size, count in list(course.level.items()):
        if name in SHARED and component != "activations":
            course.level.change(component, name, size, before.counts.get((component, name, size.bytes), 0) - count)


def objective_of(scenario: Scenario, architecture: Architecture, capacity_bytes: int) -> Objective | None:
    """What the scenario's objective adds; None for next-token training. Raises :class:`NotModelled` for what is not derived."""
    ask = scenario.training
    if ask.objective == "sft":
        return None
    require_modelled_objective(scenario, architecture)
    if ask.objective == "ppo":
        return Objective("ppo", ask.reference, ask.prompt_tokens or 1)
    if ask.objective == "dpo":
        return Objective("dpo", ask.reference, ask.prompt_tokens or 1, buffered=ask.gradient_accumulation)
    steps, own = ask.rollout.steps or ask.gradient_accumulation, ask.rollout.engine == "transformers"
    return Objective(
        "grpo", ask.reference, ask.prompt_tokens or 1, ask.batch * steps if own else 0, steps, steps < ask.gradient_accumulation,
        rescored=not own or ask.gradient_accumulation % steps != 0,
        share=_share(ask, architecture, capacity_bytes) if ask.rollout.engine == "vllm" else None, sleeps=ask.rollout.sleep,
    )  # fmt: skip


def _share(ask: Training, architecture: Architecture, capacity_bytes: int) -> Level:
    """What vLLM takes of the card: a copy of the weights in 16 bit, and the rest for its cache and forwards.

    TRL 1.16 ``generation/vllm_generation.py`` (``gpu_memory_utilization``); vLLM fills its share whatever it needs.
    """
    permille = round(ask.rollout.gpu_memory_utilization * PERMILLE)
    share, weights = capacity_bytes * permille // PERMILLE, parameter_count(architecture) * VLLM_BYTES
    if share <= weights:
        raise NotModelled(
            "training.rollout.gpu_memory_utilization: vLLM's share of the card holds no copy of the weights and a cache; raise it"
        )
    level = Level()
    size = Size(parameters=parameter_count(architecture), bytes=VLLM_BYTES)
    level.change("other_models", "weights of vLLM", size, 1)
    formula = "gpu_memory_utilization · capacity − weights of vLLM"
    values = {"gpu_memory_utilization": ask.rollout.gpu_memory_utilization, "capacity_bytes": capacity_bytes}
    rest = Size.stated(share - size.bytes, formula, **values)
    level.change("kv_cache", "the rest of vLLM's share: blocks of its cache, its forwards", rest, 1)
    return level


def require_modelled_objective(scenario: Scenario, architecture: Architecture) -> None:
    """Raise :class:`NotModelled` for what no derivation covers."""
    ask = scenario.training
    layers = architecture.decoder.layers
    drops = any(
        layer.dropout or any(isinstance(mixer, Attention) and mixer.dropout for mixer in layer.sequence) for layer in layers
    )
    asked = {
        f"{architecture.model_class}: objective {ask.objective} of what is no decoder": architecture.kind != "decoder",
        f"{architecture.model_class}: objective {ask.objective} with dropouts in the layers": drops,
        f"training.loss: {ask.loss} beside objective {ask.objective}": ask.loss != "default",
        f"training.data: {ask.data} rows with objective {ask.objective}": ask.data != "padded",
        f"training.method: {ask.method} with objective {ask.objective}": ask.method in ("prompt", "prefix"),
        f"training.precision: {ask.precision} with objective {ask.objective} and method {ask.method}": _casts_anew(ask),
        "training.engine_options.prepare_for_kbit_training: TRL does no such cast, so that it": bool(
            ask.engine_options.get("prepare_for_kbit_training")
        ),
        "training.engine_options.trl_version: scores from all logits": ask.objective != "ppo" and _release(ask).scores != "tiles",
    }
    if ask.objective == "ppo":
        asked |= _asked_of_ppo(ask, architecture)
    for what, holds in asked.items():
        if holds:
            raise NotModelled(f"{what} has no closed form yet")


def _asked_of_ppo(ask: Training, architecture: Architecture) -> dict[str, bool]:
    mixers = [mixer for layer in architecture.decoder.layers for mixer in layer.sequence]
    plain = all(isinstance(mixer, Attention) and mixer.kv == "own" and mixer.cached_kv_heads is None for mixer in mixers)
    alike = len({(mixer.num_kv_heads, mixer.head_dim) for mixer in mixers if isinstance(mixer, Attention)}) == 1
    version, engine = ask.engine_options.get("trl_version"), ask.rollout.engine
    return {
        f"training.engine_options.trl_version: {version} has no PPO trainer, which TRL 1.12 dropped: it": dropped_ppo(version),
        f"training.method: {ask.method} with objective ppo": ask.method not in ("full", "lora"),
        f"training.precision: {ask.precision} with objective ppo": ask.precision != "bf16",
        "training.checkpointing: selective with objective ppo": ask.checkpointing == "selective",
        f"training.attention: {ask.attention} with objective ppo": ask.attention != "sdpa",
        "training.engine_options.fused_kernels, compile or ema with objective ppo": bool(
            {"fused_kernels", "compile", "ema"} & set(ask.engine_options)
        ),
        f"training.rollout.engine: {engine}, where PPO's policy generates itself,": engine != "transformers",
        "training.rollout.steps: PPO generates for a whole update; another number": (
            ask.rollout.steps not in (None, ask.gradient_accumulation)
        ),
        f"{architecture.model_class}: objective ppo of caches or heads that differ from layer to layer": not (plain and alike),
        f"{architecture.model_class}: objective ppo with capped logits": bool(architecture.logit_softcap),
    }


def _casts_anew(ask: Training) -> bool:
    """Whether autocast meets fp32 weights at the head, or a generation; over a frozen 16-bit base scores are as without it."""
    return ask.precision.startswith("amp") and (ask.objective != "dpo" or ask.method not in ("lora", "qlora"))


def _release(ask: Training) -> TrlRelease:
    return trl_release(ask.engine_options.get("trl_version"))


def hold_others(weights: Level, loaded: Level, objective: Objective | None) -> None:
    """What is loaded beside the trained model: a reference like it, and vLLM's share where it never sleeps."""
    if objective is None:
        return
    if objective.reference == "model":
        for component, name, size, count in loaded.items():
            if component in OF_A_MODEL:
                weights.change("other_models", f"reference: {name}", size, count)
    if objective.share is not None and not objective.sleeps:
        _hold(weights, objective.share)


def _hold(level: Level, more: Level) -> None:
    for component, name, size, count in more.items():
        level.change(component, name, size, count)
