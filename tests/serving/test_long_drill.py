"""The long drill: ten minutes, 256 clients, every strategy on both routes, and random disconnects."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
import threading
import time

import pytest

from benchmarks.serve.client import Answer, ask
from benchmarks.serve.measure import percentile
from tests.serving.load import DRAFT, PROMPTS, bodies, eventually, memory, num_prompts, process

SECONDS = float(os.environ.get("UNSPOOL_DRILL_SECONDS", "600"))
CLIENTS = 256
WARM_ANSWERS, LEAST_ANSWERS = 2 * CLIENTS, 4 * CLIENTS
"""Answers of the warm-up, and the least of the drill. Counts, because the answers of a minute depend on the CPU."""
MOST_GROWTH = 1.05


@pytest.mark.slow
@pytest.mark.model
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the memory of a process from /proc")
def test_ten_minutes_of_clients_that_come_and_leave() -> None:
    draw = random.Random(16)
    finished: list[Answer] = []
    turned_away, left = [0], [0]
    sizes: list[tuple[int, int]] = []
    """The number of answers so far, and the memory in bytes, each second."""

    async def client(address: str, number: int, end: float) -> None:
        given = bodies(64, number, max_tokens=24, draft=DRAFT)
        while time.monotonic() < end or len(finished) < LEAST_ANSWERS:
            body = {**draw.choice(given), "prompt": draw.choice(PROMPTS)}
            after = draw.choice([None, None, 0, 1, 3]) if body["stream"] else None
            answer = await ask(address, body, leave_after=after)
            if after is not None:
                left[0] += 1
            elif answer.status == 429:
                turned_away[0] += 1
                await asyncio.sleep(float(answer.headers["retry-after"]))
            else:
                assert answer.status == 200 and answer.error is None, answer
                assert not body["stream"] or answer.is_done
                finished.append(answer)

    async def watch(pid: int) -> None:
        while True:
            sizes.append((len(finished), memory(pid)))
            await asyncio.sleep(1)

    async def drill(address: str, pid: int) -> None:
        started = time.monotonic()
        watching = asyncio.ensure_future(watch(pid))
        await asyncio.gather(*(client(address, number, started + SECONDS) for number in range(CLIENTS)))
        watching.cancel()

    with process("--max-queue", "128") as (address, server):
        assert server.stderr is not None
        # Read all the time: the server waits if the pipe of its log is full.
        log = threading.Thread(target=server.stderr.read, daemon=True)
        log.start()
        asyncio.run(drill(address, server.pid))
        assert eventually(lambda: num_prompts(address) == 0), "requests still run, or hold their place"
        before = max(size for count, size in sizes if count <= WARM_ANSWERS)
        after = memory(server.pid)
        last = asyncio.run(ask(address, bodies(1, 0)[0]))
        assert last.status == 200
        server.send_signal(signal.SIGTERM)
        assert server.wait(60) == 0
        log.join()
    seconds = [answer.ended - answer.started for answer in finished]
    print(
        f"\n{len(finished)} answers, {left[0]} clients left, {turned_away[0]} turned away; "
        f"seconds p50 {percentile(seconds, 50):.2f}, p99 {percentile(seconds, 99):.2f}; "
        f"memory {before / 2**20:.0f} MiB after the warm-up, {after / 2**20:.0f} MiB at the end, "
        f"{max(size for _, size in sizes) / 2**20:.0f} MiB at most"
    )
    assert after <= MOST_GROWTH * before
