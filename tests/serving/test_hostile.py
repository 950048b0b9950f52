"""Malformed, oversized and hostile requests: each gets an error of its own, and the next request succeeds."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest

import unspool
from tests.sampling import sampled
from tests.serving.conftest import serving
from tests.serving.load import eventually
from unspool.serving.requests.fields import fields_of

httpx = pytest.importorskip("httpx2", reason="comes with openai")

pytestmark = pytest.mark.model

MESSAGES = [{"role": "user", "content": "Hi"}]
BASES: dict[Any, tuple[str, dict[str, Any]]] = {
    "completions": ("/v1/completions", {"model": "tale", "prompt": "Once", "max_tokens": 2}),
    "chat": ("/v1/chat/completions", {"model": "tale", "messages": MESSAGES, "max_tokens": 2}),
}  # fmt: skip
RESPONSES = ("/v1/responses", {"model": "tale", "input": "Hi", "max_output_tokens": 2})
RESPONSE_FIELDS = ("input", "instructions", "max_output_tokens", "text", "tools", "tool_choice", "reasoning", "include",
                   "temperature", "stream", "truncation", "previous_response_id", "metadata",
                   "top_logprobs")  # fmt: skip

VALUES: tuple[Any, ...] = (
    -1, 0, 1, 2, 7, 2**31, 2**63, -(2**63), 2**70, 0.5, -0.5, 1.0, 1e308, -1e308, 1e-320, True, False,
    "", "x", "\0", "\ud800", "a" * 3000, "(", "[]", "{}", "{% for %}", "{{ 1/0 }}", "start: start",
    [], [0], [-1], [2**40], [1, 2], [None], [[]], [[1]], [[1, -5]], [[None]], ["x"], [""], ["\ud800"], ["x", 1], [{}],
    [[[1]]], [["x"]], [{"role": "user"}], [{"role": "user", "content": "\ud800"}],
    [{"role": "user", "content": [None]}],
    [{"role": "assistant", "tool_calls": [None]}], [{"role": "assistant", "content": "", "tool_calls": 3}],
    [{"role": ["user"], "content": "x"}], [{"role": "user", "content": "x", "reasoning": 1}], [{"type": "function"}],
    [{"type": "function", "function": {"name": 3}}], [{"type": "message", "role": "user", "content": 1}],
    [{"type": "function_call", "name": 1, "arguments": 2}], [{"type": "function_call_output", "output": {"a": 1}}],
    {}, {"a": 1}, {"1": 1e308}, {"x": "y"}, {"-1": 1}, {"": ""}, {"type": "json_schema"}, {"type": ["x"]},
    {"type": "json_schema", "json_schema": {}}, {"type": "json_schema", "json_schema": {"schema": {"type": "x"}}},
    {"type": "json_schema", "json_schema": {"schema": {"$ref": "#/a"}}}, {"format": 3}, {"format": {"type": []}},
    {"type": "json_object"}, {"json": {}}, {"json": "{"}, {"regex": "("}, {"regex": "(a{1,9999}){1,9999}"},
    {"grammar": "x"}, {"grammar": "start: start"}, {"choice": []}, {"choice": "x"}, {"json_object": 3},
    {"include_usage": True}, {"include_usage": "x"}, {"effort": "low"}, {"tokenize": True}, {"tools": 3},
    {"messages": 3}, {"add_generation_prompt": "x"},
)  # fmt: skip

CASES = [
    *((route, name, value) for route in BASES for name in fields_of(route) for value in VALUES),
    *(("responses", name, value) for name in RESPONSE_FIELDS for value in VALUES),
]
DELIBERATE = frozenset({200, 400, 404, 413, 504})


@pytest.fixture(scope="module")
def service(tale: unspool.LanguageModel) -> Iterator[tuple[str, Any]]:
    """A server that ends long requests soon."""
    with serving(tale, served_model_name=("tale",), assistants={"draft": tale}, timeout=5.0) as found:
        yield found


@pytest.fixture(autouse=True)
def check_next(service: tuple[str, Any]) -> Iterator[None]:
    """Check after each test that no place is held, and that the next request succeeds."""
    yield
    address, of_server = service
    assert eventually(lambda: not of_server.admission.running and of_server.lm._driver.engine.idle)
    of_server.lm._driver.engine.check()
    path, body = BASES["completions"]
    assert httpx.post(f"{address}{path}", json=body, timeout=60).status_code == 200


def test_a_hostile_value_of_any_field_is_no_fault_of_the_server(service: tuple[str, Any]) -> None:
    faults = []
    with httpx.Client(timeout=60) as client:
        for route, name, value in sampled(CASES, 600, seed=16):
            path, base = RESPONSES if route == "responses" else BASES[route]
            data = json.dumps({**base, name: value}).encode()
            try:
                answer = client.post(service[0] + path, content=data, headers={"Content-Type": "application/json"})
            except httpx.HTTPError as error:  # an exception that the application does not handle ends the connection
                faults.append((route, name, value, 0, repr(error)))
                continue
            if answer.status_code not in DELIBERATE or "internal_error" in answer.text:
                faults.append((route, name, value, answer.status_code, answer.text[:200]))
            elif answer.status_code == 400:
                assert answer.json()["error"]["message"]
    assert not faults, f"{len(faults)} faults: {faults[:20]}"


PATHS = ("/v1/completions", "/v1/chat/completions", "/v1/responses", "/tokenize", "/detokenize")
BODIES: dict[str, bytes] = {
    "nothing": b"",
    "a cut object": b'{"model": "tale", "prompt": "x"',
    "not UTF-8": b'{"model": "tale", "prompt": "\xff\xfe"}',
    "a number of 9,999 digits": b'{"model": "tale", "max_tokens": ' + b"9" * 9999 + b"}",
    "an exponent beyond floats": b'{"model": "tale", "prompt": "x", "temperature": 1e9999}',
    "deep lists": b'{"prompt": ' + b"[" * 50_000 + b"]" * 50_000 + b"}",
    "deep objects": b'{"model": "tale", "prompt": "x", "user": ' + b'{"a":' * 50_000 + b"1" + b"}" * 50_000 + b"}",
    "a deep schema": b'{"model": "tale", "prompt": "x", "json_schema": ' + b'{"items":' * 400 + b"{}" + b"}" * 401,
    "many keys": json.dumps({f"key{number}": number for number in range(50_000)}).encode(),
    "a text": b'"model"',
    "null": b"null",
    "a byte order mark": b"\xef\xbb\xbf{}",
    "SQL and HTML": b'{"model": "<script>\'; DROP TABLE models; --", "text": "x"}',
}


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("name", BODIES)
def test_a_malformed_body_gets_an_error(service: tuple[str, Any], name: str, path: str) -> None:
    kind = {"Content-Type": "application/json"}
    answer = httpx.post(service[0] + path, content=BODIES[name], headers=kind, timeout=60)
    assert answer.status_code in (400, 404), answer.text
    assert answer.json()["error"]["type"] == "invalid_request_error"


LONG: dict[str, tuple[dict[str, Any], int]] = {
    "text": ({"prompt": "word " * 600_000}, 400),
    "many prompts": ({"prompt": ["x"] * 100_000}, 400),
    "ids": ({"prompt": [5] * 500_000}, 400),
    "stop": ({"prompt": "x", "stop": "y" * 3_000_000}, 400),
    "bias": ({"prompt": "x", "logit_bias": {str(n): 1 for n in range(4096)}}, 200),
    "schema": ({"prompt": "x", "json_schema": {"enum": ["y" * 200_000]}}, 400),
    "regex": ({"prompt": "x", "regex": "y" * 200_000}, 400),
    "forced words": ({"prompt": "x", "num_beams": 2, "force_words": ["king " * 100_000]}, 400),
    "body": ({"prompt": "x" * (5 << 20)}, 413),
}


@pytest.mark.parametrize("name", LONG)
def test_an_oversized_value_is_refused_or_served(service: tuple[str, Any], name: str) -> None:
    body, status = LONG[name]
    started = time.monotonic()
    answer = httpx.post(f"{service[0]}/v1/completions", json={"model": "tale", "max_tokens": 2, **body}, timeout=120)
    assert answer.status_code in (status, 504), answer.text[:300]
    assert time.monotonic() - started < 100, "an oversized value must not stop the server"


RAW: dict[str, bytes] = {
    "no HTTP": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 hello\r\n\r\n",
    "a half request": b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Ty",
    "a body that stays away": b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    b"Content-Length: 99\r\n\r\n{",
    "a negative length": b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: -5\r\n\r\n",
    "two lengths": b"POST /health HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\nContent-Length: 5\r\n\r\nhello",
    "a long header": b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 300_000 + b"\r\n\r\n",
    "a wrong chunk": b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    b"Transfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n",
    "an odd path": b"GET /v1/models/..%2f..%2fetc%2fpasswd%00 HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "an odd id": b"GET /health HTTP/1.1\r\nHost: localhost\r\nX-Request-Id: \xff\xfe\r\n\r\n",
    "an odd key": b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer \xff\r\n\r\n",
    "no host": b"GET /health HTTP/1.1\r\nConnection: close\r\n\r\n",
}


@pytest.mark.parametrize("name", RAW)
def test_bytes_that_are_no_request_harm_nobody(service: tuple[str, Any], name: str) -> None:
    place = urlsplit(service[0])
    with socket.create_connection((place.hostname, place.port), timeout=2) as connection:
        received = b""
        try:
            connection.sendall(RAW[name])
            while piece := connection.recv(65536):
                received += piece
        except (TimeoutError, ConnectionError):  # the server waits for more, or has closed the connection
            pass
    assert b" 500 " not in received.split(b"\r\n")[0], received


def test_hundreds_of_half_requests_leave_room_for_others(service: tuple[str, Any]) -> None:
    place = urlsplit(service[0])
    half = [socket.create_connection((place.hostname, place.port), timeout=5) for _ in range(200)]
    try:
        for connection in half:
            connection.sendall(RAW["a body that stays away"])
        path, body = BASES["completions"]
        assert httpx.post(f"{service[0]}{path}", json=body, timeout=60).status_code == 200
    finally:
        for connection in half:
            connection.close()
