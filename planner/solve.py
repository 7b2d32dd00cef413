"""Inverse questions: the longest context, the largest batch, the fewest GPUs, the format, the layout.

Each answer is exact with respect to the predictor: it fits (or is tight), and its neighbour does not. Memory grows with
every count (the tests hold it so), so that counts are found by doubling and halving; cards, formats and layouts are tried
in order. Whatever an engine refuses does not fit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from planner.architecture.layers import Architecture
from planner.faults import Faults
from planner.footprint import Verdict
from planner.formats.checkpoint import BytesUnknown, checkpoint_bytes
from planner.formats.format import Format
from planner.gpu import Gpu
from planner.predict import predict
from planner.record import record
from planner.scenario import Hardware, Parallel, Scenario

GOOD: tuple[Verdict, ...] = ("fits", "tight")
MOST_BATCH = 1_000_000
MOST_TOKENS = 2**24
MOST_GPUS = 64
GPUS_OF_A_NODE = 8
"""Tensor parallelism stays within what one node's links join; beyond, stages follow one another."""
MOST_BY_LAYERS = {"transformers": GPUS_OF_A_NODE, "llama.cpp": MOST_GPUS}
"""Engines that lay layers over the GPUs of one machine; llama.cpp says itself how many devices are too many."""


@record
class Asked:
    """A scenario with its defaults settled, and what it is asked of."""

    scenario: Scenario
    architecture: Architecture
    gpu: Gpu
    native: Format | None = None

    def verdict(self, scenario: Scenario, gpu: Gpu | None = None) -> Verdict | None:
        """The verdict of another scenario for the same model; None where it is refused."""
        try:
            return predict(scenario, self.architecture, gpu or self.gpu, self.native).verdict
        except Faults:
            return None

    def fits(self, scenario: Scenario, gpu: Gpu | None = None) -> bool:
        """Whether it fits, comfortably or tightly."""
        return self.verdict(scenario, gpu) in GOOD


