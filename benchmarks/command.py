"""The command: select cases, prepare checkpoints and environments, run the cases in order, and report.

python -m benchmarks                        # everything, about a quarter of an hour
python -m benchmarks --quick                # tiny models, to see that everything works
python -m benchmarks --only gpt2 beam       # cases whose names hold one of these words
python -m benchmarks --list
"""

from __future__ import annotations

import argparse
import itertools
import shutil
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks import machine, report, results
from benchmarks.cases import PEERS, TALE, cases
from benchmarks.checkpoints import Checkpoint, checkpoints, folder_of, prepare, weights_read
from benchmarks.contest import Contest
from benchmarks.crew import ROOT, Crew
from benchmarks.environment import peers_python
from benchmarks.results import Results
from benchmarks.sides.side import SIDES
from benchmarks.work import Case

CACHE = ROOT / "build" / "bench"
_TALE = ROOT / "src" / "unspool" / "tale"
_READ_BYTES, _READ_BYTES_QUICK = 2**30, 2**26


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    options = _parser().parse_args(arguments)
    sizes = checkpoints(quick=options.quick)
    chosen = _with_peers(_chosen(cases(sizes, quick=options.quick), options.only), _peers(options.peers))
    if options.list:
        for case in chosen:
            print(f"{case.name:30} {case.title}: {', '.join(entry.label for entry in case.entries)}")
        return
    console = Console(highlight=False, soft_wrap=True)
    with _leaving_in_order():
        found = run(chosen, sizes, options, console)
    console.print(report.markdown(found.record), markup=False)
    console.print(f"The figures are in {found.file}")
    failed = {
        entry["side"] for case in found.record["cases"] for entry in case["entries"] if entry["status"] == "failed"
    }
    if peers := sorted(failed & set(PEERS)):
        console.print(f"Failed, and left out: {', '.join(peers)}; the logs are in {options.cache / 'logs'}")
    if failed - set(PEERS):
        raise SystemExit(f"something failed; the logs are in {options.cache / 'logs'}")


def run(chosen: Sequence[Case], sizes: dict[str, Checkpoint], options: Any, console: Console) -> Results:
    """Run cases and return their record, which is on disk already."""
    pythons = _pythons(chosen, options, console)
    folders = _folders(chosen, sizes, options, console)
    weights = {name: weights_read(folder) for name, folder in folders.items() if name in sizes}
    facts = {name: {"title": sizes[name].title, "weights_read": count} for name, count in weights.items()}
    described = machine.describe(options.threads)
    found = Results(_file(options, described), machine=described, checkpoints=facts, quick=options.quick)
    shutil.rmtree(options.cache / "logs", ignore_errors=True)
    try:
        with Crew(pythons, threads=options.threads, logs=options.cache / "logs") as crew:
            bandwidth = _READ_BYTES_QUICK if options.quick else _READ_BYTES
            contest = Contest(crew, folders, weights, bandwidth=bandwidth)
            _run_all(chosen, contest, found, options.runs, console)
            found.record["machine"]["yardstick"] = contest.yardstick
    except KeyboardInterrupt:
        console.print(f"Stopped; what was measured until then is in {found.file}")
        raise SystemExit(130) from None
    found.finish()
    if _is_whole(options):
        found.keep()
        report.main()
    return found


def _run_all(chosen: Sequence[Case], contest: Contest, found: Results, runs: int | None, console: Console) -> None:
    """Run case after case, and show how far it has come."""
    with _progress(console) as progress:
        task = progress.add_task("", total=len(chosen))
        for _, group in itertools.groupby(chosen, key=lambda case: case.checkpoint):
            for case in group:
                record = contest.run(
                    case, runs=runs or case.runs, say=lambda words: progress.update(task, description=words)
                )
                found.add(record)
                progress.advance(task)
                if not console.is_terminal:
                    console.print(_line(record))
            contest.change_checkpoint()


