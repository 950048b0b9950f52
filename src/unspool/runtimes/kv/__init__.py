"""The KV cache: slots in pools, the plan of a pass over them, and attention."""
