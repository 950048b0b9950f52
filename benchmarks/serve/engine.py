"""The engine without a server, in a process of its own: the yardstick of the server's own cost.

    python -m benchmarks.serve.engine FOLDER THREADS

Reads one JSON list of chat questions per line, answers them in one batch, and prints the seconds.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from benchmarks.serve.measure import Figures, measure, prompts
from benchmarks.serve.servers import Program, body


class Bare:
    """A process with the engine alone."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def seconds(self, questions: Sequence[str], tokens: int) -> float:
        """Return the seconds of one batch: all questions, so many tokens each."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps([tokens, *questions]) + "\n")
        self._process.stdin.flush()
        return float(self._process.stdout.readline())


@contextmanager
def bare(folder: Path, threads: int) -> Iterator[Bare]:
    """Start the process, and stop it at the end."""
    command = [sys.executable, "-m", "benchmarks.serve.engine", str(folder), str(threads)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        yield Bare(process)
        process.stdin.close()


def overhead(
    address: str, program: Program, engine: Bare, *, forms: object, clients: int, tokens: int, rounds: int
) -> list[float]:
    """Return the share of the engine's time that the server adds: one value per pair of runs, in turns."""
    shares = []
    for round in range(rounds + 1):
        questions = prompts(clients, round + 1000)
        alone = engine.seconds(questions, tokens)
        bodies = [body(program, forms, each, tokens) for each in questions]  # type: ignore[arg-type]
        served: Figures = measure(address, bodies, clients=clients)
        if round:  # the first pair warms both up
            shares.append(served.tokens / served.throughput / alone - 1)
    return shares


def main() -> None:
    """Answer batches until the input ends."""
    import torch

    import unspool

    folder, threads = sys.argv[1:]
    torch.set_num_threads(int(threads))
    lm = unspool.load(folder)
    for line in sys.stdin:
        tokens, *questions = json.loads(line)
        texts = [
            lm.tokenizer.apply_chat_template(
                [{"role": "user", "content": each}], tokenize=False, add_generation_prompt=True
            )
            for each in questions
        ]
        ids = [lm.tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
        started = time.perf_counter()
        lm.generate(ids, max_new_tokens=tokens, ignore_eos=True, do_sample=False)
        print(time.perf_counter() - started, flush=True)


if __name__ == "__main__":
    main()
