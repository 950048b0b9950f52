"""Lists in, lists out, for scores and next tokens: in one run, in order, each as if asked alone."""

from __future__ import annotations

from typing import Any

import pytest

from tests.toys import mixing_toy
from unspool import LanguageModel, OptionError, PromptError

PROMPTS = [[1, 2], [3], [4, 5, 6]]
CONTINUATIONS = [[7], [8, 9], [1]]


@pytest.mark.parametrize(
    ("prompt", "continuation", "pairs"),
    [
        (PROMPTS, CONTINUATIONS, list(zip(PROMPTS, CONTINUATIONS, strict=True))),
        (PROMPTS[0], CONTINUATIONS, [(PROMPTS[0], each) for each in CONTINUATIONS]),
        (PROMPTS, CONTINUATIONS[0], [(each, CONTINUATIONS[0]) for each in PROMPTS]),
        ([PROMPTS[0]], [CONTINUATIONS[0]], [(PROMPTS[0], CONTINUATIONS[0])]),
        ([], CONTINUATIONS[0], []),
        ([], [], []),
    ],
)
def test_scores_of_lists_are_those_of_each_pair(prompt: Any, continuation: Any, pairs: list[Any]) -> None:
    lm = LanguageModel(mixing_toy())
    assert lm.score(prompt, continuation) == [lm.score(*pair) for pair in pairs]


def test_lists_are_answered_in_one_run(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = LanguageModel(mixing_toy())
    submitted: list[int] = []
    submit = lm._driver.submit
    monkeypatch.setattr(lm._driver, "submit", lambda requests: submitted.append(len(requests)) or submit(requests))
    lm.score(PROMPTS, CONTINUATIONS)
    lm.next_tokens(PROMPTS)
    lm.compare(PROMPTS, ["greedy", "sample"], max_new_tokens=1)
    assert submitted == [3, 3, 6]


def test_lists_of_different_lengths_are_refused() -> None:
    with pytest.raises(OptionError, match=r"`continuation` must be .* for each of the 3 prompts \(the list has 2\)"):
        LanguageModel(mixing_toy()).score(PROMPTS, CONTINUATIONS[:2])
    with pytest.raises(PromptError, match="nothing to score"):
        LanguageModel(mixing_toy()).score(PROMPTS[0], [])


def test_next_tokens_of_a_list_are_those_of_each_prompt() -> None:
    lm = LanguageModel(mixing_toy())
    together = lm.next_tokens(PROMPTS, top_k=5, limit=6)
    assert [each.to_dict() for each in together] == [lm.next_tokens(p, top_k=5, limit=6).to_dict() for p in PROMPTS]
    with pytest.raises(OptionError, match="of prompt 2 does not change"):
        lm.next_tokens(PROMPTS, logprobs=[None, None, 2])


def test_long_work_shows_one_bar(capsys: pytest.CaptureFixture[str]) -> None:
    lm = LanguageModel(mixing_toy())
    lm.score(PROMPTS, CONTINUATIONS, progress=True)
    assert "scoring" in (error := capsys.readouterr().err) and "3/3" in error
    lm.next_tokens(PROMPTS, progress=True)
    assert "3/3" in capsys.readouterr().err
    lm.compare(PROMPTS, ["greedy", "sample"], max_new_tokens=1, progress=True)
    assert "6/6" in capsys.readouterr().err
