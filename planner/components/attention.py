"""Softmax attention with per-head keys and values, forward and backward, as transformers 5.23 and torch run it."""

from __future__ import annotations

from planner.architecture.layers import Attention, Norm, Weight
from planner.components.norms import norm_backward, norm_forward
from planner.components.rotary import rotate_backward, rotate_forward
from planner.components.run import Run, linear_gradients, module_of
from planner.components.tape import Size, Tape


def attention_forward(tape: Tape, run: Run, mixer: Attention, source: str, target: str) -> None:  # noqa: ARG001  every mixer's
    """Projections, rotary embedding, cache, scaled dot product, output projection (``LlamaAttention.forward``).

    Reads ``source``; leaves ``target``, the block's output.
    """
    queries, keys, values = _qkv_sizes(run, mixer)
    read_directly = not run.cached and not (_masked(run, mixer) and mixer.num_kv_heads != mixer.num_heads)
    tape.hold("q", queries)
    _head_norm_forward(tape, run, mixer, "q", mixer.num_heads)
    tape.hold("k", keys)
    _head_norm_forward(tape, run, mixer, "k", mixer.num_kv_heads)
    tape.hold("v", values, saved=read_directly)
    if mixer.rotary_dim:
        rotate_forward(tape, "q", queries)
        rotate_forward(tape, "k", keys, saved=read_directly)
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
    tape.hold(target, run.hidden())
    tape.free("q rotated", "k rotated", "v", "attended")


def attention_backward(tape: Tape, run: Run, mixer: Attention, source: str, target: str) -> None:  # noqa: ARG001  every mixer's
    """From the gradient of the output to ``{source} d``; the output's own gradient stays, the residual needs it."""
    queries, keys, values = _qkv_sizes(run, mixer)
    project = {module_of(weight): weight for weight in mixer.weights}
    linear_gradients(tape, run, project.get("o_proj", ()))
    tape.hold("d attended", run.heads(mixer.num_heads, mixer.value_head_dim))
    _flash_backward(tape, run, mixer, queries, keys, values)
    tape.consume("d attended", "k cached", "v cached", "k rotated", "q rotated", "v", "log_sum_exp", "attended")
    for name, size in (("k", keys), ("q", queries)):
        if mixer.rotary_dim:
            rotate_backward(tape, name, size)
        else:
            tape.rename(f"d {name} rotated", f"d {name}")
    _head_norms_backward(tape, run, mixer)
    _input_gradients(tape, run, mixer, project, source)


def _qkv_sizes(run: Run, mixer: Attention) -> tuple[Size, Size, Size]:
    return (
        run.heads(mixer.num_heads, mixer.head_dim),
        run.heads(mixer.num_kv_heads, mixer.head_dim),
        run.heads(mixer.num_kv_heads, mixer.value_head_dim),
    )


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
    weights = tuple(weight for weight in mixer.weights if module_of(weight) == f"{name}_norm")
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


def _input_gradients(tape: Tape, run: Run, mixer: Attention, project: dict[str, Weight], source: str) -> None:
    """Through the three projections back to the norm: value first, then key, then query, as autograd's engine runs them."""
    narrow = run.hidden()
    linear_gradients(tape, run, project.get("v_proj", ()))
    tape.hold("d norm v", narrow)
    tape.consume("d v")
    _transposed(tape, run, mixer, "k")
    linear_gradients(tape, run, project.get("k_proj", ()))
    tape.hold("d norm k", narrow)
    tape.consume("d k")
    tape.hold("d norm vk", narrow)
    tape.consume("d norm v", "d norm k")
    _transposed(tape, run, mixer, "q")
    linear_gradients(tape, run, project.get("q_proj", ()))
    tape.hold("d norm q", narrow)
    tape.consume("d q", source)
    tape.hold(f"{source} d", narrow)
    tape.consume("d norm vk", "d norm q")


def _transposed(tape: Tape, run: Run, mixer: Attention, name: str) -> None:
    """The gradient of rotated heads is laid out head by head; the linear copies it token by token."""
    if mixer.rotary_dim and mixer.qk_norm == "none":
        heads = mixer.num_heads if name == "q" else mixer.num_kv_heads
        tape.hold(f"d {name} by token", run.heads(heads, mixer.head_dim))
        tape.consume(f"d {name}")
        tape.rename(f"d {name} by token", f"d {name}")
