"""Every code block of README.md and docs/ does what its page says."""

from pathlib import Path

import pytest

from tests.docs.blocks import find_blocks, pages, run_page

ROOT = Path(__file__).resolve().parents[2]
PAGES = pages(ROOT)


@pytest.mark.model
@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_blocks_of_a_page_run(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    page = path.read_text()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "100")
    ran = run_page(page, str(path.relative_to(ROOT)))
    runnable = [block for block in find_blocks(page) if block.language in ("python", "console") and not block.reason]
    assert ran == len(runnable)
