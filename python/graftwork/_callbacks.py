"""Callbacks of the library: C functions that live as long as the process, and what they call, by number.

The `user` of a callback is a number, under which its Python object is kept here until the library drops it. Nothing that
is raised crosses C.
"""

from __future__ import annotations

import ctypes
import itertools
import sys
import threading
from typing import Any, Callable, Protocol

from graftwork import _abi
from graftwork._library import text_at
from graftwork.event import Event, read_event


class Listener(Protocol):
    """Hears the events of a request."""

    def hear(self, event: Event) -> bool:
        """Hears one. True cancels the request. What it raises is kept for whoever steps, and cancels it too."""

    def keep(self, exception: BaseException) -> None:
        """Keeps what was raised in this thread."""

    def dropped(self) -> None:
        """Nothing will be heard any more."""


_users: dict[int, Any] = {}
_numbers = itertools.count(1)


def keep(user: object) -> int:
    """Keeps an object until the library drops it."""
    number = next(_numbers)
    _users[number] = user
    return number


def forget(number: int) -> None:
    """Lets go of an object that the library did not take."""
    _users.pop(number, None)


def kept() -> int:
    """How many objects the library holds."""
    return len(_users)


def joined(first: BaseException | None, later: BaseException) -> BaseException:
    """What is raised where more than one came before anybody could hear: the first, with the later at the end of its context."""
    if first is None:
        return later
    known, last = {id(first)}, first
    while last.__context__ is not None and id(last.__context__) not in known:
        last = last.__context__
        known.add(id(last))
    if id(later) not in known:
        last.__context__ = later
    return first


def _drop(number: int) -> None:
    """Lets go of an object."""
    user = _users.pop(number, None)
    if isinstance(user, (bytes, Hearer, Lender)) or user is None:
        return
    try:
        user.dropped()
    except BaseException as exception:
        report(exception)


def _on_event(number: int, event: int) -> int:
    """Passes an event on to a Listener."""
    listener = _users.get(number)
    if listener is None:
        return 1
    try:
        return 1 if listener.hear(read_event(event)) else 0
    except BaseException as exception:
        listener.keep(exception)
        return 1


class Hearer:
    """The function that hears the log."""

    def __init__(self, function: Callable[[int, str], object]) -> None:
        self.function = function


def _log(number: int, level: int, message: int, size: int) -> None:
    """Passes a line of the log on. What that raises goes to sys.unraisablehook: there is nobody to hear it."""
    hearer = _users.get(number)
    if hearer is None:
        return
    try:
        hearer.function(level, text_at(message, size))
    except BaseException as exception:
        report(exception)


class Progress:
    """Passes progress on to a function; keeps what it raises."""

    def __init__(self, function: Callable[[int, int], object]) -> None:
        self.function = function
        self.raised: BaseException | None = None


def _progress(number: int, done: int, all: int) -> int:
    """Passes progress on, from the threads that load. Non-zero ends the loading."""
    told = _users.get(number)
    if told is None or told.raised is not None:
        return 1
    try:
        return 1 if told.function(done, all) else 0
    except BaseException as exception:
        told.raised = exception
        return 1


class Lender:
    """The executor whose threads an engine borrows."""

    def __init__(self, executor: Any) -> None:
        self.submit = executor.submit


class Task:
    """A task of a step, run once: when it is first called, or else when it goes."""

    __slots__ = ("_left",)

    def __init__(self, run: Any, task: int) -> None:
        self._left = [(run, task)]

    def __call__(self) -> None:
        try:
            run, task = self._left.pop()
        except IndexError:
            return
        run(task)

    __del__ = __call__


def _execute(number: int, run: Any, task: int) -> None:
    """Passes a task on to an executor; one that will not take it has the thread that steps do the work."""
    once = Task(run, task)
    try:
        _users[number].submit(once)
    except BaseException:
        once()


class Reader:
    """A file that Python reads."""

    def __init__(self, file: Any) -> None:
        self.file = file
        self.raised: BaseException | None = None


def _read(number: int, offset: int, buffer: int, size: int) -> int:
    """Reads from a file into memory of the library."""
    reader = _users.get(number)
    if reader is None:
        return 1
    try:
        if not size:
            return 0
        reader.file.seek(offset)
        view = memoryview((ctypes.c_char * size).from_address(buffer)).cast("B")
        done = 0
        while done < size:
            data = reader.file.read(size - done)
            if not data:
                raise EOFError(f"expected {size} bytes at {offset}, found {done}")
            view[done : done + len(data)] = data
            done += len(data)
        return 0
    except BaseException as exception:
        reader.raised = exception
        return 1


# What C calls. The event comes as an address, which is cheaper than a pointer.
_ON_EVENT = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_void_p, ctypes.c_void_p)(_on_event)
drop = _abi.gw_drop_fn(_drop)
on_event = ctypes.cast(_ON_EVENT, _abi.gw_event_fn)
log = _abi.gw_log_fn(_log)
progress = _abi.gw_progress_fn(_progress)
execute = _abi.gw_execute_fn(_execute)
read = _abi.gw_read_fn(_read)


_FUNCTIONS = {function.__code__: function for function in (_drop, _on_event, _log, _progress, _execute, _read)}
_MAIN = threading.main_thread().ident


_previous: Any = sys.unraisablehook
_interrupted: list[BaseException] = []


def watch() -> bool:
    """Begins to watch over a call, if this is the main thread; says whether end_watch() must follow.

    Handlers of signals run in the main thread, at the start of the first Python function after a signal. If that is a
    callback, what the handler raises, such as KeyboardInterrupt, is raised before the callback can catch it, and ctypes
    takes it to sys.unraisablehook. That is _hook meanwhile: it runs the callback that did not begin, and keeps the
    exception.
    """
    global _previous
    if threading.get_ident() != _MAIN or sys.unraisablehook is _hook:
        return False
    _previous = sys.unraisablehook
    sys.unraisablehook = _hook
    return True


def end_watch() -> None:
    """Ends what watch() began."""
    if sys.unraisablehook is _hook:
        sys.unraisablehook = _previous


def interruption() -> BaseException | None:
    """What was kept meanwhile, for the main thread to raise."""
    return _interrupted.pop() if _interrupted and threading.get_ident() == _MAIN else None


def _hook(unraisable: Any, /) -> None:
    trace = unraisable.exc_traceback
    function = _FUNCTIONS.get(trace.tb_frame.f_code) if trace is not None else None
    if function is None or threading.get_ident() != _MAIN:
        _previous(unraisable)
        return
    _interrupted[:] = [joined(interruption(), unraisable.exc_value)]
    code = trace.tb_frame.f_code
    # Else it has begun: this comes of a second signal, and what it did is done.
    if trace.tb_next is None and trace.tb_lineno == code.co_firstlineno:
        values = trace.tb_frame.f_locals
        function(*(values[name] for name in code.co_varnames[: code.co_argcount]))


class _Unheard:
    """Raises an exception where Python itself takes it to sys.unraisablehook, whose argument nobody else can make."""

    def __init__(self, exception: BaseException) -> None:
        self.exception = exception

    def __del__(self) -> None:
        raise self.exception


def report(exception: BaseException) -> None:
    """For what was raised where nobody can hear it."""
    _Unheard(exception)
