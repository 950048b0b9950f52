"""Linear layers: packing, autotuning, fused activations, batch invariance."""
