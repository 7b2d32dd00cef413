"""transformers' quantised cache: keys and values in groups with a scale and a shift, the newest tokens as they are.

transformers 5.23 ``cache_utils.py`` (``QuantizedLayer``): a prompt is quantised whole, later tokens wait until there are
``residual_tokens`` of them; every step makes the whole cache anew from its groups. What one quantisation makes follows
optimum-quanto 0.2.7 and HQQ 0.2 (``quantize``, ``pack``), without HQQ's search for scales.
"""

from __future__ import annotations

from planner.architecture.layers import Architecture, Attention, LatentAttention
from planner.components.graph import Graph
from planner.components.run import Run
from planner.components.tape import Size
from planner.faults import Fault, Faults
from planner.modelled import NotModelled
from planner.record import record
from planner.scenario import Scenario

FIELD = "inference.engine_options"
BITS = {"quanto": (2, 4), "hqq": (1, 2, 4, 8)}
DEFAULTS = {"nbits": 4, "q_group_size": 64, "residual_length": 128}
BITS_OF_KV_CACHE = {"int2": 2, "int4": 4, "int8": 8}


@record
class CacheQuantisation:
    """Bits of a value, values of a group, tokens that stay as they are, and tokens of the prompt."""

    bits: int
    group: int
    residual_tokens: int
    prompt_tokens: int

    def residual(self, past_tokens: int) -> int:
        """Tokens that wait when the cache holds ``past_tokens``."""
        later = past_tokens - self.prompt_tokens
        return later - later // self.residual_tokens * self.residual_tokens

    def is_full(self, past_tokens: int) -> bool:
        """Whether one more token makes the waiting ones enough to be quantised."""
        return self.residual(past_tokens) + 1 >= self.residual_tokens


def settings_of(scenario: Scenario) -> dict[str, object] | None:
    """``cache_config`` of ``generate`` for the options and the cache's format; None for a cache that is not quantised."""
    ask = scenario.inference
    options = ask.engine_options
    asked = options.get("cache_implementation", "quantized" if ask.kv_cache in (*BITS_OF_KV_CACHE, "fp8") else "dynamic")
    if asked != "quantized":
        return None
    backend = str(options.get("cache_backend") or {"fp8": "fp8", "int8": "hqq"}.get(ask.kv_cache, "quanto"))
    if backend == "fp8":
        return {"backend": backend}
    given = {name: options.get(f"cache_{name}", default) for name, default in DEFAULTS.items()}
    if "cache_nbits" not in options:
        given["nbits"] = BITS_OF_KV_CACHE.get(ask.kv_cache, DEFAULTS["nbits"])
    return {"backend": backend, **{name: int(str(value)) for name, value in given.items()}}


def cache_quantisation(scenario: Scenario, prompt_tokens: int) -> CacheQuantisation | None:
    """What the options ask for; None for another cache. Raises Faults for bits that the backend hasn't."""
    found = settings_of(scenario)
    if found is None:
        return None
    backend = str(found["backend"])
    if backend not in BITS:
        raise NotModelled(f"{FIELD}.cache_backend: a cache quantised by {backend} has no closed form yet")
    bits, group, residual = (int(str(found[name])) for name in DEFAULTS)
    if bits not in BITS[backend]:
        raise Faults([Fault(f"{FIELD}.cache_nbits", f"{backend} has {', '.join(map(str, BITS[backend]))}, not {bits}")])
    return CacheQuantisation(bits, group, max(residual, 1), prompt_tokens)


def require_groups(architecture: Architecture, cache: CacheQuantisation) -> None:
    """Raise :class:`NotModelled` for caches that this one can't hold, and for groups that reach over heads."""
    if architecture.kind != "decoder":
        raise NotModelled(f"{FIELD}.cache_implementation: a quantised cache beside an encoder has no closed form yet")
    for layer in architecture.decoder.layers:
        for mixer in layer.sequence:
            plain = isinstance(mixer, Attention) and mixer.kv == "own" and mixer.compression is None
            if isinstance(mixer, LatentAttention) or not isinstance(mixer, Attention) or not plain or _window(mixer):
                raise NotModelled(f"{FIELD}.cache_implementation: a quantised cache holds layers of full attention alone")
            if mixer.head_dim % cache.group or mixer.value_head_dim % cache.group:
                raise NotModelled(f"{FIELD}.cache_q_group_size: {cache.group} does not divide heads of {mixer.head_dim}")


