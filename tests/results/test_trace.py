"""The trace as a value: its header and texts, its JSON form there and back, and the schema of that form."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.toys import mixing_toy, toy
from tests.tracing import trace_of
from unspool import records
from unspool.errors import OptionError
from unspool.results.trace import Trace, trace_schema

DOCS = Path(__file__).resolve().parents[2] / "docs" / "trace.md"

REQUESTS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "sample": {"temperature": 0.8, "top_k": 2, "num_return_sequences": 2, "seed": 4},
    "beam": {"num_beams": 3, "num_return_sequences": 2},
    "beam_sample": {"num_beams": 2, "do_sample": True, "bad_words_ids": [[1, 2]], "seed": 1},
    "contrastive": {"penalty_alpha": 0.6, "top_k": 3},
    "assisted": {"own": {"assistant": toy()}},
    "prompt_lookup": {"prompt_lookup_num_tokens": 2},
}


def trace(name: str) -> Trace:
    return trace_of(toy, [0, 1, 2, 0, 1], ends=[3], max_new_tokens=6, **REQUESTS[name])


def test_the_header_says_what_was_asked() -> None:
    found = trace("sample")
    assert (found.version, found.model, found.strategy, found.seed) == (1, "toy", "sample", 4)
    assert found.options == {"max_new_tokens": 6, "num_return_sequences": 2, "temperature": 0.8, "top_k": 2}
    assert (found.prompt, found.prompt_token_ids) == (" a b c a b", (0, 1, 2, 0, 1))
    assert found.processors == ("temperature", "top_k")


def test_every_token_has_its_text_and_every_move_its_words() -> None:
    found = trace_of(toy, [0], ends=[3], num_beams=2, max_new_tokens=4)
    assert [node.text for node in found.path(0)] == [" b", " c", "<end>"]
    tokens = [each for step in found.steps for row in step.rows for each in (*row.candidates, *row.best)]
    assert {(each.token, each.text) for each in tokens} == {(0, " a"), (1, " b"), (2, " c"), (3, "<end>")}
    assert [move.words for step in found.steps[:3] for move in step.moves] == [
        "branch 0 continues with ' b'",
        "branch 1 becomes a copy of branch 0",
        "branch 1 continues with ' c'",
        "branch 1 is dropped",
        "branch 0 continues with ' c'",
        "branch 2 becomes a copy of branch 0",
        "branch 2 continues with ' a'",
    ]
    shortened = trace_of(mixing_toy, [3, 1, 2, 3, 1, 2], prompt_lookup_num_tokens=3, max_new_tokens=12)
    keeps = [move for step in shortened.steps for move in step.moves if move.kind == "keep"]
    assert keeps, "no guess was rejected"
    assert all(f"keeps its first {move.length} token" in move.words for move in keeps)
    assert shortened.nodes[0].text == ""


@pytest.mark.parametrize("name", REQUESTS)
def test_it_comes_back_from_json_as_it_went(name: str) -> None:
    found = trace(name)
    text = found.to_json()
    assert Trace.from_json(text) == found
    assert Trace.from_json(found.to_json(indent=2)) == found
    assert Trace.from_dict(json.loads(text)).to_dict() == found.to_dict()
    json.dumps(found.to_dict(), allow_nan=False)


@pytest.mark.parametrize("name", REQUESTS)
def test_the_schema_holds_for_real_traces(name: str) -> None:
    check(json.loads(trace(name).to_json()), trace_schema())


def spoiled() -> list[tuple[str, Any]]:
    """Return ways to spoil a trace: where, and what to put there instead."""
    return [
        ("seed", "seven"),
        ("seed", 1.5),
        ("outputs", {}),
        ("nodes/0/state", "lost"),
        ("nodes/1/parent", True),
        ("nodes/1/extra", 1),
        ("steps/0/rows/0/kind", None),
        ("steps/0/rows/0/best/0/probability", "0.5"),
        ("options", []),
        ("prompt_token_ids/0", None),
    ]


@pytest.mark.parametrize(("where", "value"), spoiled(), ids=lambda value: value if isinstance(value, str) else "")
def test_the_schema_and_the_reader_refuse_the_same(where: str, value: Any) -> None:
    values = trace("beam").to_dict()
    *parents, last = where.split("/")
    at: Any = values
    for step in parents:
        at = at[int(step) if isinstance(at, list) else step]
    at[int(last) if isinstance(at, list) else last] = value
    with pytest.raises(Invalid):
        check(values, trace_schema())
    with pytest.raises(OptionError, match="must be a whole trace: Trace"):
        Trace.from_dict(values)


def test_a_missing_field_is_named() -> None:
    values = trace("greedy").to_dict()
    del values["nodes"][1]["logprob"]
    with pytest.raises(OptionError, match=r"Trace.nodes\[1\] must be an object with exactly id, parent"):
        Trace.from_dict(values)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "must be JSON"),
        ("[1]", "`version` of a trace must be 1, got None"),
        ('{"version": 2}', "`version` of a trace must be 1, got 2"),
        ('{"version": 1}', "must be a whole trace"),
    ],
)
def test_what_is_no_trace_is_refused(text: str, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        Trace.from_json(text)


def test_without_a_tokenizer_tokens_stand_by_number() -> None:
    full = trace("greedy")
    bare = Trace.from_recording(
        records.Recording(
            prompt=(0,), processors=full.processors, nodes=full.nodes, steps=full.steps, outputs=full.outputs
        ),
        None,
        model="toy",
        strategy="greedy",
        seed=0,
        config=_config(),
        prompt=None,
    )
    assert bare.nodes[1].text == f"<id {bare.nodes[1].token}>"
    assert bare.prompt is None and bare.options == {}


def _config() -> Any:
    from unspool import GenerationConfig

    return GenerationConfig()


def test_the_docs_name_every_field() -> None:
    page = DOCS.read_text()
    for name, definition in trace_schema()["$defs"].items():
        assert f"`{name}`" in page, name
        for field in definition["properties"]:
            assert f"`{field}`" in page, f"{name}.{field}"


def test_importing_the_trace_imports_neither_torch_nor_transformers() -> None:
    code = (
        "import sys, unspool.results.trace, unspool.results.render.trace_tree;"
        "print({'torch', 'numpy'} & set(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


class Invalid(Exception):
    """A value does not follow the schema."""


def check(value: Any, schema: dict[str, Any], root: dict[str, Any] | None = None, where: str = "$") -> None:
    """Validate by the JSON schema words that traces need; an unknown word is an error of the test itself."""
    root = root or schema
    known = {"$schema", "$defs", "$ref", "anyOf", "enum", "type", "items", "properties", "required"}
    assert schema.keys() <= known | {"additionalProperties"}, schema.keys()
    if "$ref" in schema:
        check(value, root["$defs"][schema["$ref"].removeprefix("#/$defs/")], root, where)
    if "anyOf" in schema:
        errors = [each for each in schema["anyOf"] if not _follows(value, each, root)]
        if len(errors) == len(schema["anyOf"]):
            raise Invalid(where)
    if "enum" in schema and value not in schema["enum"]:
        raise Invalid(where)
    if "type" in schema and not _is_a(value, schema["type"]):
        raise Invalid(where)
    for index, each in enumerate(value if "items" in schema else ()):
        check(each, schema["items"], root, f"{where}[{index}]")
    if "properties" in schema:
        if set(schema["required"]) - value.keys() or value.keys() - schema["properties"].keys():
            raise Invalid(where)
        for name, each in value.items():
            check(each, schema["properties"][name], root, f"{where}.{name}")


def _follows(value: Any, schema: dict[str, Any], root: dict[str, Any]) -> bool:
    try:
        check(value, schema, root)
    except Invalid:
        return False
    return True


def _is_a(value: Any, name: str) -> bool:
    kinds: dict[str, Any] = {"object": dict, "array": list, "string": str, "null": type(None), "boolean": bool}
    kinds |= {"integer": int, "number": (int, float)}
    return isinstance(value, kinds[name]) and (name == "boolean" or not isinstance(value, bool))
