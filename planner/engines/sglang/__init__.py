"""SGLang: a share of the memory for weights and pools of tokens, the rest for activations and graphs."""
