"""Kernels in C++: products of few rows with a packed weight, and masks of tokens."""
