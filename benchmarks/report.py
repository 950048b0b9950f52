"""Records as Markdown: one for the terminal, and those of all machines for docs/performance.md.

    python -m benchmarks.report            # from the newest record of a full run of each machine

writes the text between the marks in docs/performance.md, and the chart of the newest record beside it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import results
from benchmarks.chart import draw
from benchmarks.figures import Figure, checkpoint_title, duration, figures, missing
from benchmarks.goals import verdicts
from benchmarks.inside import STEP_PARTS
from benchmarks.ratios import Ratio

DOCS = Path(__file__).resolve().parent.parent / "docs"
PAGE, CHART = DOCS / "performance.md", DOCS / "performance.svg"
BEGIN, END = "<!-- results: written by python -m benchmarks.report -->", "<!-- end of results -->"
NOTHING_YET = "No run has been recorded yet."
_MIB, _GB = 2**20, 1e9


def markdown(record: Mapping[str, Any], *, level: int = 2) -> str:
    """Return the report of one run; figures of tiny models are marked as meaningless. level: of its headings."""
    parts = [
        _machine(record),
        _section("Cases in which a peer is faster", _wins(record), level),
        _section("Against the peers", _against_peers(record, level + 1), level),
        _section("Unspool against itself", _costs(record), level),
        _section("The parts of a step", _parts(record), level),
        _section("Memory", _memory(record), level),
        _section("Goals", _goals(record), level),
        _section("Not measured", _missing(record), level),
        _section("How each side was run", _sides(record), level),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _section(title: str, text: str, level: int) -> str:
    return f"{'#' * level} {title}\n\n{text}" if text else ""


def side_by_side(records: Sequence[Mapping[str, Any]]) -> str:
    """Return a table of all machines: how many times as fast as each peer Unspool is, and its share of the bandwidth.

    A case has a line for Unspool, with the share, and one for each peer, with the ratio.
    """
    cells: dict[tuple[str, str], dict[int, str]] = {}
    for number, record in enumerate(records):
        for figure in figures(record, "peers"):
            title = f"{checkpoint_title(record, figure.case['checkpoint'])}: {figure.title}"
            words = _percent(figure.share) if figure.ratio is None else f"{figure.ratio.median:.2f}"
            label = f"{figure.label}, share of bandwidth" if figure.ratio is None else figure.label
            cells.setdefault((title, label), {})[number] = words
    titles = _once(title for title, _ in cells)
    rows = [
        (title, label, *(found.get(number, "") for number in range(len(records))))
        for title, ((_, label), found) in zip(titles, cells.items(), strict=True)
        if any(found.values())
    ]
    return table(("Case", "Side", *(_name(record) for record in records)), rows)


def _name(record: Mapping[str, Any]) -> str:
    """Return a machine in a few words."""
    machine = record["machine"]
    return f"{machine['cpu']}, {machine['cores']} cores"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table that can be read as plain text too; "" without rows."""
    lines = [[cell.replace("|", r"\|") for cell in row] for row in rows]
    if not lines:
        return ""
    widths = [max(len(line[place]) for line in [list(head), *lines]) for place in range(len(head))]
    ruled = [list(head), ["-" * width for width in widths], *lines]
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in ruled
    )


def _machine(record: Mapping[str, Any]) -> str:
    machine, bandwidth = record["machine"], record["machine"].get("bandwidth")
    words = [machine["cpu"], *([machine["vector"]] if machine["vector"] else []), f"{machine['cores']} cores"]
    if machine["memory_gib"]:
        words.append(f"{machine['memory_gib']} GiB of memory")
    versions = ", ".join(f"{name} {version}" for name, version in sorted(record["versions"].items()))
    lines = [
        f"Measured on {record['date']}: {'; '.join(words)}. {machine['threads']} threads for every side. {versions}."
    ]
    if bandwidth:
        lines.append(
            f"The machine read memory at {bandwidth['median'] / _GB:.1f} GB/s (median over the run; best "
            f"{bandwidth['best'] / _GB:.1f})."
        )
        if machine.get("yardstick"):
            lines.append(f"That is {machine['yardstick']}.")
    if record["quick"]:
        lines.append("**Tiny models: these figures say that everything works, and nothing else.**")
    if not record["finished"]:
        lines.append("**The run was not finished.**")
    return " ".join(lines)


