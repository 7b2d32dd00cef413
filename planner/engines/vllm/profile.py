"""What vLLM's profile run holds beyond the weights: the widest layer's forward, or the sampler, whichever is larger.

vLLM 0.19 ``v1/worker/gpu_model_runner.py`` (``profile_run``, ``_dummy_sampler_run``), ``v1/sample/``; attention itself
does not run without metadata. Sizes are of one rank.
"""

from __future__ import annotations

from planner.architecture.layers import Architecture
from planner.engines.step import HELD_STREAMS, widest_layer_bytes
from planner.engines.vllm.settings import Settings
from planner.record import record

SAMPLER_FP32_COPIES = {"sort": 9.0, "v0": 9.0, "triton": 3.0, "flashinfer": 3.0, "plain": 0.0}
"""Values of fp32 for each logit beside the logits themselves. ``sort``: the fp32 copy, torch.sort's values (1), indices (2),
its reverse indices (2) and cub's other buffers of keys and indices (3) (aten ``native/cuda/Sort.cu``,
``segmented_sort_pairs``). ``v0``: the same, as its profile run asks for top-k and top-p (0.6.4 ``worker/model_runner.py``
``profile_run``, ``model_executor/layers/sampler.py``). ``triton``, ``flashinfer``: the fp32 copy, probabilities, exponentials
(or masked logits). ``plain``: the second runner takes the largest of each row as it is (0.24 ``v1/worker/gpu/sample``)."""


@record
class ProfileRun:
    """The two candidates for the peak, in bytes, and the numbers they came from."""

    forward_bytes: int
    sampler_bytes: int
    values: dict[str, int | float | str]
    formula: str

    @property
    def peak_bytes(self) -> int:
        """What comes off the pool."""
        return max(self.forward_bytes, self.sampler_bytes)


def profile_run(
    architecture: Architecture,
    settings: Settings,
    *,
    layers: range,
    tensor: int,
    experts: int,
    dtype_bytes: int,
    workspace_bytes: int,
) -> ProfileRun:
    """The peak of the profile run on a stage that holds ``layers``; the last stage samples too."""
    last = layers.stop == len(architecture.decoder.layers) and architecture.kind == "decoder"
    tokens, hidden = settings.batched_tokens, architecture.hidden_size
    widest = widest_layer_bytes(architecture, layers, tokens, tensor, experts, dtype_bytes, settings.expanded_tokens)
    encoder = _encoder_cache_bytes(architecture, tokens, dtype_bytes) if layers.start == 0 else 0
    forward = HELD_STREAMS * tokens * hidden * dtype_bytes + widest + workspace_bytes + encoder
    sampler = _sampler_bytes(architecture, settings, dtype_bytes) + workspace_bytes + encoder if last else 0
    if sampler >= forward:
        formula, values = _sampler_term(architecture, settings, dtype_bytes, workspace_bytes + encoder)
    else:
        formula = "4 · tokens · hidden_size · bytes + widest_layer + libraries"
        values = {
            "tokens": tokens, "hidden_size": hidden, "bytes": dtype_bytes,
            "widest_layer": widest, "libraries": workspace_bytes + encoder,
        }  # fmt: skip
    return ProfileRun(forward, sampler, values, formula)


def _sampler_term(
    architecture: Architecture, settings: Settings, dtype_bytes: int, rest: int
) -> tuple[str, dict[str, int | float | str]]:
    formula = (
        "sequences · vocab_size · (bytes + 4 · fp32_copies) + programs · vocab_size · 4 "
        "+ (tokens + rows · sequences) · hidden_size · bytes + libraries"
    )
    return formula, {
        "sequences": settings.sequences, "vocab_size": architecture.vocab_size, "bytes": dtype_bytes,
        "fp32_copies": SAMPLER_FP32_COPIES[settings.sampler], "programs": _programs(settings),
        "tokens": settings.batched_tokens, "rows": _kept_rows(settings), "hidden_size": architecture.hidden_size, "libraries": rest,
    }  # fmt: skip


def _programs(settings: Settings) -> int:
    """Rows of the Triton sampler's buffer: one for each multiprocessor that works."""
    return min(settings.multiprocessors, settings.sequences) if settings.sampler == "triton" else 0


def _kept_rows(settings: Settings) -> int:
    """Hidden states of each sampled token: those picked, and the random ones that the first runner puts in their place."""
    return 1 if settings.second_runner else 2


def counts_bytes(architecture: Architecture, settings: Settings) -> int:
    """Counts of every token in each sequence's answer, and a bit for each in its prompt (0.24 ``sample/penalties.py``)."""
    if not settings.second_runner:
        return 0
    return 4 * settings.sequences * (architecture.vocab_size + -(-architecture.vocab_size // 32))


def _sampler_bytes(architecture: Architecture, settings: Settings, dtype_bytes: int) -> int:
    """Logits in the model's dtype and what the sampler makes of them, beside the hidden states of the run."""
    copies = SAMPLER_FP32_COPIES[settings.sampler]
    logits = settings.sequences * architecture.vocab_size
    kept = (settings.batched_tokens + _kept_rows(settings) * settings.sequences) * architecture.hidden_size * dtype_bytes
    own = 0 if dtype_bytes == 4 else logits * dtype_bytes
    return int(own + 4 * logits * copies) + 4 * _programs(settings) * architecture.vocab_size + kept


def _encoder_cache_bytes(architecture: Architecture, tokens: int, dtype_bytes: int) -> int:
    """Outputs of a vision or audio tower for a full step, kept while the decoder is profiled."""
    return tokens * architecture.hidden_size * dtype_bytes if architecture.towers else 0
