"""The options each engine takes, under the engine's own names: type, range and what they mean."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from planner.faults import Reader
from planner.record import record

Value = bool | int | float | str


@record
class Option:
    """One option of an engine. ``choices`` binds strings; ``minimum`` and ``maximum`` bind numbers."""

    kind: Literal["bool", "int", "float", "str"]
    help: str
    minimum: float = 0
    maximum: float = 2**53
    choices: tuple[str, ...] = ()


_CACHE_TYPES = ("f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl")
_TOKENS = 2**31

TRANSFORMERS_INFERENCE = {
    "cache_implementation": Option("str", "kind of key-value cache", choices=("dynamic", "static", "quantized")),
    "cache_backend": Option("str", "library that quantises the cache", choices=("quanto", "hqq", "fp8")),
    "cache_nbits": Option("int", "bits of a quantised key or value", 1, 8),
    "cache_q_group_size": Option("int", "keys or values that share a scale", 1, 65536),
    "cache_residual_length": Option("int", "newest tokens that stay in 16 bit", 1, _TOKENS),
}
TRANSFORMERS_TRAINING = {
    "version": Option("str", "release of transformers whose loss is computed"),
    "trl_version": Option("str", "release of TRL whose trainer runs"),
    "local_rollout_forward_batch_size": Option("int", "sequences that PPO generates and scores at once", 1, 1_000_000),
    "bitsandbytes_version": Option("str", "release of bitsandbytes whose 4-bit products are computed"),
    "use_reentrant": Option("bool", "gradient checkpointing by the reentrant implementation"),
    "checkpoint_every": Option("int", "selective checkpointing recomputes each layer of so many", 1, 100_000),
    "checkpoint_modules": Option("str", "what selective checkpointing recomputes", choices=("layers", "attention", "mlp")),
    "checkpoint_saves": Option("str", "operators whose results selective checkpoints keep: mm (or mm/2, every second), attention"),
    "checkpoint_offload": Option("bool", "inputs of checkpointed layers are held in pinned host memory"),
    "max_grad_norm": Option("float", "norm that gradients are clipped to", 0, 1e9),
    "ema": Option("bool", "a moving average of the parameters is kept beside them"),
    "chunk_tokens": Option("int", "tokens of one chunk of the chunked loss", 1, _TOKENS),
    "fused_kernels": Option(
        "str", "kernels in place of transformers' code: rms_norm, rope, swiglu, lora (over 4-bit weights), cross_entropy"
    ),
    "compile": Option("bool", "each layer is compiled (torch.compile)"),
    "fp8_recipe": Option(
        "str",
        "how torchao scales operands of FP8 products (precision fp8)",
        choices=("tensorwise", "rowwise", "rowwise_with_gw_hp"),
    ),
    "repeat_keys": Option("bool", "attention gets keys and values copied for every query head (torchtune, torchtitan, litgpt)"),
    "autocast_adapter_dtype": Option("bool", "PEFT keeps the adapters of a 16-bit base in fp32"),
    "prepare_for_kbit_training": Option("bool", "PEFT casts what is not quantised to fp32"),
    "quant_skip_modules": Option("str", "modules left in 16 bit, by name, separated by commas"),
    "projection_rank": Option("int", "rank that GaLore and APOLLO project gradients to", 1, 1_000_000),
}
SPREAD_TRAINING = {
    "bucket_cap_mb": Option("int", "MiB of a bucket of DDP's reducer", 1, 1_000_000),
    "gradient_as_bucket_view": Option("bool", "gradients lie in DDP's buckets"),
    "reshard_after_forward": Option("bool", "FSDP gives a layer's gathered parameters up after its forward"),
    "reduce_dtype": Option("str", "dtype in which FSDP reduces gradients", choices=("fp32", "bf16")),
    "fsdp_version": Option("int", "FSDP by fully_shard (2) or by FullyShardedDataParallel (1)", 1, 2),
    "separate_ends": Option("bool", "embedding and head are FSDP units of their own"),
    "total_tokens": Option("int", "tokens of the whole training, for its hours", 1, 2**53),
}
ZERO = {
    "reduce_bucket_size": Option("int", "elements of a bucket of gradients", 1, 2**40),
    "allgather_bucket_size": Option("int", "elements of a bucket of updated parameters", 1, 2**40),
    "overlap_comm": Option("bool", "a second bucket is filled while the first is reduced"),
    "contiguous_gradients": Option("bool", "gradients are copied into a bucket as they come"),
    "stage3_max_live_parameters": Option("int", "gathered parameters that may be alive at once", 0, 2**40),
    "stage3_max_reuse_distance": Option("int", "parameters used again within so many elements stay gathered", 0, 2**40),
    "stage3_prefetch_bucket_size": Option("int", "elements gathered ahead", 0, 2**40),
    "stage3_param_persistence_threshold": Option("int", "smaller parameters stay gathered", 0, 2**40),
    "sub_group_size": Option("int", "elements that the optimizer of stage 3 updates at once", 1, 2**40),
}
MEGATRON = {
    "virtual_pipeline": Option("int", "model chunks of each stage (interleaved 1F1B)", 1, 1000),
    "sequence_parallel": Option("bool", "norms and residuals are cut over the tensor-parallel ranks"),
    "global_batch": Option("int", "sequences of one optimizer step", 1, 10_000_000),
    "total_tokens": Option("int", "tokens of the whole training, for its hours", 1, 2**53),
}
VLLM = {
    "version": Option("str", "release whose constants are used"),
    "gpu_memory_utilization": Option("float", "share of the GPU's memory the engine may take", 0.01, 1.0),
    "max_num_batched_tokens": Option("int", "tokens of one scheduler step, and of the profile run", 1, _TOKENS),
    "max_num_seqs": Option("int", "sequences of one scheduler step", 1, 1_000_000),
    "block_size": Option("int", "tokens of one cache block", 1, 8192),
    "enforce_eager": Option("bool", "no CUDA graphs"),
    "enable_prefix_caching": Option("bool", "share blocks of equal prefixes"),
    "swap_space": Option("float", "GiB of host memory for swapped blocks", 0, 1_000_000),
    "disable_hybrid_kv_cache_manager": Option("bool", "cache windowed layers like full ones"),
    "kv_cache_memory_bytes": Option("int", "size of the cache, instead of what profiling leaves", 1),
}
SGLANG = {
    "version": Option("str", "release whose constants are used"),
    "mem_fraction_static": Option("float", "share of the GPU's memory for weights and token pool", 0.01, 1.0),
    "chunked_prefill_size": Option("int", "tokens of one prefill chunk", 1, _TOKENS),
    "max_running_requests": Option("int", "sequences running at once", 1, 1_000_000),
    "disable_cuda_graph": Option("bool", "no CUDA graphs"),
    "cuda_graph_max_bs": Option("int", "largest batch captured", 1, 100_000),
    "page_size": Option("int", "tokens of one cache page", 1, 8192),
    "max_total_tokens": Option("int", "tokens of the pool, instead of what is left", 1, _TOKENS),
    "swa_full_tokens_ratio": Option("float", "tokens of the windowed layers' pool for each of the full layers'", 0.001, 1.0),
    "mamba_full_memory_ratio": Option("float", "memory of recurrent states for that of the token pool", 0.001, 1000.0),
    "max_mamba_cache_size": Option("int", "slots of recurrent states, instead of a share of the memory", 1, 1_000_000),
}
TENSORRT_LLM = {
    "version": Option("str", "release whose constants are used"),
    "free_gpu_memory_fraction": Option("float", "share of the memory left that the cache takes", 0.01, 1.0),
    "max_num_tokens": Option("int", "tokens of one step", 1, _TOKENS),
    "max_batch_size": Option("int", "sequences of one step", 1, 1_000_000),
    "tokens_per_block": Option("int", "tokens of one cache block", 1, 8192),
}
TGI = {
    "version": Option("str", "release whose constants are used"),
    "cuda_memory_fraction": Option("float", "share of the GPU's memory the server may take", 0.01, 1.0),
    "max_batch_prefill_tokens": Option("int", "tokens of one prefill", 1, _TOKENS),
    "max_total_tokens": Option("int", "prompt and new tokens of one request", 1, _TOKENS),
    "max_batch_total_tokens": Option("int", "tokens of all requests together", 1, _TOKENS),
    "max_batch_size": Option("int", "requests of one batch", 1, 1_000_000),
}
LLAMA_CPP = {
    "version": Option("str", "release whose constants are used"),
    "n_ctx": Option("int", "cells of the cache over all slots", 0, _TOKENS),
    "n_batch": Option("int", "logical batch", 1, _TOKENS),
    "n_ubatch": Option("int", "physical batch", 1, _TOKENS),
    "n_seq_max": Option("int", "slots", 1, 65536),
    "kv_unified": Option("bool", "one cache shared by every slot"),
    "flash_attn": Option("bool", "fused attention"),
    "type_k": Option("str", "type of the key cache", choices=_CACHE_TYPES),
    "type_v": Option("str", "type of the value cache", choices=_CACHE_TYPES),
    "swa_full": Option("bool", "keep the full cache in sliding-window layers"),
    "n_gpu_layers": Option("int", "layers on the GPU, the output layer counted; -1 for all", -1, 100_000),
    "n_cpu_moe": Option("int", "layers whose experts stay on the host", 0, 100_000),
    "override_tensor": Option("str", "tensors kept on another buffer: pattern=buffer, separated by commas"),
    "n_outputs_max": Option("int", "tokens whose logits are kept", 1, _TOKENS),
    "cpu_moe": Option("bool", "the experts of every layer stay on the host"),
    "split_mode": Option("str", "how several GPUs share the model", choices=("layer", "row", "none")),
    "tensor_split": Option("str", "shares of the GPUs, separated by commas"),
    "main_gpu": Option("int", "the GPU that is used alone with split_mode none", 0, 15),
    "offload_kqv": Option("bool", "caches on the GPU; false keeps them on the host"),
    "use_mmap": Option("bool", "map the file instead of reading it"),
    "use_mlock": Option("bool", "keep the mapped file in memory"),
    "n_gpu_layers_draft": Option("int", "layers of the draft model on the GPU; -1 for all", -1, 100_000),
    "type_k_draft": Option("str", "type of the draft model's key cache", choices=_CACHE_TYPES),
    "type_v_draft": Option("str", "type of the draft model's value cache", choices=_CACHE_TYPES),
}

ENGINE_OPTIONS: dict[tuple[str, str], dict[str, Option]] = {
    ("transformers", "inference"): TRANSFORMERS_INFERENCE,
    ("transformers", "training"): TRANSFORMERS_TRAINING | SPREAD_TRAINING | ZERO,
    ("deepspeed", "training"): TRANSFORMERS_TRAINING | SPREAD_TRAINING | ZERO,
    ("fsdp", "training"): TRANSFORMERS_TRAINING | SPREAD_TRAINING,
    ("megatron", "training"): MEGATRON,
    ("vllm", "inference"): VLLM,
    ("sglang", "inference"): SGLANG,
    ("tensorrt-llm", "inference"): TENSORRT_LLM,
    ("tgi", "inference"): TGI,
    ("llama.cpp", "inference"): LLAMA_CPP,
}


def whole(options: Mapping[str, object], name: str, default: int) -> int:
    """A whole number among options that were read."""
    value = options.get(name, default)
    return value if isinstance(value, int) else default


def read_engine_options(engine: str, task: str, reader: Reader) -> dict[str, Value]:
    """The options set in ``reader``, checked against the engine's table; faults go to the reader."""
    options = ENGINE_OPTIONS.get((engine, task), {})
    values = {name: _read(reader, name, option) for name, option in options.items() if reader.has(name)}
    reader.refuse_unknown(options)
    return values


def _read(reader: Reader, name: str, option: Option) -> Value:
    match option.kind:
        case "bool":
            return reader.boolean(name, default=False)
        case "int":
            return reader.integer(name, 0, minimum=int(option.minimum), maximum=int(option.maximum))
        case "float":
            return reader.number(name, option.minimum, minimum=option.minimum, maximum=option.maximum)
        case "str":
            return reader.choice(name, "", option.choices) if option.choices else reader.string(name)
