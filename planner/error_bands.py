"""How far predictions were off in recorded runs, made by ``tests/accuracy/bands.py``: rows, and the 90th percentile.

In thousandths of the predicted component; of transformers' reserved memory in thousandths of what is reserved beside the
weights. An engine that is missing has no recorded run that could be told apart.
"""

from __future__ import annotations

BANDS: dict[tuple[str, str], tuple[int, int]] = {
    ("transformers generation", "reserved"): (42, 160),
    ("transformers training", "reserved"): (136, 123),
    ("vllm", "weights"): (19, 2),
    ("vllm", "activations"): (15, 67),
    ("vllm", "kv memory"): (11, 1),
    ("sglang", "weights"): (1, 2),
    ("sglang", "kv memory"): (2, 4),
}
"""(rows, thousandths) by engine and component."""
