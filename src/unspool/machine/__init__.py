"""The resources of this machine: CPUs, threads and memory."""
