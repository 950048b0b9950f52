"""`unspool compare`: which entries run, under which options, and what is printed."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from tests.cli.fakes import undrawn
from tests.results.test_comparison import generation
from unspool.cli.compare import TOKENS, compare
from unspool.results.comparison import Compared, Comparison


class FakeModel:
    """Answers with two entries, and records what it was asked."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Sequence[str] | None, dict[str, Any]]] = []
        self.loaded: Any = None

    def compare(self, prompt: str, strategies: Sequence[str] | None, **options: Any) -> Comparison:
        self.calls.append((prompt, strategies, undrawn(options)))
        return Comparison(
            rows=(
                Compared.of("greedy", generation(" the cat sat the cat sat"), unread=("top_p",)),
                Compared.of("sample", generation(" a dog ran", strategy="sample")),
            )
        )


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> FakeModel:
    fake = FakeModel()

    def load_model(name: str | None, **how: Any) -> FakeModel:
        fake.loaded = (name, how)
        return fake

    monkeypatch.setattr("unspool.cli.sources.load_model", load_model)
    return fake


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        ([], None),
        (["--strategies", "greedy,beam"], ["greedy", "beam"]),
        (["--strategies", "top-p, beam_sample"], ["top_p", "beam_sample"]),
        (["--strategy", "greedy", "--strategy", "beam"], ["greedy", "beam"]),
        (["--strategies", "greedy", "--strategy", "sample,beam"], ["greedy", "sample", "beam"]),
    ],
)
def test_entries_are_chosen_by_name(run, model: FakeModel, arguments: list[str], names: list[str] | None) -> None:
    assert run("compare", "Once", *arguments).status == 0
    assert model.calls == [("Once", names, {"max_new_tokens": TOKENS})]


@pytest.mark.parametrize(
    ("arguments", "options"),
    [
        (["--max-new-tokens", "5", "--temperature", "0.5"], {"max_new_tokens": 5, "temperature": 0.5}),
        (["--max-length", "9"], {"max_length": 9}),
        (["--no-do-sample", "--seed", "3"], {"do_sample": False, "seed": 3, "max_new_tokens": TOKENS}),
    ],
)
def test_options_are_shared(run, model: FakeModel, arguments: list[str], options: dict[str, Any]) -> None:
    assert run("compare", "Once", "-m", "folder", "--dtype", "float32", "--quantize", "int4", *arguments).status == 0
    assert model.calls == [("Once", None, options)]
    assert model.loaded == (
        "folder",
        {"dtype": "float32", "device": None, "quantize": "int4", "gguf_file": None, "tokenizer": None, "threads": None},
    )


def test_a_wide_pipe_gets_columns_and_a_narrow_one_a_stack(run, model: FakeModel, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "140")
    wide = run("compare", "Once")
    assert wide.err == ""
    lines = [line.rstrip() for line in wide.out.split("\n")]
    assert lines[:5] == [
        "Once",
        "",
        f"greedy {'─' * 61}   sample {'─' * 61}",
        f"{'the cat sat the cat sat':<71}a dog ran",
        "",
    ]
    assert lines[-4:] == ["0.50 s for all entries together, in one batch", "seed 7", "top_p: not read by greedy", ""]
    monkeypatch.setenv("COLUMNS", "40")
    narrow = [line.rstrip() for line in run("compare", "Once").out.split("\n")]
    assert narrow[2:7] == [f"greedy {'─' * 33}", "the cat sat the cat sat", "", f"sample {'─' * 33}", "a dog ran"]
    assert "\x1b" not in wide.out


def test_json(run, model: FakeModel) -> None:
    result = json.loads(run("compare", "Once", "--json", "--logprobs", "1").out)
    assert [row["name"] for row in result["rows"]] == ["greedy", "sample"]
    assert result["rows"][0]["unread"] == ["top_p"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--strategies", "greedy,nope"], "--strategies must name entries of the line-up (greedy, sample, "),
        (["--strategies", "greedy,"], "--strategies must name"),
        (["--top-p", "1.5"], "--top-p must be in (0, 1], got 1.5"),
        (["--logprobs", "2"], "add --json"),
    ],
)
def test_a_wrong_call_is_told_before_a_model_is_loaded(
    run, model: FakeModel, arguments: list[str], message: str
) -> None:
    done = run("compare", "Once", *arguments)
    assert (done.status, done.out) == (2, "")
    assert done.err.startswith("Error: ") and done.err.count("\n") == 1
    assert message in done.err
    assert model.loaded is None


def test_help_offers_the_flag_once_for_several(run: Callable[..., Any]) -> None:
    out = run("compare", "--help").out
    assert "--strategy, --strategies NAME,..." in out
    assert "--temperature" in out


def test_progress_is_shown_in_a_terminal_and_erased(model: FakeModel, monkeypatch, capsys) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TTY_INTERACTIVE", "1")
    compare(prompt="Once", strategy=["greedy"], **_rest())
    shown = capsys.readouterr().err
    assert "Writing with greedy" in shown
    assert shown.endswith(("\x1b[2K", "\x1b[?25h"))


def _rest() -> dict[str, Any]:
    import inspect

    parameters = inspect.signature(compare).parameters.values()
    return {one.name: one.default for one in parameters if one.name not in ("prompt", "strategy", "debug")} | {
        "debug": False
    }


@pytest.mark.model
def test_the_embedded_model_gives_what_python_gives(run: Callable[..., Any]) -> None:
    import unspool

    flags = ("--max-new-tokens", "8", "--temperature", "0.7", "--seed", "4")
    expected = unspool.load().compare(
        "Once upon a time", ["greedy", "sample", "beam"], max_new_tokens=8, temperature=0.7, seed=4
    )
    done = run("compare", "Once upon a time", "--strategies", "greedy,sample,beam", "--json", *flags)
    assert (done.status, done.err) == (0, "")
    rows = json.loads(done.out)["rows"]
    assert [(row["name"], row["text"]) for row in rows] == [(row.name, row.text) for row in expected.rows]
    assert rows[0]["unread"] == ["temperature"]
    drawn = run("compare", "Once upon a time", "--strategies", "greedy,sample,beam", *flags)

    def untimed(text: str) -> list[str]:
        return [line.rstrip() for line in re.sub(r"\d+\.\d+ s for", "- s for", text).rstrip("\n").split("\n")]

    assert untimed(drawn.out) == untimed(str(expected))
    assert "temperature: not read by greedy, beam" in drawn.out
    refused = run("compare", "Once", "--strategies", "greedy,beam", "--temperature", "0.7")
    assert refused.status == 2
    assert "--temperature is not read by any entry" in refused.err
