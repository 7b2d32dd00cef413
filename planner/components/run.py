"""What every block needs: the forward's shape with the sizes that follow from it, and the gradients of weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from planner.architecture.implementation import LLAMA, Implementation
from planner.architecture.layers import Attention, Weight
from planner.components.quantised import QuantisedWeights
from planner.components.tape import Size, Tape
from planner.components.trainable import is_named

if TYPE_CHECKING:
    from planner.components.adapters import Adapters
    from planner.components.float8 import Float8
    from planner.components.quantised_cache import CacheQuantisation

FP32_BYTES = 4


@dataclass(frozen=True, slots=True)
class Run:
    """One forward's shape: ``batch`` sequences of ``sequence`` new tokens, ``dtype_bytes`` an activation value.

    ``cached``: keys and values go through a cache (they are copied into it by ``torch.cat``).
    ``cuda``: attention runs by the CUDA flash kernel, else by the CPU's.
    ``narrow_ends``: embeddings and head are in 16 bit beside fp32 norms; ``narrow_input``: so is what the layer reads.
    ``trainable``: weights get gradients, of modules by ``names`` where there are some (``path``: where the layer stands);
    ``adapters``: what trains beside frozen linears; ``constant_input``: nothing before the layer trains, so that its input
    needs no gradient; ``autocast``: products run in 16 bit by ``torch.autocast``; ``parameter_bytes``: of a parameter where it
    is not of the activations' dtype; ``compute_bytes``: of a value in a product with a 4-bit weight, where activations are
    wider; ``accumulating``: gradients exist already and are added to.
    ``code``: how the family is written; ``eager``: attention as plain products was asked for; ``flash``: FlashAttention was,
    which takes causality and windows by themselves, without a mask, and keys of a group as they are.
    ``static_tokens``: the cache has room for so many from the start (0: it grows). ``quantised``: how weights of linears
    are held, where not in the activations' dtype. ``keeps``: operators (mm, attention) whose results a checkpoint keeps;
    ``recomputes``: the part of a layer (attention, mlp) that alone is a checkpoint. ``hands_out_keys``: a checkpointed layer's
    fused projection stays, keys and values being views of it.
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
    code: Implementation = LLAMA
    eager: bool = False
    flash: bool = False
    static_tokens: int = 0
    residual_in_fp32: bool = False
    streams: int = 1
    """Residual streams that run side by side (DeepSeek-V4)."""
    quantised: QuantisedWeights | None = None
    quantised_cache: CacheQuantisation | None = None
    adapters: Adapters | None = None
    names: tuple[str, ...] = ()
    path: str = "layers.*."
    constant_input: bool = False
    autocast: bool = False
    parameter_bytes: int = 0
    compute_bytes: int = 0
    narrow_ends: bool = False
    narrow_input: bool = False
    keeps: tuple[str, ...] = ()
    recomputes: str = ""
    hands_out_keys: bool = False
    repeats_keys: bool = False
    """FlashAttention is given keys and values copied for every query head."""
    experts_in_turn: bool = False
    """Experts are linears of their own, one after another."""
    fused: tuple[str, ...] = ()
    """Kernels in place of the class's own code (:mod:`planner.components.fused_kernels`)."""
    float8: Float8 | None = None
    """Linears whose products run in 8-bit floats."""

    def trains(self, weights: Sequence[Weight] = ()) -> bool:
        """Whether weights get gradients (without any: those that are not told)."""
        return self.trainable and (not self.names or any(is_named(weight, self.path, self.names) for weight in weights))

    @property
    def gradient_bytes(self) -> int:
        """Bytes of a value of a parameter's gradient."""
        return self.parameter_bytes or self.dtype_bytes

    @property
    def constants(self) -> tuple[str, ...]:
        """What a layer's graph starts with that requires no gradient."""
        return ("x",) if self.constant_input else ()

    def hidden(self, width: int | None = None) -> Size:
        """An activation of ``width`` features (the hidden size if not said) for every token."""
        name = {"hidden_size": self.hidden_size} if width is None else {"features": width}
        return Size(batch=self.batch, sequence=self.sequence, **name, bytes=self.dtype_bytes)

    def stream(self) -> Size:
        """What runs from layer to layer: hidden states, in fp32 where the residual is kept so."""
        if self.streams > 1:
            return self.heads(self.streams, self.hidden_size)
        return self.upcast(self.hidden_size) if self.residual_in_fp32 else self.hidden()

    def entering(self) -> Size:
        """The stream as the layer finds it: of the first layer what the embeddings make."""
        if not self.narrow_input:
            return self.stream()
        return Size(batch=self.batch, sequence=self.sequence, hidden_size=self.hidden_size, bytes=self.compute_bytes)

    def upcast(self, width: int, rows: int = 1) -> Size:
        """The same in fp32; ``rows`` of them for each token (heads)."""
        return Size(batch=self.batch, sequence=self.sequence, rows=rows, features=width, fp32_bytes=4)

    def heads(self, heads: int, width: int, bytes_: int = 0) -> Size:
        """One vector of ``width`` for each head and token, in the activations' dtype unless said."""
        return Size(batch=self.batch, sequence=self.sequence, heads=heads, head_dim=width, bytes=bytes_ or self.dtype_bytes)

    def scores(self, heads: int, keys: int, bytes_: int = 0) -> Size:
        """One number for each head, query and key."""
        return Size(batch=self.batch, heads=heads, queries=self.sequence, keys=keys, bytes=bytes_ or self.dtype_bytes)

    def mlp(self, width: int) -> Size:
        """An activation of a feed-forward block."""
        return Size(batch=self.batch, sequence=self.sequence, intermediate_size=width, bytes=self.dtype_bytes)

    def past_cells(self, mixer: Attention) -> int:
        """Tokens a layer's cache shows before this forward: all, or one less than the window (``DynamicSlidingWindowLayer``)."""
        window = mixer.window_tokens or mixer.chunk_tokens
        return self.past_tokens if window is None else min(self.past_tokens, window - 1)

    def static_cells(self, mixer: Attention) -> int:
        """Room of a layer's static cache."""
        window = mixer.window_tokens or mixer.chunk_tokens
        return self.static_tokens if window is None else min(self.static_tokens, window)

    def cache(self, mixer: Attention, name: str, tokens: int) -> Size:
        """Cached keys (``k``) or values (``v``) of one layer."""
        heads = mixer.cached_kv_heads or mixer.num_kv_heads
        width = mixer.head_dim if name == "k" else mixer.value_head_dim
        return Size(batch=self.batch, tokens=tokens, num_key_value_heads=heads, head_dim=width, bytes=self.dtype_bytes)

    def dropout_mask(self) -> Size:
        """One byte an element of the residual stream."""
        return Size(batch=self.batch, sequence=self.sequence, hidden_size=self.hidden_size, bool_bytes=1)

    def row(self, rows: int = 1) -> Size:
        """``rows`` fp32 numbers for each token (means, one for each head)."""
        return Size(batch=self.batch, sequence=self.sequence, rows=rows, fp32_bytes=4)

    def rows(self, width: int, rows: int = 1) -> Size:
        """``rows`` vectors of ``width`` for each token, in the activations' dtype."""
        return Size(batch=self.batch, sequence=self.sequence, rows=rows, features=width, bytes=self.dtype_bytes)


def gradient(tape: Tape, run: Run, weight: Weight) -> None:
    """The gradient of one parameter, kept until the optimizer has used it, or added to what earlier micro-batches left."""
    name, size = f"grad {weight.name}", Size(**factors_of(weight), bytes=run.gradient_bytes)
    tape.hold(name, size, "gradients")
    if run.accumulating:
        tape.consume(name)


def module_of(weight: Weight) -> str:
    """``q_proj`` of ``self_attn.q_proj.weight``; biases under their own names."""
    path = weight.name.split(".")
    module = path[-2] if len(path) > 1 else path[0]
    return f"{module} bias" if path[-1] == "bias" else module


def factors_of(weight: Weight) -> dict[str, int]:
    """A weight's shape under the names of its dimensions."""
    names = ("out_features", "in_features") if len(weight.shape) == 2 else tuple(f"dim{i}" for i in range(len(weight.shape)))
    return dict(zip(names, weight.shape, strict=True))
