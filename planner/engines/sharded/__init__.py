"""Training spread over several GPUs: what each rank holds under DDP, FSDP2, ZeRO, tensor parallelism and Megatron's schemes."""
