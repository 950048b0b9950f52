"""Kernels: products of few rows with a packed weight, in C++."""