# --- against the peers ------------------------------------------------------------------------------------------------


def _against_peers(record: Mapping[str, Any], level: int) -> str:
    """Return a table for each checkpoint, and notes below it. level: of the headings."""
    parts = []
    found = list(figures(record, "peers"))
    for name in dict.fromkeys(figure.case["checkpoint"] for figure in found):
        ours = [figure for figure in found if figure.case["checkpoint"] == name]
        head = ("Case", "Side", "Speed", "Unspool is faster, times", "Share of bandwidth", "Tokens")
        parts.append(f"{'#' * level} {checkpoint_title(record, name)}\n\n" + table(head, _peer_rows(ours)))
        notes = {figure.case["title"]: figure.case["note"] for figure in ours if figure.case["note"]}
        parts.append("\n".join(f"- {title}: {note}." for title, note in notes.items()))
    return "\n\n".join(part for part in parts if part)


def _peer_rows(found: Sequence[Figure]) -> list[tuple[str, ...]]:
    titles = _once(figure.title for figure in found)
    return [
        (title, figure.label, figure.speed, _range(figure.ratio), _percent(figure.share), _tokens(figure))
        for title, figure in zip(titles, found, strict=True)
    ]


def _once(titles: Iterable[str]) -> Iterator[str]:
    """Yield each title, or "" if it equals the one before."""
    last = None
    for title in titles:
        yield title if title != last else ""
        last = title


def _percent(share: float | None) -> str:
    return f"{share:.0%}" if share is not None else ""


def _range(ratio: Ratio | None) -> str:
    return f"{ratio.median:.2f} ({ratio.lowest:.2f} to {ratio.highest:.2f})" if ratio else ""


def _tokens(figure: Figure) -> str:
    """Return whether the tokens equal those of the first entry, if they must."""
    differences = figure.entry["differences"]
    if differences is None or not figure.case["same_tokens"]:
        return ""
    outputs = figure.entry["prompts"] * len(figure.entry["seconds"])
    return "the same" if not differences else f"{len(differences)} of {outputs} outputs differ"


def _wins(record: Mapping[str, Any]) -> str:
    """Return the peers' wins, largest first, computed from the pairs."""
    compared = [
        (figure.ratio, figure)
        for figure in figures(record, "peers")
        if figure.ratio is not None and figure.entry["side"] != "unspool"
    ]
    won = sorted((pair for pair in compared if pair[0].median < 1), key=lambda pair: pair[0])
    lines = (
        f"- {checkpoint_title(record, figure.case['checkpoint'])}, {figure.title}: {figure.label} is "
        f"{1 / ratio.median:.2f} times as fast ({1 / ratio.highest:.2f} to {1 / ratio.lowest:.2f})"
        for ratio, figure in won
    )
    return "\n".join(lines) or ("Nowhere in this run." if compared else "")


# --- inside Unspool ---------------------------------------------------------------------------------------------------


def _costs(record: Mapping[str, Any]) -> str:
    found = [figure for figure in figures(record, "cost") if not _is_step_parts(figure)]
    titles = _once(f"{checkpoint_title(record, figure.case['checkpoint'])}: {figure.case['title']}" for figure in found)
    rows = [
        (title, figure.label, duration(figure.typical / figure.tokens), _range(figure.ratio))
        for title, figure in zip(titles, found, strict=True)
    ]
    return table(("Case", "Way", "Time for each token", "Times the first"), rows)


def _is_step_parts(figure: Figure) -> bool:
    return str(figure.case["name"]).endswith(STEP_PARTS)


