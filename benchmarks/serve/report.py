"""The tables of a contest of servers, for the terminal and for docs/serving.md.

python -m benchmarks.serve.report FILE    # keep a record, and write the tables of all machines into docs/serving.md
"""

from __future__ import annotations

import json
import re
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from benchmarks import results
from benchmarks.machine import short_name
from benchmarks.report import table

KEPT: Final = results.FOLDER / "serve"
_DOC: Final = Path(__file__).resolve().parents[2] / "docs" / "serving.md"
_PLACE: Final = re.compile(r"(<!-- contest: begin -->\n).*?(<!-- contest: end -->)", re.DOTALL)
_FEW: Final = 1
_SEVERAL: Final = (8, 32, 64)


def markdown(record: Mapping[str, Any]) -> str:
    """Return the tables of a record."""
    return "\n".join(_lines(record))


def _lines(record: Mapping[str, Any]) -> Iterator[str]:
    facts = record["machine"]
    yield f"{record['date']}, {facts['cpu']}, {facts['threads']} threads, {record['tokens']} new tokens per answer."
    yield "Medians of all rounds; times in milliseconds as median and 99th percentile."
    yield ""
    yield table(("Server", "Clients", "Tokens per second", "First token", "Between tokens"), _rows(record))
    yield ""
    yield table(("Goal", "Result"), goals(record))


def _rows(record: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    """Yield the cells of each server and number of clients, then the servers that did not run."""
    for name, entries in record["figures"].items():
        for clients in sorted({entry["clients"] for entry in entries if "clients" in entry}):
            yield name, str(clients), *_cells([each for each in entries if each.get("clients") == clients])
        if failed := next((entry["failed"] for entry in entries if "clients" not in entry), None):
            yield name, "", f"did not start: {failed.splitlines()[0]}", "", ""
    for name, reason in record["absent"].items():
        yield name, "", f"absent: {reason}", "", ""


def _cells(entries: Sequence[Mapping[str, Any]]) -> tuple[str, str, str]:
    served = [entry for entry in entries if "failed" not in entry]
    if not served:
        return f"failed: {entries[0]['failed'][:60]}", "", ""

    def ms(key: str) -> str:
        return f"{1000 * statistics.median(entry[key] for entry in served):.0f}"

    speed = statistics.median(entry["throughput"] for entry in served)
    return f"{speed:.0f}", f"{ms('first_p50')}, {ms('first_p99')}", f"{ms('between_p50')}, {ms('between_p99')}"


def goals(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return each goal with its result in words, as far as the record has the figures."""
    found: list[tuple[str, str]] = []
    ours = record["figures"].get("unspool", [])
    if ratio := _ratio(ours, 32, ours, _FEW):
        found.append(("32 clients: at least 3 times the throughput of one", f"{ratio:.1f} times"))
    for name, theirs in record["figures"].items():
        if name.startswith("transformers"):
            for clients in _SEVERAL:
                if ratio := _ratio(ours, clients, theirs, clients):
                    found.append((f"{clients} clients: at least 2 times {name}", f"{ratio:.1f} times"))
    if shares := record["overhead"]:
        low, middle, high = min(shares), statistics.median(shares), max(shares)
        told = f"{middle:.1%} (pairs from {low:.1%} to {high:.1%})"
        found.append(("8 clients: server below 5 % of the engine's time", told))
    return found


def _ratio(
    ours: Sequence[Mapping[str, Any]], clients: int, theirs: Sequence[Mapping[str, Any]], others: int
) -> float | None:
    """Return the median of the ratios of throughput, round by round; None without figures."""
    above = [entry["throughput"] for entry in ours if entry.get("clients") == clients and "failed" not in entry]
    below = [entry["throughput"] for entry in theirs if entry.get("clients") == others and "failed" not in entry]
    pairs = list(zip(above, below, strict=False))
    return statistics.median(a / b for a, b in pairs) if pairs else None


def of_all_machines(folder: Path = KEPT) -> list[dict[str, Any]]:
    """Return the newest kept record of each machine, the newest first."""
    return results.of_all_machines(folder, _read)


def keep(file: Path, folder: Path = KEPT) -> None:
    """Copy a record into the folder, in place of older records of its machine. Those of other machines stay."""
    record = _read(file)
    results.keep(file, folder / f"{record['date']}-{short_name(record['machine'])}.json", _read)


def _read(file: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads(file.read_text())
    return record


def with_tables(page: str, records: Sequence[Mapping[str, Any]]) -> str:
    """Return docs/serving.md with the tables of the records of all machines."""
    tables = "\n\n".join(markdown(record) for record in records)
    if len(records) > 1:
        tables = f"{_side_by_side(records)}\n\n{tables}"
    return _PLACE.sub(lambda match: f"{match[1]}\n{tables}\n\n{match[2]}", page)


def _side_by_side(records: Sequence[Mapping[str, Any]]) -> str:
    """Return one table of the goals, with a column per machine. A goal without figures has a dash."""
    found = [dict(goals(record)) for record in records]
    names = [f"{record['machine']['cpu']}, {record['date']}" for record in records]
    rows = dict.fromkeys(goal for each in found for goal in each)
    return table(("Goal", *names), [(goal, *(each.get(goal, "-") for each in found)) for goal in rows])


def main() -> None:
    """Keep a record, and write the tables of all machines into the page."""
    keep(Path(sys.argv[1]))
    _DOC.write_text(with_tables(_DOC.read_text(), of_all_machines()))


if __name__ == "__main__":
    main()