def _line(record: dict[str, Any]) -> str:
    entries = (
        f"{entry['label']} {min(entry['seconds']):.2f} s" if entry["seconds"] else f"{entry['label']} {entry['status']}"
        for entry in record["entries"]
    )
    return f"{record['name']}: {', '.join(entries)}"


# --- arguments ------------------------------------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--quick", action="store_true", help="tiny models, one round: shows that everything works, in a minute")
    add("--only", nargs="+", metavar="WORD", help="only cases whose names hold one of these")
    add("--peers", nargs="+", choices=[*PEERS, "none"], default=list(PEERS), help="only these peers, or none")
    add("--runs", type=_at_least_one, help="counted rounds of each case (default: what the case says)")
    add("--threads", type=_at_least_one, default=machine.num_cores(), help="for every side (default: all cores)")
    add("--peers-python", type=Path, metavar="PATH", help="a Python that has the peers, in place of build/bench/peers")
    add("--with-llama-cpp", action="store_true", help="install llama-cpp-python as well, which compiles for minutes")
    add("--cache", type=Path, default=CACHE, help="where checkpoints and the peers' environment are kept")
    add(
        "--out",
        type=Path,
        metavar="FILE",
        help="where the figures go (default: build/bench/results)",
    )
    add("--list", action="store_true", help="list the cases and end")
    return parser


def _at_least_one(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


def _peers(given: Sequence[str]) -> set[str]:
    if "none" in given and len(given) > 1:
        raise SystemExit("`--peers` is none, or names of peers, not both")
    return set(given) - {"none"}


def _chosen(offered: Sequence[Case], words: Sequence[str] | None) -> list[Case]:
    """Return the cases that are asked for. Raises SystemExit for a word that no name holds."""
    for word in words or ():
        if not any(word in case.name for case in offered):
            raise SystemExit(f"`--only`: no case has {word!r} in its name; --list shows their names")
    return [case for case in offered if words is None or any(word in case.name for word in words)]


def _with_peers(chosen: Sequence[Case], peers: set[str]) -> list[Case]:
    """Return the cases without the entries of peers that are not asked for."""
    unwanted = set(PEERS) - peers
    return [
        replace(case, entries=tuple(entry for entry in case.entries if entry.side not in unwanted)) for case in chosen
    ]


# --- preparation ------------------------------------------------------------------------------------------------------


def _pythons(chosen: Sequence[Case], options: Any, console: Console) -> dict[str, Path]:
    """Return the interpreter for each side."""
    pythons = dict.fromkeys(SIDES, Path(sys.executable))
    if any(entry.side in PEERS for case in chosen for entry in case.entries):
        peers = options.peers_python or peers_python(
            options.cache / "peers", with_llama_cpp=options.with_llama_cpp, say=console.print
        )
        pythons.update(dict.fromkeys(PEERS, peers.absolute()))
    return pythons


def _folders(chosen: Sequence[Case], sizes: dict[str, Checkpoint], options: Any, console: Console) -> dict[str, Path]:
    """Return the path of each checkpoint, after writing the absent ones."""
    folders = {TALE: _TALE}
    for name in dict.fromkeys(case.checkpoint for case in chosen if case.checkpoint != TALE):
        if not folder_of(sizes[name], options.cache, quick=options.quick).exists():
            console.print(f"writing {sizes[name].title} into {options.cache}")
        folders[name] = prepare(sizes[name], options.cache, quick=options.quick)
    return folders


def _file(options: Any, described: dict[str, Any]) -> Path:
    name = f"{results.today()}-{machine.short_name(described)}.json"
    return Path(options.out or options.cache / "results" / name)


def _is_whole(options: Any) -> bool:
    """Return whether the figures are all there, and go with the project's own."""
    return not options.out and not options.quick and options.only is None and set(options.peers) == set(PEERS)


@contextmanager
def _leaving_in_order() -> Iterator[None]:
    """Leave as after Ctrl-C when somebody asks the process to end, so that the workers are stopped then as well."""
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _progress(console: Console) -> Iterator[Progress]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress:
        yield progress
