"""`unspool generate --prompts`: results in order, failures that hurt nobody else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.cli.fakes import lines_of
from unspool.cli.batch import OPEN, generated
from unspool.cli.records import Record

pytestmark = [pytest.mark.model, pytest.mark.usefixtures("loads_tale")]
PROMPTS = ["The fox", "The old king went", "Once upon a time", "An owl"]


def test_each_prompt_gets_what_python_gives_it_alone(run, tale, tmp_path: Path):
    own = [{"temperature": 0.8, "seed": 3}, {"num_beams": 3}, {}, {"max_new_tokens": 3}]
    file = tmp_path / "p.jsonl"
    file.write_text("".join(json.dumps({"prompt": p, **o}) + "\n" for p, o in zip(PROMPTS, own, strict=True)))
    done = run("generate", "--prompts", str(file), "--json", "--max-new-tokens", "8")
    assert (done.status, done.err) == (0, "")
    expected = [tale.generate(p, **{"max_new_tokens": 8, **o}) for p, o in zip(PROMPTS, own, strict=True)]
    results = lines_of(done.out)
    assert [line["prompt"] for line in results] == PROMPTS
    assert [line["text"] for line in results] == [one.text for one in expected]
    assert [line["completions"][0]["token_ids"] for line in results] == [
        list(one.completions[0].token_ids) for one in expected
    ]


def test_text_of_a_pipe_is_readable(run, tale):
    done = run("generate", "--prompts", "-", "--max-new-tokens", "5", piped="The fox\nAn  owl\n")
    texts = [tale.generate(prompt, max_new_tokens=5).text for prompt in ("The fox", "An  owl")]
    assert (done.status, done.err) == (0, "")
    assert done.out == f"==> The fox <==\n{texts[0].rstrip()}\n\n==> An owl <==\n{texts[1].rstrip()}\n\n"


def test_a_failing_prompt_never_hurts_the_others(run, tmp_path: Path):
    file = tmp_path / "p.jsonl"
    lines = [
        '{"prompt": "The fox"}',
        "no json",
        '{"prompt": "The fox", "top_p": 7}',
        '{"prompt": "The fox", "num_return_sequences": 2}',
        json.dumps({"prompt": "word " * 2000}),
        '{"prompt": 5}',
        '{"prompt": [5, -1]}',
        '{"prompt": "The fox", "eos_token_id": 99999}',
        json.dumps({"prompt": "The fox", "suppress_tokens": list(range(4096))}),
        '{"prompt": "An owl"}',
    ]
    file.write_text("\n".join(lines))
    done = run("generate", "--prompts", str(file), "--json", "--max-new-tokens", "4")
    results = lines_of(done.out)
    assert done.status == 2
    assert ["error" in line for line in results] == [False, *[True] * 8, False]
    for number, line in enumerate(results[1:-1], 2):
        assert line["error"].startswith(f"{file}:{number}: ")
        assert f"Error: {line['error']}\n" in done.err
    assert done.err.endswith("Error: 8 of 10 failed\n")
    assert results[3]["prompt"] == "The fox" and '"do_sample": true' in results[3]["error"]


def test_more_prompts_than_are_open_at_once_come_in_order(run, tmp_path: Path):
    count = OPEN + 20
    file = tmp_path / "p.txt"
    file.write_text("".join(f"{number} foxes\n" for number in range(count)))
    done = run("generate", "--prompts", str(file), "--json", "--max-new-tokens", "1")
    assert [line["prompt"] for line in lines_of(done.out)] == [f"{number} foxes" for number in range(count)]


def test_each_prompt_has_a_seed_of_its_own_unless_one_is_given(run, monkeypatch):
    monkeypatch.setattr("unspool.cli.batch.fresh_seed", lambda: 40)
    call = ("generate", "--prompts", "-", "--json", "--max-new-tokens", "2", "--temperature", "1")
    assert [line["seed"] for line in lines_of(run(*call, piped="a\na\na").out)] == [40, 41, 42]
    assert [line["seed"] for line in lines_of(run(*call, "--seed", "5", piped="a\nb").out)] == [5, 5]
    own = '{"prompt": "a", "seed": 9}\n{"prompt": "a"}'
    assert [line["seed"] for line in lines_of(run(*call, "--seed", "5", piped=own).out)] == [9, 5]


def test_an_option_of_a_line_comes_before_its_counterpart_of_the_command(run):
    lines = '{"prompt": "The fox", "max_length": 6}\n{"prompt": "The fox"}'
    done = run("generate", "--prompts", "-", "--json", "--max-new-tokens", "3", piped=lines)
    first, second = lines_of(done.out)
    assert first["usage"]["prompt_tokens"] + first["usage"]["completion_tokens"] == 6
    assert second["usage"]["completion_tokens"] == 3


def test_output_goes_to_a_file(run, tmp_path: Path):
    file = tmp_path / "out.jsonl"
    done = run("generate", "--prompts", "-", "--json", "--max-new-tokens", "2", "--output", str(file), piped="a\nb")
    assert (done.status, done.out) == (0, "")
    assert [line["prompt"] for line in lines_of(file.read_text())] == ["a", "b"]
    single = run("generate", "The fox", "--max-new-tokens", "4", "-o", str(file))
    assert (single.out, single.err) == ("", "")
    assert file.read_text() == run("generate", "The fox", "--max-new-tokens", "4").out
    failed = run("generate", "The fox", "-o", str(tmp_path / "no" / "file"))
    assert (failed.status, failed.out) == (2, "") and "No such file or directory" in failed.err


@pytest.mark.parametrize("beside", [("A prompt",), ("--prompt-file", "x")])
def test_a_prompt_beside_a_file_of_prompts_is_refused(run, beside: tuple[str, ...]):
    done = run("generate", *beside, "--prompts", "-", piped="a")
    assert done.status == 2 and "leave out either --prompts or the other prompt" in done.err


def test_ctrl_c_tells_the_seed_of_the_prompt_under_way_and_closes_the_others(tale, monkeypatch):
    monkeypatch.setattr("unspool.cli.batch.fresh_seed", lambda: 40)
    records = [Record(place=f"p:{number}", values={"prompt": "The fox"}) for number in range(5)]
    results = generated(tale, records, {"max_new_tokens": 200}, {}, as_json=True)
    record, first = next(results)
    assert record is records[0] and not isinstance(first, str)

    def interrupted(self: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr("unspool.streaming.Stream.__iter__", interrupted)
    with pytest.raises(KeyboardInterrupt, match="^p:1 has the seed 41$"):
        next(results)
    assert tale.generate("An owl", max_new_tokens=3).text, "nothing is left behind that holds memory"
