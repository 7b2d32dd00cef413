"""transformers 5.23 on one device: ``generate`` with a dynamic cache.

The cache grows by concatenation, one layer's tensors live at a time, ``generate`` keeps the logits of the last position.
"""

from __future__ import annotations

from dataclasses import replace

from planner.architecture.counts import layer_groups, layer_indices
from planner.architecture.implementation import LLAMA, implementation_of
from planner.architecture.layers import Architecture, Attention, Layer
from planner.components.adapters import Adapters
from planner.components.cache import cache_component, held_tensors
from planner.components.compressed import streams_of
from planner.components.graph import Graph
from planner.components.inputs import SHARED, hold_inputs
from planner.components.layer import Laid, layer_forward
from planner.components.norms import norm_forward
from planner.components.quantised import QuantisedWeights
from planner.components.quantised_cache import CacheQuantisation
from planner.components.run import Run
from planner.components.states import narrow_positions
from planner.components.tape import Blocks, Course, Held, Level, Peak, Size, highest
from planner.record import record


@record
class Step:
    """One phase: its name, and what is live at its highest moment."""

    name: str
    peak: Peak
    logits_bytes: int = 0
    """All logits at the highest moment of a training's loss, wherever the phase's peak is."""
    largest_logits_bytes: int = 0
    blocks: Blocks | None = None
    """What a training step asks for where the allocator has nothing cached that fits."""

    def hold_cublas_workspaces(self, size_bytes: int, handles: int) -> None:
        """cuBLAS takes a workspace through the allocator at the first matrix product of each handle, and keeps it."""
        self.peak.level.change("workspace", "cuBLAS workspace", Size(workspace_bytes=size_bytes), handles)


@record
class Generation:
    """What ``generate`` is asked: sequences, prompt and new tokens of each, bytes of a value, and the device's kind."""

    batch: int
    prompt_tokens: int
    new_tokens: int
    dtype_bytes: int
    cuda: bool = True
    eager: bool = False
    static_cache: bool = False
    quantised: QuantisedWeights | None = None
    quantised_cache: CacheQuantisation | None = None
    adapters: Adapters | None = None
    draws: bool = False
    """Tokens are drawn by their probabilities, not the likeliest taken."""


def generation_phases(architecture: Architecture, weights: Level, work: Generation) -> list[Step]:
    """Load, prefill and, with a head that makes tokens, decode.

    The decode figure is of its worst step: the first (long prompts under a window) or the last.
    """
    course = Course()
    course.level = weights.fork()
    course.begin_phase()
    steps = [Step("load", course.peak)]
    weights = weights.fork()
    narrow_positions(weights, architecture, work.dtype_bytes)
    course.level = weights.fork()
    course.begin_phase()
    _forward_pass(course, architecture, inference_run(architecture, work, work.prompt_tokens), draws=work.draws)
    steps.append(Step("prefill", course.peak))
    if not generates(architecture):
        return steps
    found = [_decode_step(architecture, weights, work, past) for past in highest_at(work)]
    steps.append(Step("decode", highest(*found)))
    return steps


