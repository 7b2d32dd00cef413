"""Two whole training steps, as the Trainer's loop runs them: forward, backward, optimizer, gradients dropped."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any

import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from .attribution import ACTIVATIONS, OPTIMIZER_STATE, Attribution
from .build import Built, random_ids
from .checkpoints import enable_checkpointing
from .distributed import replicate
from .losses import make_loss
from .low_rank import DEFAULT_RANK
from .optimizers import make_optimizers
from .order import Training
from .parallel import Layout
from .phases import Phases

STEPS = 2
_AUTOCAST = {"amp-bf16": torch.bfloat16, "amp-fp16": torch.float16}


@dataclass(frozen=True)
class Batch:
    """What a collator puts on the device, int64 (batch, sequence) each; a mask without padding is not read."""

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    labels: torch.Tensor


class TrainingLoad:
    """Two steps of one workload. The second is the steady one: optimizer states exist."""

    def __init__(
        self, built: Built, workload: Training, attribution: Attribution | None, fake: bool = False, layout: Layout | None = None
    ) -> None:
        self._built = built
        self._layout = layout
        self._model = built.model
        self._called: Any = built.model
        self._workload = workload
        self._attribution = attribution
        self._optimizers: list[torch.optim.Optimizer] = []
        self._average: AveragedModel | None = None
        self._fake = fake
        self._loss = make_loss(workload, fake)

    def run(self, phases: Phases, device: torch.device) -> None:
        """Run both steps."""
        self._prepare()
        self._called = replicate(self._model, self._layout, self._attribution)
        for step in range(1, STEPS + 1):
            phases.wire.send("progress", what="step", done=step - 1, total=STEPS)
            self._step(phases, step, device)
        phases.wire.send("progress", what="step", done=STEPS, total=STEPS)

    def holdings(self) -> dict[str, Any]:
        """What is held between steps, by component."""
        return {"optimizer_state": [optimizer.state for optimizer in self._optimizers]}

    def _prepare(self) -> None:
        self._model.train()
        # The Trainer's default (transformers 5, TrainingArguments.use_cache).
        for config in (self._model.config, self._built.text_config):
            config.use_cache = False
        enable_checkpointing(self._model, self._workload, self._fake)
        named = {name: parameter for name, parameter in self._model.named_parameters() if parameter.requires_grad}
        params = list(named.values())
        rank = int(self._workload.options.get("projection_rank", DEFAULT_RANK))
        self._optimizers = make_optimizers(self._workload.optimizer, named, self._fake, rank)
        if self._workload.options.get("ema"):
            self._keep_average()
        if self._attribution is not None:
            self._attribution.watch_gradients(params)
            for optimizer in self._optimizers:
                self._attribution.watch_optimizer(optimizer)

    def _keep_average(self) -> None:
        """A moving average of the parameters, in a copy of the model.

        PEFT's indices of virtual tokens are a plain tensor on the host, which cannot be copied among fake ones; they are no
        parameter and stay out of the copy.
        """
        plain = vars(self._model).pop("prompt_tokens", None)
        self._average = AveragedModel(self._model, multi_avg_fn=get_ema_multi_avg_fn())
        if plain is not None:
            self._model.prompt_tokens = plain
        if self._attribution is not None:
            self._attribution.label([*self._average.parameters(), *self._average.buffers()], OPTIMIZER_STATE)

    def _step(self, phases: Phases, step: int, device: torch.device) -> None:
        # The Trainer fetches all batches of a step at once and keeps them until its end (trainer.py, get_batch_samples).
        batches = [self._batch(device) for _ in range(self._workload.gradient_accumulation)]
        for micro, batch in enumerate(batches):
            self._micro_step(phases, step, micro, batch)
        with phases.phase("optimizer", step):
            self._update()

    def _micro_step(self, phases: Phases, step: int, micro: int, batch: Batch) -> None:
        """The loss, and with it the graph, ends with the micro-batch (trainer.py, training_step returns it detached)."""
        with phases.phase("forward", step, micro):
            loss = self._forward(batch.input_ids)
        with phases.phase("backward", step, micro):
            loss.backward()

    def _batch(self, device: torch.device) -> Batch:
        shape = (self._workload.batch, self._workload.sequence)
        input_ids = random_ids(shape, self._built, device)
        batch = Batch(input_ids, torch.ones_like(input_ids), input_ids.clone())
        if self._attribution is not None:
            self._attribution.label([batch.input_ids, batch.attention_mask, batch.labels], ACTIVATIONS)
        return batch

    def _forward(self, input_ids: torch.Tensor) -> Any:
        with self._autocast(input_ids.device):
            loss = self._loss(self._called, input_ids)
        return loss / self._workload.gradient_accumulation if self._workload.gradient_accumulation > 1 else loss

    def _autocast(self, device: torch.device) -> Any:
        over_masters = self._workload.precision == "fp8" and self._built.dtype == torch.float32
        dtype = torch.bfloat16 if over_masters else _AUTOCAST.get(self._workload.precision)
        return torch.autocast(device.type, dtype) if dtype is not None else contextlib.nullcontext()

    def _update(self) -> None:
        norm = self._workload.options.get("max_grad_norm")
        if norm is not None:
            torch.nn.utils.clip_grad_norm_([p for p in self._model.parameters() if p.requires_grad], float(norm))
        for optimizer in self._optimizers:
            optimizer.step()
        if self._average is not None:
            self._average.update_parameters(self._model)
        for optimizer in self._optimizers:
            optimizer.zero_grad(set_to_none=True)
