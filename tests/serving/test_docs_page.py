"""GET /docs works without a network: all that it loads comes from this server."""

from __future__ import annotations

from html.parser import HTMLParser
from typing import Any
from urllib.parse import urljoin

import pytest

from tests.serving.conftest import serving
from unspool.serving.http.docs_page import page

httpx = pytest.importorskip("httpx2", reason="comes with openai")

pytestmark = pytest.mark.model


class Links(HTMLParser):
    """Collects tags, the addresses that they name, and ids."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.ids: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href")]
        self.ids += [value or "" for name, value in attrs if name == "id"]
        assert not any(name == "style" or name.startswith("on") for name, _ in attrs), "the policy forbids it"


def test_the_page_needs_this_server_only(address: str) -> None:
    answer = httpx.get(f"{address}/docs")
    assert answer.status_code == 200 and answer.headers["content-security-policy"] == "default-src 'self'"
    links = Links(answer.text)
    assert not {"script", "style", "iframe", "img"} & set(links.tags)
    for target in links.addresses:
        if target.startswith("#"):
            assert target[1:] in links.ids
        else:
            found = urljoin(f"{address}/docs", target)
            assert found.startswith(address) and httpx.get(found).status_code == 200
    assert httpx.get(f"{address}/docs/style.css").headers["content-type"].startswith("text/css")


def test_the_page_has_each_route_and_field(address: str) -> None:
    text = httpx.get(f"{address}/docs").text
    document = httpx.get(f"{address}/openapi.json").json()
    for path, methods in document["paths"].items():
        for method, route in methods.items():
            assert f"<code>{method.upper()} {path}</code>" in text and route["summary"]
    for name in ("prompt", "messages", "num_beams", "cache_salt", "tokens"):
        assert f"<code>{name}</code>" in text
    assert "text or list" not in text and "string or list of integer or list of string" in text


def test_names_are_escaped() -> None:
    hostile: dict[str, Any] = {
        "info": {"title": "<script>", "version": "<b>"},
        "paths": {"/<i>": {"get": {"summary": "<u>"}}},
    }
    assert not {"script", "b", "i", "u"} & set(Links(page(hostile)).tags)


def test_the_page_needs_no_key(tale: Any) -> None:
    with serving(tale, api_key=("k",)) as (address, _):
        for path in ("/docs", "/docs/style.css", "/openapi.json"):
            assert httpx.get(f"{address}{path}").status_code == 200
        assert httpx.get(f"{address}/docs", headers={"Host": "evil.example"}).status_code == 403
