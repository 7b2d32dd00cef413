"""What stands around the layers of encoders and encoder–decoders in training: embeddings, final norm, head and loss."""

from __future__ import annotations

from collections.abc import Mapping

from planner.architecture.layers import Architecture, Norm, Stack, Weight
from planner.components.activations import activate
from planner.components.autocast import in_16_bit, is_wide, widened
from planner.components.encoder import drop_out
from planner.components.encoder_layers import Stage
from planner.components.graph import Graph, Node, Record
from planner.components.norms import norm_forward
from planner.components.operators import linear, multiply
from planner.components.rules import Gradients
from planner.components.run import Run
from planner.components.tape import Held, Size, Span
from planner.record import record

WIDE_LOSS = ("modernbert", "eurobert")
"""Their logits are turned to fp32 before the loss (``ForMaskedLMLoss``); the others' loss is in the model's dtype."""
LEAF = "embeddings that require a gradient"
"""Frozen embeddings that checkpointing tells to require one, where the layers read something made of them."""
PENDING = "grad of the shared embeddings so far"


@record
class Part:
    """A part of the forward: what it does to memory, and what its backward needs."""

    span: Span
    record: Record

    @property
    def kept(self) -> dict[str, Held]:
        """What waits for the backward."""
        return {name: held for name, held in self.span.live.items() if held.component in ("activations", "logits")}


def embed(architecture: Architecture, stage: Stage, run: Run) -> Part:
    """The tables' sum, a norm and a dropout where there are some; leaves ``x`` and, where it is a variable's, ``embedded``."""
    frozen = not run.trainable and not stage.recomputed
    g, norm = (
        Graph(run, saving=True, constants=("embedded",) if frozen else ()),
        _norm_of(stage.stack, ("embeddings.LayerNorm", "layernorm_embedding", "embeddings.norm")),
    )
    dropped, hidden = stage.stack.layers[0].dropout, embedded_size(architecture, run)
    projection = [weight for weight in stage.stack.weights if "embeddings_project" in weight.name]
    leaf = stage.recomputed and not run.trainable and (_adds_tables(architecture, stage.stack) if norm is not None else dropped)
    if leaf:
        g.hold(LEAF, hidden, "activations")
    g.hold("embedded", hidden)
    g.record.sizes["embedded"] = hidden
    if norm is not None:
        norm_forward(g, norm, "x", "embedded")
        g.rename("embedded", "embeddings before their norm")
        g.free("embeddings before their norm")
        if architecture.kind != "encoder":
            g.hold("embedded", run.hidden())
    elif dropped:
        g.make("x", run.hidden(), ("embedded",))
        g.hold("x mask", Size(batch=run.batch, sequence=run.sequence, hidden_size=run.hidden_size, bool_bytes=1))
        g.save_for_last("x mask")
        g.free("x mask")
    else:
        g.rename("embedded", "x")
    if norm is not None and dropped:
        drop_out(g, stage.stack.layers[0], "x")
    if projection:
        _project(g, projection)
    if leaf:
        g.free("embedded")
    return Part(g.span(), g.record)


def embedded_size(architecture: Architecture, run: Run) -> Size:
    """The sum of the tables, which may be narrower than what the layers read (ELECTRA)."""
    width = architecture.embeddings[0].shape[1]
    return run.hidden() if width == run.hidden_size else run.hidden(width)


def _project(g: Graph, weights: list[Weight]) -> None:
    """A linear from the embeddings' width to the layers'."""
    with in_16_bit(g):
        linear(g, "projected", "x", g.run.hidden(), weights)
    g.free("x")
    g.rename("projected", "x")


def _adds_tables(architecture: Architecture, stack: Stack) -> bool:
    """Whether words are but a part of what the first norm reads."""
    return any("position" in weight.name or "token_type" in weight.name for weight in (*architecture.embeddings, *stack.weights))


def encode(architecture: Architecture, stage: Stage, run: Run) -> Part:
    """The norm behind a stack and its dropout; leaves ``hidden``."""
    g = Graph(run, saving=True, start={"x": Held(run.hidden(), "workspace")})
    own = architecture.final_norm if stage.stack is architecture.decoder else None
    norm = own or _norm_of(stage.stack, ("final_layer_norm", f"{_side(stage.stack)}.layer_norm"))
    if norm is None:
        g.rename("x", "hidden")
    else:
        norm_forward(g, norm, "hidden", "x")
        if g.is_saved("x"):
            g.rename("x", "layer output")
        else:
            g.free("x")
        if architecture.model_type in ("t5", "mt5"):
            drop_out(g, stage.stack.layers[0], "hidden")
    return Part(g.span(), g.record)


