"""Measurements against transformers, both sides in one run: `python -m benchmarks`, or `make bench`."""
