"""The blocks of a transformer, forward and backward, as transformers 5.23 writes them and autograd runs them.

Each function lays one block on a :class:`~planner.components.tape.Tape`: the tensors in the order in which
``modeling_llama.py`` (and the models that inherit from it) makes them, and the moment the last reference goes. A tensor
marked ``saved`` is one that autograd keeps for the backward: the input of a linear, the factors of a product, the fp32
copy inside a norm, the operands and log-sum-exp of attention. Backward functions follow the order of autograd's engine:
a node's weight gradient, then its input gradient, then what the node had saved is dropped.
"""

from __future__ import annotations

from dataclasses import dataclass

from planner.architecture.layers import Attention, DenseMLP, Norm, Weight
from planner.components.tape import Size, Tape

FP32_BYTES = 4


@dataclass(frozen=True, slots=True)
class Run:
    """One forward's shape: ``batch`` sequences of ``sequence`` new tokens, ``dtype_bytes`` an activation value.

    ``cached``: keys and values go through a cache (they are copied into it by ``torch.cat``).
    ``cuda``: attention runs by the CUDA flash kernel, else by the CPU's.
    ``trainable``: weights get gradients; ``accumulating``: they exist already and are added to.
    """

    batch: int
    sequence: int
    hidden_size: int
    dtype_bytes: int = 2
    cached: bool = False
    cuda: bool = True
    past_tokens: int = 0
    trainable: bool = True
    accumulating: bool = False

    def hidden(self, width: int | None = None) -> Size:
        """An activation of ``width`` features (the hidden size if not said) for every token."""
        name = {"hidden_size": self.hidden_size} if width is None else {"features": width}
        return Size(batch=self.batch, sequence=self.sequence, **name, bytes=self.dtype_bytes)

    def upcast(self, width: int, rows: int = 1) -> Size:
        """The same in fp32; ``rows`` of them for each token (heads)."""
        return Size(batch=self.batch, sequence=self.sequence, rows=rows, features=width, fp32_bytes=4)

    def heads(self, heads: int, width: int) -> Size:
        """One vector of ``width`` for each head and token."""
        return Size(batch=self.batch, sequence=self.sequence, heads=heads, head_dim=width, bytes=self.dtype_bytes)

    def mlp(self, width: int) -> Size:
        """An activation of a feed-forward block."""
        return Size(batch=self.batch, sequence=self.sequence, intermediate_size=width, bytes=self.dtype_bytes)

    def past_cells(self, mixer: Attention) -> int:
        """Tokens a layer's cache shows before this forward: all, or one less than the window (``DynamicSlidingWindowLayer``)."""
        return self.past_tokens if mixer.window_tokens is None else min(self.past_tokens, mixer.window_tokens - 1)

    def cache(self, mixer: Attention, name: str, tokens: int) -> Size:
        """Cached keys (``k``) or values (``v``) of one layer."""
        heads = mixer.cached_kv_heads or mixer.num_kv_heads
        width = mixer.head_dim if name == "k" else mixer.value_head_dim
        return Size(batch=self.batch, tokens=tokens, num_key_value_heads=heads, head_dim=width, bytes=self.dtype_bytes)

    def row(self) -> Size:
        """One fp32 number for each token (a mean, a log-sum-exp)."""
        return Size(batch=self.batch, sequence=self.sequence, fp32_bytes=4)


def gradient(tape: Tape, run: Run, weight: Weight) -> None:
    """The gradient of one parameter, kept until the optimizer has used it, or added to what earlier micro-batches left."""
    name, size = f"grad {weight.name}", Size(**_factors(weight), bytes=run.dtype_bytes)
    tape.hold(name, size, "gradients")
    if run.accumulating:
        tape.consume(name)


def norm_forward(tape: Tape, run: Run, norm: Norm, name: str, source: str, rows: int = 1, *, result_saved: bool = True) -> None:
    """RMSNorm of ``source``: fp32 copy, square, mean, product, cast back, weight (``LlamaRMSNorm.forward``).

    In training autograd keeps the fp32 copy, the mean's root and the cast; the result is kept by the linears that read
    it. In an fp32 model the copy and the cast are the tensors themselves, and the source is what is kept.
    """
    wide, row, narrow = run.upcast(norm.width, rows), _rows(run, rows), _like(run, norm.width, rows)
    upcast = run.dtype_bytes != FP32_BYTES
    if upcast:
        tape.hold(f"{name} fp32", wide, saved=True)
    tape.hold(f"{name} square", wide)
    tape.hold(f"{name} variance", row)
    tape.free(f"{name} square")
    tape.hold(f"{name} root", row, saved=True)
    tape.hold(f"{name} scaled", wide, saved=not upcast)
    tape.free(f"{name} fp32", f"{name} root")
    if upcast:
        tape.hold(f"{name} cast", narrow, saved=True)
    else:
        tape.keep(source)
    tape.hold(name, narrow, saved=result_saved)
    tape.free(f"{name} cast", f"{name} scaled", f"{name} variance")


