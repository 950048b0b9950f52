"""What this machine gives a process: CPUs, threads and memory."""
