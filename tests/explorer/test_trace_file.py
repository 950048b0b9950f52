"""A trace as one HTML file: opened from the disk in a real browser, it shows Python's numbers and asks for nothing."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import unspool
from tests.explorer.conftest import PATIENCE, numbers
from tests.explorer.test_page import press, tab_to, until
from tests.explorer.test_safety import AXE, hostile_model
from unspool.results import Trace
from unspool.results.render.web_files import web_files

PROMPT = "Once upon a time"


def traced(lm: unspool.LanguageModel, prompt: str = PROMPT, **options: Any) -> Trace:
    found = lm.generate(prompt, seed=3, trace=True, **options).trace
    assert found is not None
    return found


@pytest.fixture
def show(browser: Any, tmp_path: Path) -> Iterator[Any]:
    """Open the file of a trace without a network. At the end: no error, no warning, and no other request."""
    faults: list[str] = []
    requests: set[str] = set()
    contexts = []

    def go(trace: Trace, **how: Any) -> Any:
        file = tmp_path / "trace.html"
        trace.to_html(file)
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, "offline": True, **how})
        context.set_default_timeout(PATIENCE)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda said: faults.append(said.text))
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("request", lambda request: requests.add(request.url.split(",")[0]))
        page.goto(file.as_uri())
        page.wait_for_selector("main")
        return page

    yield go
    for context in contexts:
        context.close()
    assert not faults, faults
    assert {each for each in requests if not each.startswith("data:")} <= {(tmp_path / "trace.html").as_uri()}


def test_the_file_of_a_beam_search_has_pythons_numbers(show: Any, lm: unspool.LanguageModel):
    trace = traced(lm, num_beams=4, num_return_sequences=2, max_new_tokens=10)
    page = show(trace)
    for place, output in enumerate(trace.outputs):
        page.click(f"text=output {place + 1} >> nth=0")
        assert numbers(page, "[data-logprob]", "data-logprob") == [output.logprob]
        assert numbers(page, ".facts [data-score]", "data-score") == [output.score]
        probabilities = [math.exp(node.logprob or 0.0) for node in trace.path(place)]
        assert numbers(page, ".piece", "data-probability") == pytest.approx(probabilities)
    assert numbers(page, ".hypotheses [data-score]", "data-score") == [output.score for output in trace.outputs]
    totals = {0: 0.0}
    for node in trace.nodes[1:]:
        assert node.parent is not None
        totals[node.id] = totals[node.parent] + (node.score or 0.0)
    shown = [int(each) for each in numbers(page, ".treelist [role=treeitem]", "data-item")]
    assert {node.id for place in (0, 1) for node in trace.path(place)} <= {*shown}
    assert numbers(page, "[data-total]", "data-total") == pytest.approx([totals[each] for each in shown if each])


def test_alternatives_of_a_sample_and_its_log_probabilities(show: Any, lm: unspool.LanguageModel):
    trace = traced(lm, temperature=0.9, top_p=0.9, max_new_tokens=12)
    page = show(trace)
    page.hover(".piece >> nth=4")
    page.wait_for_selector(".alternatives")
    node = trace.path(0)[4]
    row = next(each for step in trace.steps for each in step.rows if each.node == node.parent)
    found = numbers(page, ".alternatives >> nth=0 >> [data-probability]", "data-probability")
    assert found == [each.probability for each in row.best]
    assert page.locator(".alternatives .link").count() == 0, "a file cannot branch"
    totals = numbers(page, "[data-total]", "data-total")
    assert totals[-1] == pytest.approx(trace.outputs[0].logprob), "scores of samples are logits, and are not added"


def test_it_is_scrubbed_by_keyboard_alone(show: Any, lm: unspool.LanguageModel):
    page = show(traced(lm, num_beams=4, max_new_tokens=10))
    tab_to(page, ".piece")
    press(page, "ArrowRight", "ArrowRight")
    page.wait_for_selector("text=token 3:")
    tab_to(page, ".player input")
    press(page, "Home")
    until(page, "document.querySelectorAll('.node').length === 1")
    press(page, "ArrowRight")
    until(page, "document.querySelectorAll('.node').length === 5")
    tab_to(page, "[role=treeitem]")
    press(page, "ArrowRight")
    until(page, "document.activeElement.getAttribute('aria-level') === '2'")


def test_drafts_are_counted_as_in_the_terminal(show: Any, lm: unspool.LanguageModel):
    trace = traced(lm, "The king said: I am the king. Then the king", prompt_lookup_num_tokens=3, max_new_tokens=20)
    page = show(trace)
    wanted = re.findall(r"(\d+) of (\d+) guesses accepted in (\d+) passes", str(trace))[0]
    names = ("accepted", "drafted", "passes")
    assert tuple(page.text_content(f"[data-figure={name}]") for name in names) == wanted


def test_a_hostile_trace_harms_nothing(show: Any):
    prompt = "0123"
    found = hostile_model().generate(prompt, num_beams=3, max_new_tokens=6, seed=3, trace=True).trace
    assert found is not None
    closing = Trace.from_dict({**found.to_dict(), "model": "</script><!--", "strategy": "<img src=x onerror=1>"})
    text = closing.to_html()
    assert text.isascii() or not re.search("[\u202a-\u202e\u2066-\u2069]", text)
    assert text.count("</script>") == 3 and "<!--" not in text and "<img" not in text
    data = re.search(r'<script type="application/json" id="trace">(.*?)</script>', text, re.DOTALL)
    assert data is not None and json.loads(data[1])["nodes"] == closing.to_dict()["nodes"]
    page = show(closing)
    assert page.evaluate("window.broken") is None
    assert page.locator("img").count() == 0
    assert page.locator("script").count() == 3, "the import map, the trace and the module"
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    seen = page.inner_text("main")
    assert "onerror" in seen and not any(each in seen for each in ("\u202e", "\u2066", "\x1b", "x" * 2100))


def test_injected_scripts_do_not_run(browser: Any, lm: unspool.LanguageModel, tmp_path: Path):
    """Even markup that got into the page could not run: it lacks the nonce."""
    traced(lm, max_new_tokens=2).to_html(tmp_path / "trace.html")
    page = browser.new_page()
    page.goto((tmp_path / "trace.html").as_uri())
    page.wait_for_selector("main")
    blocked = page.evaluate(
        """async () => {
            const blocked = [];
            document.addEventListener("securitypolicyviolation", (event) => blocked.push(event.effectiveDirective));
            for (const source of [null, "data:text/javascript,window.broken=1"]) {
                const script = document.createElement("script");
                if (source) script.src = source; else script.textContent = "window.broken = 1";
                document.body.append(script);
            }
            while (blocked.length < 2) await new Promise((resolve) => setTimeout(resolve, 20));
            return [blocked.length, window.broken ?? null];
        }"""
    )
    page.close()
    assert blocked == [2, None]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_serious_problem_in_the_file(show: Any, lm: unspool.LanguageModel, scheme: str):
    if not AXE.exists():
        pytest.skip("axe-core is not installed (npm install), so accessibility is not checked")
    page = show(traced(lm, num_beams=3, num_return_sequences=2, max_new_tokens=6), color_scheme=scheme, bypass_csp=True)
    page.evaluate(AXE.read_text())
    found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")["violations"]
    assert not [(each["id"], each["nodes"][0]["target"]) for each in found if each["impact"] in ("serious", "critical")]


def test_the_theme_button_and_a_narrow_screen(show: Any, lm: unspool.LanguageModel):
    page = show(traced(lm, num_beams=3, max_new_tokens=12), viewport={"width": 360, "height": 780}, color_scheme="dark")
    background = "getComputedStyle(document.body).backgroundColor"
    dark = page.evaluate(background)
    page.click("[aria-label='Change between light and dark']")
    assert page.evaluate(background) != dark
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_the_file_is_the_same_each_time_and_has_unmodified_modules(lm: unspool.LanguageModel):
    from urllib.parse import unquote

    trace = traced(lm, max_new_tokens=2)
    text = trace.to_html()
    assert text == trace.to_html()
    found = re.search(r'<script type="importmap"[^>]*>(.*?)</script>', text)
    assert found is not None
    modules = json.loads(found[1])["imports"]
    assert {"preact", "preact/hooks", "htm", "render/trace_view.js", "render/trace_file.js"} <= modules.keys()
    assert not any(name.startswith(("app/", "views/")) for name in modules)
    files = web_files()
    for name, url in modules.items():
        if name.startswith("render/"):
            assert unquote(url.split(",", 1)[1]).encode() == files[name]
    policy = re.search(r'Content-Security-Policy" content="(.*?)"', text)
    assert policy is not None and policy[1].startswith("default-src 'none'; script-src 'nonce-")
    assert "unsafe" not in policy[1]


def test_a_file_needs_its_folder_and_replaces_the_old_one(lm: unspool.LanguageModel, tmp_path: Path):
    trace = traced(lm, max_new_tokens=2)
    file = tmp_path / "trace.html"
    file.write_text("old")
    assert trace.to_html(file) == file.read_text(encoding="utf-8")
    with pytest.raises(FileNotFoundError):
        trace.to_html(tmp_path / "missing" / "trace.html")
    assert [each.name for each in tmp_path.iterdir()] == ["trace.html"]
