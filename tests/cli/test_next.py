"""`unspool next`: the answer is drawn, or printed as JSON."""

import json

from tests.cli.fakes import FakeModel


def test_it_draws_the_answer_without_styles_in_a_pipe(run, use):
    model = use(FakeModel())
    done = run("next", "The king", "--limit", "5", "--temperature", "0.5")
    assert (done.status, done.out) == (0, "old 50 %\n")
    assert model.calls == [("next_tokens", "The king", {"limit": 5, "temperature": 0.5})]


def test_json(run, use):
    use(FakeModel())
    assert json.loads(run("next", "The king", "--json").out) == {"tokens": [{"text": " old", "probability": 0.5}]}


def test_a_wrong_option_is_one_line(run, use):
    use(FakeModel())
    done = run("next", "The king", "--temperature", "-1")
    assert done.status == 2
    assert done.err.startswith("Error: --temperature must be")
