"""Linear layers: packing, autotuning, fused activations, quantization, batch invariance."""
