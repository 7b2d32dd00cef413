"""The words of the answer: how components, phases, meters and verdicts are called, and what each term means."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Word:
    """A term as it is shown, and one sentence that teaches it."""

    label: str
    meaning: str


COMPONENTS: Mapping[str, Word] = {
    "weights": Word("Weights", "The model's parameters, tied tensors once."),
    "other_models": Word("Other models", "Models beside the trained one: the reference, reward and value models."),
    "adapters": Word("Adapters", "Low-rank matrices that are trained beside the frozen weights."),
    "quantization_state": Word("Quantization state", "Scales, zeros and codebooks that belong to quantized weights."),
    "kv_cache": Word("KV cache", "Keys and values of every token seen so far, one pair for each layer that attends."),
    "recurrent_state": Word("Recurrent state", "The fixed-size state of linear-attention and state-space layers."),
    "activations": Word("Activations", "What a forward holds live, or saves for the backward."),
    "logits": Word("Logits", "Scores over the vocabulary, and what the loss keeps of them."),
    "workspace": Word("Workspace", "Transients of one layer, of attention and of the matrix library."),
    "gradients": Word("Gradients", "One value for every trainable parameter."),
    "optimizer_state": Word("Optimizer state", "What the optimizer remembers for every trainable parameter."),
    "master_weights": Word("Master weights", "The fp32 copy that mixed precision updates."),
    "communication": Word("Communication", "Buffers of collectives between GPUs."),
    "cuda_graphs": Word("CUDA graphs", "Memory that captured graphs keep for themselves."),
    "cuda_context": Word("CUDA context", "What the driver and its kernels take before the first tensor."),
    "allocator_slack": Word("Allocator slack", "Held by the caching allocator, not in use: reserved minus allocated."),
}
PHASES: Mapping[str, Word] = {
    "load": Word("Load", "The weights are on the device, nothing has run yet."),
    "prefill": Word("Prefill", "The prompt goes through the model at once."),
    "decode": Word("Decode", "New tokens are made one at a time."),
    "generation": Word("Generation", "The model makes the completions that it will learn from."),
    "reference": Word("Reference", "The model that is compared with scores the same tokens; nothing is kept for a backward."),
    "forward": Word("Forward", "The batch goes through the model; what the backward needs is kept."),
    "backward": Word("Backward", "Gradients are computed layer by layer, last to first."),
    "optimizer": Word("Optimizer", "The optimizer updates the weights."),
}
METERS: Mapping[str, Word] = {
    "allocated": Word("Allocated", "Live tensors, each rounded up to 512 B: torch.cuda.memory_allocated."),
    "reserved": Word("Reserved", "Segments held by the caching allocator: torch.cuda.memory_reserved."),
    "device": Word("Device", "What the driver shows for the process: reserved, CUDA context and libraries."),
}
CPU_METERS: Mapping[str, Word] = {
    "allocated": Word("Allocated (CPU)", "Live tensor storages, tracked as they come and go."),
    "reserved": Word("Reserved (CPU)", "There is no caching allocator on CPU: equals allocated."),
    "device": Word("Process growth (CPU)", "How much the process itself has grown since its start."),
}
CERTAINTIES: Mapping[str, Word] = {
    "exact": Word("Exact", "Read from the file's own header."),
    "derived": Word("Derived", "Follows from the model's config."),
    "modelled": Word("Modelled", "A model of how the framework behaves; see the source."),
    "measured": Word("Measured", "Seen in a real run."),
}
VERDICTS: Mapping[str, Word] = {
    "fits": Word("Fits", "Takes at most 85 % of the memory."),
    "tight": Word("Tight", "Takes 85 to 97 % of the memory, or its error band crosses the limit."),
    "does_not_fit": Word("Does not fit", "Takes more than 97 % of the memory."),
    "unknown": Word("Unknown", "The capacity is not known, so there is no verdict."),
}


def word(table: Mapping[str, Word], name: str) -> Word:
    """The word for ``name``; a name the table lacks is shown as it is."""
    return table.get(name) or Word(name.replace("_", " ").capitalize(), "")
