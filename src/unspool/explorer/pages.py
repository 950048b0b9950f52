"""The static files of the explorer, and their headers.

Owns the content security policy: scripts and styles come from this server only, and the inline import map by its hash.
"""

from __future__ import annotations

import base64
import hashlib
import re
from functools import cache
from pathlib import PurePosixPath
from typing import Final

from starlette.responses import Response

from unspool.results.render.web_files import INDEX, web_files

_TYPES: Final = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".mjs": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}


@cache
def content_security_policy() -> str:
    """Return the value of the header Content-Security-Policy."""
    page = web_files()[INDEX].decode()
    maps = re.findall(r'<script type="importmap">(.*?)</script>', page, re.DOTALL)
    hashes = " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(each.encode()).digest()).decode()}'" for each in maps)
    return (
        f"default-src 'self'; script-src 'self' {hashes}; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'; object-src 'none'"
    )


def page(path: str) -> Response | None:
    """Return one static file as an answer; None for an unknown path."""
    content = web_files().get(path)
    if content is None:
        return None
    headers = {
        "Cache-Control": "no-cache",
        "Content-Security-Policy": content_security_policy(),
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
    }
    return Response(content, headers=headers, media_type=_TYPES[PurePosixPath(path).suffix])