def lay_head(architecture: Architecture, run: Run) -> Part:
    """Logits and the loss; a masked-LM head transforms what it reads first, T5's scales it, BART's adds a bias.

    The loss is on autocast's fp32 list.
    """
    g = Graph(run, saving=True, start={"hidden": Held(run.hidden(), "workspace")})
    vocab = {"batch": run.batch, "sequence": run.sequence, "vocab_size": architecture.vocab_size}
    source, last = _transformed(g, architecture), "logits"
    with in_16_bit(g):
        logits = Size(**vocab, bytes=g.run.dtype_bytes)
        linear(g, "logits", source, logits, _projection(architecture), component="logits")
    if architecture.kind == "encoder" and source != "hidden":
        g.free(source)
    if any("final_logits_bias" in weight.name for weight in architecture.head):
        last, logits = "logits and bias", Size(**vocab, bytes=run.dtype_bytes)
        g.make(last, logits, ("logits",), (), _passed, component="logits")
        g.free("logits")
    wide = not is_wide(logits) and (run.autocast or architecture.model_type in WIDE_LOSS)
    if wide:
        g.make("logits fp32", Size(**vocab, fp32_bytes=4), (last,), component="logits")
    before = "logits fp32" if wide else last
    g.make("log probabilities", widened(logits) if wide else logits, (before,), (), _softmax_back, component="logits")
    g.make("loss", Size(fp32_bytes=4), ("log probabilities",), ())
    g.free("loss", "logits", "logits and bias", "logits fp32", source, "hidden")
    return Part(g.span(), g.record)


def undo(run: Run, part: Part, gradients: Mapping[str, str], leaf: str) -> Span:
    """A part backwards from ``gradients`` (tensor → name of its gradient); what arrives at ``leaf`` is ``d`` from then on."""
    begun = {name: Held(run.hidden(), "workspace") for name in gradients.values() if name}
    g = Graph(run, start=part.kept | begun)
    made = g.backward(part.record, dict(gradients))
    if made.get(leaf, "d") != "d":
        g.rename(made[leaf], "d")
    return g.span()


MIXED = ("dense", "vocab_transform")
"""The linear of a masked-LM head."""


def _transformed(g: Graph, architecture: Architecture) -> str:
    """What the matrix of the head multiplies."""
    run = g.run
    if architecture.kind != "encoder":
        if architecture.tied_head and architecture.model_type in ("t5", "mt5"):
            multiply(g, "scaled", run.hidden(), "hidden")
            return "scaled"
        return "hidden"
    dense = [
        weight for weight in architecture.head if weight.role in ("linear", "bias") and f".{weight.name}".split(".")[-2] in MIXED
    ]
    if not dense:
        return "hidden"
    norm = tuple(weight for weight in architecture.head if "norm" in weight.name.lower())
    width = dense[0].shape[0]
    with in_16_bit(g):
        linear(g, "transformed", "hidden", g.run.hidden(width), dense)
        activate(g, "gelu", "transformed", "activated", g.run.hidden(width))
    g.free("transformed")
    norm_forward(g, Norm("head norm", width, "layer", norm), "normed", "activated")
    g.free("activated")
    return "normed"


def _projection(architecture: Architecture) -> tuple[Weight, ...]:
    """The head's matrix; tied, its gradient waits for the embeddings'."""
    own = tuple(weight for weight in architecture.head if weight.role == "head")
    words = architecture.embeddings[0]
    matrix = own or (Weight(PENDING.removeprefix("grad "), words.shape, "head"),)
    bias = tuple(weight for weight in architecture.head if len(weight.shape) == 1 and weight.shape[0] == words.shape[0])
    return (*matrix, *bias)


def _passed(g: Graph, node: Node, gradient: str) -> Gradients:
    return [(tensor, g.share(gradient)) for tensor in node.inputs]


def _softmax_back(g: Graph, node: Node, gradient: str) -> Gradients:  # noqa: ARG001
    """``_log_softmax_backward_data`` reads its own result, which then goes."""
    made = [(tensor, g.gradient(tensor, node)) for tensor in node.inputs]
    g.consume(node.out)
    return made


def _norm_of(stack: Stack, names: tuple[str, ...]) -> Norm | None:
    """The norm among a stack's own weights whose module ends in one of ``names``."""
    found = tuple(weight for weight in stack.weights if weight.name.rpartition(".")[0].endswith(names))
    is_layer = len(found) > 1 or not any("final_layer_norm" in weight.name for weight in found)
    return Norm(found[0].name, found[0].shape[0], "layer" if is_layer else "rms", found) if found else None


def _side(stack: Stack) -> str:
    return stack.name.rpartition(".")[0]
