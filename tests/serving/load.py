"""Load on a server: requests of every strategy on both routes, and clients that leave."""

from __future__ import annotations

import asyncio
import os
import random
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.serve.client import Answer, ask
from tests.serving.test_completions import STRATEGIES

PROMPTS = ("Once upon a time", "The king", "A fox and a", "In the wood")


DRAFT = "tale-draft"
"""Name of the draft model of `process`; that of the shared server is "draft"."""


def body_of(
    strategy: str, *, prompt: str = "Once", max_tokens: int = 8, stream: bool = False, draft: str = "draft"
) -> dict[str, Any]:
    """Return the body of a completion with a strategy of `STRATEGIES`."""
    fields = dict(STRATEGIES[strategy])
    more = fields.pop("extra_body", {})
    if "assistant" in more:
        more = {**more, "assistant": draft}
    return {"model": "tale", "prompt": prompt, "max_tokens": max_tokens, "stream": stream, **fields, **more}


def bodies(count: int, seed: int, *, max_tokens: int = 8, draft: str = "draft") -> list[dict[str, Any]]:
    """Return bodies of all strategies in turn, half of them streams, with a random prompt each."""
    draw = random.Random(seed)
    names = list(STRATEGIES)
    found = []
    for index in range(count):
        name = names[index % len(names)]
        stream = name != "best of" and draw.random() < 0.5
        found.append(body_of(name, prompt=draw.choice(PROMPTS), max_tokens=max_tokens, stream=stream, draft=draft))
    return found


def ask_all(address: str, given: Sequence[dict[str, Any]], leave_after: Sequence[int | None]) -> list[Answer]:
    """Send all bodies at once; each client leaves after so many events, or after a moment if it reads no stream."""

    async def one(body: dict[str, Any], after: int | None) -> Answer:
        if after is None or body["stream"]:
            return await ask(address, body, leave_after=after)
        task = asyncio.ensure_future(ask(address, body))
        await asyncio.wait({task}, timeout=0.05 * after)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return Answer(started=time.perf_counter())

    async def every() -> list[Answer]:
        return await asyncio.gather(*(one(*each) for each in zip(given, leave_after, strict=True)))

    return asyncio.run(every())


def eventually(holds: Callable[[], bool], seconds: float = 60) -> bool:
    """Wait until a condition holds; returns False after `seconds`."""
    end = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


def num_prompts(address: str) -> float:
    """Return how many prompts run or wait, by the server's own metrics."""
    with urllib.request.urlopen(f"{address}/metrics", timeout=60) as answer:
        text = answer.read().decode()
    return sum(float(each) for each in re.findall(r"^unspool_num_requests_\w+ (\S+)$", text, re.MULTILINE))


def memory(process: int | str = "self") -> int:
    """Return the resident memory of a process in bytes. Linux only."""
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


@contextmanager
def process(*flags: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """Yield the address and the process of `unspool serve`."""
    command = [sys.executable, "-m", "unspool.cli.main", "serve", "--port", "0", "--threads", "1"]
    command += ["--assistant-model", DRAFT, *flags]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr is not None
        line = server.stderr.readline()
        while "Serving" not in line:
            assert line or server.poll() is None, "the server did not start"
            line = server.stderr.readline()
        try:
            yield line.rsplit(" ", 1)[1].strip().removesuffix("/v1"), server
        finally:
            if server.poll() is None:
                server.kill()
