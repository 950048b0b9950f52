"""The backend that calls a model's own forward, with transformers' caches as pytrees, or without a cache."""
