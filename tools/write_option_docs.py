"""Write docs/options.md, and the tables of docs/serving.md; with --check, say whether they are up to date."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from unspool.config import option_table_markdown
from unspool.serving.docs import filled

DOCS = Path(__file__).resolve().parent.parent / "docs"
PAGE, SERVING = DOCS / "options.md", DOCS / "serving.md"


def main() -> int:
    """Return the exit code: 1 if --check finds a stale page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 if the page is stale")
    pages = {PAGE: option_table_markdown(), SERVING: filled(SERVING.read_text(encoding="utf-8"))}
    if not parser.parse_args().check:
        for page, text in pages.items():
            page.write_text(text, encoding="utf-8")
        return 0
    stale = [page for page, text in pages.items() if page.read_text(encoding="utf-8") != text]
    for page in stale:
        print(f"docs/{page.name} is stale: run python tools/write_option_docs.py", file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
