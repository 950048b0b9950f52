"""The page in a real browser: each view by mouse and by keyboard alone, with the numbers that Python returns."""

from __future__ import annotations

import json
import math
import re
import time
from typing import Any

import pytest

import unspool
from tests.explorer.conftest import PATIENCE, Open, link, numbers, opened
from unspool.results import Generation, Trace

PROMPT = "Once upon a time"
BEAMS = {"strategy": "beam", "options": {"num_beams": 4, "num_return_sequences": 2, "max_new_tokens": 12}}
SPECULATION = {"strategy": "assisted", "options": {"prompt_lookup_num_tokens": 3, "max_new_tokens": 40}}
REGEX = "[A-Z][a-z]+ had [0-9]{1,2} (cats|dogs)\\."
STRUCTURE = {"strategy": "sample", "options": {"regex": REGEX, "max_new_tokens": 40}}
ENTRIES = [
    {"name": "greedy", "strategy": "greedy", "options": {}},
    {"name": "warm", "strategy": "sample", "options": {"temperature": 1.2}},
]


def press(page: Any, *keys: str) -> None:
    for key in keys:
        page.keyboard.press(key)


def tab_to(page: Any, selector: str) -> None:
    """Move the focus with Tab alone."""
    for _ in range(200):
        if page.evaluate(f"document.activeElement?.matches({selector!r}) ?? false"):
            return
        page.keyboard.press("Tab")
    raise AssertionError(f"Tab does not reach {selector}")


def settled(page: Any) -> None:
    """Wait for the answer to the newest question of the view of the next token."""
    page.wait_for_selector(".chart")
    until(page, "!document.querySelector('.stale') && document.querySelector('[aria-busy=false] .chart')")


def until(page: Any, condition: str) -> None:
    """Wait until an expression is true. Playwright's own wait evaluates texts in the page, which the policy forbids."""
    end = time.monotonic() + PATIENCE / 1000
    while not page.evaluate(condition):
        assert time.monotonic() < end, condition
        page.wait_for_timeout(20)


def _row(trace: Any, node: Any) -> Any:
    """Return the row of the trace that a node was chosen from."""
    return next(each for step in trace.steps for each in step.rows if each.node == node.parent)


def finished(page: Any) -> None:
    """Wait for the end of a generation."""
    page.wait_for_selector("p.facts")


def run_view(visit: Open, view: str, **state: Any) -> Any:
    """Open a view, press its button, and return the page after the end of the generation."""
    page = visit(view, **state)
    page.click("button.primary")
    finished(page)
    return page


def traced(lm: unspool.LanguageModel, strategy: str, state: dict[str, Any]) -> tuple[Generation, Trace]:
    """Return what Python gives for the state of a view with seed 3."""
    wanted = lm.generate(PROMPT, strategy=strategy, seed=3, trace=True, **state["options"])
    assert wanted.trace is not None
    return wanted, wanted.trace


# --- next token -------------------------------------------------------------------------------------------------------


def shown(page: Any) -> list[dict[str, str]]:
    """Return the data of the rows of the distribution."""
    rows: list[dict[str, str]] = page.eval_on_selector_all(".row", "all => all.map(each => ({...each.dataset}))")
    return rows


def test_the_distribution_is_that_of_python(visit: Open, lm: unspool.LanguageModel):
    options = {"temperature": 0.8, "top_k": 30, "top_p": 0.9, "typical_p": 0.95}
    page = visit("next", prompt=PROMPT, next=options)
    settled(page)
    wanted = {str(each.token_id): each for each in lm.next_tokens(PROMPT, limit=40, **options)}
    rows = shown(page)
    assert len(rows) == 40 and {row["token"] for row in rows} == wanted.keys()
    for row in rows:
        entry = wanted[row["token"]]
        assert float(row["probability"]) == pytest.approx(entry.probability, abs=1e-6)
        assert float(row["processed"]) == pytest.approx(entry.processed_probability, abs=1e-5)
        assert row["cut"] == (entry.cut_by or "")
    lines = page.eval_on_selector_all(".cutline", "all => all.map(each => each.dataset.processor)")
    cutting = {each.cut_by for each in wanted.values() if each.cut_by}
    assert set(lines) >= cutting
    assert lines == [name for name in ("typical_p", "top_p", "top_k") if name in lines], (
        "the last processor comes first"
    )


