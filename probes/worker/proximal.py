"""Proximal policy optimisation (Schulman et al. 2017), written from what TRL 1.11's trainer does (experimental/ppo/ppo_trainer.py).

Four models: the policy and a value model train, a reference and a reward model answer. Scores of all tokens that were drawn stay
until the next ones replace them; all logits of a micro-batch, and what the models hand out beside them, until the next micro-batch.
Rows have one length, so that no mask is made.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from .attribution import LOGITS, Attribution
from .build import Built, build_scorer, random_ids
from .checkpoints import enable_checkpointing, without_checkpointing
from .inference import InferenceLoad, MakeUnroller
from .low_rank import DEFAULT_RANK
from .optimizers import make_optimizers
from .order import Inference, Order, Training
from .parallel import Layout
from .phases import Phases
from .training import TrainingLoad

CLIP, VALUE_CLIP, VALUE_WEIGHT, TEMPERATURE = 0.2, 0.2, 0.1, 0.7
ROLLOUT_ROWS = 64
"""``local_rollout_forward_batch_size`` by default."""


def build_others(order: Order, reference: Any) -> nn.ModuleDict:
    """The models beside the policy on meta: ``reference`` where there is one, and two that score sequences."""
    reward = build_scorer(order).requires_grad_(False).eval()
    return nn.ModuleDict(({} if reference is None else {"reference": reference}) | {"value": build_scorer(order), "reward": reward})


class ProximalLoad(TrainingLoad):
    """Updates of a policy and a value model over completions that the policy made."""

    def __init__(
        self, built: Built, workload: Training, attribution: Attribution | None, fake: bool, layout: Layout | None,
        others: nn.ModuleDict, unroll: MakeUnroller | None,
    ) -> None:  # fmt: skip
        super().__init__(built, workload, attribution, fake, layout)
        self._others = others
        self._value: Any = others["value"]
        self._unroll = unroll
        self._drawn: torch.Tensor | None = None
        self._output: Any = None
        self._logits: Any = None
        self._probabilities: Any = None

    def holdings(self) -> dict[str, Any]:
        """The other models too."""
        return super().holdings() | {"other_models": [*self._others.parameters(), *self._others.buffers()]}

    @property
    def _prompt(self) -> int:
        return min(self._workload.prompt_tokens or max(1, self._workload.sequence // 2), self._workload.sequence - 1)

    def _prepare(self) -> None:
        named: dict[str, nn.Parameter] = {}
        for prefix, model in (("policy", self._model), ("value_model", self._value)):
            model.train()
            enable_checkpointing(model, self._workload, self._fake)
            named |= {f"{prefix}.{name}": each for name, each in model.named_parameters() if each.requires_grad}
        for module in (*self._model.modules(), *self._others.modules()):
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        rank = int(self._workload.options.get("projection_rank", DEFAULT_RANK))
        self._optimizers = make_optimizers(self._workload.optimizer, named, self._fake, rank)
        if self._attribution is not None:
            self._attribution.watch_gradients(named.values())
            for optimizer in self._optimizers:
                self._attribution.watch_optimizer(optimizer)

    def _step(self, phases: Phases, step: int, device: torch.device) -> None:
        """One rollout and one epoch over it: the further ones take what the first does."""
        ask = self._workload
        rows = ask.batch * ask.gradient_accumulation
        with phases.phase("generation", step), torch.no_grad():
            self._drawn = self._generate(phases, rows)
        sequences = random_ids((rows, ask.sequence), self._built, device)
        with phases.phase("reference", step), torch.no_grad():
            kept = self._rollout_scores(sequences)
        for micro in range(ask.gradient_accumulation):
            self._update_by(phases, step, micro, sequences, kept)
        with phases.phase("optimizer", step):
            self._update()
            self._measure()
        self._output = self._logits = self._probabilities = None

    def _update(self) -> None:
        norm = self._workload.options.get("max_grad_norm")
        if norm is not None:
            trained = [*self._model.parameters(), *self._value.parameters()]
            nn.utils.clip_grad_norm_([each for each in trained if each.requires_grad], float(norm))
        for optimizer in self._optimizers:
            optimizer.step()
        for optimizer in self._optimizers:
            optimizer.zero_grad(set_to_none=True)

    # -- the rollout

    def _generate(self, phases: Phases, rows: int) -> torch.Tensor:
        """Scores of all drawn tokens, (rows, completion, vocabulary) in fp32: of each part, then of all, padded."""
        at_once = int(self._workload.options.get("local_rollout_forward_batch_size", ROLLOUT_ROWS))
        parts = [self._generate_part(phases, min(at_once, rows - start)) for start in range(0, rows, at_once)]
        padded = parts[0].new_full((len(parts), *parts[0].shape), 0)
        for index, part in enumerate(parts):
            padded[index, : part.shape[0]] = part
        self._label(padded)
        return padded.view(-1, *padded.shape[2:])[:rows]

    def _generate_part(self, phases: Phases, rows: int) -> torch.Tensor:
        ask = self._workload
        work = Inference(rows, self._prompt, ask.sequence - self._prompt, ask.attention)
        model = self._model.get_base_model() if hasattr(self._model, "get_base_model") else self._model
        load = InferenceLoad(replace(self._built, model=model), work, self._attribution, self._unroll, fake=self._fake, draws=True)
        with without_checkpointing(self._model):
            return load.generate_scored(phases, next(model.parameters()).device, self._label)

    def _label(self, values: torch.Tensor) -> None:
        if self._attribution is not None:
            self._attribution.label([values], LOGITS)

    def _rollout_scores(self, sequences: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Log-probabilities by policy and reference, and values, of all completions."""
        assert self._drawn is not None
        at_once = int(self._workload.options.get("local_rollout_forward_batch_size", ROLLOUT_ROWS))
        found = [
            self._score_part(sequences[start : start + at_once], self._drawn[start : start + at_once])
            for start in range(0, sequences.shape[0], at_once)
        ]
        return tuple(torch.cat(parts) for parts in zip(*found, strict=True))

    def _score_part(self, sequences: torch.Tensor, drawn: torch.Tensor) -> tuple[torch.Tensor, ...]:
        first, labels = self._prompt, sequences[:, self._prompt :]
        chosen = torch.gather(drawn, -1, labels.unsqueeze(-1)).squeeze(-1)
        own = chosen - torch.stack([torch.logsumexp(row, dim=-1) for row in drawn])
        with self._as_reference() as model:
            output = model(input_ids=sequences, output_hidden_states=True)
        logits = output.logits[:, first - 1 : -1]
        logits /= TEMPERATURE
        reference = _log_probabilities(logits, labels)
        del output, logits
        value, _reward = (_values(self._others[name], sequences) for name in ("value", "reward"))
        return own, reference, value[:, first - 1 : -1].squeeze(-1)

    @contextlib.contextmanager
    def _as_reference(self) -> Iterator[Any]:
        if "reference" in self._others:
            yield self._others["reference"]
        else:
            with self._model.disable_adapter():
                yield self._model

    # -- the update

    def _update_by(self, phases: Phases, step: int, micro: int, sequences: torch.Tensor, kept: tuple[torch.Tensor, ...]) -> None:
        ask = self._workload
        rows = slice(micro * ask.batch, (micro + 1) * ask.batch)
        with phases.phase("forward", step, micro):
            loss = self._loss_of(sequences[rows], *(each[rows] for each in kept))
        with phases.phase("backward", step, micro):
            (loss / ask.gradient_accumulation).backward()
            if micro < ask.gradient_accumulation - 1:
                self._measure()

    def _loss_of(self, ids: torch.Tensor, own: torch.Tensor, reference: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        first = self._prompt
        self._output, predicted = self._both(ids)
        self._logits = self._output.logits[:, first - 1 : -1]
        self._logits /= TEMPERATURE
        scores = _log_probabilities(self._logits, ids[:, first:])
        advantages = own - reference
        ratio = torch.exp(scores - own)
        policy = torch.max(-advantages * ratio, -advantages * torch.clamp(ratio, 1 - CLIP, 1 + CLIP)).mean()
        predicted = predicted[:, first - 1 : -1].squeeze(-1)
        near = torch.clamp(predicted, value - VALUE_CLIP, value + VALUE_CLIP)
        errors = torch.max(torch.square(predicted - value), torch.square(near - value)).mean()
        return policy + VALUE_WEIGHT * errors

    def _both(self, ids: torch.Tensor) -> tuple[Any, torch.Tensor]:
        """The value model first; what it hands out lives until the policy is through."""
        backbone = getattr(self._value, self._value.base_model_prefix)
        output = backbone(input_ids=ids, output_hidden_states=True)
        values = self._value.score(output.hidden_states[-1])
        return self._model(input_ids=ids, output_hidden_states=True), values

    def _measure(self) -> None:
        """The entropy of what the policy would draw, for the trainer's log."""
        with torch.no_grad():
            self._probabilities = functional.softmax(self._logits, dim=-1)
            torch.logsumexp(self._logits, dim=-1) - torch.sum(self._probabilities * self._logits, dim=-1)


def _values(model: Any, sequences: torch.Tensor) -> torch.Tensor:
    backbone = getattr(model, model.base_model_prefix)
    output = backbone(input_ids=sequences, output_hidden_states=True, use_cache=False)
    found: torch.Tensor = model.score(output.hidden_states[-1])
    return found


def _log_probabilities(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Of 16-bit logits row by row (trainer/utils.py, selective_log_softmax)."""
    found = []
    for row, chosen in zip(logits, labels.unsqueeze(-1), strict=True):
        every = functional.log_softmax(row, dim=-1)
        found.append(every.gather(-1, chosen))
    return torch.stack(found).squeeze(-1)


__all__ = ["ProximalLoad", "build_others"]
