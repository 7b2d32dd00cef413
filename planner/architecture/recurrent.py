"""Mixers with a constant state per sequence: state-space models, linear attention, short convolutions."""

from __future__ import annotations

from math import ceil

from planner.architecture.blocks import convolution, linear, scale
from planner.architecture.config import Config
from planner.architecture.layers import Recurrent, Weight


def mamba1(
    config: Config,
    *,
    path: str,
    inner: int,
    state: int,
    kernel: int,
    rank: int,
    bias: bool,
    conv_bias: bool,
    norms: bool = False,
    bare_norms: bool = False,
) -> Recurrent:
    """Selective state space (Mamba, Gu & Dao 2023). ``norms``: over the step, B and C (Jamba); ``bare_norms``: without weights."""
    hidden = config.size("hidden_size")
    weights = (
        Weight(f"{path}.A_log", (inner, state), "other"),
        Weight(f"{path}.D", (inner,), "other"),
        *convolution(f"{path}.conv1d", inner, 1, kernel, bias=conv_bias),
        *linear(f"{path}.in_proj", 2 * inner, hidden, bias=bias),
        *linear(f"{path}.x_proj", rank + 2 * state, inner),
        *linear(f"{path}.dt_proj", inner, rank, bias=True),
        *linear(f"{path}.out_proj", hidden, inner, bias=bias),
    )
    if norms:
        widths = {"dt_layernorm": rank, "b_layernorm": state, "c_layernorm": state}
        weights += tuple(weight for name, width in widths.items() for weight in scale(f"{path}.{name}", width))
    return Recurrent(
        "mamba",
        weights,
        conv_channels=inner,
        conv_kernel=kernel,
        state_numel=inner * state,
        state_dim=state,
        inner_dim=inner,
        step_rank=rank,
        normed_step=norms or bare_norms,
    )


def step_rank(config: Config, *names: str) -> int:
    """Rank of Mamba's step projection: ``auto`` is a sixteenth of the hidden size, rounded up."""
    if config.get(*names) == "auto":
        return ceil(config.size("hidden_size") / 16)
    return config.size(*names)


def mamba2(
    config: Config,
    *,
    path: str,
    inner: int,
    heads: int,
    head_dim: int,
    state: int,
    groups: int,
    kernel: int,
    bias: bool,
    conv_bias: bool,
    output_bias: bool | None = None,
    norm: bool = True,
    chunk_tokens: int = 256,
    scaled_input: bool = False,
) -> Recurrent:
    """State space dual (Mamba-2, Dao & Gu 2024): one scalar decay a head, B and C shared in groups."""
    hidden = config.size("hidden_size")
    config.require(
        heads * head_dim == inner, "", f"Mamba-2 heads ({heads}) times their width ({head_dim}) must be the inner width ({inner})"
    )
    channels = inner + 2 * groups * state
    weights = (
        *(Weight(f"{path}.{name}", (heads,), "other") for name in ("dt_bias", "A_log", "D")),
        *convolution(f"{path}.conv1d", channels, 1, kernel, bias=conv_bias),
        *linear(f"{path}.in_proj", inner + channels + heads, hidden, bias=bias),
        *(scale(f"{path}.norm", inner) if norm else ()),
        *linear(f"{path}.out_proj", hidden, inner, bias=bias if output_bias is None else output_bias),
    )
    return Recurrent(
        "mamba2",
        weights,
        conv_channels=channels,
        conv_kernel=kernel,
        state_numel=heads * head_dim * state,
        num_heads=heads,
        head_dim=head_dim,
        state_dim=state,
        num_groups=groups,
        inner_dim=inner,
        chunk_tokens=chunk_tokens,
        scaled_input=scaled_input,
    )


