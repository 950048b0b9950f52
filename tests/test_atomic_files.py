"""Files are replaced in one step: the old content or the new content, and no remains of a failed write."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from unspool.atomic_files import write_atomically


def test_a_new_file_and_a_replaced_one(tmp_path: Path):
    file = tmp_path / "a.txt"
    write_atomically(file, "ä\n")
    file.chmod(0o640)
    write_atomically(file, "b")
    assert file.read_text(encoding="utf-8") == "b"
    assert file.stat().st_mode & 0o777 == 0o640
    assert list(tmp_path.iterdir()) == [file]


def test_a_link_keeps_pointing_to_its_file(tmp_path: Path):
    real, link = tmp_path / "real", tmp_path / "link"
    real.write_text("old")
    link.symlink_to(real)
    write_atomically(link, "new")
    assert link.is_symlink() and real.read_text() == "new"


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file = tmp_path / "a.txt"
    file.write_text("old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space left") as caught:
        write_atomically(file, "new")
    assert caught.value.filename == str(file)
    assert file.read_text() == "old" and list(tmp_path.iterdir()) == [file]


def test_a_missing_folder_is_named(tmp_path: Path):
    with pytest.raises(FileNotFoundError) as caught:
        write_atomically(tmp_path / "no" / "a.txt", "text")
    assert caught.value.filename == str(tmp_path / "no" / "a.txt")