def highest_at(work: Generation) -> list[int]:
    """Tokens in the cache before the steps one of which is the highest: the first, the last, and the last that quantises."""
    found = [work.prompt_tokens, work.prompt_tokens + work.new_tokens - 1]
    every = work.quantised_cache.residual_tokens if work.quantised_cache is not None else 0
    if every and work.new_tokens >= every:
        found.append(work.prompt_tokens + work.new_tokens // every * every - 1)
    return found


def _decode_step(architecture: Architecture, weights: Level, work: Generation, past: int) -> Peak:
    """One decode step when the cache holds ``past`` tokens; before the first step windowed layers hold the whole prompt."""
    course = Course()
    course.level = weights.fork()
    run = inference_run(architecture, work, 1, past)
    for layer, count in layer_groups(architecture.decoder):
        for name, size in held_tensors(layer, run, work.prompt_tokens).items():
            course.hold(cache_component(name), name, size, count)
    course.begin_phase()
    _forward_pass(course, architecture, run, draws=work.draws)
    return course.peak


def generates(architecture: Architecture) -> bool:
    """Whether the model has a head that makes tokens; without one it passes them once."""
    return bool(architecture.head) or architecture.tied_head


def inference_run(architecture: Architecture, work: Generation, sequence: int, past: int = 0) -> Run:
    """A forward of ``sequence`` tokens behind ``past`` cached ones.

    A decoder without a head makes a cache too, which its output holds, unless its config says otherwise (``use_cache``).
    """
    cached = architecture.kind == "decoder" and (generates(architecture) or architecture.keeps_cache)
    return Run(
        work.batch, sequence, architecture.hidden_size, work.dtype_bytes, cached=cached, cuda=work.cuda,
        past_tokens=past,
        code=implementation_of(architecture) or LLAMA, eager=work.eager,
        static_tokens=(work.prompt_tokens + work.new_tokens) * work.static_cache, quantised=work.quantised,
        quantised_cache=work.quantised_cache,
        residual_in_fp32=architecture.decoder.layers[0].residual_in_fp32, streams=streams_of(architecture.decoder.layers[0]),
        adapters=work.adapters,
    )  # fmt: skip


def _forward_pass(course: Course, architecture: Architecture, run: Run, *, draws: bool = False) -> None:
    """One forward without autograd: embeddings, layers, final norm, logits of the last position."""
    hold_inputs(course, architecture, run)
    kinds = layer_indices(architecture.decoder)
    spans = [layer_forward(layer, _queries_left(layer, run), saving=False).span for layer, _ in kinds]
    course.run_stack([(span, places) for span, (_, places) in zip(spans, kinds, strict=True)], "layers")
    course.run(final_norm(architecture, run, saving=False).span, 1, "final norm")
    drop(course, *SHARED)
    if not generates(architecture):
        return
    logits = Size(batch=run.batch, vocab_size=architecture.vocab_size, bytes=run.dtype_bytes)
    if architecture.logit_softcap:
        course.hold("logits", "logits before the cap", logits, where="head")
    course.hold("logits", "last logits", logits, where="head")
    wide = Size(batch=run.batch, vocab_size=architecture.vocab_size, fp32_bytes=4)
    course.hold("logits", "last logits fp32", wide, where="head")
    if draws:
        drop(course, "last logits")
        course.hold("logits", "probabilities, and numbers drawn beside them", wide, 2, where="drawing of tokens")


def _queries_left(layer: Layer, run: Run) -> Run:
    """Layers that only read others' keys and values compute the tokens whose logits are kept, where the family does so."""
    reads = any(isinstance(mixer, Attention) and mixer.kv == "shared" for mixer in layer.sequence)
    if not reads or not run.code.skips_shared:
        return run
    return replace(run, sequence=1, past_tokens=run.past_tokens + run.sequence - 1)


def drop(course: Course, *names: str) -> None:
    """The last reference to tensors that several layers share goes."""
    for component, name, size, count in list(course.level.items()):
        if name in names and component != "activations":
            course.level.change(component, name, size, -count)


def final_norm(architecture: Architecture, run: Run, *, saving: bool, keeps: bool = True) -> Laid:
    """The norm behind the last layer, and what it saves. ``keeps``: the head's weight trains, so that its input is kept."""
    g = Graph(run, saving=saving, start={"x": Held(run.stream(), "workspace")}, constants=run.constants)
    if architecture.final_norm is not None:
        norm_forward(g, architecture.final_norm, "final norm", "x")
        if saving and keeps:
            g.save("final norm")
    if g.is_saved("x"):
        g.rename("x", "layer input")
    else:
        g.free("x")
    span = g.span()
    return Laid(span, g.record, span.live)