def norm_backward(tape: Tape, run: Run, norm: Norm, name: str, grad: str, source: str, rows: int = 1) -> None:
    """From the gradient of the result (``grad``, dropped) to ``{name} dx``, the gradient of the norm's input."""
    wide, narrow = run.upcast(norm.width, rows), _like(run, norm.width, rows)
    upcast = run.dtype_bytes != FP32_BYTES
    tape.hold(f"{name} d_cast", narrow)
    if run.trainable:
        tape.hold(f"{name} d_weight rows", narrow)
        for weight in norm.weights:
            gradient(tape, run, weight)
    tape.consume(f"{name} cast", f"{name} d_weight rows", grad)
    if upcast:
        tape.hold(f"{name} d_scaled", wide)
        tape.consume(f"{name} d_cast", f"{name} scaled")
    else:
        tape.consume(f"{name} scaled")
        tape.rename(f"{name} d_cast", f"{name} d_scaled")
    tape.hold(f"{name} d_root rows", wide)
    tape.hold(f"{name} d_fp32", wide)
    tape.consume(f"{name} d_root rows", f"{name} d_scaled", f"{name} root")
    for moment in ("d_square", "power", "twice", "d_square fp32"):
        tape.hold(f"{name} {moment}", wide)
    tape.consume(f"{name} twice", f"{name} power", f"{name} d_square", f"{name} fp32")
    if not upcast:
        tape.consume(f"kept {source}")
    tape.hold(f"{name} d_sum", wide)
    tape.consume(f"{name} d_fp32", f"{name} d_square fp32")
    if upcast:
        tape.hold(f"{name} dx", narrow)
        tape.consume(f"{name} d_sum")
    else:
        tape.rename(f"{name} d_sum", f"{name} dx")


def attention_forward(tape: Tape, run: Run, mixer: Attention) -> None:
    """Projections, rotary embedding, cache, scaled dot product, output projection (``LlamaAttention.forward``).

    Reads ``attention norm``; leaves ``attention``, the block's output.
    """
    queries, keys, values = _qkv_sizes(run, mixer)
    read_directly = not run.cached and not (_masked(run, mixer) and mixer.num_kv_heads != mixer.num_heads)
    tape.hold("q", queries)
    _head_norm_forward(tape, run, mixer, "q", mixer.num_heads)
    tape.hold("k", keys)
    _head_norm_forward(tape, run, mixer, "k", mixer.num_kv_heads)
    tape.hold("v", values, saved=read_directly)
    if mixer.rotary_dim:
        _rotate_forward(tape, "q", queries)
        _rotate_forward(tape, "k", keys, saved=read_directly)
        tape.free("q", "k")
    else:
        tape.rename("q", "q rotated")
        tape.keep("q rotated")
        tape.rename("k", "k rotated")
        if read_directly:
            tape.keep("k rotated")
    if run.cached:
        _cache_forward(tape, run, mixer)
    _expand_forward(tape, run, mixer)
    heads = run.heads(mixer.num_heads, mixer.value_head_dim)
    tape.hold("attended", heads, saved=True)
    tape.hold("log_sum_exp", _log_sum_exp(run, mixer), saved=True)
    tape.free("log_sum_exp", "mask", "k repeated", "v repeated")
    tape.hold("attention", run.hidden())
    tape.free("q rotated", "k rotated", "v", "attended")


def attention_backward(tape: Tape, run: Run, mixer: Attention) -> None:
    """From the gradient of the output to ``attention norm d``; the output's own gradient stays, the residual needs it."""
    queries, keys, values = _qkv_sizes(run, mixer)
    project = {_part(weight): weight for weight in mixer.weights}
    _linear_gradients(tape, run, project.get("o_proj", ()))
    tape.hold("d attended", run.heads(mixer.num_heads, mixer.value_head_dim))
    _flash_backward(tape, run, mixer, queries, keys, values)
    tape.consume("d attended", "k cached", "v cached", "k rotated", "q rotated", "v", "log_sum_exp", "attended")
    for name, size in (("k", keys), ("q", queries)):
        if mixer.rotary_dim:
            _rotate_backward(tape, name, size)
        else:
            tape.rename(f"d {name} rotated", f"d {name}")
    _head_norms_backward(tape, run, mixer)
    _input_gradients(tape, run, mixer, project)


