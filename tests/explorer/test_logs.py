"""Calls of the explorer in the server's log, and the key in its curl lines."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from typing import Any

import httpx
import pytest

import unspool
from tests.serving.conftest import serving
from tests.serving.load import eventually
from unspool.explorer import add_explorer

KEY = "secret"
PROMPT = "Once upon a time"
BODY: dict[str, Any] = {"prompt": PROMPT, "options": {"max_new_tokens": 2}}
CALLS: dict[str, dict[str, Any]] = {
    "next": {"prompt": PROMPT},
    "position": {"prompt": PROMPT, "tokens": [1]},
    "generate": BODY,
    "compare": {**BODY, "entries": {"greedy": {}, "beams": {"num_beams": 2}}},
}


def lines_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if "outcome=" in record.getMessage()]


@pytest.mark.parametrize("name", CALLS)
def test_each_call_is_one_line(lm: unspool.LanguageModel, name: str, caplog: pytest.LogCaptureFixture) -> None:
    with serving(lm, extend=add_explorer) as (address, _), caplog.at_level("INFO", "unspool.server"):
        headers = {"X-Request-Id": "mine"}
        answer = httpx.post(f"{address}/explore/{name}", json=CALLS[name], headers=headers, timeout=120)
        assert answer.status_code == 200 and answer.content
        assert eventually(lambda: bool(lines_of(caplog)))
        (line,) = lines_of(caplog)
        outcome = "streamed" if name == "generate" else "answered"
        assert line.startswith(f"request=mine path=/explore/{name} status=200 outcome={outcome} ")
        assert PROMPT not in line and "seconds=" in line
        assert ("completion_tokens=4" if name == "compare" else "completion_tokens=2") in line or name in (
            "next",
            "position",
        )
        caplog.clear()
        wrong = {**CALLS[name], "options": {"max_new_tokens": 2, "top_p": 7}, "entries": {"a": {}}}
        refused = httpx.post(f"{address}/explore/{name}", json=wrong, timeout=120)
        assert refused.status_code == 400
        (line,) = lines_of(caplog)
        assert f"path=/explore/{name} status=400 outcome=invalid_value" in line


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
@pytest.mark.parametrize("name", ["next", "compare"])
def test_a_copied_curl_line_works_with_the_key_in_a_variable(lm: unspool.LanguageModel, name: str) -> None:
    with serving(lm, extend=add_explorer, api_key=(KEY,)) as (address, _):
        head = {"Authorization": f"Bearer {KEY}"}
        made = httpx.post(f"{address}/explore/{name}", json=CALLS[name], headers=head, timeout=120).json()
        line = made["snippets"]["curl"]
        assert KEY not in line and line.endswith('-H "Authorization: Bearer $UNSPOOL_API_KEY"')
        for key, status in ((KEY, "200"), ("wrong", "401")):
            environment = {**os.environ, "UNSPOOL_API_KEY": key}
            command = f"{line} -s -o {os.devnull} -w '%{{http_code}}'"
            done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, env=environment)
            assert done.stdout == status
    with serving(lm, extend=add_explorer) as (address, _):
        made = httpx.post(f"{address}/explore/{name}", json=CALLS[name], timeout=120).json()
        assert "UNSPOOL_API_KEY" not in made["snippets"]["curl"]
        assert shlex.split(made["snippets"]["curl"])[-2] == "-d"
