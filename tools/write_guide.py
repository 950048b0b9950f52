"""Write the pictures of docs/guide, and the code of its Chinese pages.

    python tools/write_guide.py                # all pictures and pages
    python tools/write_guide.py beam greedy    # these pictures alone

The pictures are drawn from the embedded model. The Chinese pages have the code blocks and outputs of the English ones.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import unspool  # noqa: E402
from tests.docs.blocks import find_blocks  # noqa: E402
from tools.guide import beams, drafts, misconceptions, next_token, paths  # noqa: E402
from tools.guide.svg import Picture  # noqa: E402
from unspool.model import LanguageModel  # noqa: E402

GUIDE: Final = ROOT / "docs" / "guide"

PICTURES: Final[dict[str, Callable[[LanguageModel], Picture]]] = {
    draw.__name__: draw
    for draw in (
        next_token.next_token,
        next_token.temperature,
        next_token.cuts,
        next_token.typical,
        next_token.eta,
        next_token.xtc,
        next_token.penalties,
        paths.greedy,
        paths.sample,
        paths.best_of,
        paths.contrastive,
        paths.dola,
        paths.guidance,
        beams.beam,
        beams.streaming,
        beams.beam_sample,
        beams.diverse_beam,
        beams.constrained_beam,
        beams.stochastic_beam,
        drafts.assisted,
        drafts.prompt_lookup,
        drafts.structured,
        misconceptions.top_p_boundary,
        misconceptions.repetition_penalty,
        paths.beam_loop,
        misconceptions.seeds,
    )
}
"""Name of the file --> the function that draws it."""


def with_blocks_of(original: str, translation: str) -> str:
    """Return the translation with the text of each fenced block of the original, in order.

    Raises:
        ValueError: if the pages have different numbers of blocks.
    """
    lines = translation.splitlines(keepends=True)
    shift = 0
    for ours, theirs in zip(find_blocks(translation), find_blocks(original), strict=True):
        start, count = ours.line - 1 + shift, len(ours.text.splitlines())
        fresh = theirs.text.splitlines(keepends=True)
        lines[start : start + count] = fresh
        shift += len(fresh) - count
    return "".join(lines)


def _write(path: Path, text: str) -> None:
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")
        print(f"{path.relative_to(ROOT)}: written")


def main() -> None:
    asked = sys.argv[1:]
    unknown = set(asked) - set(PICTURES)
    if unknown:
        sys.exit(f"no picture has the name {', '.join(sorted(unknown))}; the names are {', '.join(PICTURES)}")
    lm = unspool.load()
    for name in asked or PICTURES:
        _write(GUIDE / "pictures" / f"{name}.svg", PICTURES[name](lm).svg())
    if not asked:
        for page in sorted((GUIDE / "zh").glob("*.md")):
            original = (GUIDE / page.name).read_text(encoding="utf-8")
            _write(page, with_blocks_of(original, page.read_text(encoding="utf-8")))


if __name__ == "__main__":
    main()
