"""Heads of encoders that tell classes, of a whole sequence or of each token, and their loss, as transformers 5.23 writes them.

A sequence is told by its first token: the head reads a part of the encoder's output, and what it makes is small.
"""

from __future__ import annotations

from collections.abc import Sequence

from planner.architecture.layers import Architecture, Weight
from planner.components.autocast import in_16_bit
from planner.components.encoder import drop_out, linears_of
from planner.components.encoder_outside import Part
from planner.components.graph import Graph
from planner.components.operators import linear
from planner.components.rules import sliced
from planner.components.run import Run
from planner.components.tape import Held, Size

SEQUENCE, TOKENS = "ForSequenceClassification", "ForTokenClassification"
MODULES = {
    **dict.fromkeys(("bert", "ernie", "nomic_bert"), ("pooler.dense", "classifier")),
    **dict.fromkeys(
        ("roberta", "xlm-roberta", "camembert", "electra", "jina_embeddings_v3"), ("classifier.dense", "classifier.out_proj")
    ),
    "distilbert": ("pre_classifier", "classifier"),
}
"""Types whose heads were read: the linears that tell a sequence."""


def classifies(architecture: Architecture) -> bool:
    """Whether the class tells classes by a head that was read."""
    return architecture.model_class.endswith((SEQUENCE, TOKENS)) and architecture.model_type in MODULES


def lay_classifier(architecture: Architecture, run: Run) -> Part:
    """From ``hidden`` to the loss; the encoder's output is held to the end of the forward."""
    g = Graph(run, saving=True, start={"hidden": Held(run.hidden(), "workspace")})
    told = architecture.model_class.endswith(TOKENS)
    source, weights = (_tokens if told else _first_token)(g, architecture), _weights(architecture)[-1]
    with in_16_bit(g):
        rows = {"batch": run.batch, "sequence": run.sequence} if told else {"batch": run.batch}
        logits = Size(**rows, labels=weights[0].shape[0], bytes=g.run.dtype_bytes)
        linear(g, "logits", source, logits, weights, component="logits")
    g.make("loss", Size(fp32_bytes=4), ("logits",), ("logits",))
    g.free("loss", "logits", "hidden", *((source,) if source != "hidden" else ()))
    return Part(g.span(), g.record)


def _tokens(g: Graph, architecture: Architecture) -> str:
    """Every token's output behind a dropout."""
    g.view("features", "hidden")
    drop_out(g, architecture.decoder.layers[0], "features")
    return "features"


def _first_token(g: Graph, architecture: Architecture) -> str:
    """The first token's output through a linear and an activation; behind a dropout where both are the head's own."""
    run, layer = g.run, architecture.decoder.layers[0]
    width = {"batch": run.batch, "features": run.hidden_size}
    g.view("features", "hidden", sliced, Size(**width, bytes=run.dtype_bytes))
    if MODULES[architecture.model_type][0] == "classifier.dense":
        drop_out(g, layer, "features")
    with in_16_bit(g):
        narrow = Size(**width, bytes=g.run.dtype_bytes)
        linear(g, "dense", "features", narrow, _weights(architecture)[0])
        g.free("features")
        g.make("pooled", narrow, ("dense",), ("pooled",))
    g.free("dense")
    drop_out(g, layer, "pooled")
    return "pooled"


def _weights(architecture: Architecture) -> Sequence[tuple[Weight, ...]]:
    """Weights and biases of the head's linears, in their order."""
    pooler = tuple(weight for weight in architecture.decoder.weights if "pooler" in weight.name)
    return linears_of((*pooler, *architecture.head))
