"""Models behind four methods. `choose.py` takes the fastest backend that passes its probe:

    decoder/    KV cache in slots, one flat pass over all sequences; CUDA graphs
    generic/    the model's own forward with transformers' caches, or without a cache
    seq2seq/    models with an encoder
    toy.py      a table of probabilities, for tests and teaching
    current.py  one of these per state of a model: plain, or patched by hooks and adapters

Shared parts: kv/ (KV cache and attention), weights/ (linear layers: packed, quantized, fused, batch-invariant), wrap/
(a user's model, untouched), replay/ (tracing a pass and replaying it).
"""
