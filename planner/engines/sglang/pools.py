"""SGLang's pools: tokens of every layer, of windowed layers apart where the release has it, and slots of recurrent states.

Every layer that is no recurrent one has buffers for keys and values, those that share another layer's and those without attention
too (``MHATokenToKVPool``, ``get_hybrid_layer_ids``, ``_handle_max_mamba_cache``).
"""

from __future__ import annotations

from dataclasses import replace

from planner.architecture.layers import Architecture, Attention, Layer, Recurrent, SequenceMixer
from planner.engines.paged import PageSpec, Pool, ceil_div
from planner.engines.sglang.settings import Settings
from planner.engines.token_pool import Filled, Setup
from planner.engines.vllm.cache import CacheKind, page_specs
from planner.memo import remember_by_identity
from planner.record import record
from planner.symbolic.amount import largest, smallest

FIXED_SLOTS = 512
"""Slots for recurrent states where ``max_running_requests`` is not given (0.5.3)."""


@record
class WindowPool(Pool):
    """A pool of tokens for full layers and one for windowed ones, whose sizes keep a ratio: ``window`` is what a block has of it.

    A sequence's tokens lie in both until a window has passed over them; the pool that runs short decides.
    """

    window: PageSpec | None = None

    def sequence_blocks(self, tokens: int, scheduled_tokens: int, shared_tokens: int = 0) -> int:
        """Blocks of one sequence, by the pool of which it takes the larger part."""
        full = Pool.sequence_blocks(self, tokens, scheduled_tokens, shared_tokens)
        if self.window is None:
            return full
        held = smallest(tokens, self.window.window_tokens + self.groups[0].block_tokens)
        wider: int = largest(full, ceil_div(held, self.window.block_tokens))
        return wider


@record
class Cells:
    """Bytes of a token on one GPU: in full layers, in layers with a window, and in what proposes."""

    full: int
    window: int
    draft: int
    draft_layers: int
    layers: int


@remember_by_identity(256)
def cells_of(
    architecture: Architecture, kind: CacheKind, held: range, beside: tuple[SequenceMixer, ...], *, windows: bool
) -> Cells:
    """What a token takes in the layers ``held`` on a stage and those ``beside`` them.

    ``windows``: layers with a window have a pool of their own.
    """
    layers = [architecture.decoder.layers[index] for index in held]
    sizes = [(_token_bytes(architecture, kind, layer), _window(layer)) for layer in layers]
    used = [size for size, _ in sizes if size]
    if not any(isinstance(mixer, Recurrent) for layer in architecture.decoder.layers for mixer in layer.sequence):
        sizes = [(size or max(used, default=0), window) for size, window in sizes]
    drafts = [spec for mixer in beside for spec in page_specs([mixer], kind, architecture.model_type)]
    return Cells(
        full=sum(size for size, window in sizes if not (windows and window)),
        window=sum(size for size, window in sizes if windows and window),
        draft=sum(spec.page_bytes // spec.block_tokens for spec in drafts),
        draft_layers=len(drafts), layers=sum(1 for size, _ in sizes if size),
    )  # fmt: skip


def _token_bytes(architecture: Architecture, kind: CacheKind, layer: Layer) -> int:
    mixers = [
        replace(mixer, kv="own") if isinstance(mixer, Attention) and mixer.kv == "shared" else mixer
        for mixer in layer.sequence
        if not isinstance(mixer, Recurrent)
    ]
    return sum(spec.page_bytes // spec.block_tokens for spec in page_specs(mixers, kind, architecture.model_type))


def _window(layer: Layer) -> int:
    return max(
        (mixer.window_tokens or mixer.chunk_tokens or 0 for mixer in layer.sequence if isinstance(mixer, Attention)), default=0
    )


def fill(settings: Settings, setup: Setup, stage: int, room: int, proposed: int) -> Filled:
    """The pools that ``room`` bytes hold on a stage. ``proposed``: tokens proposed in a step, 0 where nothing proposes."""
    slots, states = _slots(settings, setup.state_bytes[stage], room, proposed)
    window_tokens = _windows_apart(settings, setup.architecture, proposed)
    beside = setup.beside if stage == len(setup.stages) - 1 else ()
    cells = cells_of(setup.architecture, setup.kind, setup.stages[stage].layers, beside, windows=bool(window_tokens))
    parts, whole = settings.window_parts if window_tokens else (1, 1)
    unit, narrow = whole * settings.page_tokens, parts * settings.page_tokens
    target = cells.full * unit + cells.window * narrow
    size, budgeted = target + cells.draft * unit, target
    if settings.release.counts_drafts and cells.draft_layers:
        budgeted = size if window_tokens else target + target * cells.draft_layers // cells.layers
    blocks = largest(0, room - states) // budgeted
    if settings.most_tokens is not None:
        blocks = smallest(blocks, settings.most_tokens // unit)
    window = PageSpec("window", narrow, 0, window_tokens) if window_tokens else None
    most = settings.max_requests if slots is None else smallest(settings.max_requests, _requests(settings, slots, proposed))
    return Filled(WindowPool((PageSpec("full", unit, size),), size, blocks, window=window), states, most)


def _windows_apart(settings: Settings, architecture: Architecture, proposed: int) -> int:
    """The widest window of layers that have a pool of their own beside that of full layers; 0 where they have none.

    gpt-oss has none where something proposes, until drafts are counted.
    """
    kind, release = architecture.model_type, settings.release
    found = [_window(layer) for layer in architecture.decoder.layers]
    if kind not in release.windows or all(found) or (kind == "gpt_oss" and proposed and not release.counts_drafts):
        return 0
    return max(found)


def _slots(settings: Settings, state_bytes: int, room: int, proposed: int) -> tuple[int | None, int]:
    """(slots of states, the bytes they and what is kept while tokens are proposed take); no slots without states."""
    if not state_bytes:
        return None, 0
    release, padding = settings.release, settings.release.padding_slots
    kept = proposed + 1 if proposed else 0
    if release.states == "slots":
        slots = smallest(settings.max_requests, FIXED_SLOTS)
        return slots, slots * state_bytes
    if settings.state_slots is not None:
        slots = settings.state_slots
    elif kept and not release.counts_drafts:
        slots = settings.max_requests
    else:
        parts, whole = settings.state_parts
        budget = largest(0, room) * parts // (parts + whole)
        each = release.slots_a_request
        slots = largest(0, (budget - state_bytes * padding * (1 + kept)) * each // (state_bytes * (each + kept)))
    running = (
        settings.max_requests if not release.counts_drafts else smallest(settings.max_requests, slots // release.slots_a_request)
    )
    proposing = state_bytes * (running + padding) * kept if kept else 0
    return slots, (slots + padding) * state_bytes + proposing


def _requests(settings: Settings, slots: int, proposed: int) -> int:
    if settings.release.states == "slots" or (proposed and not settings.release.counts_drafts):
        return slots
    return slots // settings.release.slots_a_request
