"""Queue, timeouts, clients that leave, mixed company, and the end of the server."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import openai
import pytest

import unspool
from tests.serving.conftest import serving
from tests.serving.test_completions import NATIVE, STRATEGIES
from unspool.serving.errors import ApiError
from unspool.serving.execution.worker import Running
from unspool.serving.http.http_answers import EventStream
from unspool.serving.log import RequestLog

httpx = pytest.importorskip("httpx2", reason="comes with openai")

pytestmark = pytest.mark.model

LONG: dict[str, Any] = {"model": "tale", "prompt": "Once", "max_tokens": 900, "temperature": 1, "ignore_eos": True}


def eventually(holds: Callable[[], bool], seconds: float = 20) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if holds():
            return True
        time.sleep(0.02)
    return holds()


def is_empty(service: Any) -> bool:
    driver = service.lm._driver
    return driver.engine.idle and not service.admission.running and not service.admission.waiting


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_its_memory(tale: unspool.LanguageModel, stream: bool) -> None:
    with serving(tale, served_model_name=("tale",)) as (address, service):
        place = urlsplit(address)
        connections = []
        for more in ({}, {"num_beams": 4}, {"n": 3}):
            connection = http.client.HTTPConnection(place.hostname or "", place.port)
            body = {**LONG, **more, "stream": stream}
            if "num_beams" in more:
                del body["temperature"]
            connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
            connections.append(connection)
        assert eventually(lambda: service.admission.running == 3 and not service.lm._driver.engine.idle)
        for connection in connections:
            assert connection.sock is not None
            connection.sock.shutdown(socket.SHUT_RDWR)
            connection.close()
        assert eventually(lambda: is_empty(service)), "requests of clients that left still run"
        service.lm._driver.engine.check()


def test_a_full_queue_answers_429_before_any_work(tale: unspool.LanguageModel) -> None:
    with serving(tale, served_model_name=("tale",), max_running=1, max_queue=1) as (address, service):
        url, body = f"{address}/v1/completions", {**LONG, "stream": True}
        with httpx.stream("POST", url, json=body, timeout=60) as first:
            assert first.status_code == 200
            assert eventually(lambda: service.admission.running == 1)
            with ThreadPoolExecutor(1) as other:
                waiting = other.submit(httpx.post, url, json={**LONG, "max_tokens": 1}, timeout=60)
                assert eventually(lambda: service.admission.waiting == 1)
                refused = httpx.post(url, json={**LONG, "max_tokens": 1}, timeout=60)
                assert refused.status_code == 429 and int(refused.headers["retry-after"]) <= 120
                assert refused.json()["error"]["type"] == "rate_limit_error"
                first.close()
                assert waiting.result().status_code == 200
        assert eventually(lambda: is_empty(service))


def test_a_request_that_takes_too_long_ends_with_an_error(tale: unspool.LanguageModel) -> None:
    with serving(tale, served_model_name=("tale",), timeout=1.0) as (address, service):
        whole = httpx.post(f"{address}/v1/completions", json={**LONG, "num_beams": 16, "temperature": None}, timeout=60)
        assert whole.status_code == 504 and whole.json()["error"]["code"] == "timeout"
        assert whole.headers["x-should-retry"] == "false"
        text = httpx.post(f"{address}/v1/completions", json={**LONG, "n": 8, "stream": True}, timeout=60).text
        events = [line.removeprefix("data: ") for line in text.splitlines() if line]
        assert events[-1] == "[DONE]" and json.loads(events[-2])["error"]["code"] == "timeout"
        assert 'unspool_request_errors_total{status="504"} 2.0' in httpx.get(f"{address}/metrics").text
        assert json.loads(events[0])["choices"][0]["text"] is not None
        assert eventually(lambda: is_empty(service))


def test_silence_gets_comments() -> None:
    async def events() -> AsyncIterator[bytes]:
        yield b"one"
        await go_on.wait()
        yield b"two"

    async def never() -> Any:
        await asyncio.Event().wait()

    async def send(message: Any) -> None:
        pieces.append(message.get("body"))
        if len(pieces) == 5:
            go_on.set()

    async def close() -> None:
        pass

    go_on = asyncio.Event()
    pieces: list[bytes | None] = []
    asyncio.run(EventStream(events(), 0.01, {}, close)({"type": "http"}, never, send))
    start, one, *comments, two, done, end = pieces
    assert (start, one, two, done, end) == (None, b"one", b"two", b"data: [DONE]\n\n", b"")
    assert len(comments) >= 3 and set(comments) == {b": keep-alive\n\n"}


def test_a_stream_that_never_begins_is_closed() -> None:
    """A generator that was never started runs no `finally`, so the answer closes the request itself."""

    async def events() -> AsyncIterator[bytes]:
        yield b"one"

    async def never() -> Any:
        await asyncio.Event().wait()

    async def send(message: Any) -> None:
        raise OSError("the client left")

    async def close() -> None:
        closed.append(True)

    closed: list[bool] = []
    asyncio.run(EventStream(events(), 1.0, {}, close)({"type": "http"}, never, send))
    assert closed


class OneRequest:
    """An engine thread and a driver in one: carries commands out at once, and notes the cancelled tickets."""

    def __init__(self) -> None:
        self.cancelled: list[Any] = []

    def call(self, command: Callable[[], None]) -> None:
        command()

    def submit(self, requests: Any, notify: Any) -> list[str]:
        return ["ticket"]

    def cancel(self, ticket: Any) -> None:
        self.cancelled.append(ticket)


def test_a_request_that_is_cancelled_in_the_moment_of_its_submission_ends() -> None:
    async def leave() -> None:
        task = asyncio.ensure_future(Running(engine, (), None).submit(engine))  # type: ignore[arg-type]
        await asyncio.sleep(0)  # the task submits, and waits for its tickets
        await asyncio.sleep(0)  # the tickets come, and the task has not read them
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    engine = OneRequest()
    asyncio.run(leave())
    assert engine.cancelled == ["ticket"]


def test_a_fault_is_logged_with_its_place_and_without_its_message(caplog: pytest.LogCaptureFixture) -> None:
    words = " ".join(("words", "of", "a", "prompt"))
    counted: list[int] = []

    async def events() -> AsyncIterator[bytes]:
        yield b"one"
        raise KeyError(words)

    async def read() -> None:
        figures = {"jobs": (), "strategy": "", "generations": (), "seconds": 0.0, "error": None}
        request: Any = SimpleNamespace(**figures, count_error=counted.append)
        with pytest.raises(ApiError):
            async for _ in RequestLog("r1", "/", request).following(events()):
                pass

    with caplog.at_level("INFO", "unspool.server"):
        asyncio.run(read())
    fault, line = (record.getMessage() for record in caplog.records if record.name == "unspool.server")
    assert "KeyError" in fault and Path(__file__).name in fault and words not in fault
    assert "status=500 outcome=internal_error" in line, "the client has not left"
    assert counted == [500]


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/responses"])
def test_the_log_tells_the_error_of_a_stream(
    tale: unspool.LanguageModel, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    common = {"model": "tale", "num_beams": 16, "ignore_eos": True, "stream": True}
    body = {"prompt": "Once", "max_tokens": 900} if path == "/v1/completions" else {"input": "Once"}
    with (
        serving(tale, served_model_name=("tale",), timeout=1.0) as (address, _),
        caplog.at_level("INFO", "unspool.server"),
    ):
        answer = httpx.post(f"{address}{path}", json={**common, **body}, timeout=60)
        assert answer.status_code == 200 and "longer than 1 s" in answer.text
    (line,) = (record.getMessage() for record in caplog.records if "outcome=" in record.getMessage())
    assert "status=504 outcome=timeout" in line


def test_mixed_company_gives_the_texts_of_python(address: str, tale: unspool.LanguageModel) -> None:
    prompts = ("Once upon a time", "The king", "A fox and a", "In the wood")
    names = [name for name in STRATEGIES if name != "best of"]
    work = [(prompt, name) for prompt in prompts for name in names]
    assert len(work) >= 64

    async def ask(client: Any, prompt: str, name: str, number: int) -> list[str] | None:
        call: dict[str, Any] = {"model": "tale", "prompt": prompt, "max_tokens": 8, **STRATEGIES[name]}
        if number % 5 == 4:  # some clients leave
            task = asyncio.ensure_future(client.completions.create(**call))
            await asyncio.sleep(0.05)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            return None
        if number % 2:
            texts: dict[int, str] = {}
            async for chunk in await client.completions.create(**call, stream=True):
                for choice in chunk.choices:
                    texts[choice.index] = texts.get(choice.index, "") + choice.text
            return [texts[index] for index in sorted(texts)]
        answer = await client.completions.create(**call)
        return [choice.text for choice in answer.choices]

    async def ask_all() -> list[list[str] | None]:
        async with openai.AsyncOpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0, timeout=120) as client:
            return await asyncio.gather(*(ask(client, *each, number) for number, each in enumerate(work)))

    for (prompt, name), texts in zip(work, asyncio.run(ask_all()), strict=True):
        if texts is not None:
            expected = tale.generate(prompt, max_new_tokens=8, **NATIVE[name])
            assert texts == [each.text for each in expected.completions], (prompt, name)


def test_sigterm_ends_streams_with_an_error_and_the_process_with_0() -> None:
    command = [sys.executable, "-m", "unspool.cli.main", "serve", "--port", "0", "--grace", "0.5", "--threads", "1"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ}) as process:
        assert process.stderr is not None
        line = process.stderr.readline()
        while "Serving" not in line:
            assert line or process.poll() is None, "the server did not start"
            line = process.stderr.readline()
        address = line.rsplit(" ", 1)[1].strip().removesuffix("/v1")
        with httpx.stream("POST", f"{address}/v1/completions", json={**LONG, "stream": True, "num_beams": 12,
                          "temperature": None}, timeout=60) as answer:  # fmt: skip
            lines = answer.iter_lines()
            next(lines)
            process.send_signal(signal.SIGTERM)
            events = [each.removeprefix("data: ") for each in lines if each.startswith("data: ")]
        assert events[-1] == "[DONE]" and json.loads(events[-2])["error"]["code"] == "shutting_down"
        log = process.stderr.read()
        assert process.wait(30) == 0, log
        assert "Once" not in log.split("Ctrl-C")[-1], "the log has no prompt text"