def mamba2_of(
    config: Config, *, path: str = "mamba", norm: bool = True, output_bias: bool | None = None, scaled_input: bool = False
) -> Recurrent:
    """Mamba-2 by the keys Bamba, Falcon-H1 and Granite 4 share."""
    inner = config.optional("mamba_d_ssm") or int(config.number("mamba_expand", default=2) * config.size("hidden_size"))
    heads = config.size("mamba_n_heads")
    head_dim = inner // heads if config.get("mamba_d_head") == "auto" else config.size("mamba_d_head")
    return mamba2(
        config,
        path=path,
        inner=inner,
        heads=heads,
        head_dim=head_dim,
        state=config.size("mamba_d_state"),
        groups=config.size("mamba_n_groups"),
        kernel=config.size("mamba_d_conv"),
        bias=config.flag("mamba_proj_bias"),
        conv_bias=config.flag("mamba_conv_bias"),
        output_bias=output_bias,
        norm=norm,
        chunk_tokens=config.optional("mamba_chunk_size") or 256,
        scaled_input=scaled_input,
    )


def gated_delta_net(config: Config, *, projections: tuple[Weight, ...], path: str, norm: str, output: str) -> Recurrent:
    """Gated delta rule (Yang et al. 2024) by the keys of Qwen3-Next; ``projections`` differ by release."""
    key_heads, value_heads = config.size("linear_num_key_heads"), config.size("linear_num_value_heads")
    key_dim, value_dim = config.size("linear_key_head_dim"), config.size("linear_value_head_dim")
    channels = 2 * key_heads * key_dim + value_heads * value_dim
    kernel = config.size("linear_conv_kernel_dim")
    weights = (
        Weight(f"{path}.dt_bias", (value_heads,), "other"),
        Weight(f"{path}.A_log", (value_heads,), "other"),
        *convolution(f"{path}.conv1d", channels, 1, kernel),
        *projections,
        *scale(f"{path}.{norm}", value_dim),
        *linear(f"{path}.{output}", config.size("hidden_size"), value_heads * value_dim),
    )
    return Recurrent(
        "gated_delta_net",
        weights,
        conv_channels=channels,
        conv_kernel=kernel,
        state_numel=value_heads * key_dim * value_dim,
        num_heads=value_heads,
        head_dim=value_dim,
        state_dim=key_dim,
        num_groups=key_heads,
        inner_dim=value_heads * value_dim,
        fused_gate=any(weight.name.endswith("in_proj_qkvz.weight") for weight in projections),
    )


def delta_widths(config: Config) -> tuple[int, int, int]:
    """Of a gated delta net: width of all keys, width of all values, value heads."""
    value_heads = config.size("linear_num_value_heads")
    keys = config.size("linear_num_key_heads") * config.size("linear_key_head_dim")
    return keys, value_heads * config.size("linear_value_head_dim"), value_heads


def kimi_delta(config: Config, *, heads: int, head_dim: int, kernel: int, gates: tuple[Weight, ...]) -> Recurrent:
    """Kimi delta attention (Kimi Linear 2025): the delta rule with a decay for each channel; ``gates`` differ."""
    hidden, width, path = config.size("hidden_size"), heads * head_dim, "self_attn"
    weights = (
        *(weight for name in ("q_proj", "k_proj", "v_proj") for weight in linear(f"{path}.{name}", width, hidden)),
        *convolution(f"{path}.conv1d", 3 * width, 1, kernel),
        *gates,
        *linear(f"{path}.b_proj", heads, hidden),
        *scale(f"{path}.o_norm", head_dim),
        *linear(f"{path}.o_proj", hidden, width),
    )
    return Recurrent(
        "kimi_delta",
        weights,
        conv_channels=3 * width,
        conv_kernel=kernel,
        state_numel=heads * head_dim * head_dim,
        num_heads=heads,
        head_dim=head_dim,
        state_dim=head_dim,
        num_groups=heads,
        inner_dim=width,
    )


def short_convolution(config: Config, *, path: str, kernel: int, bias: bool) -> Recurrent:
    """A gated convolution over a few tokens (LFM2)."""
    hidden = config.size("hidden_size")
    weights = (
        *convolution(f"{path}.conv", hidden, 1, kernel, bias=bias),
        *linear(f"{path}.in_proj", 3 * hidden, hidden, bias=bias),
        *linear(f"{path}.out_proj", hidden, hidden, bias=bias),
    )
    return Recurrent("short_conv", weights, conv_channels=hidden, conv_kernel=kernel, inner_dim=hidden)
