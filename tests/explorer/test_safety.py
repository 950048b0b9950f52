"""Hostile tokens harm nothing, axe finds no serious problem, and the page stays within its budgets."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

import pytest

import unspool
from tests.explorer.conftest import link, opened
from tests.explorer.test_page import VIEWS, finished, ready, settled
from tests.serving.conftest import serving
from unspool.explorer import add_explorer
from unspool.results.render.web_files import web_files
from unspool.runtimes.toy import ToyRuntime

ROOT = Path(__file__).resolve().parents[2]

HOSTILE = [
    "</script><script>window.broken = 1</script>",
    "<img src=x onerror='window.broken = 2'>",
    "\u202egnorts\u202c\u2066",
    "x" * 10_000,
    "<svg onload=window.broken=3>",
    "\x00\x1b[31m\u200b\ufeff",
    "javascript:window.broken=4",
    "${window.broken=5}",
    "' onmouseover='window.broken=6",
    "<|end|>",
]


class HostileTokenizer:
    """Each token is one of the hostile texts; a prompt of digits names tokens."""

    def __call__(self, text: str, **how: Any) -> dict[str, list[int]]:
        return {"input_ids": [int(each) for each in text if each.isdigit()] or [0]}

    def decode(self, ids: Any, **how: Any) -> str:
        return "".join(HOSTILE[int(each)] for each in ids)

    def convert_ids_to_tokens(self, token: int) -> str:
        return HOSTILE[token]


def hostile_model() -> unspool.LanguageModel:
    count = len(HOSTILE)
    runtime = ToyRuntime(lambda tokens: [1.0 + (sum(tokens) + index) % 5 for index in range(count)], count)
    return unspool.LanguageModel(runtime, HostileTokenizer())


def test_hostile_tokens_harm_nothing(browser: Any):
    states: dict[str, dict[str, Any]] = {
        "next": {"prompt": "01", "next": {"top_k": 5}, "tree": [[-1, 0, HOSTILE[0]], [0, 1, HOSTILE[1]]], "at": 1},
        "generate": {"strategy": "sample", "options": {"max_new_tokens": 12}, "run": True, "pick": 0},
        "beams": {"strategy": "beam", "options": {"num_beams": 3, "max_new_tokens": 6}, "run": True},
        "compare": {
            "entries": [{"name": "<b onclick=alert(1)>", "strategy": "greedy", "options": {}}],
            "tokens": 8,
            "run": True,
        },
        "speculation": {
            "strategy": "assisted",
            "options": {"prompt_lookup_num_tokens": 2, "max_new_tokens": 9},
            "run": True,
        },
    }
    with serving(hostile_model(), extend=add_explorer) as (address, _), opened(browser) as go:
        for view, state in states.items():
            page = go(f"{address}/{link(view, **{'prompt': '0123', 'seed': 3, **state})}")
            settled(page) if view == "next" else finished(page)
            assert page.evaluate("window.broken") is None
            assert page.locator("img").count() == 1, "only the page's own icon"
            assert page.locator("script").count() == 2, "the import map and the module"
            assert page.locator("main svg").count() == page.locator(".level svg").count(), "the columns of the tree"
            text = page.inner_text("main")
            assert not any(each in text for each in ("\u202e", "\u2066", "\x1b", "x" * 2100))
            if view == "next":
                assert "onerror" in text and "⟨U+202E⟩" in text and "xxx…" in text
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
            page.close()


def test_a_hostile_prompt_is_text(browser: Any, address: str):
    with opened(browser) as go:
        page = go(f"{address}/{link('next', prompt='<img src=x onerror=window.broken=1></textarea><script>', next={})}")
        settled(page)
        assert page.evaluate("window.broken") is None
        assert page.locator("main img").count() == 0


AXE = ROOT / "node_modules" / "axe-core" / "axe.min.js"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("view", VIEWS)
def test_axe_finds_no_serious_problem(browser: Any, address: str, view: str, scheme: str):
    if not AXE.exists():
        pytest.skip("axe-core is not installed (npm install), so accessibility is not checked")
    with opened(browser, color_scheme=scheme) as go:
        page = go(f"{address}/{link(view, seed=3, **VIEWS[view])}")
        ready(page, view)
        page.wait_for_timeout(400)
        page.evaluate("for (const each of document.querySelectorAll('details')) each.open = true")
        page.evaluate(AXE.read_text())
        found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")["violations"]
        serious = [
            (
                each["id"],
                each["impact"],
                [node["target"] for node in each["nodes"]][:4],
                each["nodes"][0]["failureSummary"],
            )
            for each in found
            if each["impact"] in ("serious", "critical")
        ]
        assert not serious, serious


def test_vendored_modules_are_unmodified():
    """The hashes are those of the files in the npm packages preact 11.2.0 and htm 3.1.1."""
    known = {
        "vendor/preact.mjs": "bdcbd9abdf2c77c5c45326eab42191e949222d479d0d5f69467387a77040cb55",
        "vendor/hooks.mjs": "e862ab2973aa6455eaa0f77c5d832d2157d6be59a17c8ba546550a575b58c6b4",
        "vendor/htm.mjs": "ab33dd3f38059b9be4d5f5350128eefb2356639c4e0bbe9d9e8b3ba75847e9e4",
    }
    found = {name: hashlib.sha256(content).hexdigest() for name, content in web_files().items() if "vendor/" in name}
    assert found == known
    licences = ROOT / "src" / "unspool" / "explorer" / "web" / "vendor"
    assert "Permission is hereby granted" in (licences / "LICENSE-preact").read_text()
    assert "Apache License" in (licences / "LICENSE-htm").read_text()


def test_the_page_names_no_other_host():
    for name, content in web_files().items():
        if not name.startswith("vendor/"):
            hosts = set(re.findall(r"https?://[\w.-]+", content.decode()))
            assert hosts <= {"http://www.w3.org"}, name  # the name of SVG's namespace


def test_no_module_writes_markup():
    """Text enters the page as text nodes only."""
    for name, content in web_files().items():
        if name.endswith(".js"):
            assert not re.search(
                r"innerHTML|outerHTML|insertAdjacent|document\.write|\beval\b|new Function", content.decode()
            )


def code_only(text: str) -> str:
    """Return JavaScript without comments and empty lines."""
    text = re.sub(r"/\*\*.*?\*/ ?", "", text, flags=re.DOTALL)
    return re.sub(r"\n\s*\n", "\n", re.sub(r"^\s*//.*$\n?", "", text, flags=re.MULTILINE))


def test_the_page_stays_within_its_budgets():
    """Comments, which hold the types, do not count."""
    files = web_files()
    own = sum(len(code_only(content.decode()).encode()) for name, content in files.items() if name.endswith(".js"))
    vendored = sum(len(content) for name, content in files.items() if name.startswith("vendor/"))
    assert own <= 60 * 1024
    assert vendored <= 20 * 1024
    assert len(files["style.css"]) <= 15 * 1024