def mlp_forward(tape: Tape, run: Run, mixer: DenseMLP, *, whole: bool = True) -> None:
    """down(act(gate) · up), or down(act(up)): reads ``mlp norm``, leaves ``mlp`` (``LlamaMLP.forward``).

    Without ``whole`` it ends at the input of the down projection.
    """
    wide = run.mlp(mixer.intermediate_size)
    tape.hold("gate", wide, saved=True)
    tape.hold("activated", wide, saved=True)
    tape.free("gate")
    if mixer.gated:
        tape.hold("up", wide, saved=True)
        tape.hold("product", wide, saved=True)
        tape.free("activated", "up")
    if whole:
        tape.hold("mlp", run.hidden())
    tape.free("product", "activated")


def mlp_backward(tape: Tape, run: Run, mixer: DenseMLP) -> None:
    """From the gradient of the output to ``mlp norm d``; the output's own gradient stays, the residual needs it."""
    wide, narrow = run.mlp(mixer.intermediate_size), run.hidden()
    project = {_part(weight): weight for weight in mixer.weights if weight.role != "bias"}
    down, first, second = _mlp_projections(project, gated=mixer.gated)
    _linear_gradients(tape, run, down)
    tape.hold("d product", wide)
    tape.consume("product")
    if mixer.gated:
        tape.hold("d up", wide)
        tape.hold("d activated", wide)
        tape.consume("d product", "up", "activated")
        _linear_gradients(tape, run, second)
        tape.hold("mlp norm d1", narrow)
        tape.consume("d up")
        tape.hold("d gate", wide)
        tape.consume("d activated", "gate")
        _linear_gradients(tape, run, first)
        tape.hold("mlp norm d2", narrow)
        tape.consume("d gate", "mlp norm")
        tape.hold("mlp norm d", narrow)
        tape.consume("mlp norm d1", "mlp norm d2")
    else:
        tape.consume("activated")
        tape.hold("d gate", wide)
        tape.consume("d product", "gate")
        _linear_gradients(tape, run, first)
        tape.hold("mlp norm d", narrow)
        tape.consume("d gate", "mlp norm")


def rotary_embedding(run: Run, rotary_dim: int) -> tuple[Size, Size]:
    """Cosines and sines shared by all layers: (kept, what is held for a moment while they are made)."""
    kept = Size(two=2, sequence=run.sequence, rotary_dim=rotary_dim, bytes=run.dtype_bytes)
    moment = Size(sequence=run.sequence, rotary_dim=rotary_dim, fp32_bytes=14)
    return kept, moment


def _qkv_sizes(run: Run, mixer: Attention) -> tuple[Size, Size, Size]:
    return (
        run.heads(mixer.num_heads, mixer.head_dim),
        run.heads(mixer.num_kv_heads, mixer.head_dim),
        run.heads(mixer.num_kv_heads, mixer.value_head_dim),
    )


def _rotate_forward(tape: Tape, name: str, size: Size, *, saved: bool = True) -> None:
    """x · cos + rotate_half(x) · sin (``apply_rotary_pos_emb``): only cosines and sines are saved, they are shared."""
    half = _half(size)
    tape.hold(f"{name} cos", size)
    tape.hold(f"{name} half", half)
    tape.hold(f"{name} turned", size)
    tape.free(f"{name} half")
    tape.hold(f"{name} sin", size)
    tape.free(f"{name} turned")
    tape.hold(f"{name} rotated", size, saved=saved)
    tape.free(f"{name} cos", f"{name} sin")


def _rotate_backward(tape: Tape, name: str, size: Size) -> None:
    half = _half(size)
    tape.hold(f"d {name} sin", size)
    tape.hold(f"d {name} half", half)
    tape.hold(f"d {name} low", size)
    tape.consume(f"d {name} half")
    tape.hold(f"d {name} high", size)
    tape.consume(f"d {name} sin")
    tape.hold(f"d {name} turned", size)
    tape.consume(f"d {name} low", f"d {name} high")
    tape.hold(f"d {name} cos", size)
    tape.consume(f"d {name} rotated")
    tape.hold(f"d {name}", size)
    tape.consume(f"d {name} turned", f"d {name} cos")


