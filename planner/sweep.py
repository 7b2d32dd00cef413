"""Many predictions at once: grids of batch and context, matrices of GPUs and counts.

A sweep runs the arithmetic of a point under a trace that leaves open which moment is the highest, and the program that
comes of it on NumPy arrays: a few programs, one for each way through the arithmetic, fill ten thousand cells. Every cell
is what :func:`planner.predict.predict` says of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from planner.architecture.layers import Architecture
from planner.calibration import Calibration
from planner.engines.mixed import slowest_card
from planner.engines.served import SERVED, told_apart
from planner.faults import Faults
from planner.footprint import FITS_PERCENT, TIGHT_PERCENT, Footprint, Verdict
from planner.formats.checkpoint import BytesUnknown
from planner.formats.format import Format
from planner.gpu import Gpu
from planner.machine import overheads
from planner.modelled import NotModelled
from planner.predict import Device, answer_alone, predict, settled_of
from planner.record import record
from planner.repeat import Question, counts_of, question_of, with_counts
from planner.scenario import Scenario
from planner.solve import GOOD, layouts, on_card
from planner.symbolic.amount import largest, plain
from planner.symbolic.program import Program, record_program

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Integers = NDArray[np.int64]
    Floats = NDArray[np.float64]

VERDICTS: tuple[Verdict, ...] = ("fits", "tight", "does_not_fit", "unknown")
METERS = ("allocated", "reserved", "device", "headroom", "uncertainty", "verdict")
CURVE_POINTS = 64
UNKNOWN = -1
"""Stands for a figure of a cell that has none."""
FEW_CELLS = 32
"""So few cells are filled one after the other: arrays take longer to set up."""
PATHS = 64
"""Ways through the arithmetic that are told apart; cells beyond are answered one by one."""


@record
class Sweep:
    """The figures of every cell, in bytes, arrays of one shape; a figure that is not known is −1.

    ``verdict`` holds positions in :data:`VERDICTS`.
    """

    allocated: Integers
    reserved: Integers
    device: Integers
    headroom: Integers
    uncertainty: Integers
    verdict: Integers


def sweep(
    scenario: Scenario,
    architecture: Architecture,
    gpu: Gpu,
    native: Format | None = None,
    *,
    device: Device = "cuda",
    **axes: Sequence[int] | Integers,
) -> Sweep:
    """The footprint's peak for every combination of the axes' values, which are broadcast against each other.

    ``axes``: counts of the scenario's workload by name (``batch``, ``prompt_tokens``, ``new_tokens``, ``sequence`` …) and
    ``capacity_bytes``, each at least 1. A cell that the engine refuses is unknown.
    """
    import numpy as np  # noqa: PLC0415  a point does without

    shaped = np.broadcast_arrays(*(np.asarray(values, dtype=np.int64) for values in axes.values()))
    shape = shaped[0].shape
    first = with_counts(scenario, tuple(axes), [int(values.flat[0]) for values in shaped])
    names, values = counts_of(first)
    columns = [
        shaped[tuple(axes).index(name)].ravel() if name in axes else np.full(shaped[0].size, value)
        for name, value in zip(names, values, strict=True)
    ]

    if first.task == "inference" and first.engine == "llama.cpp":
        known = _of_buffers(first, architecture, gpu, native, dict(zip(names, columns, strict=True)), device)
        if known is not None:
            return Sweep(**{name: row.reshape(shape) for name, row in zip(METERS, known, strict=True)})

    def figures(*counts: int) -> tuple[Any, ...]:
        return _figures(lambda: answer_alone(with_counts(first, names, counts), architecture, gpu, native, device))

    def one(*counts: int) -> tuple[Any, ...]:
        return _figures(lambda: predict(with_counts(first, names, counts), architecture, gpu, native, device=device))

    question = question_of(first, names, architecture, gpu, native, device, METERS)
    found = _fill(question, figures, one, columns)
    return Sweep(**{name: row.reshape(shape) for name, row in zip(METERS, found, strict=True)})


def _of_buffers(
    first: Scenario, architecture: Architecture, gpu: Gpu, native: Format | None, columns: dict[str, Integers], device: Device
) -> list[Integers] | None:
    """Figures of llama.cpp, whose buffers are lines of their own; None where they are not known."""
    import numpy as np  # noqa: PLC0415

    from planner.engines.llama_cpp.grid import fullest  # noqa: PLC0415  loaded for those who ask

    counts = [name for name in columns if name != "capacity_bytes"]
    if not {"prompt_tokens", "new_tokens"} <= columns.keys() and any(np.ptp(columns[name]) for name in counts):
        return None
    settled, fmt = settled_of(first, architecture, native)
    ask = settled.inference
    if ask.embedder.is_held or "n_ctx" in ask.engine_options or gpu.unified:
        return None
    size = columns["batch"].size
    prompts, news = (np.broadcast_to(columns.get(name, getattr(ask, name)), size) for name in ("prompt_tokens", "new_tokens"))
    if "max_model_len" in columns and np.ptp(columns["max_model_len"]):
        return None

    def scenario_of(batch: int) -> Scenario:
        return with_counts(settled, ("batch",), (batch,))

    try:
        held = fullest(scenario_of, architecture, fmt, columns["batch"], prompts, news)
    except (NotModelled, BytesUnknown):
        return None
    machine = overheads(gpu if device == "cuda" else None)
    capacity = columns.get("capacity_bytes", np.full(size, settled.hardware.capacity_bytes or gpu.capacity_bytes))
    contexts, bands = np.full(size, machine.context_bytes), np.full(size, machine.context_band_bytes)
    return _judged(held, contexts, bands, capacity)


def _judged(held: Integers, contexts: Integers, band: Integers, capacity: Integers) -> list[Integers]:
    """The figures of buffers that a driver hands out as they are, beside its contexts (held: −1 where refused)."""
    import numpy as np  # noqa: PLC0415

    taken = held + contexts
    tight = (100 * taken > FITS_PERCENT * capacity) | (taken + band > capacity)
    verdict = np.where(100 * taken > TIGHT_PERCENT * capacity, 2, np.where(tight, 1, 0))
    figures = [held, held, taken, capacity - taken, band, verdict]
    refused = held < 0
    return [np.where(refused, 3 if row is verdict else UNKNOWN, row) for row in figures]


def context_grid(
    scenario: Scenario, architecture: Architecture, gpu: Gpu, native: Format | None, batches: Sequence[int], contexts: Sequence[int]
) -> Sweep:
    """Figures of shape (contexts, batches). A context is prompt and new tokens together; of a training it is the sequence.

    The scenario's new tokens (1 when it gives none) are kept; a context leaves at least one token for the prompt.
    """
    import numpy as np  # noqa: PLC0415

    batch, context = np.asarray(batches, dtype=np.int64)[None, :], np.asarray(contexts, dtype=np.int64)[:, None]
    if scenario.task == "training":
        return sweep(scenario, architecture, gpu, native, batch=batch, sequence=context)
    new = np.minimum(scenario.inference.new_tokens or 1, np.maximum(context - 1, 1))
    return sweep(scenario, architecture, gpu, native, batch=batch, prompt_tokens=np.maximum(context - new, 1), new_tokens=new)


def gpu_matrix(
    scenario: Scenario, architecture: Architecture, native: Format | None, gpus: Sequence[Gpu], counts: Sequence[int]
) -> Sweep:
    """Figures of shape (GPUs, counts): the scenario on so many of each GPU (:func:`on_gpus`)."""
    return _matrix(scenario, architecture, native, gpus, [partial(on_gpus, scenario, count=count) for count in counts])


def smallest_gpu(scenario: Scenario, architecture: Architecture, native: Format | None, gpus: Sequence[Gpu]) -> Gpu | None:
    """The card with the least memory on which the scenario fits, its count and layout unchanged; None when it fits on none."""
    by_memory = sorted(gpus, key=lambda gpu: (gpu.capacity_bytes, gpu.name))
    verdicts = _matrix(scenario, architecture, native, by_memory, [partial(on_card, scenario)]).verdict[:, 0]
    return next((gpu for gpu, verdict in zip(by_memory, verdicts, strict=True) if VERDICTS[verdict] in GOOD), None)


def _matrix(
    scenario: Scenario,
    architecture: Architecture,
    native: Format | None,
    gpus: Sequence[Gpu],
    spreads: Sequence[Callable[[Gpu], Scenario]],
) -> Sweep:
    """Figures of shape (GPUs, spreads): the scenario as each spread lays it on each GPU.

    Cards of one kind differ by numbers alone: each kind and spread is one question about so many machines, or, of cards that
    were measured, one sweep over capacities.
    """
    import numpy as np  # noqa: PLC0415

    found = Sweep(**{name: np.zeros((len(gpus), len(spreads)), dtype=np.int64) for name in METERS})
    kinds: dict[object, list[int]] = {}
    for row, gpu in enumerate(gpus):
        kinds.setdefault(_kind(scenario, gpu), []).append(row)
    for kind, rows in kinds.items():
        card = _cards.setdefault(kind, gpus[rows[0]])
        machines = [_numbers(scenario, gpus[row]) for row in rows]
        capacities = [gpus[row].capacity_bytes for row in rows]
        for column, spread_on in enumerate(spreads):
            spread = spread_on(card)
            if card.calibration is None:
                filled = _by_machine(spread, architecture, native, card, machines)
            else:
                one = sweep(spread, architecture, card, native, capacity_bytes=capacities)
                filled = [getattr(one, name) for name in METERS]
            for name, figures in zip(METERS, filled, strict=True):
                getattr(found, name)[rows, column] = figures
    return found


def _numbers(scenario: Scenario, gpu: Gpu) -> tuple[int, ...]:
    """What is a number of a card: capacity, context and its band, cuBLAS workspace; where kernels refuse, compute capability."""
    machine = overheads(gpu)
    capability = (gpu.compute_capability or ()) if scenario.engine in SERVED else ()
    return (gpu.capacity_bytes, machine.context_bytes, machine.context_band_bytes, machine.cublas_workspace_bytes, *capability)


def _by_machine(
    spread: Scenario, architecture: Architecture, native: Format | None, card: Gpu, machines: Sequence[tuple[int, ...]]
) -> list[Integers]:
    """The figures on so many of each card: what a machine adds is a count like its capacity."""
    import numpy as np  # noqa: PLC0415

    if spread.engine == "llama.cpp" and not spread.inference.embedder.is_held and not card.unified:
        found = sweep(spread, architecture, card, native, batch=[spread.inference.batch])
        if VERDICTS[found.verdict[0]] != "unknown":
            capacities, contexts, bands = np.array([machine[:3] for machine in machines], dtype=np.int64).T
            return _judged(np.full(len(machines), found.allocated[0]), contexts, bands, capacities)
    names, values = counts_of(with_counts(spread, ("capacity_bytes",), (card.capacity_bytes,)))
    work = values[:-1]

    def figures(*counts: int) -> tuple[Any, ...]:
        context, band, workspace, *capability = counts[len(names) :]
        calibration = Calibration(context_bytes=context, context_band_bytes=band, cublas_workspace_bytes=workspace)
        kernels = {"compute_capability": tuple(capability)} if capability else {}
        machine = Gpu(**{**vars(card), "calibration": calibration} | kernels)
        asked = with_counts(spread, names, counts[: len(names)])
        return _figures(lambda: answer_alone(asked, architecture, machine, native, "cuda"))

    question = question_of(spread, names, architecture, native, METERS)
    if spread.engine not in SERVED:
        rows = np.array(machines, dtype=np.int64).T
        return _fill(question, figures, figures, [*(np.full(len(machines), value) for value in work), *rows])
    # Servers settle by tiers of cards: so many programs hold a few cards each that arrays do not pay.
    cells = {machine: _point(question, figures, figures, (*work, *machine), zeros=1) for machine in dict.fromkeys(machines)}
    return list(np.array([cells[machine] for machine in machines], dtype=np.int64).T)


_cards: dict[object, Gpu] = {}
"""The card that stands for its kind, always the same, so that its programs are found again."""


def _kind(scenario: Scenario, gpu: Gpu) -> tuple[object, ...]:
    """What the memory of a run depends on beside numbers of the card; vLLM and TGI tell cards apart by name and architecture."""
    if gpu.calibration is None and scenario.engine not in SERVED:
        return (gpu.unified,)
    kind: tuple[object, ...] = (gpu.compute_capability is None, gpu.unified, gpu.calibration, gpu.vendor)
    if gpu.calibration is not None:
        kind += (gpu.arch, gpu.compute_capability, gpu.target, gpu.vendor)
    return (*kind, gpu.arch, *told_apart(gpu.name)) if scenario.engine in ("vllm", "tgi") else kind


def on_gpus(scenario: Scenario, gpu: Gpu, count: int) -> Scenario:
    """The scenario on ``count`` of a GPU, at most a node's, in the layout that moves least between them."""
    return next(layouts(on_card(scenario, gpu), count))


