"""Proximal policy optimisation as TRL 1.11 runs it (``experimental/ppo/ppo_trainer.py``): four models and one update.

A policy and a value model train; a reference (or the policy without its adapters) and a reward model answer. Completions of a whole
update are drawn part by part, and the scores of every drawn token stay in fp32 until the next ones have replaced them. Then all
sequences are scored, and micro-batches go through value model and policy, whose logits, hidden states and probabilities stay until
those of the next micro-batch are there. Prompts of one length are assumed, so that no mask is made.
"""

from __future__ import annotations

from dataclasses import replace

from planner.architecture.counts import layer_groups, layer_indices
from planner.architecture.layers import Architecture, Attention, Weight
from planner.components.cache import cache_component, held_tensors
from planner.components.inputs import SHARED, hold_inputs
from planner.components.layer import layer_forward
from planner.components.optimizers import Moment
from planner.components.run import Run
from planner.components.states import plain_weights
from planner.components.tape import Course, Level, Peak, Size, highest
from planner.components.trainable import Trainable
from planner.engines.around import ALONE
from planner.engines.drawn_loss import HANDED_OUT, LOGITS, OF_VALUES, PROBABILITIES, drop_all
from planner.engines.trained_layers import reached_by_gradients
from planner.engines.training_loss import Loss
from planner.engines.transformers import Generation, Step, drop, final_norm, generation_phases, inference_run
from planner.engines.transformers_training import (
    TrainingStep,
    hold_gradients,
    run_of,
    training_backward,
    training_forward,
)
from planner.record import record
from planner.symbolic.amount import exceeds, largest, smallest

FP32_BYTES, INDEX_BYTES = 4, 8
ROLLOUT_ROWS = 64
"""``PPOConfig.local_rollout_forward_batch_size`` by default."""
DRAWN, STEP_SCORES = "scores of drawn tokens", "scores of the steps of a generation"
ASIDE = "value model: "