def test_a_slider_a_click_undo_and_branches_by_mouse(visit: Open, lm: unspool.LanguageModel):
    page = visit("next", prompt=PROMPT, next={})
    settled(page)
    box = page.locator("#slide-top_k").bounding_box()
    page.mouse.click(box["x"] + box["width"] * 0.3, box["y"] + box["height"] / 2)
    page.wait_for_selector(".cutline[data-processor=top_k]")
    settled(page)
    value = int(page.input_value("#slide-top_k"))
    assert value > 0
    assert page.text_content(".chart .note").strip().startswith(f"{lm.next_tokens(PROMPT, top_k=value).num_kept} of")
    page.click(".row >> nth=0")
    page.wait_for_selector(".chosen")
    settled(page)
    first = page.get_attribute(".chosen", "data-token")
    assert int(first) == lm.next_tokens(PROMPT).entries[0].token_id
    page.click("text=Undo")
    page.wait_for_selector(".chosen", state="detached")
    settled(page)
    page.click(".row >> nth=1")
    page.wait_for_selector(".chosen")
    assert page.get_attribute(".chosen", "data-token") != first
    assert page.locator(".walk [role=treeitem]").count() == 3  # the prompt and two branches
    page.click(".walk [data-item='0']")
    until(page, f"document.querySelector('.chosen')?.dataset.token === '{first}'")


def test_the_next_token_by_keyboard_alone(visit: Open, lm: unspool.LanguageModel):
    page = visit("next", prompt="", next={})
    tab_to(page, "#prompt")
    page.keyboard.type("The king")
    settled(page)
    until(page, "document.querySelectorAll('.row').length === 40")
    tab_to(page, "#slide-temperature")
    press(page, "ArrowRight", "ArrowRight")
    assert float(page.input_value("#slide-temperature")) == pytest.approx(1.1)
    settled(page)
    tab_to(page, ".row")
    press(page, "ArrowDown", "ArrowDown", "ArrowUp", "Enter")
    page.wait_for_selector(".chosen")
    settled(page)
    best = lm.next_tokens("The king", limit=3, temperature=1.1)
    assert int(page.get_attribute(".chosen", "data-token")) == best.entries[1].token_id
    tab_to(page, ".row")
    press(page, "Enter")
    until(page, "document.querySelectorAll('.chosen').length === 2")
    tab_to(page, ".walk [role=treeitem]")
    press(page, "ArrowLeft", "ArrowLeft")
    until(page, "document.querySelectorAll('.chosen').length === 0")
    press(page, "ArrowRight")
    until(page, "document.querySelectorAll('.chosen').length === 1")


def test_penalties_count_the_walk(visit: Open, lm: unspool.LanguageModel):
    page = visit("next", prompt=PROMPT, next={"presence_penalty": 1.5})
    settled(page)
    wanted = lm.next_tokens(PROMPT, limit=40, presence_penalty=1.5, penalty_scope="prompt_and_output")
    assert numbers(page, ".row", "data-processed") == pytest.approx(
        [each.processed_probability for each in wanted], abs=1e-5
    )


# --- generate ---------------------------------------------------------------------------------------------------------


def test_a_generation_shows_pythons_probabilities_and_alternatives(visit: Open, lm: unspool.LanguageModel):
    options = {"temperature": 0.9, "top_p": 0.9, "max_new_tokens": 20}
    page = run_view(visit, "generate", prompt=PROMPT, strategy="sample", options=options, seed=3)
    wanted = lm.generate(PROMPT, strategy="sample", seed=3, trace=True, **options)
    (best,) = wanted.completions
    assert numbers(page, ".piece", "data-probability") == pytest.approx([math.exp(each) for each in best.logprobs])
    assert "".join(page.locator(".piece").all_text_contents()) == best.text.replace("\n", "⏎\n")
    assert numbers(page, "[data-logprob]", "data-logprob")[0] == pytest.approx(best.logprob)
    page.hover(".piece >> nth=4")
    page.wait_for_selector(".alternatives")
    assert wanted.trace is not None
    node = wanted.trace.path(0)[4]
    row = _row(wanted.trace, node)
    found = numbers(page, ".alternatives [data-probability]", "data-probability")
    assert found[: len(row.best)] == pytest.approx([each.probability for each in row.best])
    cut = page.locator(".alternatives tbody tr td:nth-child(4)").all_text_contents()
    assert cut[: len(row.best)] == [each.cut_by or "" for each in row.best]