@record
class SpeedCurve:
    """Decoding at each concurrency: sequences at once, tokens a second of all together, seconds a token of each."""

    concurrency: Integers
    tokens_per_s: Floats
    time_per_token_s: Floats


def speed_curve(
    scenario: Scenario, architecture: Architecture, gpu: Gpu, native: Format | None = None, *, points: int = CURVE_POINTS
) -> SpeedCurve | None:
    """Speed against concurrency, from one sequence to as many as fit, at most ``points`` of them evenly spread by ratio.

    None for a training, where not one sequence fits, and where rates of the card or bytes of the weights are not known.
    """
    if scenario.task == "training":
        return None
    import numpy as np  # noqa: PLC0415

    settled, fmt = settled_of(scenario, architecture, native)
    most = predict(settled, architecture, gpu, native).limits.get("max_batch")
    if not most:
        return None
    batches = np.unique(np.round(np.geomspace(1, most, points)).astype(np.int64))
    rates = _rates(settled, architecture, fmt, slowest_card(settled, gpu), batches.tolist())
    if rates is None:
        return None
    return SpeedCurve(batches, np.array(rates), batches * settled.inference.samples / np.array(rates))


def _rates(scenario: Scenario, architecture: Architecture, fmt: Format, gpu: Gpu, batches: Sequence[int]) -> list[float] | None:
    """Tokens a second at each batch, as :func:`planner.speed.speed` has them for one; None where they are not known."""
    from planner.speed import speed, tokens_per_s  # noqa: PLC0415  for those who look

    if scenario.engine != "llama.cpp":
        return None if fmt.unknown or fmt.file_type else tokens_per_s(scenario, architecture, fmt, gpu, batches)
    found = [speed(with_counts(scenario, ("batch",), (batch,)), architecture, fmt, gpu).get("tokens_per_s") for batch in batches]
    rates = [rate for rate in found if isinstance(rate, float)]
    return rates if len(rates) == len(found) else None


