"""The cache of converted files: made once, whole or not at all, and made again if damaged."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from unspool import ModelError
from unspool.loading.gguf import cache as converted


def write(text: str = "weights") -> Callable[[Path], dict[str, Any]]:
    def call(folder: Path) -> dict[str, Any]:
        (folder / "model").write_text(text)
        return {"made": text}

    return call


def test_a_folder_is_found_once_it_is_made() -> None:
    assert converted.find("a") is None
    assert converted.make("a", write()) == {"made": "weights"} == converted.find("a")


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "model").write_text("weight"),
        lambda folder: (folder / "model").write_text("WEIGHTS"),
        lambda folder: (folder / "model").unlink(),
        lambda folder: (folder / "more").write_text("x"),
        lambda folder: (folder / "unspool_cache.json").unlink(),
        lambda folder: (folder / "unspool_cache.json").write_text("{"),
        lambda folder: (folder / "unspool_cache.json").write_text("[]"),
    ],
)
def test_a_damaged_folder_is_made_again(damage: Callable[[Path], Any], cache: Path) -> None:
    converted.make("a", write())
    time.sleep(0.01)  # longer than a tick of the file system
    damage(cache / "a")
    assert converted.find("a") is None
    assert converted.make("a", write("again")) == {"made": "again"} == converted.find("a")
    assert [path.name for path in cache.iterdir()] == ["a"]


def test_a_failed_conversion_leaves_nothing(cache: Path) -> None:
    def fail(folder: Path) -> dict[str, Any]:
        (folder / "model").write_text("half")
        raise ModelError("broken")

    with pytest.raises(ModelError, match="broken"):
        converted.make("a", fail)
    assert list(cache.iterdir()) == []


def test_what_a_killed_process_left_is_removed_after_a_day(cache: Path) -> None:
    for name, age in ((".partial-old", 2 * 24 * 3600), (".partial-new", 60)):
        (cache / name).mkdir(parents=True)
        os.utime(cache / name, (time.time() - age,) * 2)
    converted.make("a", write())
    assert sorted(path.name for path in cache.iterdir()) == [".partial-new", "a"]


def test_of_two_processes_the_first_one_wins(cache: Path) -> None:
    def slow(folder: Path) -> dict[str, Any]:
        converted.make("a", write("first"))
        return write("second")(folder)

    converted.make("a", slow)
    assert (cache / "a" / "model").read_text() == "first"
    assert [path.name for path in cache.iterdir()] == ["a"]


def test_a_cache_that_cannot_be_written_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr("huggingface_hub.constants.HF_ASSETS_CACHE", str(tmp_path / "file"))
    with pytest.raises(ModelError, match="cannot write converted weights to .*; choose another folder with HF_HOME"):
        converted.make("a", write())


def test_identity_is_that_of_the_content_and_not_of_the_path(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    first.write_bytes(bytes(range(256)) * 10_000)
    shutil.copy2(first, second)
    assert converted.identity(first, "1") == converted.identity(second, "1")
    assert converted.identity(first, "2") != converted.identity(first, "1")
    known, status = converted.identity(second, "1"), second.stat()
    content = bytearray(second.read_bytes())
    content[1000] ^= 1
    second.write_bytes(content)
    os.utime(second, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert converted.identity(second, "1") != known
    os.utime(first, ns=(0, 0))
    assert converted.identity(first, "1") != known
