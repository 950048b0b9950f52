"""Write docs/options.md from the option table; with --check, say whether it is up to date."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from unspool.config import option_table_markdown

PAGE = Path(__file__).resolve().parent.parent / "docs" / "options.md"


def main() -> int:
    """Return the exit code: 1 if --check finds the page stale."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 if the page is stale")
    text = option_table_markdown()
    if not parser.parse_args().check:
        PAGE.parent.mkdir(exist_ok=True)
        PAGE.write_text(text, encoding="utf-8")
        return 0
    if PAGE.exists() and PAGE.read_text(encoding="utf-8") == text:
        return 0
    print("docs/options.md is stale: run python tools/write_option_docs.py", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
