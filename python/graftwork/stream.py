"""Streams: the events of one request, as an iterator."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from graftwork import _abi, _callbacks
from graftwork.errors import ClosedError, Error
from graftwork.event import Event, Logits, Logprob

if TYPE_CHECKING:
    from graftwork.engine import Engine


@dataclass
class Answer:
    """A whole answer."""

    text: str = ""
    tokens: list[int] = field(default_factory=list)
    finish: int = 0
    """GW_FINISH_..."""
    finish_reason: str = ""
    """"stop", "stop_text", "length" or "cancelled"."""
    logprobs: list[float] = field(default_factory=list)
    """Of each token, with `logprobs`."""
    top: list[tuple[Logprob, ...]] = field(default_factory=list)
    """For each token, with `top_logprobs`."""
    logits: list[Logits] = field(default_factory=list)
    """For each token, with `logits`."""

    def add(self, event: Event, logprobs: bool) -> None:
        """Adds what an event brings, its log-probability too if that was asked for."""
        self.text += event.text
        if event.kind == _abi.GW_EVENT_TOKEN:
            self.tokens.append(event.token)
            if logprobs:
                self.logprobs.append(event.logprob)
            if event.top:
                self.top.append(event.top)
            if event.logits is not None:
                self.logits.append(event.logits)
        elif event.kind == _abi.GW_EVENT_FINISHED:
            self.finish = event.finish
            self.finish_reason = event.finish_reason or ""


class Inbox:
    """Hears the events of a request for a Stream. Holds neither the stream nor the engine, so that both can go."""

    __slots__ = ("events", "cancelled", "ended", "kept")

    def __init__(self) -> None:
        self.events: deque[Event] = deque()
        self.cancelled = False
        self.ended = False
        self.kept: BaseException | None = None

    def hear(self, event: Event) -> bool:
        """Hears an event."""
        if not self.cancelled:
            self.events.append(event)
        return self.cancelled

    def keep(self, exception: BaseException) -> None:
        """Keeps what interrupted hear()."""
        if self.cancelled:
            _callbacks.report(exception)
        else:
            self.kept = _callbacks.joined(self.kept, exception)

    def take_kept(self) -> BaseException | None:
        """What was kept, for one who will tell."""
        kept, self.kept = self.kept, None
        return kept

    def dropped(self) -> None:
        """Nothing follows."""
        self.ended = True


class Stream(Iterator[Event]):
    """The events of one request, in order. All streams of an engine run together: waiting for one runs them all.

    The request was submitted when this was made. Closing the stream, leaving its `with` block or letting go of it
    cancels the request.
    """

    def __init__(self, engine: Engine, inbox: Inbox, id: int, logprobs: bool) -> None:
        self._engine = engine
        self._logprobs = logprobs
        self._inbox = inbox
        self._over = False
        self.id = id
        """The request's id."""

    def __next__(self) -> Event:
        """The next event; steps until there is one. A request that failed raises its exception."""
        inbox = self._inbox
        events = inbox.events
        while not events:
            if self._over:
                raise StopIteration
            self._wait()
        event = events.popleft()
        if event.kind != _abi.GW_EVENT_TOKEN:
            self._over = True
            failure = event.error
            if failure is not None:
                raise failure
        return event

    def _wait(self) -> None:
        """Steps once, for everybody."""
        inbox = self._inbox
        if inbox.ended:
            self._over = True
            raise inbox.take_kept() or closed()
        live = self._engine.step()
        kept = inbox.take_kept()
        if kept is not None:
            raise kept
        if not live and not inbox.events and not inbox.ended:
            raise Error(
                _abi.GW_ERR_BUSY,
                "GW_ERR_BUSY",
                "a stream cannot be waited for inside of a callback: its events are told when that has returned",
                "stream",
            )

    def text(self) -> Iterator[str]:
        """The pieces of the answer's text that are not empty."""
        for event in self:
            if event.text:
                yield event.text

    def result(self) -> Answer:
        """The rest of the answer, when it is whole."""
        answer = Answer()
        for event in self:
            answer.add(event, self._logprobs)
        return answer

    def close(self) -> None:
        """Cancels the request, unless it has ended. The next step of the engine lets go of it."""
        self._over = True
        inbox = self._inbox
        inbox.cancelled = True
        inbox.events.clear()
        kept = inbox.take_kept()
        if kept is not None:
            # Something else came out of the step that it was kept in.
            _callbacks.report(kept)
        if not inbox.ended:
            self._engine._cancel_quietly(self.id)

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *exception: Any) -> None:
        self.close()

    def __del__(self) -> None:
        if not getattr(self, "_over", True):
            self.close()

    def __repr__(self) -> str:
        return f"<Stream of request {self.id}>"


def closed() -> ClosedError:
    """The exception of a closed engine."""
    return ClosedError(_abi.GW_ERR_INVALID_ARG, "GW_ERR_INVALID_ARG", "engine: expected an open one", "engine")
