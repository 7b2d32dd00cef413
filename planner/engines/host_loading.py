"""What transformers takes of the host to load a model: pages of the mapped files, and copies where dtypes differ.

transformers 5.23 ``modeling_utils.py`` (``safe_open(…, backend="mmap")``) and ``core_model_loading.py`` (``spawn_materialize``):
a tensor is a view of the mapped file; its ``.to(device, dtype)`` copies on the host only to another dtype, which PyTorch makes
before it sends it (``aten/src/ATen/native/cuda/Copy.cu``). Up to four threads do so; one where it quantises or writes to disk.
"""

from __future__ import annotations

from collections.abc import Mapping
from heapq import nlargest

from planner.architecture.counts import iter_weights, numel
from planner.architecture.layers import Architecture, MixtureOfExperts
from planner.footprint import Host, Term
from planner.formats.checkpoint import known_bytes, resolve_format
from planner.formats.format import Format
from planner.memo import remember_by_identity

PLAIN_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}
WORKERS = 4
"""``core_model_loading.py``, ``GLOBAL_WORKERS``: fewer only where there are fewer processors."""
QUANTISES_AT_LOAD = ("nf4", "fp4", "int8")
"""bitsandbytes' formats: the file holds the dtype that the config names, unless it was saved quantised."""
MAPPED = "transformers 5.23 opens safetensors with mmap; the pages are the page cache's, and can go once they were copied to a GPU"
STAYS_MAPPED = "; those of weights that stay on the host stay mapped"
COPIED = "PyTorch converts on the host before it copies to the GPU; {workers} at once (core_model_loading.py, spawn_materialize)"
STAY_COPIED = "in another dtype than the file's a weight on the host is a copy of its own"
PAGEABLE = "accelerate 1.15 copies from the pages that hold the weights (hooks.py, AlignDevicesHook): nothing is pinned"


def loading_host(
    architecture: Architecture,
    fmt: Format,
    dtype: str,
    components: Mapping[str, int],
    *,
    to_disk: bool = False,
    as_stored: bool = False,
) -> Host:
    """System memory after and during a load in ``dtype`` (of what is not quantised).

    ``as_stored``: the checkpoint itself is in the format. ``components``: what stays, weights among them. ``load_bytes`` counts
    the whole file, as where there is room for its pages; None where transformers merges experts on the host, and where the
    sizes are not known.
    """
    kept = components.get("weights", 0)
    terms = loading_terms(
        architecture, fmt, dtype, kept_bytes=kept, to_disk=to_disk, at_load=quantises_at_load(fmt) and not as_stored
    )
    held = sum(components.values())
    return Host(held, components, sum(term.bytes for term in terms), terms) if terms else Host(held, components)


@remember_by_identity(256)
def loading_terms(
    architecture: Architecture, fmt: Format, dtype: str, *, kept_bytes: int, to_disk: bool, at_load: bool
) -> tuple[Term, ...]:
    """What a load takes of the host when ``kept_bytes`` of weights stay there; nothing where it is not known."""
    stored = stored_bytes(architecture, fmt, at_load=at_load)
    if stored is None or (kept_bytes and _merges_experts(architecture)):
        return ()
    converts = _converts(architecture, fmt, dtype, at_load=at_load)
    workers = 1 if to_disk or at_load else WORKERS
    copies = sum(nlargest(workers, _tensor_bytes(architecture, PLAIN_BYTES[dtype]))) if converts else 0
    because = MAPPED + (STAYS_MAPPED if kept_bytes and not converts else "")
    terms = [Term("weights", "bytes of the files", {"holder": "host", "file_bytes": stored}, stored, "derived", because, "load")]
    values: dict[str, int | float | str]
    if copies:
        values = {"holder": "host", "tensors": workers, "bytes": PLAIN_BYTES[dtype]}
        text = COPIED.format(workers=workers)
        terms.append(Term("weights", "largest tensors · bytes", values, copies, "modelled", text, "load"))
    if kept_bytes and converts:
        values = {"holder": "host", "kept_bytes": kept_bytes}
        terms.append(Term("weights", "converted weights that stay", values, kept_bytes, "derived", STAY_COPIED, "load"))
    if kept_bytes:
        terms.append(Term("workspace", "pinned buffers", {"holder": "host", "pinned_bytes": 0}, 0, "derived", PAGEABLE))
    return tuple(terms)


def quantises_at_load(fmt: Format) -> bool:
    """Whether a plain checkpoint comes to this format while it is loaded."""
    return fmt.name.startswith(QUANTISES_AT_LOAD)


def stored_bytes(architecture: Architecture, fmt: Format, *, at_load: bool) -> int | None:
    """Bytes of a checkpoint's tensors: in the dtype that the config names, or as a format stores them that isn't made at load."""
    if fmt.is_quantized and not at_load:
        return known_bytes(architecture, fmt)
    each = PLAIN_BYTES.get(architecture.dtype)
    if each is None or fmt.unknown or fmt.file_type:
        return None
    held = ((weight, times) for _, weight, times in iter_weights(architecture) if not weight.is_buffer)
    return sum(numel(weight) * times * _each(weight.dtype, each) for weight, times in held)


def _each(fixed: str | None, plain: int) -> int:
    return PLAIN_BYTES.get(fixed or "", plain)


def _converts(architecture: Architecture, fmt: Format, dtype: str, *, at_load: bool) -> bool:
    """Whether tensors come to another dtype than the file's."""
    as_stored = fmt.is_quantized and not at_load
    return dtype != (resolve_format(fmt, architecture).rest_dtype if as_stored else architecture.dtype)


def _tensor_bytes(architecture: Architecture, each: int) -> list[int]:
    """Sizes of the largest tensors of every kind, as often as there are workers at most."""
    found: list[int] = []
    for _, weight, times in iter_weights(architecture):
        if not weight.is_buffer:
            size = numel(weight) // weight.count * _each(weight.dtype, each)
            found += [size] * min(WORKERS, times * weight.count)
    return found


def _merges_experts(architecture: Architecture) -> bool:
    return any(isinstance(mixer, MixtureOfExperts) for layer in architecture.decoder.layers for mixer in layer.channel)
