"""Streams for asyncio. An engine's steps happen on a thread that lives while such a stream does; tasks share its batch."""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Any

from graftwork import _abi, _callbacks
from graftwork.errors import ClosedError
from graftwork.event import Event
from graftwork.stream import Answer, closed

if TYPE_CHECKING:
    from graftwork.engine import Engine


# Seconds between deliveries to a loop while events keep coming. Waking a loop takes tens of microseconds, more than a token of
# a tiny model; what is waited for longer than this is delivered at once, as is what ends an answer.
TOGETHER = 0.001


class _Post:
    """Carries what happens on other threads into an event loop, with one wake-up for all that waits."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._lock = threading.Lock()
        self._waiting: list[_AsyncInbox] = []
        self._called = False

    def tell(self, inbox: _AsyncInbox, at_once: bool) -> bool:
        """Has the loop look into an inbox, soon or at once. Says whether there is still a loop."""
        with self._lock:
            self._waiting.append(inbox)
            called, self._called = self._called, True
        try:
            if not called:
                self.loop.call_soon_threadsafe(self._deliver)
            elif at_once:
                self.loop.call_soon_threadsafe(self._wake)
        except RuntimeError:
            return False  # The loop is closed.
        return not self.loop.is_closed()

    def _deliver(self) -> None:
        """In the loop: wakes who waits, now and again, until nobody does."""
        if self._wake():
            self.loop.call_later(TOGETHER, self._deliver)
            return
        with self._lock:
            self._called = bool(self._waiting)
        if self._called:
            self._deliver()

    def _wake(self) -> bool:
        """In the loop: wakes who waits. Says whether somebody did."""
        with self._lock:
            waiting, self._waiting = self._waiting, []
        for inbox in waiting:
            waiter = inbox.waiter
            if waiter is not None and not waiter.done():
                waiter.set_result(None)
        return bool(waiting)


class _AsyncInbox:
    """Hears the events of a request for an AsyncStream. Holds neither the stream nor the engine."""

    def __init__(self, post: _Post, stepper: Stepper) -> None:
        self.post = post
        self.stepper = stepper
        self.events: deque[Event] = deque()
        self.waiter: asyncio.Future[None] | None = None
        self.cancelled = False
        self.ended = False
        self.raised: BaseException | None = None

    def hear(self, event: Event) -> bool:
        """On whichever thread steps."""
        if self.cancelled:
            return True
        self.events.append(event)
        return not self.post.tell(self, event.last)

    def keep(self, exception: BaseException) -> None:
        """Keeps what interrupted hear()."""
        self.fail(exception)

    def fail(self, exception: BaseException) -> None:
        """Ends the stream with an exception."""
        self.raised = exception
        self.cancelled = True
        self.post.tell(self, True)

    def dropped(self) -> None:
        """Nothing follows."""
        self.ended = True
        self.stepper.left(self)
        self.post.tell(self, True)


class Stepper:
    """The thread that steps for an engine's asynchronous streams, while there are any."""

    def __init__(self, engine: Engine) -> None:
        self._engine = weakref.ref(engine)
        self._lock = threading.RLock()
        self._inboxes: set[_AsyncInbox] = set()
        self._running = False
        # By the id of the loop, which is there as long as its post.
        self._posts: weakref.WeakValueDictionary[int, _Post] = weakref.WeakValueDictionary()

    def submit(self, engine: Engine, accept: Callable[[_AsyncInbox], int], logprobs: bool) -> AsyncStream:
        """Has a request accepted, with an inbox for its events, for the running event loop."""
        loop = asyncio.get_running_loop()
        with self._lock:
            post = self._posts.get(id(loop))
            if post is None:
                post = self._posts[id(loop)] = _Post(loop)
            inbox = _AsyncInbox(post, self)
            self._inboxes.add(inbox)
        try:
            stream = AsyncStream(engine, inbox, accept(inbox), logprobs)
        except BaseException:
            self.left(inbox)
            raise
        with self._lock:
            if not self._running and self._inboxes:
                self._running = True
                threading.Thread(target=self._run, args=(engine,), name="graftwork-step").start()
        return stream

    def left(self, inbox: _AsyncInbox) -> None:
        """A request has had its last event."""
        with self._lock:
            self._inboxes.discard(inbox)

    def _run(self, engine: Engine) -> None:
        while True:
            with self._lock:
                if not self._inboxes:
                    self._running = False
                    return
            try:
                thrown = engine._step()[1]
            except ClosedError:
                with self._lock:
                    self._running = False
                return  # Whoever closed it has dropped the requests, or will.
            except Exception as exception:
                self._fail(exception)
            else:
                if thrown is not None:
                    _callbacks.report(thrown)

    def _fail(self, exception: Exception) -> None:
        """A step failed, for everybody."""
        with self._lock:
            inboxes = list(self._inboxes)
            if getattr(exception, "status", 0) == _abi.GW_ERR_INTERNAL:
                self._inboxes.clear()  # Nothing will ever come.
        for inbox in inboxes:
            inbox.fail(exception)


class AsyncStream(AsyncIterator[Event]):
    """The events of one request, in order, for `async for`. All streams of an engine run together, in one batch.

    The request was submitted when this was made. Cancelling the task that waits for the next event, closing the stream,
    leaving its `async with` block or letting go of it cancels the request.
    """

    def __init__(self, engine: Engine, inbox: _AsyncInbox, id: int, logprobs: bool) -> None:
        self._engine = engine
        self._logprobs = logprobs
        self._inbox = inbox
        self._over = False
        self.id = id
        """The request's id."""

    async def __anext__(self) -> Event:
        """The next event. A request that failed raises its exception."""
        inbox = self._inbox
        while not inbox.events:
            if self._over:
                raise StopAsyncIteration
            if inbox.raised is not None:
                self._over = True
                self._cancel()
                raise inbox.raised
            if inbox.ended:
                self._over = True
                raise closed()
            if inbox.waiter is not None:
                raise RuntimeError("two tasks wait for one stream")
            inbox.waiter = inbox.post.loop.create_future()
            try:
                # An event that came before there was a waiter has woken nobody.
                if not inbox.events and not inbox.ended and inbox.raised is None:
                    await inbox.waiter
            except asyncio.CancelledError:
                self._cancel()
                raise
            finally:
                inbox.waiter = None
        event = inbox.events.popleft()
        if event.kind != _abi.GW_EVENT_TOKEN:
            self._over = True
            failure = event.error
            if failure is not None:
                raise failure
        return event

    async def text(self) -> AsyncIterator[str]:
        """The pieces of the answer's text that are not empty."""
        async for event in self:
            if event.text:
                yield event.text

    async def result(self) -> Answer:
        """The rest of the answer, when it is whole."""
        answer = Answer()
        async for event in self:
            answer.add(event, self._logprobs)
        return answer

    def _cancel(self) -> None:
        self._over = True
        self._inbox.cancelled = True
        self._inbox.events.clear()
        if not self._inbox.ended:
            self._engine._cancel_quietly(self.id)

    async def aclose(self) -> None:
        """Cancels the request, unless it has ended."""
        self._cancel()

    async def __aenter__(self) -> AsyncStream:
        return self

    async def __aexit__(self, *exception: Any) -> None:
        self._cancel()

    def __del__(self) -> None:
        if not getattr(self, "_over", True):
            self._cancel()

    def __repr__(self) -> str:
        return f"<AsyncStream of request {self.id}>"
