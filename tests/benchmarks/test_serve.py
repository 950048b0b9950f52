"""The contest of servers: its client, its figures, its tables, and the page that shows them."""

import asyncio
import contextlib
import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks.serve import command, report
from benchmarks.serve.client import ask
from benchmarks.serve.measure import measure, percentile, prompts

PAGE = Path(__file__).resolve().parents[2] / "docs" / "serving.md"
STREAM = (
    "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nTransfer-Encoding: chunked\r\n"
    "Connection: close\r\n\r\n"
)
ERROR = b"HTTP/1.1 429 Too Many Requests\r\nContent-Type: application/json\r\nContent-Length: 30\r\n\r\n"
ERROR += b'{"error": {"code": "is full"}}'


def chunk(text: str) -> bytes:
    data = text.encode()
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


def event(**delta: str) -> str:
    return "data: " + json.dumps({"choices": [{"index": 0, "delta": delta}]}) + "\n\n"


async def with_server(work, *, answers):
    """Return the result of `work(address)` beside a server that gives the same answer to each request."""
    requests = []

    async def serve(reader, writer):
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        length = int(head.lower().split("content-length: ")[1].split("\r\n")[0])
        requests.append(json.loads(await reader.readexactly(length)))
        with contextlib.suppress(asyncio.CancelledError, ConnectionError):  # the client leaves
            for piece in answers:
                writer.write(piece)
                await asyncio.sleep(0)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        return await work(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"), requests


def test_the_client_reads_events_that_are_cut_anywhere():
    whole = event(role="assistant", content="") + event(content="He") + event(content="llo") + "data: [DONE]\n\n"
    pieces = [STREAM.encode(), *(chunk(whole[at : at + 7]) for at in range(0, len(whole), 7)), b"0\r\n\r\n"]
    answer, requests = asyncio.run(with_server(lambda address: ask(address, {"a": 1}), answers=pieces))
    assert answer.status == 200 and answer.is_done and answer.written == "Hello"
    assert len(answer.times) == 2, "an event without text is no token"
    assert requests == [{"a": 1}]


def test_the_client_leaves_when_it_is_told_to():
    pieces = [STREAM.encode(), *(chunk(event(content="x")) for _ in range(50)), b"0\r\n\r\n"]
    answer, _ = asyncio.run(with_server(lambda address: ask(address, {}, leave_after=3), answers=pieces))
    assert 3 <= len(answer.events) < 50 and not answer.is_done


def test_the_client_reads_errors():
    answer, _ = asyncio.run(with_server(lambda address: ask(address, {}), answers=[ERROR]))
    assert answer.status == 429 and answer.error == {"code": "is full"}


def test_an_error_ends_a_measurement():
    async def work(address):
        return await asyncio.to_thread(measure, address, [{}] * 3, clients=2)

    with pytest.raises(RuntimeError, match="429.*is full"):
        asyncio.run(with_server(work, answers=[ERROR]))


def test_figures_count_tokens_of_all_clients():
    pieces = [STREAM.encode(), chunk(event(content="a") + event(content="b")), b"0\r\n\r\n"]

    async def work(address):
        return await asyncio.to_thread(measure, address, [{}] * 5, clients=2)

    figures, requests = asyncio.run(with_server(work, answers=pieces))
    assert len(requests) == 5 and figures.tokens == 10 and figures.throughput > 0
    assert 0 < figures.first_p50 <= figures.first_p99


def test_percentiles_and_prompts():
    assert percentile(range(1, 101), 50) == 51 and percentile([3.0], 99) == 3.0
    assert len(set(prompts(64, 0) + prompts(64, 1))) == 128


def entry(clients, throughput):
    times = dict.fromkeys(("first_p50", "first_p99", "between_p50", "between_p99"), 0.01)
    return {"clients": clients, "tokens": 8, "throughput": throughput, **times}


def unpadded(text: str) -> str:
    """Return text with single spaces between the words and cells of its tables."""
    return re.sub(" +", " ", text)


def test_the_tables_have_figures_failures_and_goals():
    record = {
        "date": "2026-01-01",
        "machine": {"cpu": "CPU", "threads": 2},
        "tokens": 8,
        "absent": {"llama.cpp": "not here"},
        "figures": {
            "unspool": [entry(1, 10), entry(8, 30), entry(32, 45), entry(1, 10), entry(8, 50), entry(32, 55)],
            "transformers serve": [entry(8, 10), {"clients": 32, "failed": "status 500"}, entry(8, 10)],
            "other": [{"failed": "it did not start"}],
        },
        "overhead": [0.01, 0.04, 0.03],
    }
    text = unpadded(report.markdown(record))
    assert "| unspool | 8 | 40 | 10, 10 | 10, 10 |" in text
    assert "| transformers serve | 32 | failed: status 500 | | |" in text
    assert "absent: not here" in text and "did not start" in text
    assert dict(report.goals(record)) == {
        "32 clients: at least 3 times the throughput of one": "5.0 times",
        "8 clients: at least 2 times transformers serve": "4.0 times",
        "8 clients: server below 5 % of the engine's time": "3.0% (pairs from 1.0% to 4.0%)",
    }


class Stopped(Exception):
    """Stands for Ctrl-C."""


def test_a_contest_saves_each_round(monkeypatch):
    saved = []

    def fake_run(side, found, address, *, clients, tokens, number):
        if number == 2:  # the warm-up has number 900
            raise Stopped
        return entry(clients, 10.0 * (number + 1))

    monkeypatch.setattr(command, "running", lambda side, found, **how: contextlib.nullcontext("address"))
    monkeypatch.setattr(command, "_run", fake_run)
    side = SimpleNamespace(name="unspool")
    options = SimpleNamespace(cache=Path(), threads=1, rounds=3, clients=[1, 8], tokens=8)
    figures = {"unspool": []}
    with pytest.raises(Stopped):
        command.contest([side], None, options, figures=figures, save=lambda: saved.append(len(figures["unspool"])))
    assert saved == [2, 4]
    assert [each["throughput"] for each in figures["unspool"]] == [10.0, 10.0, 20.0, 20.0]


def written(folder, date, cpu, speed):
    record = {
        "date": date,
        "machine": {"cpu": cpu, "threads": 2, "cores": 2},
        "tokens": 8,
        "absent": {},
        "figures": {"unspool": [entry(1, 10), entry(32, speed)]},
        "overhead": [],
    }
    file = folder / f"{date}.json"
    file.write_text(json.dumps(record))
    return file


def test_a_kept_record_replaces_only_those_of_its_machine(tmp_path):
    kept = tmp_path / "kept"
    for given in (("2026-01-02", "Fast CPU", 40), ("2026-01-03", "Slow CPU", 20), ("2026-01-04", "Fast CPU", 50)):
        report.keep(written(tmp_path, *given), kept)
    records = report.of_all_machines(kept)
    assert [(each["date"], each["machine"]["cpu"]) for each in records] == [
        ("2026-01-04", "Fast CPU"),
        ("2026-01-03", "Slow CPU"),
    ]
    assert len(list(kept.iterdir())) == 2
    page = unpadded(report.with_tables("<!-- contest: begin -->\nold\n<!-- contest: end -->", records))
    assert "| Goal | Fast CPU, 2026-01-04 | Slow CPU, 2026-01-03 |" in page
    assert "| 32 clients: at least 3 times the throughput of one | 5.0 times | 2.0 times |" in page
    assert "old" not in page and page.count("new tokens per answer") == 2


def test_the_page_shows_the_records_of_all_machines():
    records = report.of_all_machines()
    assert records
    assert report.with_tables(PAGE.read_text(), records) == PAGE.read_text()
