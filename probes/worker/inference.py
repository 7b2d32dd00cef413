"""A generation: prefill, then one decode step a token, holding what ``generate`` holds and no more.

The loop follows ``GenerationMixin._sample`` (transformers, generation/utils.py): greedy choice of the next token, the last
position's logits copied to fp32, ids and mask grown by concatenation, outputs dropped before the next step.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from .attribution import KV_CACHE, RECURRENT_STATE, Attribution, tensors_of
from .build import Built, random_ids
from .errors import WorkerError
from .order import Inference
from .phases import Phases
from .quantised_cache import cache_kind, flushes, make_quantised_cache
from .unroll import Slot, Unroller, slots_of, window_breaks

MakeUnroller = Callable[[Callable[[], list[Slot]]], Unroller]

CACHES = ("dynamic", "static", "quantized")
_COMPRESSED_UPDATES = ("store_compression_weights", "update_compressor_states", "update_overlap_state")
"""How DeepSeek-V4's layers of a cache take what waits for a window, and entries."""
_STATE_NAMES = ("conv", "recurrent", "ssm", "linear")
_CACHE_FIELD = "scenario.inference.engine_options.cache_implementation"


@dataclass
class Generation:
    """What lives between two steps."""

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    unfinished: torch.Tensor
    extra: dict[str, Any]