def test_an_alternative_branches_the_generation(visit: Open, lm: unspool.LanguageModel):
    page = visit("generate", prompt=PROMPT, strategy="greedy", options={"max_new_tokens": 8}, seed=3, run=True)
    finished(page)
    page.click(".piece >> nth=2")
    page.wait_for_selector(".alternatives")
    page.click(".alternatives .link >> nth=0")
    page.wait_for_selector(".pathbox")
    finished(page)
    until(page, "document.querySelectorAll('.piece').length === 8 && document.querySelector('p.facts')")
    first = lm.generate(PROMPT, max_new_tokens=8, trace=True, strategy="greedy")
    assert first.trace is not None
    path = first.trace.path(0)
    row = _row(first.trace, path[2])
    other = next(each.token for each in row.best if each.token != path[2].token)
    ids = [*first.prompt_token_ids, path[0].token, path[1].token, other]
    wanted = lm.generate(ids, max_new_tokens=8, strategy="greedy").text
    got = "[...document.querySelectorAll('.piece')].map(each => each.textContent).join('')"
    until(page, f"{got} === {json.dumps(wanted)}")


def test_a_generation_by_keyboard_alone(visit: Open):
    page = visit("generate", prompt=PROMPT, strategy="sample", options={"max_new_tokens": 6})
    tab_to(page, "#prompt")
    press(page, "Control+a")
    page.keyboard.type("The king")
    tab_to(page, "#strategy")
    page.keyboard.type("greedy")
    assert page.input_value("#strategy") == "greedy"
    tab_to(page, "#option-max_new_tokens")
    press(page, "Control+a")
    page.keyboard.type("5")
    press(page, "Enter")  # in a field of the form, Enter runs
    finished(page)
    assert page.locator(".piece").count() == 5
    tab_to(page, ".piece")
    press(page, "ArrowRight", "ArrowRight")
    page.wait_for_selector("text=token 3:")
    tab_to(page, ".alternatives .link")
    press(page, "Enter")
    page.wait_for_selector(".pathbox")


def test_a_refused_option_is_shown_at_its_field(visit: Open):
    page = visit("generate", prompt=PROMPT, strategy="sample", options={"top_p": 7}, seed=3)
    # Not with status 400, which the browser itself reports as an error in the console.
    page.route("**/explore/generate", lambda route: route.fulfill(
        status=200, content_type="text/event-stream",
        body='data: {"error": {"message": "`top_p` must be in (0, 1], got 7", "param": "top_p"}}\n\n',
    ))  # fmt: skip
    page.click("button.primary")
    page.wait_for_selector("#option-top_p[aria-invalid=true]")
    assert "must be in (0, 1]" in page.text_content("[role=alert]")


# --- beam tree --------------------------------------------------------------------------------------------------------


def test_the_beam_tree_has_the_nodes_and_scores_of_the_trace(visit: Open, lm: unspool.LanguageModel):
    page = run_view(visit, "beams", prompt=PROMPT, **BEAMS, seed=3)
    _, trace = traced(lm, "beam", BEAMS)
    assert page.locator(".player output").text_content() == f"step {len(trace.steps)} of {len(trace.steps)}"
    totals = {0: 0.0}
    for node in trace.nodes[1:]:
        totals[node.id] = totals[node.parent] + (node.score or 0.0)
    items = page.eval_on_selector_all(
        "[role=treeitem]", "all => all.map(e => [+e.dataset.item, e.querySelector('[data-total]')?.dataset.total])"
    )
    for node, total in items:
        assert total is None if node == 0 else float(total) == pytest.approx(totals[node])
    path = {node.id for output in range(2) for node in trace.path(output)}
    assert path <= {node for node, _ in items}
    assert {int(each) for each in page.eval_on_selector_all(".node", "all => all.map(e => e.dataset.node)")} == {
        node for node, _ in items
    }
    scores = numbers(page, ".hypotheses [data-score]", "data-score")
    assert scores[:2] == pytest.approx([output.score for output in trace.outputs])


