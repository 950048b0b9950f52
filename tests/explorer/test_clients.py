"""Several clients of the explorer: keys, leaving clients, and many calls at once."""

from __future__ import annotations

import asyncio

import httpx
import pytest

import unspool
from tests.explorer.test_routes import PROMPT, said, streamed
from tests.serving.conftest import serving
from tests.serving.load import eventually
from unspool.explorer import add_explorer

ENTRIES = {"one": {"strategy": "greedy", "max_new_tokens": 2}}


def test_calls_of_different_keys_share_no_prefix(lm: unspool.LanguageModel):
    text = "fox who counted every star above the mill went home at dawn and told nobody of it"
    with serving(lm, api_key=("first", "second"), extend=add_explorer) as (address, _):
        for key, is_known in (("first", False), ("first", True), ("second", False), ("second", True)):
            headers = {"Authorization": f"Bearer {key}"}
            with httpx.Client(base_url=address, headers=headers, timeout=120) as client:
                done = dict(streamed(client, prompt=f"A {text}", options={"max_new_tokens": 2}))["done"]
                body = {"prompt": f"The {text}", "entries": ENTRIES}
                (row,) = client.post("/explore/compare", json=body).json()["rows"]
                for usage in (done["usage"], row["generation"]["usage"]):
                    assert (usage["cached_tokens"] > 0) is is_known


def test_many_comparisons_leave_threads_for_planning(lm: unspool.LanguageModel):
    """More comparisons than the event loop's pool has threads: 32 at most."""

    async def ask(address: str) -> list[int]:
        body = {"prompt": PROMPT, "entries": ENTRIES}
        async with httpx.AsyncClient(base_url=address, timeout=120) as client:
            answers = await asyncio.gather(*(client.post("/explore/compare", json=body) for _ in range(40)))
        return [answer.status_code for answer in answers]

    with serving(lm, timeout=60.0, extend=add_explorer) as (address, _):
        assert asyncio.run(ask(address)) == [200] * 40


def test_a_comparison_leaves_the_queue_with_its_client(lm: unspool.LanguageModel):
    with (
        serving(lm, max_running=1, extend=add_explorer) as (address, service),
        httpx.Client(base_url=address, timeout=120) as client,
    ):
        service.admission.running = 1  # as if another request ran
        with pytest.raises(httpx.ReadTimeout):
            client.post("/explore/compare", json={"prompt": PROMPT, "entries": ENTRIES}, timeout=1)
        assert eventually(lambda: not service.admission.waiting, 20)
        service.admission.running = 0


def test_a_call_that_takes_too_long_gets_status_504(lm: unspool.LanguageModel):
    with (
        serving(lm, max_running=1, timeout=0.5, extend=add_explorer) as (address, service),
        httpx.Client(base_url=address, timeout=120) as client,
    ):
        service.admission.running = 1  # as if another request ran
        answer = client.post("/explore/next", json={"prompt": PROMPT})
        service.admission.running = 0
        assert answer.status_code == 504 and said(answer)["code"] == "timeout"
