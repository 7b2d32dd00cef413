"""Keys of a config that cannot change the size of a model, whatever they say."""

from __future__ import annotations

import re
from functools import lru_cache

# fmt: off
_EXACT = frozenset((
    "architectures", "attention_softmax_in_fp32", "attn_implementation", "attn_logit_softcapping", "auto_map",
    "begin_suppress_tokens", "bias_dropout_fusion", "cache_implementation", "chunk_size", "chunk_size_feed_forward",
    "classifier_dropout", "clip_qkv", "compression_config", "context_length_factor", "decoder_start_token_id", "dropout",
    "dtype", "early_stopping", "ep_size", "final_logit_softcapping", "finetuning_task", "forced_decoder_ids", "id2label",
    "init_device", "init_std", "initializer_factor", "initializer_range", "is_decoder", "is_encoder_decoder",
    "keys_to_ignore_at_inference", "label2id", "language_model_input_embeds", "layerdrop", "logit_scale", "logits_to_keep",
    "mamba_chunk_size", "mask_token_id", "max_length", "min_length", "mlp_multipliers", "model_type",
    "moe_router_enable_expert_bias", "moe_router_score_function", "n_group", "name_or_path", "no_repeat_ngram_size",
    "norm_topk_prob", "num_beams", "num_labels", "num_logits_to_keep", "num_return_sequences", "output_attentions",
    "output_hidden_states", "output_past", "output_router_logits", "output_scores", "prefix", "prefix_lm", "pretraining_tp",
    "problem_type", "pruned_heads", "quantization_config", "query_pre_attn_scalar", "remove_invalid_values",
    "reorder_and_upcast_attn", "repetition_penalty", "rescale_every", "rescale_prenorm_residual", "residual_in_fp32",
    "return_dict", "return_dict_in_generate", "router_jitter_noise", "scale_attention_softmax_in_fp32",
    "scale_attn_by_inverse_layer_idx", "scale_attn_weights", "scale_embedding", "scoring_func", "sep_token_id", "seq_aux",
    "slow_but_exact", "summary_activation", "summary_first_dropout", "summary_last_dropout", "summary_proj_to_labels",
    "summary_type", "summary_use_proj", "suppress_tokens", "task_specific_params", "temperature", "tf_legacy_loss",
    "tie_encoder_decoder", "time_step_floor", "time_step_init_scheme", "time_step_limit", "time_step_max", "time_step_min",
    "time_step_scale", "tokenizer_class", "top_k", "top_p", "topk_group", "topk_method", "torch_dtype", "torchscript",
    "transformers_version", "typical_p", "unk_token_id", "unsloth_fixed", "unsloth_version", "use_associative_scan",
    "use_bfloat16", "use_cache", "use_logits_recompute", "use_mamba_kernels", "use_mambapy", "use_mem_eff_path",
))
# fmt: on
_PATTERNS = re.compile(
    r"^_|(_|^)(token|tokens)_(id|ids|index)$|_eps$|_epsilon$|^eps$|dropout|_pdrop$|_drop$|^rope_(theta|scaling|parameters|type|interleave|local_base_freq|freq)|_theta$"
    r"|_scaling$|_scaling_factor$|^(embedding|residual|attention|logits|lm_head|key|attention_in|attention_out|ssm_in|ssm_out|ssm|mlp)_multipliers?$|_coef$|_coefficient$|_loss|_std$|initializer|_jitter|logits_soft|softcap"
    r"|^norm_eps|mrope|yarn|_dtype$|temperature|_threshold$|mask_time|mask_feature|_gradient|_sampling_rate$"
    r"|^image_token|^video_token|^audio_token|^vision_.*token|_token_index$|^loss_|^aux_loss|^router_aux|^z_loss"
)


@lru_cache(4096)
def cannot_change_sizes(key: str) -> bool:
    """Whether ``key`` is about tokens, generation, training, scaling or numerics only."""
    return key in _EXACT or _PATTERNS.search(key) is not None