def _half(size: Size) -> Size:
    """One of the two halves of every head that ``rotate_half`` moves."""
    factors = {name: value for name, value in size.values.items() if isinstance(value, int)}
    return Size(**factors | {"head_dim": max(factors["head_dim"] // 2, 1)})


def _head_norm_forward(tape: Tape, run: Run, mixer: Attention, name: str, heads: int) -> None:
    """A norm over each head of queries or keys (Qwen3): the normed tensor takes the projection's name.

    The rotation that reads the result needs only cosines and sines for its backward, so the result is not saved.
    """
    if mixer.qk_norm == "per_head":
        norm_forward(tape, run, _head_norm(mixer, name), f"{name} norm", name, heads, result_saved=False)
        tape.free(name)
        tape.rename(f"{name} norm", name)


def _head_norms_backward(tape: Tape, run: Run, mixer: Attention) -> None:
    if mixer.qk_norm != "per_head":
        return
    for name, heads in (("k", mixer.num_kv_heads), ("q", mixer.num_heads)):
        norm_backward(tape, run, _head_norm(mixer, name), f"{name} norm", f"d {name}", name, heads)
        tape.rename(f"{name} norm dx", f"d {name}")


def _head_norm(mixer: Attention, name: str) -> Norm:
    weights = tuple(weight for weight in mixer.weights if _part(weight) == f"{name}_norm")
    return Norm(f"{name}_norm", mixer.head_dim, "rms", weights)


def _cache_forward(tape: Tape, run: Run, mixer: Attention) -> None:
    """``DynamicLayer.update``: keys, then values are copied behind what the cache holds; the old cache goes with each.

    A sliding-window layer keeps a view of its last tokens; what it copied stays alive under the view.
    """
    names = ("k", "v")
    for name in names:
        tape.relabel(f"{name} past", "workspace")
        tape.hold(
            f"{name} cached",
            run.cache(mixer, name, run.past_cells(mixer) + run.sequence),
            "kv_cache",
            saved=not _masked(run, mixer),
        )
        if mixer.window_tokens is None:
            tape.consume(f"{name} past")
    tape.consume(*(f"{name} past" for name in names))
    tape.free("k rotated", "v")


def _masked(run: Run, mixer: Attention) -> bool:
    """Whether attention takes a mask tensor: a window that is reached can't be said by ``is_causal`` alone (``masking_utils``)."""
    return mixer.window_tokens is not None and run.sequence > 1 and run.past_tokens + run.sequence >= mixer.window_tokens


def _expand_forward(tape: Tape, run: Run, mixer: Attention) -> None:
    """With a mask, keys and values are repeated for every query head and the mask is added as numbers (``repeat_kv``)."""
    if not _masked(run, mixer):
        return
    if mixer.num_kv_heads != mixer.num_heads:
        tape.hold("k repeated", run.heads(mixer.num_heads, mixer.head_dim), saved=True)
        tape.hold("v repeated", run.heads(mixer.num_heads, mixer.value_head_dim), saved=True)
    keys = run.past_cells(mixer) + run.sequence
    tape.hold("mask", Size(batch=run.batch, queries=run.sequence, keys=keys, bytes=run.dtype_bytes), saved=True)


def sliding_mask(run: Run, mixer: Attention) -> tuple[Size, int] | None:
    """The boolean mask shared by the windowed layers, and how many of its size are alive while it is made; None without."""
    if not _masked(run, mixer):
        return None
    return Size(queries=run.sequence, keys=run.past_cells(mixer) + run.sequence, bool_bytes=1), 3


def _log_sum_exp(run: Run, mixer: Attention) -> Size:
    return Size(batch=run.batch, sequence=run.sequence, heads=mixer.num_heads, fp32_bytes=4)


def _flash_backward(tape: Tape, run: Run, mixer: Attention, queries: Size, keys: Size, values: Size) -> None:
    """Gradients of queries, keys and values.

    The CUDA kernel (flash_attn 2, ``mha_bwd`` in ATen's flash_api.cpp) also holds an fp32 accumulator of the query
    gradient and the row sums, both padded to 128 tokens, and, with grouped heads, key and value gradients for every
    query head until they are summed.
    """
    masked = _masked(run, mixer)
    grouped = mixer.num_kv_heads != mixer.num_heads
    for_every_head = run.heads(mixer.num_heads, mixer.head_dim), run.heads(mixer.num_heads, mixer.value_head_dim)
    if run.cuda and not masked:
        padded = -(-run.sequence // 128) * 128
        row = Size(batch=run.batch, heads=mixer.num_heads, padded_sequence=padded, fp32_bytes=4)
        tape.hold("row sums", row)
        wide = {"padded_sequence": padded, "heads": mixer.num_heads, "head_dim": _pad(mixer.head_dim)}
        tape.hold("dq accumulator", Size(batch=run.batch, **wide, fp32_bytes=4))
    tape.hold("d q rotated", queries)
    if grouped and (run.cuda or masked):
        tape.hold("dk expanded", for_every_head[0])
        tape.hold("dv expanded", for_every_head[1])
    if masked:
        tape.consume("d attended", "mask", "k repeated", "v repeated", "q rotated", "attended", "log_sum_exp")
    tape.hold("d k rotated", keys)
    tape.hold("d v", values)
    tape.consume("row sums", "dq accumulator", "dk expanded", "dv expanded")


def _pad(head_dim: int) -> int:
    """Head width as the flash kernel rounds it: to 32 up to 128, else to 64."""
    granule = 32 if head_dim <= 128 else 64
    return -(-head_dim // granule) * granule


def _input_gradients(tape: Tape, run: Run, mixer: Attention, project: dict[str, Weight]) -> None:
    """Through the three projections back to the norm: value first, then key, then query, as autograd's engine runs them."""
    narrow = run.hidden()
    _linear_gradients(tape, run, project.get("v_proj", ()))
    tape.hold("d norm v", narrow)
    tape.consume("d v")
    _transposed(tape, run, mixer, "k")
    _linear_gradients(tape, run, project.get("k_proj", ()))
    tape.hold("d norm k", narrow)
    tape.consume("d k")
    tape.hold("d norm vk", narrow)
    tape.consume("d norm v", "d norm k")
    _transposed(tape, run, mixer, "q")
    _linear_gradients(tape, run, project.get("q_proj", ()))
    tape.hold("d norm q", narrow)
    tape.consume("d q", "attention norm")
    tape.hold("attention norm d", narrow)
    tape.consume("d norm vk", "d norm q")


def _transposed(tape: Tape, run: Run, mixer: Attention, name: str) -> None:
    """The gradient of rotated heads is laid out head by head; the linear copies it token by token."""
    if mixer.rotary_dim and mixer.qk_norm == "none":
        heads = mixer.num_heads if name == "q" else mixer.num_kv_heads
        tape.hold(f"d {name} by token", run.heads(heads, mixer.head_dim))
        tape.consume(f"d {name}")
        tape.rename(f"d {name} by token", f"d {name}")


def _linear_gradients(tape: Tape, run: Run, weights: Weight | tuple[Weight, ...]) -> None:
    if run.trainable:
        for weight in (weights,) if isinstance(weights, Weight) else weights:
            gradient(tape, run, weight)


def _mlp_projections(project: dict[str, Weight], *, gated: bool) -> tuple[tuple[Weight, ...], ...]:
    """(down, gate, up) weights; an ungated block has its first linear as gate."""
    named = list(project.values())
    if gated and {"down_proj", "gate_proj", "up_proj"} <= project.keys():
        return (project["down_proj"],), (project["gate_proj"],), (project["up_proj"],)
    return tuple(named[-1:]), tuple(named[:-1]), ()


def _part(weight: Weight) -> str:
    """``q_proj`` of ``self_attn.q_proj.weight``; biases under their own names."""
    path = weight.name.split(".")
    module = path[-2] if len(path) > 1 else path[0]
    return f"{module} bias" if path[-1] == "bias" else module


def _factors(weight: Weight) -> dict[str, int]:
    names = ("out_features", "in_features") if len(weight.shape) == 2 else tuple(f"dim{i}" for i in range(len(weight.shape)))
    return dict(zip(names, weight.shape, strict=True))


def _rows(run: Run, rows: int) -> Size:
    return Size(batch=run.batch, sequence=run.sequence, rows=rows, fp32_bytes=4)


def _like(run: Run, width: int, rows: int) -> Size:
    return Size(batch=run.batch, sequence=run.sequence, rows=rows, features=width, bytes=run.dtype_bytes)
