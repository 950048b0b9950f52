"""GET /docs: the OpenAPI document as a page, rendered here, so that it works without a network.

Knows the form of the document only. The page works without scripts, and its Content-Security-Policy allows nothing from
other servers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from html import escape
from typing import Any, Final

from fastapi import APIRouter, Request
from starlette.responses import HTMLResponse, Response

PATHS: Final = ("/docs", "/docs/style.css", "/openapi.json")
"""Routes with the same content for every caller."""

_POLICY: Final = {"Content-Security-Policy": "default-src 'self'"}

_STYLE: Final = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h2 { border-top: 1px solid #8886; margin-top: 2rem; padding-top: 1rem; font-size: 1.1rem; }
table { border-collapse: collapse; width: 100%; }
th, td { border-bottom: 1px solid #8884; padding: 0.3rem 1rem 0.3rem 0; text-align: left; vertical-align: top; }
code { font-family: ui-monospace, monospace; }
"""


def router() -> APIRouter:
    """Return the routes."""
    routes = APIRouter(include_in_schema=False)

    @routes.get("/docs")
    async def docs(request: Request) -> Response:
        return HTMLResponse(page(request.app.openapi()), headers=_POLICY)

    @routes.get("/docs/style.css")
    async def style() -> Response:
        return Response(_STYLE, media_type="text/css")

    return routes


def page(document: Mapping[str, Any]) -> str:
    """Return the HTML of an OpenAPI document: its routes, each with the fields of its body."""
    info = document["info"]
    routes = [(path, method, route) for path, methods in document["paths"].items() for method, route in methods.items()]
    parts = [
        '<!doctype html><html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{escape(info['title'])}</title>",
        '<link rel="stylesheet" href="/docs/style.css"></head><body>',
        f"<h1>{escape(info['title'])} {escape(info['version'])}</h1>",
        '<p>The same as a document for programs: <a href="/openapi.json">/openapi.json</a>.</p><ul>',
        *(f'<li><a href="#{_anchor(path, method)}">{_name(path, method)}</a></li>' for path, method, _ in routes),
        "</ul>",
        *(_route(document, *each) for each in routes),
        "</body></html>",
    ]
    return "\n".join(parts)


def _name(path: str, method: str) -> str:
    return f"<code>{escape(method.upper())} {escape(path)}</code>"


def _anchor(path: str, method: str) -> str:
    return escape(f"{method}{path.replace('/', '-').replace('{', '').replace('}', '')}")


def _route(document: Mapping[str, Any], path: str, method: str, route: Mapping[str, Any]) -> str:
    head = f'<h2 id="{_anchor(path, method)}">{_name(path, method)}</h2><p>{escape(route.get("summary", ""))}</p>'
    content = route.get("requestBody", {}).get("content", {}).get("application/json")
    if content is None:
        return head
    schema = _resolved(document, content["schema"])
    required = schema.get("required", ())
    rows = [
        f"<tr><td><code>{escape(name)}</code>{' (required)' if name in required else ''}</td>"
        f"<td>{escape(' or '.join(dict.fromkeys(_kinds(field))))}</td>"
        f"<td>{escape(field.get('description', ''))}</td></tr>"
        for name, field in schema.get("properties", {}).items()
    ]
    if not rows:
        return head
    return f"{head}<table><tr><th>Field</th><th>Type</th><th>Meaning</th></tr>{''.join(rows)}</table>"


def _resolved(document: Mapping[str, Any], schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a schema, or the component that it refers to."""
    if "$ref" not in schema:
        return schema
    found: Mapping[str, Any] = document.get("components", {}).get("schemas", {})[schema["$ref"].rsplit("/", 1)[1]]
    return found


def _kinds(schema: Mapping[str, Any]) -> Iterator[str]:
    """Yield the names of a schema's types, without null."""
    if "$ref" in schema:
        yield "object"
    for each in (*schema.get("anyOf", ()), *schema.get("oneOf", ())):
        yield from _kinds(each)
    kinds = schema.get("type", ())
    for kind in [kinds] if isinstance(kinds, str) else kinds:
        if kind == "array" and "items" in schema:
            yield f"list of {' or '.join(dict.fromkeys(_kinds(schema['items'])))}"
        elif kind != "null":
            yield kind