def _parts(record: Mapping[str, Any]) -> str:
    """Return milliseconds per step, by part."""
    rows = []
    for figure in figures(record, "cost"):
        if _is_step_parts(figure):
            parts = figure.entry["parts"][-1]
            cells = (1000 * parts[name] / parts["steps"] for name in ("forward", "vocabulary", "bookkeeping"))
            rows.append((figure.label, *(f"{cell:.2f}" for cell in cells)))
    head = ("", "forward, ms", "processors, selection, logprobs, ms", "scheduling, conversation, bookkeeping, ms")
    return table(head, rows)


def _memory(record: Mapping[str, Any]) -> str:
    """Return, for each checkpoint and side, the memory of its process after loading, and its peak during work."""
    held: dict[tuple[str, str], tuple[int, int]] = {}
    for figure in [*figures(record, "peers"), *figures(record, "cost")]:
        loaded, peak = figure.entry["loaded_bytes"], figure.entry["peak_bytes"]
        if loaded and peak and figure.entry["side"] != "startup":
            key = checkpoint_title(record, figure.case["checkpoint"]), _who(figure)
            held[key] = loaded, max(peak, held.get(key, (0, 0))[1])
    rows = [(*key, *(f"{size / _MIB:.0f} MiB" for size in sizes)) for key, sizes in sorted(held.items())]
    return table(("Checkpoint", "Side", "Loaded", "Most while it worked"), rows)


def _who(figure: Figure) -> str:
    """Return the owner of the process: different works of a side with the same weights share one."""
    load = figure.entry["load"]
    return " ".join([str(figure.entry["side"]), *(load[name] for name in ("weights", "quantize") if name in load)])


# --- the rest ---------------------------------------------------------------------------------------------------------


def _goals(record: Mapping[str, Any]) -> str:
    words = {True: "yes", False: "**no**", None: ""}
    found = [verdict for verdict in verdicts(record) if verdict.met is not None]
    return table(("Goal", "Wanted", "Measured", "Met"), ((v.goal, v.bound, v.measured, words[v.met]) for v in found))


def _missing(record: Mapping[str, Any]) -> str:
    """Return the cases without a measurement, with each reason once."""
    reasons: dict[tuple[str, str], list[str]] = {}
    for case, entry in missing(record):
        reasons.setdefault((entry["label"], entry["reason"]), []).append(case["name"])
    return "\n".join(f"- {label}: {reason} ({', '.join(names)})" for (label, reason), names in reasons.items())


def _sides(record: Mapping[str, Any]) -> str:
    seen: dict[tuple[str, str], str] = {}
    for case in record["cases"]:
        for entry in case["entries"]:
            if entry["info"] and case["kind"] == "peers":
                seen.setdefault((entry["label"], entry["info"]), checkpoint_title(record, case["checkpoint"]))
    return table(("Side", "First on", "How"), ((label, where, info) for (label, info), where in seen.items()))


# --- the page ---------------------------------------------------------------------------------------------------------


def with_results(page: str, records: Sequence[Mapping[str, Any]]) -> str:
    """Return the page with the reports of all machines between its marks, the newest record first.

    Raises:
        ValueError: if the marks are absent.
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the page lacks {BEGIN if not begin else END}")
    parts = [
        f"![Speeds of Unspool and its peers, case by case, on {_name(records[0])}]({CHART.name})",
        "## All machines side by side",
        "Numbers above 1 say how many times as fast as this side Unspool is.",
        side_by_side(records),
        *(f"## {_name(record)}\n\n{markdown(record, level=3).rstrip()}" for record in records),
    ]
    body = "\n\n".join(part for part in parts if part)
    return f"{before}{BEGIN}\n\n{body}\n\n{END}{after}"


def main() -> None:
    records = results.of_all_machines()
    if not records:
        raise SystemExit("there is no record of a full run yet: make bench")
    PAGE.write_text(with_results(PAGE.read_text(), records))
    CHART.write_text(draw(records[0]))
    print(f"{PAGE.name} and {CHART.name} hold the records of {len(records)} machines")


if __name__ == "__main__":
    main()