def test_hypotheses_are_normalized_as_the_search_does(visit: Open, lm: unspool.LanguageModel):
    """Before the end, the page divides by the length itself: the quotients are the scores of the outputs."""
    options = {"num_beams": 4, "num_return_sequences": 4, "max_new_tokens": 60, "length_penalty": 0.7}
    prompt = "and they lived happily"
    page = visit("beams", prompt=prompt, strategy="beam", options=options, seed=3, run=True)
    finished(page)
    trace = lm.generate(prompt, trace=True, **options).trace
    assert trace is not None
    for output in trace.outputs:
        nodes = [trace.nodes[each] for each in output.nodes]
        total = sum(node.score or 0.0 for node in nodes)
        assert total / len(nodes) ** 0.7 == pytest.approx(output.score, abs=1e-5)


def test_play_step_and_scrub_by_mouse(visit: Open):
    page = visit("beams", prompt=PROMPT, **BEAMS, seed=3, run=True)
    finished(page)
    last = int(page.get_attribute(".player input", "max"))
    final = page.locator(".node").count()
    page.click("[aria-label='First step']")
    assert page.locator(".player output").text_content() == f"step 0 of {last}"
    assert page.locator(".node").count() == 1
    page.click("[aria-label='Step forward']")
    assert page.locator(".node").count() == 5  # the prompt and four beams
    page.click(".play")
    until(page, "+document.querySelector('.player input').value >= 3")
    page.click("text=Pause")
    now = page.input_value(".player input")
    page.wait_for_timeout(900)
    assert page.input_value(".player input") == now
    box = page.locator(".player input").bounding_box()
    page.mouse.click(box["x"] + box["width"] - 3, box["y"] + box["height"] / 2)
    assert page.locator(".node").count() == final
    page.click("[aria-label='First step']")
    for _ in range(3):
        page.click("[aria-label='Step forward']")
    page.click(".node.dropped >> nth=0")
    assert "given up at step" in page.text_content(".details")
    assert page.locator("[role=treeitem][aria-selected=true]").count() == 1


def test_the_beam_tree_by_keyboard_alone(visit: Open):
    page = visit("beams", prompt=PROMPT, **BEAMS, seed=3)
    tab_to(page, "button.primary")
    press(page, "Enter")
    finished(page)
    tab_to(page, ".player input")
    press(page, "Home", "ArrowRight", "ArrowRight")
    assert page.locator(".player output").text_content().startswith("step 2 ")
    tab_to(page, "[role=treeitem]")
    press(page, "ArrowRight", "ArrowRight")
    until(page, "document.activeElement.getAttribute('aria-level') === '3'")
    press(page, "ArrowLeft")
    until(page, "document.activeElement.getAttribute('aria-level') === '2'")
    press(page, "ArrowDown")
    assert page.get_attribute("[role=treeitem][aria-selected=true]", "aria-posinset") == "2"
    assert page.locator(".details h3").count() == 1


def test_a_recorded_tree_works_without_the_server(visit: Open):
    page = visit("beams", prompt=PROMPT, **BEAMS, seed=3, run=True)
    finished(page)
    page.wait_for_load_state("networkidle")
    page.context.set_offline(True)
    page.click("[aria-label='First step']")
    assert page.locator(".node").count() == 1
    page.click("[aria-label='Last step']")
    assert page.locator(".node").count() > 12
    page.context.set_offline(False)


