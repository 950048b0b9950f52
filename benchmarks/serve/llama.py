"""llama.cpp's own server from the package `xllamacpp`, which needs no compiler. Runs in the environment of the peers.

python llama.py FILE.gguf PORT THREADS SEQUENCES
"""

from __future__ import annotations

import signal
import sys


def main() -> None:
    """Serve until a signal."""
    import xllamacpp

    file, port, threads, sequences = sys.argv[1:]
    params = xllamacpp.CommonParams()
    params.model.path = file
    params.hostnames, params.port = ["127.0.0.1"], int(port)
    params.n_parallel, params.n_ctx = int(sequences), 512 * int(sequences)
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = int(threads)
    server = xllamacpp.Server(params)
    print(server.listening_address, flush=True)
    signal.sigwait({signal.SIGTERM, signal.SIGINT})


if __name__ == "__main__":
    main()
