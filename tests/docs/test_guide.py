"""docs/guide: pages in two languages with equal parts, links that exist, and pictures that the code draws."""

import re
from pathlib import Path

import pytest

import unspool
from tests.docs.blocks import find_blocks
from tools.guide.paths import repeated
from tools.guide.svg import Picture
from tools.guide.trees import places
from tools.write_guide import GUIDE, PICTURES, with_blocks_of
from unspool.records import TraceNode
from unspool.results.trace import Trace
from unspool.strategies.registry import STRATEGIES

PAGES = sorted(path.name for path in GUIDE.glob("*.md"))
BOTH = [*sorted(GUIDE.glob("*.md")), *sorted((GUIDE / "zh").glob("*.md"))]
LINK = re.compile(r"\]\(([^)\s]+)\)")
LARGEST = 60_000


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def prose(page: str) -> str:
    """Return a page without fenced blocks, in which `#` begins a comment."""
    return re.sub(r"(?ms)^```.*?^```", "", page)


def levels(page: str) -> list[int]:
    """Return the levels of the headings in order."""
    return [len(marks) for marks in re.findall(r"(?m)^(#+) ", prose(page))]


def images(page: str) -> list[str]:
    return [Path(target).name for target in re.findall(r"!\[[^\]]+\]\(([^)]+)\)", page)]


def anchors(page: str) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"(?m)^#+ (.*)$", prose(page))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def texts(picture: str) -> list[str]:
    """Return the words of a picture, without numbers, which round differently on other machines."""
    return [words for words in re.findall(r"<text[^>]*>([^<]*)</text>", picture) if not re.search(r"\d", words)]


def test_both_languages_have_the_same_pages():
    assert sorted(path.name for path in (GUIDE / "zh").glob("*.md")) == PAGES


@pytest.mark.parametrize("name", PAGES)
def test_the_languages_have_equal_headings_pictures_tables_and_blocks(name: str):
    english, chinese = (text_of(folder / name) for folder in (GUIDE, GUIDE / "zh"))
    assert levels(english) == levels(chinese)
    assert images(english) == images(chinese)
    blocks = [[(block.language, block.mode, block.text) for block in find_blocks(page)] for page in (english, chinese)]
    assert blocks[0] == blocks[1], "run `python tools/write_guide.py`"
    rows = [len(re.findall(r"(?m)^\|", prose(page))) for page in (english, chinese)]
    assert rows[0] == rows[1]


@pytest.mark.parametrize("page", BOTH, ids=lambda page: str(page.relative_to(GUIDE)))
def test_every_link_leads_to_a_file_and_a_heading(page: Path):
    for target in LINK.findall(prose(text_of(page))):
        path, _, anchor = target.partition("#")
        found = (page.parent / path).resolve() if path else page
        assert found.exists(), target
        assert not anchor or anchor in anchors(text_of(found)), target


def test_every_picture_is_shown_and_every_shown_picture_can_be_drawn():
    shown = {name for page in PAGES for name in images(text_of(GUIDE / page))}
    stored = {path.name for path in (GUIDE / "pictures").iterdir()}
    assert shown == stored == {f"{name}.svg" for name in PICTURES}


def test_every_strategy_has_a_picture():
    assert set(STRATEGIES) <= set(PICTURES)


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_is_small_and_follows_light_and_dark(name: str):
    picture = text_of(GUIDE / "pictures" / f"{name}.svg")
    assert len(picture.encode()) < LARGEST
    assert "prefers-color-scheme: dark" in picture and 'class="back"' in picture and "<title>" in picture


@pytest.mark.model
def test_the_pictures_are_those_of_the_model():
    """Tokens and words are compared; all pictures are drawn with one model."""
    lm = unspool.load()
    stale = [name for name in PICTURES if texts(PICTURES[name](lm).svg()) != texts(text_of(picture_file(name)))]
    assert not stale, "run `make docs`"


def picture_file(name: str) -> Path:
    return GUIDE / "pictures" / f"{name}.svg"


def test_blocks_of_the_original_replace_those_of_the_translation():
    original = "# A\n\n```python\nprint(1)\nprint(2)\n```\n```text output\n1\n2\n```\n"
    translation = "# 甲\n\n```python\n```\n文字\n```text output\nold\n```\n"
    assert with_blocks_of(original, translation) == (
        "# 甲\n\n```python\nprint(1)\nprint(2)\n```\n文字\n```text output\n1\n2\n```\n"
    )
    with pytest.raises(ValueError):
        with_blocks_of(original, "no blocks")


def test_repeated_ngrams_are_marked_from_their_second_occurrence_on():
    assert repeated([1, 2, 3, 1, 2, 4], n=2) == [False, False, False, True, True, False]
    assert repeated([1, 1, 1], n=2) == [False, True, True]


def test_places_rank_the_nodes_of_a_position_by_their_sum():
    """The prompt has two children; the better child's only child is worse than the other's."""
    nodes = [node(0, None, 0.0), node(1, 0, -1.0), node(2, 0, -2.0), node(3, 1, -3.0), node(4, 2, -1.0)]
    trace = Trace(
        version=1, model="", strategy="beam", seed=0, options={}, prompt=None, prompt_token_ids=(), processors=(),
        nodes=tuple(nodes), steps=(), outputs=(),
    )  # fmt: skip
    found = places(trace, "score")
    assert {key: (place.position, place.rank, place.total) for key, place in found.items()} == {
        0: (0, 1, 0.0), 1: (1, 1, -1.0), 2: (1, 2, -2.0), 3: (2, 2, -4.0), 4: (2, 1, -3.0),
    }  # fmt: skip


def node(key: int, parent: int | None, score: float) -> TraceNode:
    return TraceNode(
        id=key, parent=parent, token=None if parent is None else key, logprob=score, score=score, ends=None,
        state="live", step=0, branch=0, draft=False, committed=None, dropped_at=None, why=None, outputs=(),
    )  # fmt: skip


def test_hostile_texts_are_escaped_in_a_picture():
    picture = Picture(100, 20, title="a <b> & c")
    picture.chip(0, 0, "</text><script>")
    drawn = picture.svg()
    assert "<script>" not in drawn and "a &lt;b&gt; &amp; c" in drawn