def largest_count(fits: Callable[[int], bool], most: int) -> int:
    """The largest count from 1 to ``most`` that fits, 0 when not even 1 does; what fits must fit with less."""
    if most < 1 or not fits(1):
        return 0
    low, high = 1, 2
    while high <= most and fits(high):
        low, high = high, 2 * high
    high = min(high, most + 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def with_values(scenario: Scenario, **values: object) -> Scenario:
    """The scenario with other values of its workload, its hardware or its weights, by the fields' names."""
    work: Any = scenario.inference if scenario.task == "inference" else scenario.training
    hardware = {name: values.pop(name) for name in list(values) if name in vars(scenario.hardware)}
    whole = {name: values.pop(name) for name in list(values) if name in ("weights", "parallel")}
    workload = type(work)(**{**vars(work), **values})
    moved = Hardware(**{**vars(scenario.hardware), **hardware})
    return Scenario(**{**vars(scenario), **whole, "hardware": moved, scenario.task: workload})


def context_of(scenario: Scenario) -> int:
    """Tokens of one sequence: prompt and new ones, or what is trained on."""
    if scenario.task == "training":
        return scenario.training.sequence or 1
    return (scenario.inference.prompt_tokens or 1) + (scenario.inference.new_tokens or 1)


def with_context(scenario: Scenario, tokens: int) -> Scenario:
    """The scenario with sequences of ``tokens``; new tokens are kept as long as one is left for the prompt."""
    if scenario.task == "training":
        return with_values(scenario, sequence=tokens)
    new = min(scenario.inference.new_tokens or 1, max(tokens - 1, 1))
    return with_values(scenario, prompt_tokens=max(tokens - new, 1), new_tokens=new)


def longest_context(asked: Asked) -> int:
    """The longest context at the scenario's batch, at most the model's own limit; 0 when not even two tokens fit."""
    limit = min(asked.architecture.max_context_tokens or MOST_TOKENS, MOST_TOKENS)
    least = 1 if asked.scenario.task == "training" else 2
    found = largest_count(lambda tokens: asked.fits(with_context(asked.scenario, max(tokens, least))), limit)
    return found if found >= least else 0


def largest_batch(asked: Asked) -> int:
    """The largest batch (requests at once, micro-batch of a training) at the scenario's context; 0 when not even one fits."""
    return largest_count(lambda batch: asked.fits(with_values(asked.scenario, batch=batch)), MOST_BATCH)


def layouts(scenario: Scenario, gpus: int) -> Iterator[Scenario]:
    """The scenario spread over ``gpus`` in the ways its engine knows, that which moves least between GPUs first.

    transformers and llama.cpp lay layers on GPU after GPU of one machine. Serving: tensor parallelism within a node, then fewer
    ranks with pipeline stages. Training: ZeRO or FSDP over data parallelism, where memory falls with every GPU.
    """
    by_layers = scenario.task == "inference" and scenario.engine in MOST_BY_LAYERS
    if gpus == 1 or by_layers:
        if gpus <= MOST_BY_LAYERS.get(scenario.engine, 1):
            yield _spread(scenario, gpus, Parallel())
        return
    if scenario.task == "training" and scenario.training.engine != "megatron":
        for kind in shardings(scenario):
            yield _spread(scenario, gpus, Parallel(data=gpus, sharding=kind))
        return
    for tensor in range(min(gpus, GPUS_OF_A_NODE), 0, -1):
        if gpus % tensor == 0:
            kept = scenario.parallel.sharding
            yield _spread(scenario, gpus, Parallel(tensor=tensor, pipeline=gpus // tensor, sharding=kept))


SHARDINGS = {
    "transformers": ("none", "zero2", "fsdp"),
    "deepspeed": ("zero1", "zero2", "zero3"),
    "fsdp": ("fsdp",),
}
"""What an engine can share over replicas, that which moves least first. ZeRO 1 holds what ZeRO 2 holds in DeepSpeed's buckets."""


def shardings(scenario: Scenario) -> tuple[str, ...]:
    """The shardings a training may take: its own where it names one."""
    own = scenario.parallel.sharding
    return (own,) if own != "none" else SHARDINGS.get(scenario.training.engine, (own,))


def smallest_sharding(asked: Asked) -> str | None:
    """Of what the engine knows the sharding that moves least and fits on the scenario's GPUs; None where none does."""
    spread = asked.scenario.parallel
    for kind in SHARDINGS.get(asked.scenario.training.engine, (spread.sharding,)):
        tried = with_values(asked.scenario, parallel=Parallel(**{**vars(spread), "sharding": kind}))
        if asked.fits(tried):
            return kind
    return None


def cheapest_layout(asked: Asked, most: int = MOST_GPUS, gpu: Gpu | None = None) -> Scenario | None:
    """The layout with the fewest GPUs that fits, of those with as many the first of :func:`layouts`; None up to ``most``.

    Counts are tried one by one: whether a layout exists depends on what divides the heads, not on size alone. Only what is
    sharded over replicas needs less with every GPU, and is found by doubling and halving.
    """
    if asked.scenario.task == "training" and asked.scenario.training.engine != "megatron":
        return _fewest_replicas(asked, most, gpu)
    known = False
    for count in range(1, most + 1):
        for scenario in layouts(asked.scenario, count):
            verdict = asked.verdict(scenario, gpu)
            known = known or (count > 1 and verdict not in (None, "unknown"))
            if verdict in GOOD:
                return scenario
        if count == GPUS_OF_A_NODE and not known:
            return None
    return None


def _fewest_replicas(asked: Asked, most: int, gpu: Gpu | None) -> Scenario | None:
    """The fewest replicas over which some sharding fits."""
    alone = _spread(asked.scenario, 1, Parallel())
    if asked.fits(alone, gpu):
        return alone
    best: Scenario | None = None
    for kind in shardings(asked.scenario):

        def on(count: int, kind: str = kind) -> Scenario:
            return _spread(asked.scenario, count, Parallel(data=count, sharding=kind))

        bound = most if best is None else best.hardware.gpus - 1
        if bound < 2 or not asked.fits(on(bound), gpu):
            continue
        refused = largest_count(lambda count: not asked.fits(on(count + 1), gpu), bound)
        best = on(refused + 2)
    return best


def fewest_gpus(asked: Asked, most: int = MOST_GPUS) -> int | None:
    """How many of the scenario's GPU it takes at least; None when ``most`` don't do."""
    found = cheapest_layout(asked, most)
    return None if found is None else found.hardware.gpus


def on_card(scenario: Scenario, gpu: Gpu) -> Scenario:
    """The scenario on another card."""
    return with_values(scenario, gpu=gpu.name, capacity_bytes=None, cards=())


def largest_format(asked: Asked, formats: Sequence[Format]) -> Format | None:
    """Of some formats the one with the most bytes that fits: what has to be given up at least. None when none fits."""
    sized = [(size, fmt) for fmt in formats if (size := _bytes(asked.architecture, fmt)) is not None]
    ordered = sorted(sized, key=lambda pair: -pair[0])
    return next((fmt for _, fmt in ordered if asked.fits(with_values(asked.scenario, weights=fmt.name))), None)


def limits(asked: Asked, known: Mapping[str, int | None]) -> dict[str, int | None]:
    """``max_batch``, ``max_context``, ``kv_tokens``, ``max_concurrency`` and ``min_gpus`` of a footprint.

    ``known``: those an engine states itself. A training has no cache and no concurrency; of an engine without a pool
    they follow from the largest batch.
    """
    found: dict[str, int | None] = {
        "max_batch": None,
        "max_context": None,
        "kv_tokens": None,
        "max_concurrency": None,
        "min_gpus": None,
    }
    found |= known
    if asked.verdict(asked.scenario) in (None, "unknown"):
        return found
    if found["max_batch"] is None:
        found["max_batch"] = largest_batch(asked)
    if found["max_context"] is None:
        found["max_context"] = longest_context(asked)
    if found["min_gpus"] is None and not asked.scenario.hardware.cards:
        found["min_gpus"] = fewest_gpus(asked)
    if asked.scenario.task == "inference":
        batch = found["max_batch"] or 0
        if found["max_concurrency"] is None:
            found["max_concurrency"] = batch
        if found["kv_tokens"] is None:
            found["kv_tokens"] = batch * context_of(asked.scenario)
    return found


def _spread(scenario: Scenario, gpus: int, parallel: Parallel) -> Scenario:
    return with_values(scenario, gpus=gpus, nodes=1, parallel=parallel, cards=())


def _bytes(architecture: Architecture, fmt: Format) -> int | None:
    try:
        return checkpoint_bytes(architecture, fmt).total_bytes
    except BytesUnknown:
        return None
