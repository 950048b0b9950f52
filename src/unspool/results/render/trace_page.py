"""A trace as one HTML file with the explorer's modules, which works offline and without a server.

Owns: the import map of `data:` URLs, the data block, and the content security policy of the file. The data block is
`Trace.to_dict()` without the parts that no view shows.
"""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any, Final
from urllib.parse import quote

from unspool.results.render.web_files import INDEX, web_files
from unspool.results.trace import Trace

_ENTRY: Final = "render/trace_file.js"
_IMPORT: Final = re.compile(r'\bfrom\s*"([^"]+)"')
_READABLE: Final = " !$'()*+,/:;=?@[]^`{|}~"
"""Characters that a `data:` URL in the import map can hold as they are."""

_POLICY: Final = (
    "default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; img-src data:; "
    "base-uri 'none'; form-action 'none'"
)
_PAGE: Final = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta name="referrer" content="no-referrer">
<title>Unspool trace</title>
<link rel="icon" href="{icon}">
<style nonce="{nonce}">
{style}</style>
<script type="importmap" nonce="{nonce}">{modules}</script>
<script type="application/json" id="trace">{trace}</script>
<script type="module" nonce="{nonce}">import "{entry}";</script>
</head>
<body>
<div id="app"><p class="loading">Drawing the trace …</p></div>
<noscript>This file needs JavaScript. `unspool trace` draws the trace in a terminal.</noscript>
</body>
</html>
"""


def trace_page(trace: Trace) -> str:
    """Return the file. The same trace gives the same file."""
    data = _embedded(_shown(trace))
    modules = _embedded({"imports": _modules()})
    style = web_files()["style.css"].decode()
    # A nonce from the content: text inside the trace cannot contain it, because the text changes it.
    nonce = hashlib.sha256("\n".join((style, modules, data)).encode()).hexdigest()
    return _PAGE.format(
        policy=_POLICY.format(nonce=nonce),
        nonce=nonce,
        icon=_data_url("image/svg+xml", "icon.svg"),
        style=style,
        modules=modules,
        trace=data,
        entry=_ENTRY,
    )


def _shown(trace: Trace) -> dict[str, Any]:
    """Return `to_dict()` without moves, and without candidates that no branch continued with: a sixth of the size."""
    values = trace.to_dict()
    for step in values["steps"]:
        step["moves"] = []
        for row in step["rows"]:
            row["candidates"] = [each for each in row["candidates"] if each["node"] is not None]
    return values


def _embedded(values: Any) -> str:
    """Return JSON in ASCII that cannot end its script element: no `<`, `>` or `&`."""
    text = json.dumps(values, allow_nan=False)
    return text.translate({ord(each): f"\\u{ord(each):04x}" for each in "<>&"})


def _modules() -> dict[str, str]:
    """Return the modules that the file needs: name in imports --> `data:` URL."""
    paths = _paths()
    found: dict[str, str] = {}
    wanted = [_ENTRY]
    while wanted:
        name = wanted.pop()
        if name not in found:
            found[name] = _data_url("text/javascript", paths[name])
            wanted += _IMPORT.findall(web_files()[paths[name]].decode())
    return dict(sorted(found.items()))


def _paths() -> dict[str, str]:
    """Return the page's import map by file: name in imports --> path in `web_files`."""
    (text,) = re.findall(r'<script type="importmap">(.*?)</script>', web_files()[INDEX].decode())
    found: dict[str, str] = {}
    for name, address in json.loads(text)["imports"].items():
        path = address.removeprefix("./explore/web/")
        if name.endswith("/"):
            found |= {name + file.removeprefix(path): file for file in web_files() if file.startswith(path)}
        else:
            found[name] = path
    return found


def _data_url(media_type: str, path: str) -> str:
    return f"data:{media_type};charset=utf-8,{quote(web_files()[path], safe=_READABLE)}"
