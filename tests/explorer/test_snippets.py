"""What the page offers to copy gives the numbers that it shows: as Python, on the command line, and with curl."""

from __future__ import annotations

import contextlib
import io
import json
import shlex
from collections.abc import Callable
from typing import Any

import httpx
import pytest

import unspool
from tests.explorer.conftest import Open
from tests.explorer.test_page import (
    BEAMS,
    ENTRIES,
    PROMPT,
    SPECULATION,
    STRUCTURE,
    ready,
    run_view,
    settled,
    traced,
)
from unspool.cli.main import main

Run = Callable[[str], str]


@pytest.fixture
def python(lm: unspool.LanguageModel, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run Python code and return its output. `unspool.load()` gives the shared model."""
    load = unspool.load
    monkeypatch.setattr(unspool, "load", lambda name=None: lm if name is None else load(name))

    def run(code: str) -> str:
        with contextlib.redirect_stdout(io.StringIO()) as out:
            exec(code, {})
        return out.getvalue()

    return run


@pytest.fixture
def shell(lm: unspool.LanguageModel, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run command lines and return their output. The embedded model is the shared one."""
    load = unspool.load
    monkeypatch.setattr("unspool.cli.sources.load_model", lambda name, **how: lm if name is None else load(name))
    monkeypatch.setenv("COLUMNS", "200")

    def run(lines: str) -> str:
        with contextlib.redirect_stdout(io.StringIO()) as out:
            for line in lines.split("\nunspool "):
                words = shlex.split(line.removeprefix("unspool "))
                assert main(words) == 0, line
        return out.getvalue()

    return run


def check_text_copies(page: Any, python: Run, shell: Run) -> None:
    """Assert that the copies of a generation, when run, write the text that the page shows."""
    text = "".join(page.locator(".piece").all_text_contents()).replace("⏎\n", "\n")
    made = copied(page)
    assert python(made["Python"]) == f"{text}\n"
    assert json.loads(shell(f"{made['CLI']} --json"))["text"] == text
    assert json.loads(curl(made["curl"]))["choices"][0]["text"] == text


def curl(line: str) -> str:
    """Send the request of a curl command line, and return the answer's body."""
    words = shlex.split(line)
    assert words[0] == "curl" and words[2] == "-H" and words[4] == "-d"
    name, _, value = words[3].partition(": ")
    answer = httpx.post(words[1], content=words[5].encode(), headers={name: value}, timeout=120)
    assert answer.status_code == 200, answer.text
    return answer.text


def last_event(text: str) -> dict[str, Any]:
    """Return the value of the last event of a stream."""
    found: dict[str, Any] = json.loads([line for line in text.splitlines() if line.startswith("data: ")][-1][6:])
    return found


def copied(page: Any) -> dict[str, str]:
    page.click("text=Copy as Python, CLI or curl")
    found: dict[str, str] = page.eval_on_selector_all(
        "[data-snippet]", "all => Object.fromEntries(all.map(each => [each.dataset.snippet, each.textContent]))"
    )
    return found


def nearly(value: Any) -> Any:
    """Return JSON data that equals data with nearly the same numbers, as a prompt that is read in other parts gives."""
    if isinstance(value, dict):
        return {name: nearly(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [nearly(each) for each in value]
    return pytest.approx(value, rel=1e-4, abs=1e-6) if isinstance(value, float) else value


PROMPTS = [PROMPT, 'He said: "it\'s a $HOME \\ back`tick`"', "zwei\nZeilen – 中文 🦊"]


@pytest.mark.parametrize("prompt", PROMPTS)
def test_the_next_token_is_copied(visit: Open, lm: unspool.LanguageModel, python: Run, shell: Run, prompt: str):
    options = {"temperature": 0.8, "top_p": 0.9, "presence_penalty": 0.5}
    page = visit("next", prompt=prompt, next=options)
    settled(page)
    wanted = lm.next_tokens(prompt, limit=40, penalty_scope="prompt_and_output", **options)
    made = copied(page)
    assert python(made["Python"]) == f"{wanted}\n"
    assert json.loads(shell(f"{made['CLI']} --json")) == nearly(wanted.to_dict())
    sent = json.loads(curl(made["curl"]))["tokens"]
    assert [each["token_id"] for each in sent] == [each.token_id for each in wanted]


def test_a_walk_is_copied(visit: Open, lm: unspool.LanguageModel, python: Run, shell: Run):
    page = visit("next", prompt=PROMPT, next={"top_k": 5}, tree=[[-1, 444, " there"], [0, 310, " was"]], at=1)
    settled(page)
    made = copied(page)
    best = lm.next_tokens(f"{PROMPT} there was", limit=40, top_k=5)
    ids = [each.token_id for each in best]
    assert [each["token_id"] for each in json.loads(curl(made["curl"]))["tokens"]] == ids
    assert [each["token_id"] for each in json.loads(shell(f"{made['CLI']} --json"))["tokens"]] == ids
    assert f"{best[0].text!r}" in python(made["Python"])


@pytest.mark.parametrize("prompt", PROMPTS)
def test_a_generation_is_copied(visit: Open, python: Run, shell: Run, prompt: str):
    page = run_view(
        visit, "generate", prompt=prompt, strategy="sample", options={"top_p": 0.9, "max_new_tokens": 12}, seed=11
    )
    check_text_copies(page, python, shell)


def test_options_of_every_form_are_copied(visit: Open, python: Run, shell: Run):
    options = {
        "max_new_tokens": 10,
        "num_beams": 3,
        "early_stopping": True,
        "force_words": ["forest", "old man"],
        "stop_strings": ["."],
        "bad_words_ids": [[444], [310, 260]],
        "ignore_eos": True,
        "suppress_tokens": [13, 14],
    }
    page = run_view(visit, "generate", prompt=PROMPT, strategy="constrained_beam", options=options, seed=1)
    check_text_copies(page, python, shell)


@pytest.mark.parametrize("view", ["beams", "speculation"])
def test_a_trace_is_copied(visit: Open, lm: unspool.LanguageModel, python: Run, shell: Run, view: str):
    state = BEAMS if view == "beams" else SPECULATION
    page = run_view(visit, view, prompt=PROMPT, **state, seed=3)
    _, trace = traced(lm, state["strategy"], state)
    made = copied(page)
    assert python(made["Python"]) == f"{trace}\n"
    tokens = [node.token for node in trace.nodes]
    assert [each["token"] for each in json.loads(shell(f"{made['CLI']} --json"))["nodes"]] == tokens
    assert [each["token"] for each in last_event(curl(made["curl"]))["trace"]["nodes"]] == tokens


def test_a_draft_model_is_copied(visit: Open, python: Run, shell: Run):
    options = {"assistant_model": "tale-draft", "max_new_tokens": 12}
    page = run_view(visit, "generate", prompt=PROMPT, strategy="assisted", options=options, seed=3)
    check_text_copies(page, python, shell)


def test_a_comparison_is_copied(visit: Open, lm: unspool.LanguageModel, python: Run, shell: Run):
    page = visit("compare", prompt=PROMPT, entries=ENTRIES, tokens=10, seed=4)
    page.click("button.primary")
    page.wait_for_selector(".figuretable")
    made = copied(page)
    entries = {each["name"]: {"strategy": each["strategy"], **each["options"]} for each in ENTRIES}
    wanted = lm.compare(PROMPT, entries, max_new_tokens=10, seed=4)
    texts = [generation.text for generation in wanted.values()]
    assert [each["text"] for each in json.loads(curl(made["curl"]))["rows"]] == texts
    printed = python(made["Python"])
    assert all(text.split()[0] in printed for text in texts)
    assert all(text in shell(made["CLI"]) for text in texts)


def test_structured_output_is_copied(visit: Open, python: Run, shell: Run):
    page = visit("structure", prompt=PROMPT, **STRUCTURE, seed=3)
    page.click("button.primary")
    ready(page, "structure")
    text = page.evaluate("[...document.querySelectorAll('.piece')].map(each => each.textContent).join('')")
    made = copied(page)
    assert python(made["Python"]) == f"{text}\n"
    assert json.loads(shell(f"{made['CLI']} --json"))["text"] == text
    assert json.loads(curl(made["curl"]))["choices"][0]["text"] == text
