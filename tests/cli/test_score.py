"""`unspool score`: where texts come from, and what is told of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.fakes import lines_of

pytestmark = [pytest.mark.model, pytest.mark.usefixtures("loads_tale")]


def test_a_score_is_what_python_gives(run, tale):
    expected = tale.score("The fox", " ran away.")
    done = run("score", " ran away.", "--prompt", "The fox")
    assert (done.status, done.err) == (0, "")
    assert done.out == f"==> ran away. <==\n{expected}\n\n"
    (line,) = lines_of(run("score", " ran away.", "--prompt", "The fox", "--json").out)
    assert line == {"prompt": "The fox", "text": " ran away.", **expected.to_dict()}


def test_several_texts_come_in_order(run, tale, tmp_path: Path):
    texts = ["The fox ran.", "A king.", "Zebras sing."]
    file = tmp_path / "texts.txt"
    file.write_text("\n".join(texts))
    expected = [tale.score("", text).total for text in texts]
    for arguments in (texts, ["--texts", str(file)]):
        lines = lines_of(run("score", *arguments, "--json").out)
        assert [line["text"] for line in lines] == texts
        assert [line["total"] for line in lines] == pytest.approx(expected, abs=1e-4)


def test_one_text_can_be_piped_or_stand_in_a_file(run, tmp_path: Path):
    file = tmp_path / "text.txt"
    file.write_text("The fox\nran.\n")
    wanted = lines_of(run("score", "The fox\nran.", "--json").out)
    assert lines_of(run("score", "--json", piped="The fox\nran.\n").out) == wanted
    assert lines_of(run("score", "-", "--json", piped="The fox\nran.\n").out) == wanted
    assert lines_of(run("score", "--text-file", str(file), "--json").out) == wanted


def test_a_line_that_fails_leaves_the_others_alone(run, tale, tmp_path: Path):
    file = tmp_path / "texts.jsonl"
    file.write_text(
        '{"text": " ran.", "prompt": "The fox"}\n{"text": ""}\n{"text": "a", "top_p": 0.5}\n{"text": 5}\n'
        f'{{"text": "{"word " * 2000}"}}\n{{"text": " sang."}}\n'
    )
    done = run("score", "--texts", str(file), "--prompt", "The owl", "--json")
    assert done.status == 2
    lines = lines_of(done.out)
    assert ["error" in line for line in lines] == [False, True, True, True, True, False]
    assert lines[0]["total"] == pytest.approx(tale.score("The fox", " ran.").total, abs=1e-4)
    assert lines[5]["total"] == pytest.approx(tale.score("The owl", " sang.").total, abs=1e-4)
    assert f"Error: {file}:2: the continuation holds no token" in done.err
    assert '"top_p" is not a key here; the keys are "text" and "prompt"' in done.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a", "--texts", "-"], "texts are given twice"),
        (["--text-file", "a", "--texts", "b"], "texts are given twice"),
        (["--texts", "no/such/file"], "no/such/file: No such file or directory"),
        ([], "the text is missing"),
    ],
)
def test_a_wrong_call_is_one_line(run, arguments: list[str], message: str):
    done = run("score", *arguments)
    assert (done.status, done.out) == (2, "")
    assert message in done.err and done.err.count("\n") == 1
