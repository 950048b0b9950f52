"""The fastest backend: decoder-only models over the KV cache in slots, with CUDA graphs of decode steps."""
