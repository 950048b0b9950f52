"""Huge pages: tensors keep their values, memory is aligned and shared, and nothing raises if the kernel refuses."""

from __future__ import annotations

import gc
import mmap
import sys
import weakref

import pytest
import torch

from unspool.errors import OptionError
from unspool.machine import huge_pages
from unspool.machine.huge_pages import PAGE, VARIABLE, HugePages, wants_huge_pages

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="huge pages are for Linux")


@pytest.fixture(autouse=True)
def no_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)


def begin_huge(pages: HugePages) -> None:
    """Fill the first chunk, which has usual pages."""
    pages.bytes(huge_pages._FIRST_CHUNK)


@linux_only
def test_the_weights_of_a_tiny_model_take_no_huge_page(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    chunk = huge_pages._chunk

    def counted(size: int) -> torch.Tensor:
        made.append(size)
        return chunk(size)

    monkeypatch.setattr(huge_pages, "_chunk", counted)
    pages = HugePages()
    tiny = [pages.empty((100, 100), torch.float32) for _ in range(12)]
    assert not made and all(each.data_ptr() % 64 == 0 for each in tiny)
    pages.empty((100, 1000), torch.float32)
    assert len(made) == 1


@linux_only
def test_tensors_share_chunks_at_the_start_of_huge_pages() -> None:
    pages = HugePages()
    begin_huge(pages)
    first = pages.empty((3, 5), torch.float32)
    second = pages.empty((7,), torch.bfloat16)
    large = pages.empty((40 << 20,), torch.uint8)
    assert first.data_ptr() % PAGE == 0 and large.data_ptr() % PAGE == 0
    assert second.data_ptr() == first.data_ptr() + 64, "aligned behind the first one"
    first.fill_(1.5)
    second.fill_(2)
    assert first.shape == (3, 5) and bool((first == 1.5).all()) and bool((second == 2).all())


@linux_only
def test_a_chunk_is_freed_with_its_last_tensor(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[weakref.ref[object]] = []

    class Watched(mmap.mmap):
        pass

    def watching(*args: object, **options: object) -> mmap.mmap:
        memory = Watched(*args, **options)  # type: ignore[arg-type]
        made.append(weakref.ref(memory))
        return memory

    monkeypatch.setattr(huge_pages.mmap, "mmap", watching)
    pages = HugePages()
    begin_huge(pages)
    first, second = pages.empty((4,), torch.float32), pages.empty((4,), torch.float32)
    del pages, first
    gc.collect()
    assert made[0]() is not None
    second.fill_(1)
    del second
    gc.collect()
    assert len(made) == 1 and made[0]() is None


@linux_only
def test_a_copy_is_on_huge_pages_if_it_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    pages = HugePages()
    small, large = torch.randn(10), torch.randn(600, 1024)
    asked: list[torch.Size] = []
    empty = pages.empty
    monkeypatch.setattr(pages, "empty", lambda shape, dtype: (asked.append(shape), empty(shape, dtype))[1])
    found = pages.copy(small)
    assert torch.equal(found, small) and found.data_ptr() != small.data_ptr() and asked == []
    assert pages.copy(small.view(2, 5).T).is_contiguous()
    copied = pages.copy(large)
    assert torch.equal(copied, large)
    assert copied.data_ptr() != large.data_ptr() and asked == [large.shape]
    transposed = pages.copy(large.T)
    assert torch.equal(transposed, large.T)


@linux_only
def test_memory_can_be_written_outside_of_inference_mode() -> None:
    pages = HugePages()
    with torch.inference_mode():
        made = pages.empty((4,), torch.float32)
    made.zero_()
    made += 1
    assert made.tolist() == [1] * 4


def test_a_kernel_that_refuses_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    class Refusing(mmap.mmap):
        def madvise(self, *_: object) -> None:
            raise OSError(22, "Invalid argument")

    monkeypatch.setattr(huge_pages.mmap, "mmap", Refusing)
    made = HugePages().empty((3,), torch.float32).fill_(2)
    assert made.tolist() == [2, 2, 2]


def test_huge_pages_can_be_turned_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "0")
    assert not wants_huge_pages()
    large = torch.randn(600, 1024)
    assert HugePages().copy(large) is large
    assert HugePages().empty((2, 3), torch.bfloat16).shape == (2, 3)
    monkeypatch.setenv(VARIABLE, "yes")
    with pytest.raises(OptionError, match=r"UNSPOOL_HUGE_PAGES.*must be 0 or 1.*'yes'"):
        wants_huge_pages()
