"""The KV cache: slots in pools, prefix caching, the attention plan of a pass, and attention."""
