"""Tracing of requests: a recorder of the strategy's search tree, and the rows of numbers in the trace."""
