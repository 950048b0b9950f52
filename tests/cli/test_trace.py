"""`unspool trace`: what goes to the model, and the trace drawn or printed as JSON."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest

from tests.cli.fakes import undrawn
from tests.toys import toy
from tests.tracing import trace_of
from unspool.cli.trace import trace as command
from unspool.results.render.trace_tree import trace_plain
from unspool.results.trace import Trace


class TracedModel:
    """Answers every prompt with the same trace. calls: what it was asked."""

    def __init__(self) -> None:
        self.trace = trace_of(toy, [0], ends=[3], num_beams=3, max_new_tokens=7)
        self.calls: list[tuple[str, dict[str, Any]]] = []

    def generate(self, prompt: str, **options: Any) -> SimpleNamespace:
        self.calls.append((prompt, undrawn(options)))
        return SimpleNamespace(trace=self.trace)


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> TracedModel:
    made = TracedModel()
    monkeypatch.setattr("unspool.cli.sources.load_model", lambda name, **how: made)
    return made


def test_it_draws_the_trace_without_styles_in_a_pipe(run, model):
    done = run("trace", "Once", "--num-beams", "3")
    assert (done.status, done.err) == (0, "")
    assert [line.rstrip() for line in done.out.splitlines()] == trace_plain(model.trace, width=100).splitlines()


def test_it_fits_a_narrow_terminal(run, model, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    lines = [line.rstrip() for line in run("trace", "Once").out.splitlines()]
    assert lines == trace_plain(model.trace, width=40).splitlines()


def test_json_is_the_whole_trace(run, model):
    done = run("trace", "Once", "--json")
    assert Trace.from_json(done.out) == model.trace
    assert json.loads(done.out)["version"] == 1


@pytest.mark.parametrize(
    ("arguments", "options"),
    [
        ([], {"max_new_tokens": 12}),
        (["--max-new-tokens", "30"], {"max_new_tokens": 30}),
        (["--max-length", "30"], {"max_length": 30}),
        (["--top-k", "5", "--seed", "1"], {"top_k": 5, "seed": 1, "max_new_tokens": 12}),
    ],
    ids=str,
)
def test_twelve_tokens_are_traced_unless_a_length_is_given(run, model, arguments, options):
    assert run("trace", "Once", *arguments).status == 0
    assert model.calls == [("Once", {"trace": True, **options})]


def test_the_help_says_how_many(run):
    out = " ".join(run("trace", "--help").out.replace("│", " ").split())
    assert "12 tokens are generated" in out
    assert "--num-beams" in out and "--json" in out


def test_a_wrong_option_is_one_line_before_any_model_is_loaded(run, monkeypatch):
    def load(name, **how):
        raise AssertionError("the model was loaded")

    monkeypatch.setattr("unspool.cli.sources.load_model", load)
    done = run("trace", "Once", "--num-beams", "0")
    assert done.status == 2
    assert done.err.startswith("Error: --num-beams must be") and done.err.count("\n") == 1


def test_every_option_of_generate_is_an_option_of_trace():
    import inspect

    from unspool.cli.generate import generate

    of_generate, of_trace = (set(inspect.signature(each).parameters) for each in (generate, command))
    assert of_trace >= of_generate - {"stream", "quiet", "prompts", "output"}


@pytest.mark.model
def test_it_traces_what_generate_writes(run):
    arguments = ("Once upon a time", "--num-beams", "3", "--max-new-tokens", "6", "--seed", "1")
    traced = Trace.from_json(run("trace", *arguments, "--json").out)
    generated = json.loads(run("generate", *arguments, "--json").out)
    (best,) = generated["completions"]
    assert [node.token for node in traced.path(0)] == best["token_ids"]
    assert [node.logprob for node in traced.path(0)] == pytest.approx(best["logprobs"], abs=1e-5)
    assert "".join(node.text for node in traced.path(0)) == best["text"]
    assert traced.model and traced.prompt == "Once upon a time"


def test_html_is_written_instead_of_the_picture(run, model, tmp_path):
    file = tmp_path / "trace.html"
    done = run("trace", "Once", "--html", str(file))
    assert (done.status, done.out, done.err) == (0, "", "")
    assert file.read_text(encoding="utf-8") == model.trace.to_html()
    both = run("trace", "Once", "--html", str(file), "--json")
    assert Trace.from_json(both.out) == model.trace


def test_html_in_a_missing_folder_is_refused_before_the_model_is_asked(run, model, tmp_path):
    done = run("trace", "Once", "--html", str(tmp_path / "no" / "trace.html"))
    assert done.status == 2 and not model.calls
    assert "--html" in done.err and "must be a file in a folder that exists" in done.err and "create " in done.err
