"""Fault drills: clients that leave by the dozen, a full queue, a model that raises, SIGTERM under load.

After each drill no slot is held, the memory is back, and the next request succeeds.
"""

from __future__ import annotations

import asyncio
import gc
import json
import random
import signal
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

import unspool
from benchmarks.serve.client import Answer, ask
from tests.serving.conftest import serving
from tests.serving.load import DRAFT, ask_all, bodies, body_of, eventually, memory, num_prompts, process
from tests.serving.test_completions import STRATEGIES
from unspool.types import Feed, Rows

pytestmark = pytest.mark.model

MOST_GROWTH = 1.05
LINUX = sys.platform.startswith("linux")


def is_empty(service: Any) -> bool:
    driver = service.lm._driver
    admission = service.admission
    return driver.engine.idle and not admission.running and not admission.waiting and not service.open


def check_next(address: str, service: Any) -> None:
    """Check that nothing is held, and that a request of each strategy succeeds."""
    assert eventually(lambda: is_empty(service)), "requests still run, or hold their place"
    service.lm._driver.engine.check()
    for answer in ask_all(address, [body_of(name) for name in STRATEGIES], [None] * len(STRATEGIES)):
        assert answer.status == 200 and answer.written


@pytest.fixture
def drilled(tale: unspool.LanguageModel) -> Iterator[tuple[str, Any]]:
    """The address of a server, and its service."""
    with serving(tale, served_model_name=("tale",), assistants={"draft": tale}) as found:
        yield found


def test_clients_killed_by_the_dozen_leave_nothing_behind(drilled: tuple[str, Any]) -> None:
    address, service = drilled

    def kill(seed: int) -> None:
        given = [{**body, "ignore_eos": True} for body in bodies(36, seed, max_tokens=400)]
        draw = random.Random(seed)
        answers = ask_all(address, given, [draw.randrange(5) for _ in given])
        assert sum(answer.is_done for answer in answers) < len(given) // 4, "most clients leave in mid-stream"
        assert eventually(lambda: is_empty(service)), "requests of killed clients still run"

    kill(0)
    gc.collect()
    before = memory() if LINUX else 0
    for seed in (1, 2):
        kill(seed)
    gc.collect()
    assert not LINUX or memory() <= MOST_GROWTH * before
    check_next(address, service)


def test_a_flood_fills_the_queue_and_drains_again(tale: unspool.LanguageModel) -> None:
    with serving(tale, served_model_name=("tale",), max_running=2, max_queue=6) as (address, service):
        occupying = {**body_of("greedy", max_tokens=900, stream=True), "ignore_eos": True}
        with ThreadPoolExecutor(1) as other:
            held = other.submit(ask_all, address, [occupying] * 2, [400, 400])
            assert eventually(lambda: service.admission.running == 2)
            flood = [body_of("greedy", stream=index % 2 == 0) for index in range(40)]
            answers = ask_all(address, flood, [None] * len(flood))
            held.result()
        served = [answer for answer in answers if answer.status == 200]
        turned_away = [answer for answer in answers if answer.status == 429]
        assert len(served) + len(turned_away) == len(flood) and len(served) >= 6 and turned_away
        assert len({answer.written for answer in served}) == 1
        for answer in turned_away:
            assert 0 < int(answer.headers["retry-after"]) <= 120
            assert answer.error is not None and answer.error["code"] == "queue_full"
        assert eventually(lambda: is_empty(service))
        assert ask_all(address, flood[:1], [None])[0].status == 200


class BrokenModel:
    """A forward pass that raises if a feed holds a token."""

    def __init__(self, runtime: Any, poison: int) -> None:
        self._forward, self._poison = runtime.forward, poison

    def __call__(self, feeds: Sequence[Feed]) -> Rows:
        if any(self._poison in feed.tokens for feed in feeds):
            raise RuntimeError("secret words of the prompt")
        rows: Rows = self._forward(feeds)
        return rows


@pytest.mark.parametrize("stream", [True, False])
def test_a_model_that_raises_fails_its_request_alone(
    drilled: tuple[str, Any], monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    address, service = drilled
    runtime = service.lm._driver.engine.runtime
    good = [body_of(name, stream=stream) for name in STRATEGIES if name != "best of"]
    expected = [answer.written for answer in ask_all(address, good, [None] * len(good))]
    poison = 7
    monkeypatch.setattr(runtime, "forward", BrokenModel(runtime, poison))
    bad = [{**body, "prompt": [9, poison, 11]} for body in good]
    answers = ask_all(address, [*good, *bad], [None] * (2 * len(good)))
    assert [answer.written for answer in answers[: len(good)]] == expected
    for answer in answers[len(good) :]:
        assert answer.error is not None and answer.error["type"] == "server_error"
        assert "secret" not in json.dumps(answer.error), "messages of faults can hold text of the prompt"
        if stream:
            assert answer.status == 200 and answer.is_done
        else:
            assert answer.status == 500 and answer.headers["x-should-retry"] == "false"
    check_next(address, service)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGTERM")
@pytest.mark.parametrize("grace", ["0.3", "60"])
def test_sigterm_under_load_ends_every_stream(grace: str) -> None:
    short = float(grace) < 1
    length = 800 if short else 40
    with process("--grace", grace, "--max-running", "8") as (address, server):

        async def load() -> list[Answer | BaseException]:
            given = [
                {**body_of(name, max_tokens=length, stream=True, draft=DRAFT), "ignore_eos": True}
                for name in STRATEGIES
                if name != "best of" and "grammar" not in name
            ]
            clients = [asyncio.ensure_future(ask(address, body)) for body in given]
            while not any(each.done() for each in clients):  # until all have arrived
                if await asyncio.to_thread(num_prompts, address) == len(given):
                    break
                await asyncio.sleep(0.02)
            server.send_signal(signal.SIGTERM)
            return await asyncio.gather(*clients, return_exceptions=True)

        answers = asyncio.run(load())
        assert server.stderr is not None
        log = server.stderr.read()
        assert server.wait(60) == 0, log
    for answer in answers:
        assert isinstance(answer, Answer), answer
        if answer.status == 503:  # it still waited, and its stream had not begun
            assert answer.error is not None and answer.error["code"] == "shutting_down"
            continue
        assert answer.status == 200 and answer.is_done, "the stream just stopped"
        finished = answer.events[-1].get("choices") and answer.events[-1]["choices"][0]["finish_reason"]
        assert finished or (answer.error is not None and answer.error["code"] == "shutting_down")
        if not short:
            assert finished == "length", "the grace time lets running requests end"
    if short:
        assert any(isinstance(answer, Answer) and answer.error for answer in answers), "the load was too small"
