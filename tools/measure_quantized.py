"""Measure the perplexity of the embedded model with fewer bits, and write the table of docs/quantized.md.

    python tools/measure_quantized.py            # all 32 held-out tales: about two minutes

Each token of the tales is scored after at least half a context. Another CPU can round the last digit differently.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import unspool  # noqa: E402
from tests.held_out import perplexity, tales  # noqa: E402

PAGE = ROOT / "docs" / "quantized.md"
HEAD = "| Weights | Bits per weight | Perplexity | Change |\n|---|---|---|---|\n"
WAYS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("float32", "32", {"dtype": "float32"}),
    ("bfloat16", "16", {"dtype": "bfloat16"}),
    ('`quantize="int8"`', "8", {"quantize": "int8"}),
    ('`quantize="int4"`', "5", {"quantize": "int4"}),
)


def table() -> str:
    """Return the table in Markdown."""
    rows, plain = [], None
    for name, bits, options in WAYS:
        found = perplexity(unspool.load(**options), tales())
        plain = plain or found
        change = "" if found == plain else f"{found / plain - 1:+.2%}".replace("%", " %")
        rows.append(f"| {name} | {bits} | {found:.2f} | {change} |\n")
        print(rows[-1], end="", flush=True)
    return HEAD + "".join(rows)


def main() -> None:
    page = PAGE.read_text()
    written, count = re.subn(re.escape(HEAD) + r"(\|.*\n)*", lambda _: new, page) if (new := table()) else ("", 0)
    if count != 1:
        raise SystemExit(f"{PAGE.name} has {count} tables with the head\n{HEAD}")
    PAGE.write_text(written)


if __name__ == "__main__":
    main()