class InferenceLoad:
    """Prefill and decode of one batch."""

    def __init__(
        self,
        built: Built,
        workload: Inference,
        attribution: Attribution | None,
        unroll: MakeUnroller | None = None,
        *,
        fake: bool = False,
        draws: bool = False,
    ) -> None:
        self._built = built
        self._model = built.model
        self._workload = workload
        self._attribution = attribution
        self._unroll = unroll
        self._fake = fake
        self._draws = draws
        self._parameters = set(inspect.signature(built.model.forward).parameters)
        self.cache: Any = None

    def run(self, phases: Phases, device: torch.device) -> None:
        """Run both phases. Encoders have no decode."""
        self._model.eval()
        with torch.no_grad():
            with phases.phase("prefill"):
                generation = self._start(device)
                self._step(generation, generation.input_ids)
            if not self.generates:
                return
            with phases.phase("decode"):
                self._decode(generation, phases)

    def generate(self, phases: Phases, device: torch.device) -> None:
        """Prefill and decode inside a phase that is open; the cache goes at the end."""
        generation = self._start(device)
        self._step(generation, generation.input_ids)
        if self._workload.new_tokens > 1:
            self._decode(generation, phases, self._workload.new_tokens - 1)
        self._forget()

    def generate_scored(self, phases: Phases, device: torch.device, label: Callable[[torch.Tensor], None]) -> torch.Tensor:
        """The same keeping every step's scores, (rows, tokens, vocabulary) in fp32, which are stacked while the cache lives.

        All of them are there from the first decode step on: the highest moment is that of the last.
        """
        generation = self._start(device)
        self._step(generation, generation.input_ids)
        rows, tokens = generation.input_ids.shape[0], self._workload.new_tokens
        scores = [torch.zeros((rows, self._built.vocabulary or 2), device=device) for _ in range(tokens)]
        for each in scores:
            label(each)
        if tokens > 1:
            self._decode(generation, phases, tokens - 1)
        stacked = torch.stack(scores, 1)
        label(stacked)
        self._forget()
        return stacked

    def _forget(self) -> None:
        for part in _parts(self.cache):
            for holder in (part, *getattr(part, "layers", ())):
                vars(holder).clear()  # what labels its updates refers to it: nothing but this frees its tensors now
        self.cache = None

    @property
    def generates(self) -> bool:
        """Whether the model has a head that makes tokens."""
        return bool(self._model.can_generate()) if hasattr(self._model, "can_generate") else False

    def holdings(self) -> dict[str, Any]:
        """What is held between steps, by component."""
        held: dict[str, list[Any]] = {"kv_cache": [], "recurrent_state": []}
        for part in _parts(self.cache):
            for holder in (part, *getattr(part, "layers", ())):
                for name, value in getattr(holder, "__dict__", {}).items():
                    held[_component_name(name)].append(value)
        return held

    def _decode(self, generation: Generation, phases: Phases, steps: int | None = None) -> None:
        steps = self._workload.new_tokens if steps is None else steps
        done = 0

        def step() -> None:
            nonlocal done
            phases.wire.send("progress", what="decode", done=done, total=steps)
            self._step(generation, generation.input_ids[:, -1:])
            done += 1

        if self._unroll is None:
            for _ in range(steps):
                step()
        else:
            breaks = sorted({*window_breaks(self.cache, self._workload.prompt_tokens), *flushes(self.cache, steps)})
            self._unroll(lambda: slots_of(self.cache, generation)).run(step, steps, breaks)

    def _start(self, device: torch.device) -> Generation:
        batch, tokens = self._workload.batch, self._workload.prompt_tokens
        source = random_ids((batch, tokens), self._built, device)
        extra = self._encode(source) if self._is_encoder_decoder else {}
        input_ids = source[:, :1].clone() if self._is_encoder_decoder else source
        if self.generates:
            self.cache = self._make_cache()
            self._label_updates(self.cache)
        return Generation(
            input_ids=input_ids,
            attention_mask=torch.ones_like(source),
            unfinished=torch.ones(batch, dtype=torch.long, device=device),
            extra=extra,
        )

    @property
    def _is_encoder_decoder(self) -> bool:
        return bool(getattr(self._built.config, "is_encoder_decoder", False))

    def _encode(self, source: torch.Tensor) -> dict[str, Any]:
        """Run the encoder once, as ``generate`` does before its loop. Audio encoders take their full window."""
        encoder = self._model.get_encoder()
        if "input_features" in inspect.signature(encoder.forward).parameters:
            config = self._built.config
            shape = (source.shape[0], config.num_mel_bins, 2 * config.max_source_positions)
            return {"encoder_outputs": encoder(torch.zeros(shape, dtype=self._built.dtype, device=source.device))}
        return {"encoder_outputs": encoder(input_ids=source, attention_mask=torch.ones_like(source))}

    def _step(self, generation: Generation, new_ids: torch.Tensor) -> None:
        outputs = self._model(**self._inputs(generation, new_ids))
        if not self.generates:
            return
        if self.cache is None:
            self.cache = outputs.get(self._cache_name)
        next_logits = outputs.logits[:, -1].to(copy=True, dtype=torch.float32)
        del outputs
        self._label_cache(self.cache)
        next_ids = _draw(next_logits) if self._draws else torch.argmax(next_logits, dim=-1)
        generation.input_ids = torch.cat([generation.input_ids, next_ids[:, None]], dim=-1)
        mask = generation.attention_mask
        generation.attention_mask = torch.cat([mask, mask.new_ones((mask.shape[0], 1))], dim=-1)

    def _inputs(self, generation: Generation, new_ids: torch.Tensor) -> dict[str, Any]:
        ids_name = "decoder_input_ids" if self._is_encoder_decoder else "input_ids"
        inputs: dict[str, Any] = {ids_name: new_ids, **generation.extra}
        if self.generates:
            inputs["use_cache"] = True
            inputs[self._cache_name] = self.cache
            if "logits_to_keep" in self._parameters:
                inputs["logits_to_keep"] = 1
        return inputs

    @property
    def _cache_name(self) -> str:
        return "cache_params" if "cache_params" in self._parameters else "past_key_values"

    def _make_cache(self) -> Any:
        """The cache ``generate`` prepares; None for models that make one of their own."""
        kind = cache_kind(self._workload.kv_cache, self._workload.options)
        if kind not in CACHES:
            raise WorkerError("bad_order", f"{_CACHE_FIELD}: must be one of {', '.join(CACHES)}", _CACHE_FIELD)
        supports = getattr(self._model, "_supports_default_dynamic_cache", None)
        if supports is not None and not supports():
            return self._own_cache()
        if kind == "static":
            return self._make_static_cache()
        if kind == "quantized":
            workload = self._workload
            return make_quantised_cache(self._built.config, workload.kv_cache, workload.options, self._fake)
        cache = self._make_dynamic_cache()
        if not self._is_encoder_decoder:
            return cache
        from transformers import EncoderDecoderCache

        return EncoderDecoderCache(cache, self._make_dynamic_cache())

    def _own_cache(self) -> Any:
        """The class a family defines beside its model, which makes one where it is given none: so it is watched from the start."""
        from transformers import DynamicCache

        module = sys.modules[type(self._model).__module__]
        own = [value for value in vars(module).values() if isinstance(value, type) and issubclass(value, DynamicCache)]
        made = [value for value in own if value.__module__ == module.__name__]
        return made[0]() if len(made) == 1 else None

    def _make_dynamic_cache(self) -> Any:
        from transformers import DynamicCache

        try:
            return DynamicCache(config=self._decoder_config)
        except TypeError:
            return DynamicCache()

    @property
    def _decoder_config(self) -> Any:
        """The decoder's own: of T5's, what the whole model's config says of layers is the encoder's number."""
        if self._is_encoder_decoder and hasattr(self._model, "get_decoder"):
            return self._model.get_decoder().config
        getter = getattr(self._built.config, "get_text_config", None)
        return getter(decoder=True) if getter is not None else self._built.config

    def _make_static_cache(self) -> Any:
        from transformers import StaticCache

        tokens = self._workload.prompt_tokens + self._workload.new_tokens
        return StaticCache(config=self._built.text_config, max_cache_len=tokens)

    def _label_updates(self, cache: Any) -> None:
        """Label what the cache holds each time it was updated."""
        if self._attribution is None or cache is None:
            return
        for part in _parts(cache):
            for name in ("update", "update_conv_state", "update_recurrent_state", "update_indexer"):
                method = getattr(part, name, None)
                if method is not None:
                    setattr(part, name, self._labelling(part, method))
            for layer in getattr(part, "layers", ()):
                for name in _COMPRESSED_UPDATES:
                    method = getattr(layer, name, None)
                    if method is not None:
                        setattr(layer, name, self._labelling_layer(layer, method))
            keep = getattr(part, "set_linear_cache", None)
            if keep is not None:
                part.set_linear_cache = self._keeping(keep)

    def _labelling(self, cache: Any, method: Any) -> Any:
        place = list(inspect.signature(method).parameters).index("layer_idx")

        def labelled(*args: Any, **kwargs: Any) -> Any:
            out = method(*args, **kwargs)
            layer_idx = kwargs["layer_idx"] if "layer_idx" in kwargs else args[place]
            self._label_holder(cache.layers[layer_idx] if hasattr(cache, "layers") else cache)
            return out

        return labelled

    def _labelling_layer(self, layer: Any, method: Any) -> Any:
        def labelled(*args: Any, **kwargs: Any) -> Any:
            out = method(*args, **kwargs)
            self._label_holder(layer)
            return out

        return labelled

    def _keeping(self, method: Any) -> Any:
        """MiniMax hands over the states of its linear layers."""

        def labelled(layer_idx: int, linear_cache: Any) -> None:
            method(layer_idx, linear_cache)
            if self._attribution is not None:
                self._attribution.label(tensors_of([linear_cache]), RECURRENT_STATE)

        return labelled

    def _label_cache(self, cache: Any) -> None:
        for part in _parts(cache):
            for holder in (part, *getattr(part, "layers", ())):
                self._label_holder(holder)

    def _label_holder(self, holder: Any) -> None:
        if self._attribution is None or not hasattr(holder, "__dict__"):
            return
        for name, value in vars(holder).items():
            component = RECURRENT_STATE if _component_name(name) == "recurrent_state" else KV_CACHE
            self._attribution.label(tensors_of([value]), component)


def _draw(logits: torch.Tensor) -> torch.Tensor:
    """One token of each row by its probability, as ``torch.multinomial`` draws a single one (aten Distributions.cpp)."""
    probabilities = torch.softmax(logits, dim=-1)
    chances = torch.empty_like(probabilities).exponential_(1)
    torch.div(probabilities, chances, out=chances)
    return torch.argmax(chances, dim=-1)


def _component_name(attribute: str) -> str:
    return "recurrent_state" if any(part in attribute for part in _STATE_NAMES) else "kv_cache"


def _parts(cache: Any) -> list[Any]:
    """A cache, or the two of an encoder–decoder."""
    parts = [getattr(cache, name, None) for name in ("self_attention_cache", "cross_attention_cache")]
    return [part for part in parts if part is not None] or ([cache] if cache is not None else [])
