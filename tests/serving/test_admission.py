"""The queue alone: order, room, and places whose clients leave or whose server ends."""

from __future__ import annotations

import asyncio

import pytest

from unspool.serving.errors import ApiError
from unspool.serving.execution.admission import Admission


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def test_requests_run_in_order_and_give_their_room_back() -> None:
    async def drill() -> list[int]:
        admission, order = Admission(2, 9), []

        async def request(number: int, count: int) -> None:
            async with admission.room(count):
                order.append(number)
                await asyncio.sleep(0.001)

        await asyncio.gather(*(request(number, count) for number, count in enumerate((1, 2, 1, 5, 1))))
        assert (admission.running, admission.waiting) == (0, 0)
        return order

    assert asyncio.run(drill()) == [0, 1, 2, 3, 4]


def test_a_client_that_leaves_in_the_moment_of_its_admission_holds_no_room() -> None:
    async def drill() -> None:
        admission = Admission(1, 9)
        leave = asyncio.Event()

        async def first() -> None:
            async with admission.room(1):
                await leave.wait()

        async def later() -> None:
            async with admission.room(1):
                await asyncio.sleep(0)

        running = asyncio.ensure_future(first())
        await settle()
        waiting = [asyncio.ensure_future(later()) for _ in range(3)]
        await settle()
        leave.set()
        await asyncio.sleep(0)  # the first request ends in this turn of the loop
        waiting[0].cancel()
        await asyncio.gather(running, *waiting, return_exceptions=True)
        assert (admission.running, admission.waiting) == (0, 0)

        leave.clear()
        running = asyncio.ensure_future(first())
        await settle()
        waiting = [asyncio.ensure_future(later()) for _ in range(3)]
        await settle()
        leave.set()
        waiting[0].cancel()  # its place is cancelled, and still in the queue when the first request ends
        done = await asyncio.gather(running, *waiting, return_exceptions=True)
        assert [type(each) for each in done] == [type(None), asyncio.CancelledError, type(None), type(None)]
        assert (admission.running, admission.waiting) == (0, 0)

    asyncio.run(drill())


def test_the_end_of_the_server_ends_waiting_requests() -> None:
    async def drill() -> None:
        admission = Admission(1, 9)

        async def request() -> None:
            async with admission.room(1):
                await asyncio.sleep(0.01)

        clients = [asyncio.ensure_future(request()) for _ in range(4)]
        await settle()
        admission.end_waiting(ApiError(503, "the server is shutting down"))
        first, *others = await asyncio.gather(*clients, return_exceptions=True)
        assert first is None and len(others) == 3 and all(isinstance(each, ApiError) for each in others)
        assert (admission.running, admission.waiting) == (0, 0)

    asyncio.run(drill())


def test_a_full_queue_turns_requests_away() -> None:
    async def drill() -> None:
        admission = Admission(1, 0)
        async with admission.room(1):
            with pytest.raises(ApiError) as caught:
                async with admission.room(1):
                    pass
        assert caught.value.status == 429 and admission.rejected == 1

    asyncio.run(drill())
