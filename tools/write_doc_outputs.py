"""Update the outputs in README.md and docs/ to the output of their code.

    python tools/write_doc_outputs.py            # every page
    python tools/write_doc_outputs.py docs/guide.md

It updates `text output` blocks, and the output below the commands of `console check` blocks. Blocks with `...` are not
changed, because their text was selected by hand. Translations get their blocks from `tools/write_guide.py`.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.docs.blocks import Block, _run_python, find_blocks, pages, run_command  # noqa: E402


def checked_commands(block: Block) -> str:
    """Return a console block with the output below its commands."""
    lines = [line for line in block.text.splitlines() if line.startswith("$ ")]
    return "".join(f"{line}\n{tidy(run_command(line.removeprefix('$ '), line))}" for line in lines)


def tidy(text: str) -> str:
    """Return text without blanks at line ends and blank lines around it."""
    return "\n".join(line.rstrip() for line in text.strip("\n").splitlines()) + "\n"


def rewrite(page: str, name: str) -> str:
    """Return the page with current outputs."""
    names: dict[str, Any] = {"__name__": "__main__"}
    printed = ""
    lines = page.splitlines(keepends=True)
    shift = 0
    for block in find_blocks(page):
        new = None
        if block.language == "python" and block.reason is None:
            printed = _run_python(block, name, names)
        elif block.language == "text" and block.mode == "output":
            new = tidy(printed)
        elif block.language == "console" and block.mode == "check" and block.reason is None:
            new = checked_commands(block)
        if new is not None and "..." not in block.text:
            start, count = block.line - 1 + shift, len(block.text.splitlines())
            fresh = new.splitlines(keepends=True)
            lines[start : start + count] = fresh
            shift += len(fresh) - count
    return "".join(lines)


def main() -> None:
    os.environ.update(NO_COLOR="1", COLUMNS="100")
    asked = [Path(given).resolve() for given in sys.argv[1:]] or pages(ROOT)
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        for path in asked:
            page = path.read_text()
            written = rewrite(page, path.name)
            if written != page:
                path.write_text(written)
                print(f"{path.relative_to(ROOT)}: outputs written")


if __name__ == "__main__":
    main()
