"""Prefix tuning (Li & Liang 2021) as PEFT 0.21 runs it: trained keys and values before every layer's own, in a cache.

PEFT ``peft_model.py`` (``get_prompt``, ``_prefix_tuning_forward``), ``tuners/prefix_tuning``: rows of an fp32 table are looked up,
cast to the model's dtype and copied into a cache, layer by layer. The split was made before the layers, so that the engine runs its
backward last: until then the gradients of all layers' keys and values stay, of which the prefix's are a part.
"""

from __future__ import annotations

from planner.architecture.counts import layer_groups
from planner.architecture.layers import Architecture, Attention
from planner.components.cache import cache_component, cached_tensors
from planner.components.run import Run
from planner.components.tape import Course, Held, Size, Tape
from planner.modelled import NotModelled
from planner.record import record
from planner.scenario import Training

FP32_BYTES = 4
CACHED_KEYS = ("k cached", "v cached")
TABLE = "grad prompt_encoder.embedding"


@record
class Prefix:
    """``tokens`` trained rows, each with keys and values of all layers: ``width`` numbers."""

    tokens: int
    width: int

    def begin(self, course: Course, architecture: Architecture, run: Run) -> None:
        """The rows of every sequence, and the cache that is made of them. Raises :class:`NotModelled`."""
        if run.code.attention != "sdpa":
            raise NotModelled(f"{architecture.model_class}: its own attention code behind a prefix has no closed form yet")
        tape = Tape()
        tape.hold("prefix rows fp32", self._rows(run, FP32_BYTES))
        self._narrow(tape, run, "prefix rows fp32", "prefix rows")
        course.run(tape.span(), 1, "prefix")
        for layer, count in layer_groups(architecture.decoder):
            for name, size in cached_tensors(layer, run).items():
                course.hold(cache_component(name), name, size, count, where="prefix")
        course.level.change("workspace", "prefix rows", self._rows(run, run.dtype_bytes), -1)

    def backward(self, course: Course, architecture: Architecture, run: Run) -> None:
        """From the gradients of all layers' keys and values to the table's."""
        tape = Tape()
        layers = len(architecture.decoder.layers)
        by_layer = Size(layers=layers, batch=run.batch, tokens=self.tokens, width=self.width // layers, bytes=run.dtype_bytes)
        tape.hold("d prefixes by layer", by_layer)
        course.run(tape.span(), 1, "backward of the prefix")
        for component, name, size, count in list(course.level.items()):
            if name.startswith("d ") and name.removeprefix("d ").startswith(CACHED_KEYS):
                course.level.change(component, name, size, -count)
        tape = Tape(start={"d prefixes by layer": Held(by_layer, "workspace")})
        tape.hold("d prefixes", self._rows(run, run.dtype_bytes))
        tape.consume("d prefixes by layer")
        tape.hold("d prefix rows", self._rows(run, run.dtype_bytes))
        tape.consume("d prefixes")
        if run.dtype_bytes != FP32_BYTES:
            tape.hold("d prefix rows fp32", self._rows(run, FP32_BYTES))
            tape.consume("d prefix rows")
        tape.hold(TABLE, Size(tokens=self.tokens, width=self.width, fp32_bytes=FP32_BYTES), "gradients")
        tape.consume("d prefix rows", "d prefix rows fp32")
        if run.accumulating:
            tape.consume(TABLE)
        course.run(tape.span(), 1, "backward of the prefix")

    def _narrow(self, tape: Tape, run: Run, wide: str, name: str) -> None:
        if run.dtype_bytes == FP32_BYTES:
            tape.rename(wide, name)
        else:
            tape.hold(name, self._rows(run, run.dtype_bytes))
            tape.free(wide)

    def _rows(self, run: Run, width: int) -> Size:
        return Size(batch=run.batch, tokens=self.tokens, width=self.width, bytes=width)


def prefix_of(training: Training, architecture: Architecture) -> Prefix | None:
    """The prefix of a training's method; None for another one. Raises :class:`NotModelled` where PEFT's is not derived."""
    if training.method != "prefix":
        return None
    if training.precision.startswith("amp"):
        raise NotModelled(f"training.precision: {training.precision} with method prefix has no closed form yet")
    if training.attention == "flash":
        raise NotModelled("training.attention: keys behind a prefix by attention flash have no closed form yet; choose sdpa")
    if training.checkpointing != "none":
        raise NotModelled("training.checkpointing: a prefix lies in a cache, which PEFT refuses beside checkpointing; choose none")
    mixers = [mixer for layer in architecture.decoder.layers for mixer in layer.sequence]
    plain = [mixer for mixer in mixers if isinstance(mixer, Attention) and mixer.kv == "own" and mixer.cached_kv_heads is None]
    if architecture.kind != "decoder" or len(plain) != len(mixers):
        raise NotModelled(f"{architecture.model_class}: prefixes need keys and values of their own in every layer")
    first = plain[0]
    if first.num_kv_heads != first.num_heads and "num_key_value_heads" not in architecture.sources:
        raise NotModelled(f"{architecture.model_class}: PEFT makes prefixes for as many heads as there are queries")
    same = all(
        (each.num_kv_heads, each.head_dim, each.value_head_dim) == (first.num_kv_heads, first.head_dim, first.head_dim)
        for each in plain
    )
    if not same or any(each.window_tokens or each.chunk_tokens for each in plain):
        raise NotModelled(f"{architecture.model_class}: a prefix of layers with windows, or that differ, has no closed form yet")
    return Prefix(training.virtual_tokens, 2 * len(plain) * first.num_kv_heads * first.head_dim)
