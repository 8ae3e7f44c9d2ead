"""Waits of the event loop that wake it once: every other turn costs a quiet server's client some hundredths of a millisecond.

A request is read by a decoder's thread, which queues it itself, and computed by the policy's thread: `answer_of` hears of the answer alone.
`ended_by` breaks such a wait off, from a timer or because a client has gone, without a task of its own around what is awaited.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any, TypeVar

T = TypeVar("T")


async def answer_of(job: Future[Future[T]], seconds_left: Callable[[], float], late: Callable[[], Exception]) -> T:
    """The result of the future that `job` gives. Whoever is cancelled here cancels both, also one that `job` is still to give.

    Raises:
        Exception: that of `job` or of its future; `late()`, where no time is left behind `job`.
    """
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[T] = loop.create_future()
    is_read = False  # nothing in here holds `job`, which keeps what it calls: such a circle would stay until a garbage collection

    def tell(found: Future[Any]) -> None:  # in whatever thread
        if not loop.is_closed():
            loop.call_soon_threadsafe(_settle, answer, found)

    def follow(read: Future[Future[T]]) -> None:  # in the thread that reads
        nonlocal is_read
        is_read = True
        if read.cancelled() or read.exception() is not None:
            tell(read)
            return
        read.result().add_done_callback(tell)
        if not seconds_left() and not loop.is_closed():
            loop.call_soon_threadsafe(end)

    def end() -> None:
        if is_read and not answer.done():  # else `follow` looks at the clock
            answer.set_exception(late())

    timer = loop.call_later(seconds_left(), end)
    job.add_done_callback(follow)
    try:
        return await answer
    finally:
        timer.cancel()
        if not job.cancel():
            job.add_done_callback(_cancel_result)


def _settle(answer: asyncio.Future[T], found: Future[T]) -> None:
    if answer.done():
        return
    if found.cancelled():
        answer.cancel()
    elif (error := found.exception()) is not None:
        answer.set_exception(error)
    else:
        answer.set_result(found.result())


def _cancel_result(job: Future[Future[Any]]) -> None:
    if not job.cancelled() and job.exception() is None:
        job.result().cancel()


@contextmanager
def ended_by(error: Callable[[], Exception]) -> Iterator[Callable[[], None]]:
    """What the current task awaits within is broken off once what this yields is called, by the event loop.

    Raises:
        Exception: `error()`, where that happened.
    """
    task = asyncio.current_task()
    assert task is not None
    is_inside, is_ended = True, False

    def end() -> None:
        nonlocal is_ended
        if is_inside and not is_ended:
            is_ended = True
            task.cancel()

    try:
        yield end
    except asyncio.CancelledError:
        if not is_ended or _others_cancel(task):
            raise
    finally:
        is_inside = False
    if is_ended:
        raise error()


def _others_cancel(task: asyncio.Task[Any]) -> bool:
    """Takes one cancellation of `task` back; whether there was another one, as far as this Python tells (3.11 and later)."""
    uncancel = getattr(task, "uncancel", None)
    return bool(uncancel()) if uncancel is not None else False
