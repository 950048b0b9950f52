"""Files of many lines: what is text, what is JSON, and which lines are wrong."""

import json
from pathlib import Path
from typing import Any

import pytest

from unspool.cli.records import Record, read_records
from unspool.errors import PromptError


@pytest.fixture
def read(tmp_path: Path):
    def call(content: str | bytes, name: str = "prompts", **how: Any) -> list[Record]:
        file = tmp_path / name
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
        return read_records(file, main="prompt", **how)

    return call


def values(records: list[Record]) -> list[dict[str, Any]]:
    return [dict(record.values) for record in records]


@pytest.mark.parametrize(
    ("content", "prompts"),
    [
        ("one\ntwo\n", ["one", "two"]),
        ("one\r\ntwo", ["one", "two"]),
        (" one \n\n  \ntwo", [" one ", "two"]),
        ("a\u2028b\x0cc\nd", ["a\u2028b\x0cc", "d"]),
        (b"\xef\xbb\xbfone\n", ["one"]),
        ("{not json}\nand\n", ["{not json}", "and"]),
        ("[1, 2]\n", ["[1, 2]"]),
    ],
)
def test_lines_of_text(read, content, prompts: list[str]):
    assert values(read(content)) == [{"prompt": prompt} for prompt in prompts]


def test_an_object_per_line_with_options(read):
    lines = [{"prompt": "a\u2028b", "top_p": 0.5}, {"prompt": [5, 7], "stop_strings": ["x"], "seed": 3}]
    records = read("\n\n".join(json.dumps(line, ensure_ascii=False) for line in lines))
    assert values(records) == [{"prompt": "a\u2028b"}, {"prompt": [5, 7]}]
    assert [dict(record.options) for record in records] == [{"top_p": 0.5}, {"stop_strings": ["x"], "seed": 3}]
    assert [record.error for record in records] == [None, None]
    assert records[1].place.endswith("prompts:3"), "blank lines count"


@pytest.mark.parametrize(
    ("name", "is_json"), [("a.jsonl", True), ("a.ndjson", True), ("a.txt", False), ("a", True), ("a.json", True)]
)
def test_the_name_decides_before_the_first_line_does(read, name: str, is_json: bool):
    (record,) = read('{"prompt": "one"}', name)
    assert record.values == {"prompt": "one" if is_json else '{"prompt": "one"}'}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "not JSON"),
        ("plain text", "not JSON"),
        ('"one"', 'must be an object with "prompt"'),
        ('{"text": "one"}', 'must be an object with "prompt"'),
        ('{"prompt": 5}', '"prompt" must be a text or a list of token ids'),
        ('{"prompt": ["one"]}', '"prompt" must be a text or a list of token ids'),
        ('{"prompt": "one", "top_p": 1.5}', '"top_p" must be in (0, 1], got 1.5; use null for no limit'),
        ('{"prompt": "one", "tempratur": 1}', 'is not an option, got 1; did you mean "temperature"?'),
        ('{"prompt": "one", "do_sample": "yes"}', '"do_sample" must be true or false, got "yes"'),
    ],
)
def test_a_wrong_line_has_its_error_with_its_place_and_the_others_have_none(read, line: str, message: str):
    records = read(f'{{"prompt": "before"}}\n{line}\n{{"prompt": "after"}}\n', "p.jsonl")
    assert [record.error is None for record in records] == [True, False, True]
    assert records[1].error is not None and message in records[1].error
    assert records[1].error.startswith(f"{records[0].place.removesuffix('1')}2: ")


def test_keys_that_are_no_options(read):
    good, bad = read(
        '{"prompt": "a", "before": "b"}\n{"prompt": "a", "top_p": 0.5}', others=("before",), takes_options=False
    )
    assert good.values == {"prompt": "a", "before": "b"} and good.error is None
    assert bad.error is not None and bad.error.endswith('"top_p" is not a key here; the keys are "prompt" and "before"')


@pytest.mark.parametrize(("content", "message"), [("", "is empty"), ("\n \n", "is empty"), (b"a\xff", "not UTF-8")])
def test_a_file_without_lines_is_refused(read, content, message: str):
    with pytest.raises(PromptError, match=message):
        read(content)
