"""Plain English: the count of constructions that make our text hard to read can only fall.

Counts them in docstrings, comments and other strings of src, and in the text of docs outside of code blocks. A change
that adds one fails; a change that removes some lowers the limit here.
"""

from __future__ import annotations

import io
import re
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

CONSTRUCTIONS = {
    "what, as a noun clause": r"\bwhat\b",
    "where, often for 'if'": r"\bwhere\b",
    "whose": r"\bwhose\b",
    "who": r"\bwho\b",
    "one that": r"\b(?:one|ones) that\b",
    "nobody, nothing": r"\b(?:nobody|no one)\b",
    "is no, are no": r"\b(?:is|are|has|have) (?:no|(?-i:none))\b",  # not Python's None
    "is to, are to": r"\b(?:is|are) to\b",
    "may": r"\bmay\b",
    "so it is": r"\b(?:so it is|it does|they are not|they do not)\.",
    "as it stands": r"\b(?:stands?|lies) (?:in|on|there|behind|before)\b",
    "had rather, had better": r"\bhad (?:rather|better)\b",
}
PATTERN = re.compile("|".join(CONSTRUCTIONS.values()), re.IGNORECASE)

LIMITS = {"src": 21, "docs": 8}


def texts_of(source: str) -> list[str]:
    """Return the comments and strings of a Python file."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return [token.string for token in tokens if token.type in (tokenize.COMMENT, tokenize.STRING)]


def prose_of(page: str) -> list[str]:
    """Return a page without its code blocks and code in backticks."""
    return [re.sub(r"`[^`]*`", "", re.sub(r"(?ms)^```.*?^```", "", page))]


def counts(part: str) -> dict[str, int]:
    """Return how many constructions each file of the part has, most first."""
    if part == "src":
        pages = {path: texts_of(path.read_text(encoding="utf-8")) for path in (ROOT / "src").rglob("*.py")}
    else:
        written = [*(ROOT / "docs").glob("*.md"), *(ROOT / "docs" / "guide").glob("*.md"), ROOT / "README.md"]
        generated = ("options.md", "compatibility.md")
        pages = {path: prose_of(path.read_text(encoding="utf-8")) for path in written if path.name not in generated}
    found = {str(path.relative_to(ROOT)): sum(len(PATTERN.findall(text)) for text in pages[path]) for path in pages}
    return dict(sorted(found.items(), key=lambda pair: -pair[1]))


@pytest.mark.parametrize("part", LIMITS)
def test_hard_constructions_only_become_fewer(part: str) -> None:
    found = counts(part)
    total, most = sum(found.values()), list(found.items())[:8]
    assert total <= LIMITS[part], f"{total} constructions, at most {LIMITS[part]} allowed; most in {most}"


if __name__ == "__main__":
    for part in LIMITS:
        print(part, sum(counts(part).values()), dict(list(counts(part).items())[:40]))
