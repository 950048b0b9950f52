"""The routes of the explorer: their numbers are those of Python, and their limits those of the server."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

import unspool
from tests.serving.conftest import serving
from unspool.explorer import add_explorer
from unspool.explorer.kept_rows import KeptRows, NextTokenReader
from unspool.results.render.web_files import web_files

PROMPT = "Once upon a time"


@pytest.fixture(scope="module")
def client(address: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=address, timeout=120) as made:
        yield made


def streamed(client: httpx.Client, **body: Any) -> list[tuple[str, Any]]:
    """Return the events of a generation as (name, value)."""
    events: list[tuple[str, Any]] = []
    with client.stream("POST", "/explore/generate", json=body) as answer:
        assert answer.status_code == 200, answer.read()
        name = ""
        for line in answer.iter_lines():
            if line.startswith("event: "):
                name = line[7:]
            elif line.startswith("data: "):
                events.append((name, json.loads(line[6:])))
    return events


def said(answer: httpx.Response) -> dict[str, Any]:
    error: dict[str, Any] = answer.json()["error"]
    return error


# --- next token -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 0.7, "top_k": 20, "top_p": 0.9, "min_p": 0.02, "typical_p": 0.95},
        {"repetition_penalty": 1.3, "presence_penalty": 0.5, "penalty_scope": "prompt_and_output"},
        {"strategy": "beam", "num_beams": 3},
        {"guidance_scale": 1.5},
    ],
    ids=lambda options: ",".join(options) or "plain",
)
def test_next_tokens_are_those_of_python(client: httpx.Client, lm: unspool.LanguageModel, options: dict[str, Any]):
    found = client.post("/explore/next", json={"prompt": PROMPT, "options": options}).json()
    expected = lm.next_tokens(PROMPT, limit=40, **options)
    wanted = expected.to_dict()
    assert [each["token_id"] for each in found["tokens"]] == [each["token_id"] for each in wanted["tokens"]]
    for mine, theirs in zip(found["tokens"], wanted["tokens"], strict=True):
        assert mine["cut_by"] == theirs["cut_by"]
        assert mine["probability"] == pytest.approx(theirs["probability"], abs=1e-6)
        assert mine["processed_probability"] == pytest.approx(theirs["processed_probability"], abs=1e-5)
    cut = (expected.processed_probabilities == 0).sum()
    assert sum(each["count"] for each in found["cuts"]) == cut == 4096 - found["num_kept"]


def test_a_slider_does_not_run_the_model_again(lm: unspool.LanguageModel):
    reader = NextTokenReader(lm)
    ids = list(lm.tokenizer(PROMPT)["input_ids"])
    passes = lm.engine.timing.passes
    for temperature in (0.5, 0.8, 1.1):
        reader.read(ids, {"temperature": temperature, "top_p": 0.9})
    assert reader.rows.passes == 1
    assert lm.engine.timing.passes == passes + 1
    reader.read([*ids, 260], {"top_k": 3})
    assert reader.rows.passes == 2


def test_kept_rows_are_shared_under_one_salt_only(lm: unspool.LanguageModel):
    reader = NextTokenReader(lm)
    ids = list(lm.tokenizer(PROMPT)["input_ids"])
    for salt in ("a", "b", "a"):
        reader.read(ids, {"cache_salt": salt})
    assert reader.rows.passes == 2


def test_kept_rows_are_bounded(lm: unspool.LanguageModel):
    rows = KeptRows(lm, num_rows=2)
    for prompt in ((5,), (6,), (5,), (7,), (5,)):
        rows.row(prompt)
    assert rows.passes == 3  # 6 was the least recently used one
    rows.row((6,))
    assert rows.passes == 4


def test_tokens_after_the_prompt_are_part_of_it(client: httpx.Client, lm: unspool.LanguageModel):
    found = client.post("/explore/next", json={"prompt": PROMPT, "path": [444, 310]}).json()
    assert [each["token_id"] for each in found["prompt_tokens"]][-2:] == [444, 310]
    best = lm.next_tokens(f"{PROMPT} there was").entries[0]
    assert found["tokens"][0]["token_id"] == best.token_id
    assert f"'{PROMPT} there was'" in found["snippets"]["CLI"]


def test_tokens_that_no_text_has_are_copied_as_ids(client: httpx.Client, lm: unspool.LanguageModel):
    letters = [lm.tokenizer(each, add_special_tokens=False)["input_ids"][0] for each in "the"]
    found = client.post("/explore/next", json={"prompt": PROMPT, "path": letters}).json()["snippets"]
    assert found["CLI"].startswith("# Not possible")
    assert str(letters)[1:-1] in found["Python"]


# --- inside an output -------------------------------------------------------------------------------------------------


def test_a_position_has_the_states_of_its_output(client: httpx.Client, lm: unspool.LanguageModel):
    """The grammar and the penalties go on from the tokens of the output, as in the generation itself."""
    options = {"strategy": "sample", "regex": "[0-9]{2} (cats|dogs)", "presence_penalty": 2.0, "seed": 5}
    trace = lm.generate(PROMPT, trace=True, **options).trace
    assert trace is not None
    for place, node in enumerate(trace.path(0)):
        row = next(each for step in trace.steps for each in step.rows if each.node == node.parent)
        before = [each.token for each in trace.path(0)[:place]]
        found = client.post("/explore/position", json={"prompt": PROMPT, "tokens": before, "options": options}).json()
        assert found["num_kept"] == row.num_allowed
        grammar = next((cut.count for cut in row.cuts if cut.processor == "grammar"), 0)
        assert found["num_allowed"] == 4096 - grammar
        assert node.token in {each["token_id"] for each in found["allowed"]}
        best = {each["token_id"]: each["processed_probability"] for each in found["tokens"]}
        for each in row.best:
            assert best[each.token] == pytest.approx(each.processed_probability, abs=1e-5)


# --- a generation -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"strategy": "sample", "temperature": 0.9, "max_new_tokens": 12},
        {"strategy": "beam", "num_beams": 4, "max_new_tokens": 12},
        {
            "strategy": "diverse_beam",
            "num_beams": 4,
            "num_beam_groups": 2,
            "diversity_penalty": 0.5,
            "max_new_tokens": 8,
        },
        {"strategy": "constrained_beam", "num_beams": 3, "force_words": ["forest"], "max_new_tokens": 10},
        {"strategy": "stochastic_beam", "num_beams": 3, "max_new_tokens": 8},
        {"strategy": "beam_sample", "num_beams": 3, "max_new_tokens": 8},
        {"strategy": "assisted", "prompt_lookup_num_tokens": 3, "max_new_tokens": 20},
        {"strategy": "assisted", "assistant_model": "tale-draft", "max_new_tokens": 12},
    ],
    ids=lambda options: options["strategy"],
)
def test_a_stream_ends_with_the_result_of_python(
    client: httpx.Client, lm: unspool.LanguageModel, options: dict[str, Any]
):
    events = streamed(client, prompt=PROMPT, options={**options, "seed": 3})
    names = [name for name, _ in events]
    assert names[0] == "start" and names[-1] == "done" and "chunk" in names
    if "assistant_model" in options:
        options = {**options, "assistant_model": unspool.load(options["assistant_model"])}
    wanted = lm.generate(PROMPT, trace=True, seed=3, **options)
    done = events[-1][1]
    assert done["text"] == wanted.text
    assert done["completions"][0]["token_ids"] == list(wanted.completions[0].token_ids)
    assert wanted.trace is not None
    assert [each["token"] for each in done["trace"]["nodes"]] == [each.token for each in wanted.trace.nodes]
    text = "".join(value["text"] for name, value in events if name == "chunk" and value["index"] == 0)
    assert text == wanted.text


def test_the_growing_trace_is_the_beginning_of_the_final_one(client: httpx.Client):
    options = {"strategy": "beam", "num_beams": 4, "max_new_tokens": 40, "seed": 3}
    events = streamed(client, prompt=PROMPT, options=options)
    final = events[-1][1]["trace"]
    deltas = [value for name, value in events if name == "delta"]
    assert deltas, "a beam search streams its trace while it runs"
    fixed = ("id", "parent", "token", "text", "step", "branch", "draft")
    for delta in deltas:
        for node in delta["nodes"]:
            assert {name: node[name] for name in fixed} == {name: final["nodes"][node["id"]][name] for name in fixed}
            if node["dropped_at"] is not None:
                assert node["dropped_at"] == final["nodes"][node["id"]]["dropped_at"]
        for step in delta["steps"]:
            assert len(step["rows"]) in (0, len(final["steps"][step["index"]]["rows"]))
    seen = {node["id"] for delta in deltas for node in delta["nodes"]}
    assert seen == set(range(len(seen))), "the parts have no gap"


def test_a_client_that_leaves_ends_its_generation(client: httpx.Client, lm: unspool.LanguageModel):
    with client.stream(
        "POST", "/explore/generate", json={"prompt": PROMPT, "options": {"max_new_tokens": 900}}
    ) as answer:
        next(answer.iter_lines())
    for _ in range(600):
        if lm.engine.idle:
            return
        time.sleep(0.1)
    raise AssertionError("the generation goes on without a reader")


# --- comparisons ------------------------------------------------------------------------------------------------------


def test_a_comparison_is_that_of_python(client: httpx.Client, lm: unspool.LanguageModel):
    entries = {"greedy": {"strategy": "greedy"}, "warm": {"temperature": 1.2}, "beam": {"num_beams": 3}}
    shared = {"max_new_tokens": 12, "seed": 4}
    found = client.post("/explore/compare", json={"prompt": PROMPT, "entries": entries, "options": shared}).json()
    wanted = lm.compare(PROMPT, entries, **shared).to_dict()
    for mine, theirs in zip(found["rows"], wanted["rows"], strict=True):
        assert (mine["name"], mine["text"]) == (theirs["name"], theirs["text"])
        assert mine["figures"]["mean_logprob"] == pytest.approx(theirs["figures"]["mean_logprob"], abs=1e-5)
        assert mine["generation"]["usage"] == theirs["generation"]["usage"]


def test_a_bad_entry_is_named(client: httpx.Client):
    answer = client.post(
        "/explore/compare", json={"prompt": PROMPT, "entries": {"cold": {"strategy": "greedy", "top_k": 4}}}
    )
    assert answer.status_code == 400
    assert "'cold'" in said(answer)["message"]


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("route", "body", "param"),
    [
        ("next", {"prompt": PROMPT, "options": {"top_p": 2}}, "top_p"),
        ("next", {"prompt": PROMPT, "options": {"nonsense": 1}}, "nonsense"),
        ("next", {"prompt": PROMPT, "options": {"output_scores": True}}, "output_scores"),
        ("next", {"prompt": PROMPT, "limit": 0}, "limit"),
        ("next", {"prompt": PROMPT, "path": [4096]}, "path"),
        ("next", {"prompt": PROMPT, "path": [True]}, "path"),
        ("next", {"prompt": 5}, "prompt"),
        ("next", {"prompt": PROMPT, "colour": 1}, "colour"),
        ("next", {"prompt": PROMPT, "options": {"num_beams": 65}}, "num_beams"),
        ("generate", {"prompt": PROMPT, "options": {"stop_strings": ["x" * 70_000]}}, "stop_strings"),
        ("generate", {"prompt": PROMPT, "options": {"num_beams": 2, "force_words": ["x" * 70_000]}}, "force_words"),
        ("position", {"prompt": PROMPT, "tokens": ["x"]}, "tokens"),
        ("generate", {"prompt": PROMPT, "options": {"assistant_model": "other"}}, "assistant"),
        ("generate", {"prompt": PROMPT, "options": {"regex": "a" * 70_000}}, "regex"),
        ("generate", {"prompt": PROMPT, "options": {"seed": [1, 2]}}, "seed"),
        (
            "generate",
            {"prompt": PROMPT, "options": {"num_beams": 4, "temperature": 1.5, "strategy": "beam"}},
            "temperature",
        ),
        ("compare", {"prompt": PROMPT}, "entries"),
        ("compare", {"prompt": PROMPT, "entries": {}}, "entries"),
    ],
)
def test_a_bad_body_is_refused_and_the_field_is_named(
    client: httpx.Client, route: str, body: dict[str, Any], param: str
):
    answer = client.post(f"/explore/{route}", json=body)
    assert answer.status_code == 400, answer.text
    assert said(answer)["param"] == param


def test_a_body_that_is_no_object_is_refused(client: httpx.Client):
    assert client.post("/explore/next", json=[1]).status_code == 400


# --- the page ---------------------------------------------------------------------------------------------------------


def test_the_page_has_a_strict_policy(client: httpx.Client):
    page = client.get("/")
    policy = page.headers["content-security-policy"]
    assert policy.startswith("default-src 'self'; script-src 'self' 'sha256-")
    assert "unsafe" not in policy
    assert page.headers["x-content-type-options"] == "nosniff"


def test_only_the_files_of_the_page_are_served(client: httpx.Client):
    for path, content in web_files().items():
        answer = client.get(f"/explore/web/{path}")
        assert answer.status_code == 200 and answer.content == content
    for path in (
        "/explore/web/../routes.py",
        "/explore/web/%2e%2e/routes.py",
        "/explore/web/types.d.ts",
        "/explore/web/",
    ):
        assert client.get(path).status_code == 404


def test_the_facts_have_the_option_table(client: httpx.Client):
    from unspool.config import OPTIONS
    from unspool.strategies import STRATEGIES

    facts = client.get("/explore/facts").json()
    assert [each["name"] for each in facts["strategies"]] == list(STRATEGIES)
    for option in facts["options"]:
        assert option["help"] == OPTIONS[option["name"]].help.replace("`", "")
        assert option["type"] != "float" or "1e18" not in option["range"]
    assert {"temperature", "num_beams", "regex"} <= {each["name"] for each in facts["options"]}
    for strategy in facts["strategies"]:
        assert not strategy["presets"].keys() - OPTIONS.keys()
        shown = [name for _, names in strategy["form"] for name in names]
        assert len(set(shown)) == len(shown)
        for name in shown:
            assert OPTIONS[name].read_by == "all" or strategy["name"] in OPTIONS[name].read_by
        assert set(strategy["presets"]) <= {*shown}


def test_a_key_protects_the_numbers_but_not_the_page(lm: unspool.LanguageModel):
    with serving(lm, extend=add_explorer, api_key=("secret",)) as (address, _):
        assert httpx.get(f"{address}/", timeout=60).status_code == 200
        assert httpx.get(f"{address}/explore/web/style.css", timeout=60).status_code == 200
        assert httpx.get(f"{address}/explore/facts", timeout=60).status_code == 401
        assert httpx.post(f"{address}/explore/next", json={"prompt": PROMPT}, timeout=60).status_code == 401
        headers = {"Authorization": "Bearer secret"}
        assert httpx.get(f"{address}/explore/facts", headers=headers, timeout=60).status_code == 200
