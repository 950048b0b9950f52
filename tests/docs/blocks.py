"""Finds the fenced blocks of a Markdown file and runs them; CONTRIBUTING.md says what a fence may say."""

from __future__ import annotations

import contextlib
import doctest
import io
import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FENCE = re.compile(r"^(?P<mark>`{3,})(?P<info>[^\n`]*)\n(?P<text>.*?)^(?P=mark)[ ]*$", re.MULTILINE | re.DOTALL)
RUNNABLE = ("python", "console")
MODES = ("", "check")


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """One fenced block. reason: why it is not run, or None; line: of its first line of text, from 1."""

    language: str
    mode: str
    reason: str | None
    text: str
    line: int


class BlockError(AssertionError):
    """A block does not do what its page says."""


def pages(root: Path) -> list[Path]:
    """Return the pages with blocks to run: README.md and docs/. Translations in docs/guide/zh have equal blocks."""
    return [root / "README.md", *(path for path in sorted((root / "docs").rglob("*.md")) if path.parent.name != "zh")]


def find_blocks(page: str) -> list[Block]:
    """Return the blocks in order. Raises BlockError for a fence that asks for something we do not know."""
    return [_block(match, page.count("\n", 0, match.start("text")) + 1) for match in FENCE.finditer(page)]


def _block(match: re.Match[str], line: int) -> Block:
    language, _, mode = match["info"].strip().partition(" ")
    mode, reason = mode.strip(), None
    if mode.startswith("no-run"):
        reason = mode.removeprefix("no-run").lstrip(":").strip()
        mode = ""
        if not reason:
            raise BlockError(f"line {line}: a block that is not run says why: `{language} no-run: the reason`")
    if language in RUNNABLE and mode not in MODES:
        raise BlockError(f"line {line}: unknown words {mode!r} after {language}")
    return Block(language=language, mode=mode, reason=reason, text=match["text"], line=line)


def run_page(page: str, name: str) -> int:
    """Run the blocks of a page in the current folder. Returns how many ran.

    Raises:
        BlockError: a command failed, or printed something else than the page shows.
        Exception: whatever a python block raised, with the page's own line numbers.
    """
    names: dict[str, Any] = {"__name__": "__main__"}
    printed: str | None = None
    count = 0
    for block in find_blocks(page):
        if block.language == "text" and block.mode == "output":
            if printed is None:
                raise BlockError(f"{name}:{block.line}: no python block before this output has run")
            compare(block.text, printed, f"{name}:{block.line}")
        elif block.reason is not None or block.language not in RUNNABLE:
            printed = None
        else:
            printed = _run_python(block, name, names) if block.language == "python" else _run_console(block, name)
            count += 1
    return count


def compare(shown: str, printed: str, where: str) -> None:
    """Raise BlockError unless the texts agree; `...` in the shown one stands for anything, line ends do not count."""
    want, got = (_normalized(text) for text in (shown, printed))
    if not doctest.OutputChecker().check_output(want, got, doctest.ELLIPSIS):
        raise BlockError(f"{where}: the page shows\n{want}\nbut this was printed\n{got}")


def _normalized(text: str) -> str:
    return "\n".join(line.rstrip() for line in text.strip("\n").split("\n")) + "\n"


def _run_python(block: Block, name: str, names: dict[str, Any]) -> str:
    # Blank lines before the code make the line numbers of a traceback the page's own.
    code = compile("\n" * (block.line - 1) + block.text, name, "exec", dont_inherit=True)
    with contextlib.redirect_stdout(io.StringIO()) as output:
        exec(code, names)
    return output.getvalue()


def _run_console(block: Block, name: str) -> None:
    lines = block.text.splitlines()
    starts = [index for index, line in enumerate(lines) if line.startswith("$ ")]
    for start, end in zip(starts, [*starts[1:], len(lines)], strict=True):
        command = lines[start].removeprefix("$ ")
        where = f"{name}:{block.line + start}"
        if not command.startswith("unspool") and "| unspool " not in command:
            if block.mode == "check":
                raise BlockError(f"{where}: only `unspool` commands can be checked, not {command!r}")
            continue
        printed = run_command(command, where)
        if block.mode == "check":
            compare("\n".join(lines[start + 1 : end]), printed, where)


def run_command(command: str, where: str) -> str:
    """Run one `unspool ...` line. Returns what it wrote to standard output. Raises BlockError where it fails."""
    words = shlex.split(command, comments=True)
    if any(word in ("|", "<", ">", ">>", "&&") for word in words):
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
        done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, env={**os.environ, "PATH": path})
        status, output, errors = done.returncode, done.stdout, done.stderr
    else:
        status, output, errors = _run_inside(words[1:])
    if status != 0:
        raise BlockError(f"{where}: {command!r} ended with {status}: {errors or output}")
    return output


def _run_inside(arguments: list[str]) -> tuple[int, str, str]:
    """Run the command line in this process: importing torch anew for each command would take seconds."""
    from unspool.cli.main import main

    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main(arguments)
    return status, out.getvalue(), err.getvalue()