@pytest.mark.parametrize(
    ("strategy", "options"),
    [
        ("diverse_beam", {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5}),
        ("constrained_beam", {"num_beams": 4, "force_words": ["forest"]}),
        ("stochastic_beam", {"num_beams": 4}),
        ("beam_sample", {"num_beams": 4}),
    ],
)
def test_other_searches_have_a_tree_too(visit: Open, lm: unspool.LanguageModel, strategy: str, options: dict[str, Any]):
    page = visit("beams", prompt=PROMPT, strategy=strategy, options={**options, "max_new_tokens": 8}, seed=5, run=True)
    finished(page)
    trace = lm.generate(PROMPT, strategy=strategy, max_new_tokens=8, seed=5, trace=True, **options).trace
    assert trace is not None
    shown = {int(each) for each in page.eval_on_selector_all(".node", "all => all.map(e => e.dataset.node)")}
    assert {node.id for node in trace.path(0)} <= shown


# --- comparison, speculation, structure -------------------------------------------------------------------------------


def test_a_comparison_has_pythons_figures(visit: Open, lm: unspool.LanguageModel):
    page = visit("compare", prompt=PROMPT, entries=ENTRIES, tokens=15, seed=4)
    page.click("button.primary")
    page.wait_for_selector(".figuretable")
    entries = {each["name"]: {"strategy": each["strategy"], **each["options"]} for each in ENTRIES}
    wanted = lm.compare(PROMPT, entries, max_new_tokens=15, seed=4)
    for field in ("mean_logprob", "distinct_2", "rep_3", "num_tokens"):
        found = numbers(page, f"[data-figure={field}]", "data-value")
        assert found == pytest.approx([getattr(each, field) for each in wanted.figures.values()], abs=1e-5)
    assert page.locator("article").count() == 2


def test_a_comparison_by_keyboard_alone(visit: Open):
    page = visit("compare", prompt=PROMPT, entries=ENTRIES, tokens=4, seed=4)
    tab_to(page, "form > button")
    press(page, "Enter")
    assert page.locator(".entry").count() == 3
    tab_to(page, ".entry:nth-of-type(3) summary")
    press(page, "Enter")
    tab_to(page, "#e2-option-top_k")
    page.keyboard.type("3")
    press(page, "Enter")
    page.wait_for_selector(".figuretable")
    assert page.locator(".figuretable tbody tr").count() == 3


def test_speculation_counts_what_the_engine_counts(visit: Open, lm: unspool.LanguageModel):
    page = run_view(visit, "speculation", prompt=PROMPT, **SPECULATION, seed=3)
    wanted, trace = traced(lm, "assisted", SPECULATION)
    accepted, drafted, passes = map(int, re.findall(r"(\d+) of (\d+) guesses accepted in (\d+) passes", str(trace))[0])
    assert passes == wanted.usage.forward_passes
    figures = {
        name: float(page.text_content(f"[data-figure={name}]")) for name in ("accepted", "drafted", "passes", "saved")
    }
    assert figures == {
        "accepted": accepted,
        "drafted": drafted,
        "passes": passes,
        "saved": wanted.usage.completion_tokens - passes,
    }
    assert page.locator(".passes .good").count() == accepted
    assert page.locator(".passes .bad").count() == drafted - accepted


def test_speculation_by_keyboard_alone(visit: Open):
    page = visit("speculation")
    tab_to(page, "button.primary")
    press(page, "Enter")
    finished(page)
    assert page.locator(".passes li").count() > 3


def test_structure_shows_the_tokens_that_the_grammar_allows(visit: Open, lm: unspool.LanguageModel):
    page = run_view(visit, "structure", prompt=PROMPT, **STRUCTURE, seed=3)
    wanted = lm.generate(PROMPT, strategy="sample", seed=3, trace=True, **STRUCTURE["options"])
    trace = wanted.trace
    assert trace is not None
    rows = [
        next(each for step in trace.steps for each in step.rows if each.node == node.parent) for node in trace.path(0)
    ]
    assert numbers(page, ".strip [data-allowed]", "data-allowed") == [each.num_allowed for each in rows]
    digit = next(place for place, node in enumerate(trace.path(0)) if node.text.strip().isdigit())
    page.click(f".strip button >> nth={digit}")
    page.wait_for_selector(f"[data-num-allowed='{rows[digit].num_allowed}']")
    chosen = page.get_attribute(".chips .good", "data-token")
    assert int(chosen) == trace.path(0)[digit].token


