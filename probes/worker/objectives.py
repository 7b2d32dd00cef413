"""Training steps with several models or answers of their own, written from what TRL 1.16's trainers do.

``dpo`` (trainer/dpo_trainer.py): pairs in one batch, the policy's forward, then the reference's without gradients while what the
policy saved is held. ``grpo`` (trainer/grpo_trainer.py): completions of all micro-batches at once, the reference's scores of each
micro-batch, then the steps.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from .attribution import LOGITS, OTHER_MODELS, Attribution
from .build import Built, Maker, build, materialise
from .checkpoints import without_checkpointing
from .errors import WorkerError
from .inference import InferenceLoad, MakeUnroller
from .order import Inference, Order, Training
from .parallel import Layout
from .phases import Phases
from .proximal import ProximalLoad, build_others
from .scores import log_probabilities
from .training import Batch, TrainingLoad

BETA = 0.1
OF_DPO = (torch.float32, torch.float32, torch.bool)
"""Entropies, mean logits, and whether the label ranks first: for the metrics."""
OF_GRPO = (torch.float32,)


def has_reference_model(order: Order) -> bool:
    """Whether a second model is held beside the trained one."""
    if order.task != "training" or order.training.objective == "sft":
        return False
    return order.training.objective == "ppo" or order.training.reference == "model"


def build_reference(order: Order) -> Any:
    """The reference on meta: the model that is trained, without adapters, in the dtype it was built in; of PPO all others too."""
    if order.training.objective == "ppo":
        return build_others(order, _reference(order) if order.training.reference == "model" else None)
    return _reference(order)


def _reference(order: Order) -> Any:
    own = replace(order, training=replace(order.training, method="full"))
    if order.training.method not in ("full", "freeze"):
        own = replace(order, task="inference", inference=replace(order.inference, attention=order.training.attention))
    model = build(own).model
    return model.requires_grad_(False).eval()


def load_reference(model: Any, make: Maker, attribution: Attribution | None) -> None:
    """Give it memory, all of one component."""
    materialise(model, make)
    if attribution is not None:
        attribution.label([*model.parameters(), *model.buffers()], OTHER_MODELS)


def make_training_load(
    built: Built, workload: Training, attribution: Attribution | None, fake: bool, layout: Layout | None,
    reference: Any, unroll: MakeUnroller | None,
) -> TrainingLoad:  # fmt: skip
    """The load of the objective. Raises :class:`WorkerError` for one that has none."""
    if workload.objective == "sft":
        return TrainingLoad(built, workload, attribution, fake, layout)
    if workload.objective == "dpo":
        return PreferenceLoad(built, replace(workload, batch=2 * workload.batch), attribution, fake, layout, reference)
    if workload.objective == "ppo" and workload.rollout.get("engine", "transformers") == "transformers":
        return ProximalLoad(built, workload, attribution, fake, layout, reference, unroll)
    if workload.objective == "grpo" and workload.rollout.get("engine", "transformers") != "vllm":
        return PolicyLoad(built, workload, attribution, fake, layout, reference, unroll)
    field = "scenario.training.objective"
    raise WorkerError("unsupported", f"{field}: {workload.objective} so made up can be predicted only", field)


class _WithReference(TrainingLoad):
    """A step that also asks a reference: another model, or the trained one with its adapters off."""

    def __init__(
        self, built: Built, workload: Training, attribution: Attribution | None, fake: bool, layout: Layout | None, reference: Any
    ) -> None:
        super().__init__(built, workload, attribution, fake, layout)
        self._reference = reference

    def holdings(self) -> dict[str, Any]:
        """The reference too."""
        reference = self._reference
        return super().holdings() | {"other_models": [] if reference is None else [*reference.parameters(), *reference.buffers()]}

    def _prepare(self) -> None:
        super()._prepare()
        for module in self._model.modules():
            if self._workload.objective == "dpo" and isinstance(module, nn.Dropout):
                module.p = 0.0  # DPOConfig.disable_dropout

    @property
    def _first(self) -> int:
        """The position whose next token is the first that is scored."""
        prompt = self._workload.prompt_tokens or max(1, self._workload.sequence // 2)
        return min(prompt, self._workload.sequence - 1) - 1

    def _scores(self, model: Any, batch: Batch, extras: tuple[torch.dtype, ...]) -> tuple[torch.Tensor, ...]:
        with self._autocast(batch.input_ids.device):
            return log_probabilities(model, batch.input_ids, self._first, extras, self._fake, self._label_logits)

    def _label_logits(self, buffer: torch.Tensor) -> None:
        if self._attribution is not None:
            self._attribution.label([buffer], LOGITS)

    def _reference_scores(self, batch: Batch) -> torch.Tensor:
        with torch.no_grad(), without_checkpointing(self._model), self._as_reference() as model:
            return self._scores(model, batch, ())[0]

    @contextlib.contextmanager
    def _as_reference(self) -> Iterator[Any]:
        if self._reference is not None:
            yield self._reference
        else:
            with self._model.disable_adapter():
                yield self._model


class PreferenceLoad(_WithReference):
    """Direct preference optimisation (Rafailov et al. 2023): rows are the chosen sequences, then the rejected."""

    def _micro_step(self, phases: Phases, step: int, micro: int, batch: Batch) -> None:
        with phases.phase("forward", step, micro):
            chosen = self._scores(self._called, batch, OF_DPO)[0].sum(1)
        reference = torch.zeros_like(chosen)
        if self._workload.reference != "precomputed":
            with phases.phase("reference", step, micro):
                reference = self._reference_scores(batch).sum(1)
        with phases.phase("backward", step, micro):
            ratios = chosen - reference
            first, second = ratios.chunk(2)
            loss = -functional.logsigmoid(BETA * (first - second)).mean()
            (loss / self._workload.gradient_accumulation).backward()


class PolicyLoad(_WithReference):
    """Group relative policy optimisation (Shao et al. 2024): ``batch`` completions of a micro-batch."""

    def __init__(
        self, built: Built, workload: Training, attribution: Attribution | None, fake: bool, layout: Layout | None, reference: Any,
        unroll: MakeUnroller | None,
    ) -> None:  # fmt: skip
        super().__init__(built, workload, attribution, fake, layout, reference)
        self._unroll = unroll
        self._kept: torch.Tensor | None = None

    def _micro_step(self, phases: Phases, step: int, micro: int, batch: Batch) -> None:
        every = int(self._workload.rollout.get("steps") or self._workload.gradient_accumulation)
        if micro % every == 0:
            self._roll_out(phases, step, micro, batch, every)
            if self._workload.reference != "none":
                with phases.phase("reference", step, micro):
                    self._kept = torch.cat([self._reference_scores(batch) for _ in range(every)])
        with phases.phase("forward", step, micro):
            loss = self._policy_loss(batch)
        with phases.phase("backward", step, micro):
            loss.backward()

    def _policy_loss(self, batch: Batch) -> torch.Tensor:
        scores, _entropies = (each[:, self._first :] for each in self._scores(self._called, batch, OF_GRPO))
        advantages = scores.new_ones((scores.shape[0], 1))
        ratio = torch.exp(scores - scores.detach())
        clipped = torch.clamp(ratio, 0.8, 1.2)
        each = -torch.min(ratio * advantages, clipped * advantages)
        if self._kept is not None:
            apart = self._kept[: scores.shape[0], self._first :] - scores
            each = each + BETA * (torch.exp(apart) - apart - 1)
        return each.sum() / (scores.numel() * self._workload.gradient_accumulation)

    def _roll_out(self, phases: Phases, step: int, micro: int, batch: Batch, every: int) -> None:
        """Completions of the next ``every`` micro-batches, and their scores where later steps or another engine ask for them."""
        own = self._workload.rollout.get("engine", "transformers") == "transformers"
        scores_again = not own or self._workload.gradient_accumulation % every != 0
        with phases.phase("generation", step, micro), torch.no_grad(), without_checkpointing(self._model):
            if own:
                self._generate(phases, batch.input_ids.device, every)
            if scores_again:
                self._scores(self._called, batch, ())

    def _generate(self, phases: Phases, device: torch.device, every: int) -> None:
        """All sequences of the next ``every`` micro-batches, drawn from the model's own probabilities."""
        ask, prompt = self._workload, self._first + 1
        work = Inference(ask.batch * every, prompt, ask.sequence - prompt, ask.attention)
        model = self._model.get_base_model() if hasattr(self._model, "get_base_model") else self._model
        load = InferenceLoad(replace(self._built, model=model), work, self._attribution, self._unroll, fake=self._fake, draws=True)
        load.generate(phases, device)


__all__ = ["build_reference", "has_reference_model", "load_reference", "make_training_load"]