def _window(mixer: Attention) -> bool:
    return (mixer.window_tokens or mixer.chunk_tokens) is not None


def quantised_past(mixer: Attention, run: Run, cache: CacheQuantisation) -> dict[str, Size]:
    """What one layer's cache holds: of keys and of values groups packed, their scales and shifts, waiting tokens."""
    waiting = cache.residual(run.past_tokens)
    found: dict[str, Size] = {}
    for name in ("k", "v"):
        found |= {f"{part} past": size for part, size in _packed(mixer, run, cache, name, run.past_tokens - waiting).items()}
        if waiting:
            found[f"{name} waiting past"] = run.cache(mixer, name, waiting)
    return found


def _packed(mixer: Attention, run: Run, cache: CacheQuantisation, name: str, tokens: int) -> dict[str, Size]:
    """Of ``tokens`` tokens of keys or values: packed groups, scales, shifts."""
    groups = run.cache(mixer, name, tokens).bytes // run.dtype_bytes // cache.group
    each = max(8 // cache.bits, 1)
    scales = Size(groups=groups, bytes=run.dtype_bytes)
    packed = Size(packed_groups=-(-groups // each), group=cache.group)
    return {f"{name} packed": packed, f"{name} scale": scales, f"{name} shift": scales}


def quantised_forward(g: Graph, mixer: Attention, cache: CacheQuantisation) -> tuple[str, str]:
    """``QuantizedLayer.update``; returns what attention reads: the new tensors of a prompt, else all that was made anew."""
    run = g.run
    if not run.past_tokens:
        for name, source in (("k", "k rotated"), ("v", "v")):
            if run.sequence > 1 and (mixer.cached_kv_heads or mixer.num_kv_heads) > 1:
                g.hold(f"{name} contiguous", g.size_of(source))
            _quantise(g, mixer, cache, name, run.sequence)
            g.free(f"{name} contiguous")
        return "k rotated", "v"
    waiting = cache.residual(run.past_tokens)
    for name in ("k", "v"):
        _dequantise(g, mixer, name, run.past_tokens - waiting)
    for name in ("k", "v"):
        g.hold(f"{name} anew", run.cache(mixer, name, run.past_tokens + run.sequence))
    for name in ("k", "v"):
        if cache.is_full(run.past_tokens):
            _quantise(g, mixer, cache, name, run.past_tokens + run.sequence)
            g.consume(*(f"{name} {part} past" for part in ("packed", "scale", "shift")))
        else:
            g.hold(f"{name} waiting", run.cache(mixer, name, waiting + run.sequence), "kv_cache")
            g.consume(f"{name} waiting past")
    g.consume("k waiting past", "v waiting past")
    g.free("k restored", "v restored", "k rotated", "v")
    return "k anew", "v anew"


def _quantise(g: Graph, mixer: Attention, cache: CacheQuantisation, name: str, tokens: int) -> None:
    """Lowest and highest of each group, scale and shift; shifted, divided, rounded, clamped; bytes, then packed."""
    run = g.run
    whole, packed = g.run.cache(mixer, name, tokens), _packed(mixer, run, cache, name, tokens)
    scales = packed[f"{name} scale"]
    g.hold("lowest", scales)
    g.hold("highest", scales)
    g.hold(f"{name} scale", scales, "kv_cache")
    g.hold(f"{name} shift", scales, "kv_cache")
    g.hold("shifted", whole)
    g.hold("divided", whole)
    g.free("shifted")
    g.hold("values", Size(values=whole.bytes // run.dtype_bytes))
    g.free("divided")
    g.hold(f"{name} packed", packed[f"{name} packed"], "kv_cache")
    g.hold("part", packed[f"{name} packed"])
    g.free("part", "values", "lowest", "highest")


def _dequantise(g: Graph, mixer: Attention, name: str, tokens: int) -> None:
    whole = g.run.cache(mixer, name, tokens)
    g.hold("values", Size(values=whole.bytes // g.run.dtype_bytes))
    g.hold(f"{name} restored", whole)
    g.free("values")