def _figures(ask: Callable[[], Footprint]) -> tuple[Any, ...]:
    """The figures of the fullest GPU; none where the engine refuses."""
    try:
        footprint = ask()
    except Faults:
        return (*[UNKNOWN] * (len(METERS) - 1), VERDICTS.index("unknown"))
    phases = [phase for gpu in footprint.gpus for phase in gpu.phases]
    peaks = [largest(*(phase.meter(name) for phase in phases)) if phases else UNKNOWN for name in METERS[:3]]
    headroom = UNKNOWN if footprint.headroom_bytes is None else footprint.headroom_bytes
    uncertainty = UNKNOWN if footprint.uncertainty_bytes is None else footprint.uncertainty_bytes
    return (*peaks, headroom, uncertainty, VERDICTS.index(footprint.verdict))


def _fill(
    question: Question, figures: Callable[..., tuple[Any, ...]], one: Callable[..., tuple[Any, ...]], columns: Sequence[Integers]
) -> list[Integers]:
    import numpy as np  # noqa: PLC0415

    if columns[0].size <= FEW_CELLS:
        cells = [_point(question, figures, one, [int(column[cell]) for column in columns]) for cell in range(columns[0].size)]
        return [np.array(row, dtype=np.int64) for row in zip(*cells, strict=True)]
    left = np.arange(columns[0].size)
    found = [np.zeros(left.size, dtype=np.int64) for _ in METERS]
    constant = [int(column[0]) if (column == column[0]).all() else None for column in columns]
    tried = 0
    while left.size and (run := _run(question, tried, figures, columns, int(left[left.size // 2]))):
        tried += 1
        holds, values = run(*(column[left] if one is None else one for column, one in zip(columns, constant, strict=True)))
        holds = np.broadcast_to(holds, left.shape)
        for row, value in zip(found, values, strict=True):
            row[left[holds]] = np.broadcast_to(value, left.shape)[holds]
        left = left[~holds]
    for cell in left:
        for row, value in zip(found, one(*(int(column[cell]) for column in columns)), strict=True):
            row[cell] = value
    return found


def _point(
    question: Question, figures: Callable[..., tuple[Any, ...]], one: Callable[..., tuple[Any, ...]], values: Sequence[int],
    zeros: int = 0,
) -> tuple[Any, ...]:  # fmt: skip
    """The figures of one cell. ``zeros``: so many of the last values may be 0, the others are at least 1."""
    for program in question.programs:
        found: tuple[Any, ...] | None = program.at(values)
        if found is not None:
            return found
    if question.hopeless or len(question.programs) >= PATHS:
        return one(*values)
    minimums = [1] * (len(values) - zeros) + [0] * zeros
    result, program = record_program(figures, values, minimums, branches=False)
    if program is None:
        question.hopeless = True
        return one(*values)
    question.add(program)
    return tuple(plain(figure) for figure in result)


def _run(
    question: Question, tried: int, figures: Callable[..., tuple[Any, ...]], columns: Sequence[Integers], cell: int
) -> Callable[..., tuple[Any, Any]] | None:
    """The next program over arrays: one that is known, or one made for a cell; None when there is none more."""
    known = question.programs[tried : tried + 1]
    if not known:
        if tried >= PATHS or question.hopeless:
            return None
        values = [int(column[cell]) for column in columns]
        _, made = record_program(figures, values, [1] * len(columns), branches=False)
        if made is None:
            question.hopeless = True
            return None
        known = (made,)
        question.add(made)
    program: Program[tuple[Any, ...]] = known[0]
    return program.arrays() if _exact(program, columns) else None


def _exact(program: Program[tuple[Any, ...]], columns: Sequence[Integers]) -> bool:
    """Whether no figure of the largest cell leaves 64 bits: the figures grow with every count."""
    import numpy as np  # noqa: PLC0415

    corner = tuple(int(column.max()) for column in columns)
    if program.exact_to and all(count <= known for count, known in zip(corner, program.exact_to, strict=True)):
        return True
    run = program.arrays()
    with np.errstate(over="ignore"):
        quick = run(*(np.array([value]) for value in corner))[1]
    exact = run(*corner)[1]
    if not all(int(np.asarray(one).flat[0]) == int(other) for one, other in zip(quick, exact, strict=True)):
        return False
    program.exact_to = corner
    return True