@record
class Proximal:
    """``rows`` of an update, generated and scored ``at_once``; ``scorer``: the value model, all of which is ``trained``."""

    rows: int
    at_once: int
    prompt_tokens: int
    scorer: Architecture
    trained: tuple[Trainable, ...]
    reference: str

    def parts(self) -> int:
        """Generations of an update."""
        return -(-self.rows // self.at_once)


def scorer_of(architecture: Architecture) -> Architecture:
    """The same layers with a head of one number (``AutoModelForSequenceClassification``)."""
    head = (Weight("score.weight", (1, architecture.hidden_size), "head"),)
    return replace(architecture, head=head, tied_head=False, logit_softcap=False)


def hold_scorers(weights: Level, scorer: Architecture, dtype_bytes: int) -> None:
    """The value model and the reward model, beside whatever is loaded."""
    for label in ("value model", "reward model"):
        for component, name, size, count in plain_weights(scorer, dtype_bytes).items():
            kept = component if component == "workspace" and name.startswith("rotary") else "other_models"
            weights.change(kept, f"{label}: {name}", size, count)


def ppo_phases(
    architecture: Architecture, weights: Level, optimizer: Level, work: TrainingStep, transient: Moment, plan: Proximal
) -> list[Step]:
    """Load, generation, reference, forward, backward and optimizer of the steady update."""
    course = Course()
    course.level = weights.fork()
    course.begin_phase()
    steps = [Step("load", course.peak)]
    for component, name, size, count in optimizer.items():
        course.level.change(component, name, size, count)
    accumulating = work.accumulation > 1
    run = replace(run_of(architecture, work, accumulating=accumulating), cached=not work.checkpointing)
    completion = largest(1, work.sequence - plan.prompt_tokens)
    drawn = Size(rows=plan.rows, completion=completion, vocab_size=architecture.vocab_size, fp32_bytes=FP32_BYTES)
    course.hold("logits", DRAWN, drawn)
    steps.append(Step("generation", highest(*_generation(course.level, architecture, run, plan, completion))))
    course.hold("workspace", "sequences", Size(rows=plan.rows, sequence=work.sequence, int64_bytes=INDEX_BYTES), 2)
    steps.append(Step("reference", _reference(course.level, architecture, run, plan, completion)))
    if accumulating:
        hold_gradients(course, (*work.trained, *plan.trained))
        _hold_earlier(course, architecture, run, work, completion)
    return steps + _update(course, architecture, run, work, transient, plan)


def _update(
    course: Course, architecture: Architecture, run: Run, work: TrainingStep, transient: Moment, plan: Proximal
) -> list[Step]:
    """A micro-batch through both models, back through the policy first, and the optimizer's step over both."""
    hands_out = _hands_out(architecture, run, work)
    run_of_values = replace(run, adapters=None, trainable=True)
    valuing = replace(work, adapters=None, loss=Loss("values", hands_out=hands_out))
    work = replace(work, loss=replace(work.loss, hands_out=hands_out))
    requires = bool(work.checkpointing)
    reached = reached_by_gradients(architecture, run, input_requires=requires)
    all_reached = reached_by_gradients(plan.scorer, run_of_values, input_requires=requires)
    course.begin_phase()
    before = course.level.copy()
    early = hands_out * max(len(architecture.decoder.layers) - 2, 0)
    course.hold("activations", HANDED_OUT, run.stream(), early)
    saved_of_values = training_forward(course, plan.scorer, run_of_values, all_reached, ALONE, valuing)
    aside = _set_aside(course, before)
    course.hold("activations", HANDED_OUT, run.stream(), early)
    saved = training_forward(course, architecture, run, reached, ALONE, work)
    logits = course.level.largest(("logits",))
    forward = Step("forward", course.peak, logits, logits)
    course.begin_phase()
    training_backward(course, architecture, run, reached, saved, ALONE, work)
    _hold_output(course, architecture, run, leaf=bool(work.checkpointing) and not reached.embeddings)
    for component, name, size, count in aside:
        course.level.change(component, ASIDE + name, size, -count)
        course.level.change(component, name, size, count)
    training_backward(course, plan.scorer, run_of_values, all_reached, saved_of_values, ALONE, valuing)
    backward = Step("backward", course.peak)
    course.begin_phase()
    for name, size in transient:
        course.hold("workspace", name, size, where="step of the optimizer")
    return [forward, backward, Step("optimizer", highest(course.peak, _metrics(course, architecture, run, plan)))]


def _set_aside(course: Course, before: Level) -> list[tuple[str, str, Size, int]]:
    """What the value model's forward left goes on under names of its own, until its backward."""
    left = [
        (component, name, size, count - before.counts.get((component, name, size.bytes), 0))
        for component, name, size, count in course.level.items()
    ]
    aside = [found for found in left if found[3] and found[1] != OF_VALUES]
    for component, name, size, count in aside:
        course.level.change(component, name, size, -count)
        course.level.change(component, ASIDE + name, size, count)
    return aside


def _generation(level: Level, architecture: Architecture, run: Run, plan: Proximal, completion: int) -> list[Peak]:
    """The last part's generation, its scores stacked while the cache lives, and those of all parts copied into one tensor."""
    rows, vocabulary, earlier = smallest(plan.rows, plan.at_once), architecture.vocab_size, level.fork()
    part = Size(rows=rows, completion=completion, vocab_size=vocabulary, fp32_bytes=FP32_BYTES)
    earlier.change("logits", "scores of earlier parts", part, plan.parts() - 1)
    scored = earlier.fork()
    scored.change("logits", STEP_SCORES, part, 1)
    work = Generation(
        rows, plan.prompt_tokens, largest(1, completion - 1), run.dtype_bytes, cuda=run.cuda, eager=run.eager,
        quantised=run.quantised, adapters=run.adapters, draws=True,
    )  # fmt: skip
    peaks = [generation_phases(architecture, earlier, work)[1].peak]
    if exceeds(completion, 1) is not False:
        peaks.append(generation_phases(architecture, scored, work)[2].peak)
    cached = inference_run(architecture, work, 1, plan.prompt_tokens + completion - 1)
    for layer, count in layer_groups(architecture.decoder):
        for name, size in held_tensors(layer, cached, plan.prompt_tokens).items():
            scored.change(cache_component(name), name, size, count)
    scored.change("logits", "scores, stacked", part, 1)
    padded = earlier.fork()
    padded.change("logits", "scores of earlier parts", part, 1)
    padded.change("logits", "scores of all parts", part, plan.parts())
    return [*peaks, Peak(scored, "scores of a generation, stacked"), Peak(padded, "scores of all parts, padded")]


def _reference(level: Level, architecture: Architecture, run: Run, plan: Proximal, completion: int) -> Peak:
    """The reference's forward over one part: all logits, hidden states of all layers, and its cache where it has one.

    Value and reward model pass the same layers without a cache and logits.
    """
    own_cache = plan.reference == "model" or run.cached
    asked = replace(
        run, batch=smallest(plan.rows, plan.at_once), adapters=None, trainable=False, accumulating=False, names=(),
        constant_input=False, cached=own_cache,
    )  # fmt: skip
    course = Course()
    course.level = level.fork()
    course.begin_phase()
    hold_inputs(course, architecture, asked)
    layers = len(architecture.decoder.layers)
    course.hold("activations", HANDED_OUT, asked.stream(), max(layers - 2, 0))
    kinds = layer_indices(architecture.decoder)
    spans = [layer_forward(layer, asked, saving=False).span for layer, _ in kinds]
    course.run_stack([(span, places) for span, (_, places) in zip(spans, kinds, strict=True)], "layers, without gradients")
    course.hold("activations", HANDED_OUT, asked.stream())
    course.run(final_norm(architecture, asked, saving=False).span, 1, "final norm, without gradients")
    drop(course, *SHARED)
    course.hold("activations", HANDED_OUT, asked.stream())
    logits = Size(batch=asked.batch, sequence=asked.sequence, vocab_size=architecture.vocab_size, bytes=asked.dtype_bytes)
    row = Size(completion=completion, vocab_size=architecture.vocab_size, bytes=asked.dtype_bytes)
    course.hold("logits", LOGITS, logits, where="head")
    course.hold("logits", "log-probabilities of a sequence", row, 2 if exceeds(asked.batch, 1) else 1, where="scores")
    return course.peak


def _hands_out(architecture: Architecture, run: Run, work: TrainingStep) -> bool:
    """Whether the layers' inputs that are handed out are kept by nothing else.

    Checkpoints are these tensors, and norms of some classes save what they read. The first is the embeddings, the last is the
    layer's own: while the last layer runs the others are held beside.
    """
    return not work.checkpointing and "layer input" not in layer_forward(architecture.decoder.layers[-1], run, saving=True).live


def _hold_output(course: Course, architecture: Architecture, run: Run, *, leaf: bool) -> None:
    """Autograd is through with what the policy handed out, and the trainer is not: hidden states, and its cache.

    ``leaf``: frozen embeddings were told to require a gradient, which is there as long as they are.
    """
    drop_all(course, HANDED_OUT)
    course.hold("activations", HANDED_OUT, run.stream(), len(architecture.decoder.layers) + 1 + leaf)
    for name, size, count in _cache(architecture, run):
        course.hold("activations", name, size, count)


def _cache(architecture: Architecture, run: Run) -> list[tuple[str, Size, int]]:
    """Keys and values of all layers, where a forward that trains makes a cache."""
    mixers = [mixer for layer in architecture.decoder.layers for mixer in layer.sequence if isinstance(mixer, Attention)]
    if not run.cached:
        return []
    return [(f"{name} cached", run.cache(mixers[0], name, run.sequence), len(mixers)) for name in ("k", "v")]


def _metrics(course: Course, architecture: Architecture, run: Run, plan: Proximal) -> Peak:
    """After the step, gradients gone: probabilities of what could have been drawn, and a tensor like them."""
    level = course.level.fork()
    for component, name, size, count in list(level.items()):
        if component == "gradients" or name == PROBABILITIES:
            level.change(component, name, size, -count)
    completion = largest(1, run.sequence - plan.prompt_tokens)
    drawn = Size(batch=run.batch, completion=completion, vocab_size=architecture.vocab_size, bytes=run.dtype_bytes)
    level.change("logits", "probabilities, and as many numbers beside them", drawn, 2)
    return Peak(level, "entropy for the log")


def _hold_earlier(course: Course, architecture: Architecture, run: Run, work: TrainingStep, completion: int) -> None:
    """What the trainer's names still refer to of the micro-batch before."""
    logits = Size(batch=work.batch, sequence=work.sequence, vocab_size=architecture.vocab_size, bytes=work.dtype_bytes)
    drawn = Size(batch=work.batch, completion=completion, vocab_size=architecture.vocab_size, bytes=work.dtype_bytes)
    layers = architecture.decoder.layers
    course.hold("logits", f"{LOGITS}, earlier", logits)
    course.hold("logits", PROBABILITIES, drawn)
    leaf = bool(work.checkpointing) and work.adapters is not None
    course.hold("activations", f"{HANDED_OUT}, earlier", run.stream(), len(layers) + 1 + leaf)
    for name, size, count in _cache(architecture, run):
        course.hold("activations", f"{name}, earlier", size, count)
