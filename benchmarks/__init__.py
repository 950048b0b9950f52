"""The benchmark suite: Unspool and its peers side by side, in one run. `python -m benchmarks`, or `make bench`.

This package imports nothing heavy at its top: the command and the peers' processes both start from it.
"""