def test_structure_by_keyboard_alone(visit: Open):
    page = visit("structure", prompt=PROMPT, strategy="greedy", options={"max_new_tokens": 20})
    tab_to(page, "#option-regex")
    page.keyboard.type("(cat|dog)s?")
    tab_to(page, "#option-max_new_tokens")
    press(page, "Enter")
    finished(page)
    tab_to(page, ".strip button")
    press(page, "ArrowRight")
    page.wait_for_selector("[data-num-allowed]")
    assert page.get_attribute(".strip button:nth-child(2)", "aria-pressed") == "true"


# --- the whole page ---------------------------------------------------------------------------------------------------

VIEWS = {
    "next": {"prompt": PROMPT, "next": {"top_p": 0.9}, "tree": [[-1, 444, " there"], [0, 310, " was"]], "at": 0},
    "generate": {"prompt": PROMPT, "strategy": "greedy", "options": {"max_new_tokens": 8}, "run": True, "pick": 2},
    "beams": {"prompt": PROMPT, **BEAMS, "run": True, "step": 4},
    "compare": {"prompt": PROMPT, "entries": ENTRIES, "tokens": 8, "run": True},
    "speculation": {"prompt": PROMPT, **SPECULATION, "run": True},
    "structure": {"prompt": PROMPT, **STRUCTURE, "run": True, "pick": 1},
}


def ready(page: Any, view: str) -> None:
    if view == "next":
        settled(page)
    else:
        finished(page)
    if view == "structure":
        page.wait_for_selector("[data-num-allowed]")


@pytest.mark.parametrize("view", VIEWS)
def test_the_link_of_a_view_restores_it(browser: Any, address: str, view: str):
    with opened(browser) as go:
        page = go(f"{address}/{link(view, seed=3, **VIEWS[view])}")
        ready(page, view)
        page.click("text=Copy link")
        first = page.inner_text(".main")
        url = page.url
    with opened(browser) as go:
        page = go(url)
        ready(page, view)
        page.wait_for_timeout(200)

        def without_times(text: str) -> list[str]:
            return [line for line in text.splitlines() if " ms" not in line and " s " not in line and line[-2:] != " s"]

        assert without_times(page.inner_text(".main")) == without_times(first)


@pytest.mark.parametrize("view", VIEWS)
def test_a_narrow_screen_needs_no_sideways_scrolling(browser: Any, address: str, view: str):
    with opened(browser, viewport={"width": 360, "height": 780}, has_touch=True, is_mobile=True) as go:
        page = go(f"{address}/{link(view, seed=3, **VIEWS[view])}")
        ready(page, view)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_views_are_reached_from_the_head(visit: Open):
    page = visit("next")
    for name in ("Generate", "Beam tree", "Compare", "Speculation", "Structure", "Next token"):
        page.click(f"nav >> text={name}")
        assert page.get_attribute("nav [aria-current]", "aria-current") == "page"
        assert page.title().startswith(name)
    page.go_back()
    until(page, "document.title.startsWith('Structure')")


def test_the_theme_follows_the_system_and_the_button(browser: Any, address: str):
    background = "getComputedStyle(document.body).backgroundColor"
    with opened(browser, color_scheme="dark") as go:
        page = go(f"{address}/")
        dark = page.evaluate(background)
        page.click("[aria-label='Change between light and dark']")
        light = page.evaluate(background)
        assert dark != light
        page.reload()
        page.wait_for_selector("main")
        assert page.evaluate(background) == light


def test_a_link_of_another_model_says_so(visit: Open):
    page = visit("next", prompt=PROMPT, model="another")
    page.wait_for_selector(".warning")
    assert "another" in page.text_content(".warning")
    settled(page)


@pytest.mark.parametrize("broken", ["#next=%7B", "#next=5", '#beams={"options":[],"prompt":7,"run":"yes"}', "#nothing"])
def test_a_broken_link_opens_a_usable_page(browser: Any, address: str, broken: str):
    with opened(browser) as go:
        page = go(f"{address}/{broken}")
        page.wait_for_selector("#prompt")
        assert page.input_value("#prompt") == PROMPT
