"""What a recurrent mixer keeps of each sequence (``LinearAttentionLayer`` in transformers' cache_utils.py)."""

from __future__ import annotations

from planner.architecture.layers import Recurrent
from planner.components.run import Run
from planner.components.tape import Size

CONV_STATE = "conv state"
RECURRENT_STATE = "recurrent state"
STATES = (CONV_STATE, RECURRENT_STATE)
STATE_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}


def conv_state(mixer: Recurrent, run: Run) -> Size:
    """The last inputs of the convolution, in the activations' dtype."""
    return Size(batch=run.batch, channels=mixer.conv_channels, kernel=mixer.conv_kernel, bytes=run.dtype_bytes)


def recurrent_state(mixer: Recurrent, run: Run) -> Size:
    """The running state, in its own dtype."""
    return Size(batch=run.batch, state=mixer.state_numel, bytes=STATE_BYTES.get(mixer.state_dtype or "", run.dtype_bytes))


def state_tensors(mixer: Recurrent, run: Run) -> dict[str, Size]:
    """Both, by the names under which they lie on a tape."""
    found = {CONV_STATE: conv_state(mixer, run), RECURRENT_STATE: recurrent_state(mixer, run)}
    return {name: size for name, size in found.items() if size.bytes}
