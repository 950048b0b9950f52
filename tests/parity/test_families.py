"""Each family, tiny and random, by each option: token for token what transformers writes, or a reason why not.

A reason that no longer holds fails as well. docs/compatibility.md is the same table for readers.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import transformers

from tests.parity import results
from tests.parity.families import CELLS, GROUPS, KNOWN, LABELS, REASONS, examine, expected_word, path_of
from tests.sampling import sampled

ROOT = Path(__file__).resolve().parents[2]
REASONED = [cell for cell in CELLS if cell in KNOWN]
UNREASONED = [cell for cell in CELLS if cell not in KNOWN]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("family", "option"), sampled(UNREASONED, 100) + sampled(REASONED, 20))
def test_a_cell_is_as_the_table_says(family: str, option: str) -> None:
    found = examine(family, option)
    assert found.word == expected_word(family, option), found.detail


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("family", "column"), sampled(results.CELLS, 40))
def test_a_result_is_as_the_table_says(family: str, column: str) -> None:
    fault = results.fault_of(family, column)
    assert bool(fault) == ((family, column) in results.KNOWN), fault


@pytest.mark.parametrize("group", GROUPS)
def test_the_families_of_a_group_run_on_its_path(group: str) -> None:
    for family in sampled(GROUPS[group], 3):
        assert path_of(family).startswith(group), path_of(family)


def test_no_reason_is_given_for_what_is_not_in_the_table_or_twice() -> None:
    assert set(KNOWN) <= set(CELLS)
    assert len(KNOWN) == sum(len(reason.families) * len(reason.options) for reason in REASONS)


def test_every_letter_of_the_page_has_one_reason() -> None:
    page = (ROOT / "docs" / "compatibility.md").read_text(encoding="utf-8")
    explained = re.findall(r"^- \*\*(\w+)\*\* ", page, re.MULTILINE)
    used = {cell.strip() for line in page.splitlines() if line.startswith("|") for cell in line.split("|")[2:-1]}
    assert sorted(set(explained)) == explained and {cell for cell in used if len(cell) == 1} == {"✓", *explained}


def test_every_family_that_unspool_promises_is_in_the_table() -> None:
    promised = ["GPT-2", "GPT-NeoX (Pythia)", "Llama", "Code Llama", "Mistral", "Qwen2", "Qwen3", "OPT", "Phi", "Gemma"]
    promised += ["Bloom", "Falcon", "CTRL", "OpenAI GPT", "XLNet", "XLM", "Mamba", "T5", "BART", "Pegasus", "Marian"]
    promised += ["Whisper", "GIT"]
    page = (ROOT / "docs" / "compatibility.md").read_text(encoding="utf-8")
    rows = "".join(line.split("|")[1] for line in page.splitlines() if line.startswith("|"))
    assert [name for name in promised if name not in rows] == []
    assert set(LABELS) == {family for families in GROUPS.values() for family in families}


def test_the_page_is_up_to_date() -> None:
    page = (ROOT / "docs" / "compatibility.md").read_text(encoding="utf-8")
    if f"those of transformers {transformers.__version__}. " not in page:
        pytest.skip("the page shows the tables of another version of transformers")
    done = subprocess.run([sys.executable, ROOT / "tools" / "write_compatibility.py", "--check"], capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
