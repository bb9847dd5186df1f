"""Engines: one model, its adapters, and everybody's requests."""

from __future__ import annotations

import atexit
import ctypes
import math
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Protocol, TypedDict, TypeVar, Union, overload

from graftwork import _abi, _callbacks
from graftwork._library import check, lib, make_error, text_at, unsigned, utf8
from graftwork.adapter import Adapter, AdapterInfo
from graftwork.aio import AsyncStream, Stepper
from graftwork.event import Event, Logits, floats, read_event
from graftwork.request import AdaptersLike, Packed, Prompt, Request, to_request, tokens_for_c, uses
from graftwork.source import SourceLike, path_bytes, to_source
from graftwork.stream import Inbox, Stream, closed

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from graftwork.request import RequestOptions

# Waiting in C is cut into slices, so that Ctrl-C and close() are heard.
SLICE_MS = 100

_EventPointer = ctypes.POINTER(_abi.gw_event)

_NOT_TOLD, _NOT_DROPPED = _abi.gw_event_fn(), _abi.gw_drop_fn()  # NULL

_T = TypeVar("_T")

# A request that was submitted: what reads it, or its id.
RequestLike = Union[Stream, AsyncStream, int]


class Executor(Protocol):
    """Something that runs tasks on its threads, such as concurrent.futures.ThreadPoolExecutor."""

    def submit(self, task: Callable[[], None], /) -> object:
        """Has another thread call the task, once and soon."""


@dataclass
class EngineOptions:
    """How an engine runs. Fields are those of gw_engine_options; zero is the default of each."""

    device: int = 0
    """GW_DEVICE_..."""
    threads: int = 0
    """That compute, the one that steps among them. 0: one per core."""
    kv_format: int = 0
    """GW_KV_...: what keys and values are cached as."""
    max_batch: int = 0
    """Most requests that run at once; others wait. 0: 32."""
    prefill_chunk: int = 0
    """Most rows of prompts in a step. 0: 512."""
    kv_bytes: int = 0
    """Most bytes of the KV cache, which grows as it is needed. 0: 1 GiB."""
    weight_bytes: int = 0
    """Most bytes of weights and embedding: a larger model is not opened. 0: no limit."""
    adapter_bytes: int = 0
    """Most bytes of adapters in memory: beyond, those that were used the longest ago leave and come back. 0: no limit."""
    scratch_bytes: int = 0
    """Most bytes of activations. 0: no limit."""
    no_prefixes: bool = False
    """GW_ENGINE_NO_PREFIXES: forget keys and values when a request ends."""
    log: Callable[[int, str], object] | None = None
    """Hears log(level, message), from any thread."""
    log_level: int = 0
    """GW_LOG_...: the most talkative that `log` wants to hear. 0: GW_LOG_INFO."""
    progress: Callable[[int, int], object] | None = None
    """Hears progress(done, all) of loading, from any thread; if it returns something true, that ends loading."""
    executor: Executor | None = None
    """Lends the other threads: `threads` - 1 tasks in each step. None: the engine's own."""


class EngineKeywords(TypedDict, total=False):
    """The fields of EngineOptions, as keyword arguments."""

    device: int
    threads: int
    kv_format: int
    max_batch: int
    prefill_chunk: int
    kv_bytes: int
    weight_bytes: int
    adapter_bytes: int
    scratch_bytes: int
    no_prefixes: bool
    log: Callable[[int, str], object] | None
    log_level: int
    progress: Callable[[int, int], object] | None
    executor: Executor | None


@dataclass(frozen=True)
class Memory:
    """Bytes, by class. Fields are those of gw_memory."""

    weights: int
    """The model as packed for the device."""
    embedding: int
    adapters: int
    """Adapters in memory: loaded, or not any more but still used by requests."""
    kv: int
    """The KV cache as it has grown."""
    kv_used: int
    """The part of it that requests hold."""
    kv_limit: int
    """What it may grow to."""
    scratch: int
    """Activations of a step, and what kernels need beside them, as they have grown."""
    adapters_limit: int
    """What adapters may grow to: `adapter_bytes`; 0 for no limit."""


@dataclass(frozen=True)
class EngineInfo:
    """What a model is. Fields are those of gw_engine_info."""

    threads: int
    vocab: int
    context: int
    layers: int
    hidden: int
    has_tokenizer: bool
    has_chat: bool
    architecture: str
    isa: str


class _Told:
    """Hears the events of a request for a function of the caller's."""

    __slots__ = ("function", "thrown")

    def __init__(self, function: Callable[[Event], object], thrown: dict[int, BaseException]) -> None:
        self.function = function
        self.thrown = thrown

    def hear(self, event: Event) -> bool:
        return bool(self.function(event))

    def keep(self, exception: BaseException) -> None:
        me = threading.get_ident()
        self.thrown[me] = _callbacks.joined(self.thrown.get(me), exception)

        def deaf(_: Event) -> bool:
            return True

        self.function = deaf

    def dropped(self) -> None:
        pass


_engines: weakref.WeakSet[Engine] = weakref.WeakSet()


class Engine:
    """One model, its adapters, and everybody's requests.

    Every method may be called from any thread, close() too: it waits for the calls of other threads to return. In a
    callback, the engine closes when the call that it came from returns.
    """

    def __init__(
        self, source: SourceLike, options: EngineOptions | None = None, **keywords: Unpack[EngineKeywords]
    ) -> None:
        self._handle: ctypes.c_void_p | None = None
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._calls: dict[int, int] = {}  # Of each thread.
        self._closed = False
        self._thrown: dict[int, BaseException] = {}
        self._stepper = Stepper(self)
        model = to_source(source)
        packed = _Options(options, keywords)
        handle = ctypes.c_void_p()
        watched = _callbacks.watch()
        try:
            check(lib.gw_engine_open, model._handle, ctypes.byref(packed.raw), ctypes.byref(handle))
        except BaseException:
            packed.give_up()
            if packed.progress is not None and packed.progress.raised is not None:
                raise packed.progress.raised from None
            raise
        finally:
            if watched:
                _callbacks.end_watch()
        packed.opened()
        self._handle = handle
        interruption = _callbacks.interruption()
        if interruption is not None:
            self.close()
            raise interruption
        _engines.add(self)
        self.info = self._describe()
        """What the model is."""

    @staticmethod
    def plan(
        source: SourceLike, options: EngineOptions | None = None, **keywords: Unpack[EngineKeywords]
    ) -> Memory:
        """What opening a model would take, without doing it."""
        model = to_source(source)
        packed = _Options(options, keywords)
        raw = _abi.gw_memory(ctypes.sizeof(_abi.gw_memory))
        try:
            check(lib.gw_engine_plan, model._handle, ctypes.byref(packed.raw), ctypes.byref(raw))
        finally:
            packed.give_up()
        return _memory(raw)

    # ------------------------------------------------------------------------------------------------------- Closing

    def _enter(self) -> ctypes.c_void_p:
        """Begins a call: the engine stays until _exit()."""
        me = threading.get_ident()
        entered = False
        try:
            with self._lock:
                handle = self._handle
                if self._closed or handle is None:
                    raise closed()
                self._calls[me] = self._calls.get(me, 0) + 1
                entered = True
        except BaseException:
            if entered:  # A signal came on the way out.
                self._exit()
            raise
        return handle

    def _exit(self) -> None:
        me = threading.get_ident()
        with self._lock:
            left = self._calls[me] - 1
            if left:
                self._calls[me] = left
                return
            del self._calls[me]
            if not self._closed or self._calls:
                return
        self._free()

    def _free(self) -> None:
        """Closes the library's engine, once, when no call is inside of it."""
        with self._changed:
            handle, self._handle = self._handle, None
        if handle is not None:
            lib.gw_engine_close(ctypes.byref(handle))
        with self._changed:
            self._changed.notify_all()

    def close(self) -> None:
        """Ends everything: requests that have not ended get no more events, threads are joined, memory is freed."""
        me = threading.get_ident()
        with self._changed:
            if self._handle is None:
                return
            self._closed = True
            if me in self._calls:
                return  # In a callback: the last one out closes it.
            while self._calls and self._handle is not None:
                self._changed.wait()
        self._free()

    @property
    def closed(self) -> bool:
        """Whether the engine is closed."""
        return self._closed

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *exception: Any) -> None:
        self.close()

    async def aclose(self) -> None:
        """close(), without keeping the event loop waiting for a step in progress."""
        import asyncio

        await asyncio.get_running_loop().run_in_executor(None, self.close)

    async def __aenter__(self) -> Engine:
        return self

    async def __aexit__(self, *exception: Any) -> None:
        await self.aclose()

    def __del__(self) -> None:
        if getattr(self, "_handle", None) is not None:
            self.close()

    def _call(self, function: Any, *arguments: Any) -> None:
        """Calls a function of the engine whose last parameter is a gw_error **."""
        handle = self._enter()
        try:
            check(function, handle, *arguments)
        finally:
            self._exit()

    # ---------------------------------------------------------------------------------------------------- Description

    def _describe(self) -> EngineInfo:
        raw = _abi.gw_engine_info(ctypes.sizeof(_abi.gw_engine_info))
        self._call(lib.gw_engine_describe, ctypes.byref(raw))
        return EngineInfo(
            raw.threads,
            raw.vocab,
            raw.context,
            raw.layers,
            raw.hidden,
            bool(raw.has_tokenizer),
            bool(raw.has_chat),
            text_at(raw.architecture, raw.architecture_size),
            text_at(raw.isa, raw.isa_size),
        )

    def memory(self) -> Memory:
        """Bytes in memory, as the last step left it."""
        raw = _abi.gw_memory(ctypes.sizeof(_abi.gw_memory))
        self._call(lib.gw_engine_memory, ctypes.byref(raw))
        return _memory(raw)

    # ------------------------------------------------------------------------------------------------------- Adapters

    def load_adapter(self, name: str, source: SourceLike) -> Adapter:
        """Loads an adapter under a name that is free; ConflictError if it is not."""
        text = utf8("name", name)
        generation = ctypes.c_uint64()
        given = to_source(source)
        self._call(lib.gw_adapter_load, text, len(text), given._handle, ctypes.byref(generation))
        return Adapter(self, name, generation.value)

    def replace_adapter(self, name: str, source: SourceLike, expected: int = 0) -> int:
        """Gives a name to another adapter, and returns its generation.

        If `expected` is not 0, only if the name still belongs to that generation; ConflictError if not.
        """
        text = utf8("name", name)
        generation = ctypes.c_uint64()
        given = to_source(source)
        expected = unsigned("expected", expected, 64)
        self._call(lib.gw_adapter_replace, text, len(text), given._handle, expected, ctypes.byref(generation))
        return generation.value

    def unload_adapter(self, name: str) -> None:
        """Frees a name. Its adapter's memory goes with the last request that uses it."""
        text = utf8("name", name)
        self._call(lib.gw_adapter_unload, text, len(text))

    def pin_adapter(self, name: str, pinned: bool = True) -> None:
        """Keeps an adapter in memory, or no longer; brings it there if it is not.

        It stays until its name is freed, given to another adapter or unpinned. BusyError or BudgetError if it finds no room.
        """
        text = utf8("name", name)
        self._call(lib.gw_adapter_pin, text, len(text), bool(pinned))

    def adapters(self) -> list[AdapterInfo]:
        """All adapters that have a name, ordered by it."""
        return self._adapters(lib.gw_adapter_list)

    def adapter(self, name: str) -> AdapterInfo:
        """What is known of the adapter of this name."""
        text = utf8("name", name)
        return self._adapters(lib.gw_adapter_describe, text, len(text))[0]

    def _adapters(self, function: Any, *arguments: Any) -> list[AdapterInfo]:
        adapters = ctypes.c_void_p()
        self._call(function, *arguments, ctypes.byref(adapters))
        try:
            found = []
            for index in range(lib.gw_adapters_count(adapters)):
                raw = _abi.gw_adapter_info(ctypes.sizeof(_abi.gw_adapter_info))
                status = lib.gw_adapters_get(adapters, index, ctypes.byref(raw))
                if status:
                    raise make_error(status, ctypes.c_void_p())
                name, kind = text_at(raw.name, raw.name_size), text_at(raw.kind, raw.kind_size)
                resident, pinned = raw.state & _abi.GW_ADAPTER_RESIDENT, raw.state & _abi.GW_ADAPTER_PINNED
                known = (raw.generation, raw.sites, raw.bytes, raw.requests, bool(resident), bool(pinned), raw.loads)
                found.append(AdapterInfo(name, kind, *known))
            return found
        finally:
            lib.gw_adapters_free(ctypes.byref(adapters))

    # ------------------------------------------------------------------------------------------------------- Requests

    def generate(self, prompt: Prompt, **options: Unpack[RequestOptions]) -> Stream:
        """Submits a request, and gives its events as an iterator. Waiting for one stream runs all.

        The prompt is a text, tokens, messages, a dict for chat_json, or a Request.
        """
        inbox = Inbox()
        request = to_request(prompt, options)
        return Stream(self, inbox, self._submit(request, inbox), request.logprobs)

    def agenerate(self, prompt: Prompt, **options: Unpack[RequestOptions]) -> AsyncStream:
        """The same for asyncio: `async for event in engine.agenerate(...)`. Steps happen on a thread of their own."""
        request = to_request(prompt, options)
        return self._stepper.submit(self, lambda inbox: self._submit(request, inbox), request.logprobs)

    def submit(
        self,
        prompt: Prompt,
        on_event: Callable[[Event], object] | None = None,
        **options: Unpack[RequestOptions],
    ) -> int:
        """Accepts a request and returns its id. Nothing is computed yet.

        `on_event` hears the events, on whichever thread is in step() or poll() or waits for a stream; if it returns
        something true, that cancels the request. If it raises, the request is cancelled, it is not called again, and
        the exception comes out of that step() or poll(). Without it, events wait for poll().
        """
        return self._submit(to_request(prompt, options), self._told(on_event))

    def _told(self, on_event: Callable[[Event], object] | None) -> _Told | None:
        """The listener that tells a function of the caller's."""
        if on_event is not None and not callable(on_event):
            raise TypeError(f"on_event: expected a function, found {type(on_event).__name__}")
        return None if on_event is None else _Told(on_event, self._thrown)

    def _submit(self, request: Request, listener: _callbacks.Listener | None) -> int:
        packed = Packed(request)

        def submit(on_event: Any, user: int, drop: Any, id: Any) -> None:
            packed.raw.on_event, packed.raw.user, packed.raw.drop = on_event, user, drop
            self._call(lib.gw_submit, ctypes.byref(packed.raw), id)

        return self._accept(submit, listener)

    def _accept(self, call: Callable[..., None], listener: _callbacks.Listener | None) -> int:
        """Has a call take a listener, and gives the id of the request that it made."""
        id = ctypes.c_uint64()
        if listener is None:
            call(_NOT_TOLD, 0, _NOT_DROPPED, ctypes.byref(id))
            return id.value
        number = _callbacks.keep(listener)
        try:
            call(_callbacks.on_event, number, _callbacks.drop, ctypes.byref(id))
        except BaseException:
            _callbacks.forget(number)
            raise
        return id.value

    def cancel(self, id: int) -> None:
        """Ends a request before its time; its last event comes from the next step. NotFoundError if it has ended."""
        self._call(lib.gw_cancel, unsigned("id", id, 64))

    def _cancel_quietly(self, id: int) -> None:
        """cancel(), whatever became of the request and the engine."""
        try:
            handle = self._enter()
        except ValueError:
            return
        try:
            lib.gw_cancel(handle, id, None)
        finally:
            self._exit()

    def step(self) -> bool:
        """Runs one forward pass over everything that is ready. False when no request is left."""
        live, thrown = self._step()
        if thrown is not None:
            raise thrown
        return live

    def _step(self) -> tuple[bool, BaseException | None]:
        """step(), and what a callback raised in it."""
        live = ctypes.c_int32()
        error = ctypes.c_void_p()
        watched = False
        handle = self._enter()
        try:
            watched = _callbacks.watch()
            status = lib.gw_step(handle, ctypes.byref(live), ctypes.byref(error))
        finally:
            try:
                self._exit()
            finally:
                if watched:
                    _callbacks.end_watch()
        thrown = self._take_thrown()
        if status:
            failure = make_error(status, error)
            if thrown is None:
                raise failure
        return live.value != 0, thrown

    @overload
    def poll(self, id: int = 0, timeout: None = None) -> Event: ...

    @overload
    def poll(self, id: int = 0, *, timeout: float) -> Event | None: ...

    @overload
    def poll(self, id: int, timeout: float) -> Event | None: ...

    def poll(self, id: int = 0, timeout: float | None = None) -> Event | None:
        """The next event of one request, or of any that has no callback; steps until there is one.

        After `timeout` seconds, at the latest when the step that it is in ends, it is None; 0 takes what waits and
        computes nothing. Without a timeout it sleeps for as long as nobody submits anything: count what you wait for.
        """
        unsigned("id", id, 64)
        end = None if timeout is None else time.monotonic() + timeout
        while True:
            left = SLICE_MS
            if end is not None:
                left = max(0, min(SLICE_MS, math.ceil(1e3 * (end - time.monotonic()))))
            event = self._poll(id, left)
            if event is not None:
                return event
            if end is not None and time.monotonic() >= end:
                return None

    def _poll(self, id: int, timeout_ms: int) -> Event | None:
        event = _EventPointer()
        error = ctypes.c_void_p()
        watched = False
        handle = self._enter()
        try:
            watched = _callbacks.watch()
            status = lib.gw_poll(handle, id, timeout_ms, ctypes.byref(event), ctypes.byref(error))
        finally:
            try:
                self._exit()
            finally:
                if watched:
                    _callbacks.end_watch()
        found = None
        if event:
            try:
                found = read_event(ctypes.addressof(event.contents))
            finally:
                lib.gw_event_free(ctypes.byref(event))
        if found is not None:
            return found  # What a callback raised comes out of the next step() or poll() of this thread.
        thrown = self._take_thrown()
        if status:
            failure = make_error(status, error)
            if thrown is None:
                raise failure
        if thrown is not None:
            raise thrown
        return None

    def _take_thrown(self) -> BaseException | None:
        """What a callback raised in this thread, or the handler of a signal before one."""
        thrown = self._thrown.pop(threading.get_ident(), None) if self._thrown else None
        interruption = _callbacks.interruption()
        return thrown if interruption is None else _callbacks.joined(thrown, interruption)

    # --------------------------------------------------------------------------------------------------------- States

    def save(self, request: RequestLike) -> bytes:
        """A request as it is between two tokens, in bytes with which resume() goes on, also in another process.

        `request` is a stream or an id. It goes on here too; NotFoundError if it has ended. Events that it has had but that
        nobody has read yet are before what is saved: read them too. Waits for a step in progress.
        """
        return self._save(request, _state_bytes)

    def save_to(self, request: RequestLike, path: str | bytes | os.PathLike[Any]) -> None:
        """save() to a file, which is written whole, in place of what is there, or not at all."""
        name = path_bytes(path)
        self._save(request, lambda state: check(lib.gw_state_write, state, name, len(name)))

    def _save(self, request: RequestLike, take: Callable[[ctypes.c_void_p], _T]) -> _T:
        id = request.id if isinstance(request, (Stream, AsyncStream)) else unsigned("id", request, 64)
        state = ctypes.c_void_p()
        self._call(lib.gw_state_save, id, ctypes.byref(state))
        try:
            return take(state)
        finally:
            lib.gw_state_free(ctypes.byref(state))

    async def asave(self, request: RequestLike) -> bytes:
        """save(), without keeping the event loop waiting for a step in progress."""
        import asyncio

        return await asyncio.get_running_loop().run_in_executor(None, self.save, request)

    def resume(self, state: SourceLike, logprobs: bool = False) -> Stream:
        """Accepts a request that was saved, and gives its next events as an iterator: those that followed, equal to the bit.

        `state` is what save() gave, the path of a file with it, or another source of one file. The request's adapters must
        be loaded, under any names: what they hold counts. FormatError if something is not what it was. `logprobs`: for
        requests that had it, the Answer of result() has it too.
        """
        inbox = Inbox()
        return Stream(self, inbox, self._resume(state, inbox), logprobs)

    def aresume(self, state: SourceLike, logprobs: bool = False) -> AsyncStream:
        """The same for asyncio: `async for event in engine.aresume(...)`."""
        return self._stepper.submit(self, lambda inbox: self._resume(state, inbox), logprobs)

    def resume_to(self, state: SourceLike, on_event: Callable[[Event], object] | None = None) -> int:
        """The same as submit() does it: gives the id; `on_event` hears the events, without it they wait for poll()."""
        return self._resume(state, self._told(on_event))

    def _resume(self, state: SourceLike, listener: _callbacks.Listener | None) -> int:
        source = to_source(state)

        def resume(*arguments: Any) -> None:
            self._call(lib.gw_state_resume, source._handle, *arguments)

        return self._accept(resume, listener)

    # ---------------------------------------------------------------------------------------------- Tokens and logits

    def prompt_tokens(self, prompt: Prompt) -> list[int]:
        """The tokens that a prompt becomes."""
        raw = Packed(to_request(prompt, {})).raw
        count = ctypes.c_size_t()
        self._call(lib.gw_prompt_tokens, ctypes.byref(raw), None, 0, ctypes.byref(count))
        if not count.value:
            return []
        tokens = (ctypes.c_uint32 * count.value)()
        self._call(lib.gw_prompt_tokens, ctypes.byref(raw), tokens, count.value, ctypes.byref(count))
        return tokens[: count.value]

    def detokenize(self, tokens: Iterable[int]) -> str:
        """The text of some tokens, special ones included."""
        given, count = tokens_for_c("tokens", tokens)
        size = ctypes.c_size_t()
        self._call(lib.gw_detokenize, given, count, None, 0, ctypes.byref(size))
        if not size.value:
            return ""
        text = ctypes.create_string_buffer(size.value)
        self._call(lib.gw_detokenize, given, count, text, size.value, ctypes.byref(size))
        return text.raw[: size.value].decode("utf-8", "replace")

    def logits(self, tokens: Iterable[int], adapters: AdaptersLike = (), width: int = 0) -> Logits:
        """The logits at every position of a sequence under some adapters: [tokens, vocab], in f32.

        Computed now, apart from all requests; it cannot be cancelled. `width`: values of a row, where an adapter has
        tokens of its own; 0: info.vocab.
        """
        given, count = tokens_for_c("tokens", tokens)
        used = uses(adapters)
        stack = (_abi.gw_use * len(used))(*used) if used else None
        width = unsigned("width", width) or self.info.vocab
        data = bytearray(4 * count * width)
        into = (ctypes.c_float * (count * width)).from_buffer(data) if data else (ctypes.c_float * 1)()
        self._call(lib.gw_logits, given, count, stack, len(used), into, count * width)
        return floats(data, [count, width])

    def __repr__(self) -> str:
        return "<closed Engine>" if self._closed else f"<Engine of a {self.info.architecture} model>"


class _Options:
    """A gw_engine_options, and what it points to."""

    def __init__(self, options: EngineOptions | None, keywords: Mapping[str, Any]) -> None:
        try:
            given = replace(options or EngineOptions(), **keywords)
        except TypeError:
            unknown = ", ".join(sorted(keywords.keys() - {f.name for f in fields(EngineOptions)}))
            if not unknown:
                raise
            raise TypeError(f"options: no such option: {unknown}") from None
        self.raw = raw = _abi.gw_engine_options(ctypes.sizeof(_abi.gw_engine_options))
        for name in ("device", "threads", "kv_format", "max_batch", "prefill_chunk"):
            setattr(raw, name, unsigned(name, getattr(given, name)))
        raw.log_level = unsigned("log_level", given.log_level, 31)
        for name in ("kv_bytes", "weight_bytes", "adapter_bytes", "scratch_bytes"):
            setattr(raw, name, unsigned(name, getattr(given, name), 64))
        raw.flags = _abi.GW_ENGINE_NO_PREFIXES if given.no_prefixes else 0
        self.progress: _callbacks.Progress | None = None
        for name in ("log", "progress"):
            if getattr(given, name) is not None and not callable(getattr(given, name)):
                raise TypeError(f"{name}: expected a function, found {type(getattr(given, name)).__name__}")
        if given.executor is not None:
            raw.execute_user = _callbacks.keep(_callbacks.Lender(given.executor))
            raw.execute, raw.execute_drop = _callbacks.execute, _callbacks.drop
        if given.log is not None:
            raw.log, raw.log_user = _callbacks.log, _callbacks.keep(_callbacks.Hearer(given.log))
            raw.log_drop = _callbacks.drop
        if given.progress is not None:
            self.progress = _callbacks.Progress(given.progress)
            raw.progress, raw.progress_user = _callbacks.progress, _callbacks.keep(self.progress)

    def opened(self) -> None:
        """The engine has what it keeps; progress is over."""
        if self.raw.progress_user:
            _callbacks.forget(self.raw.progress_user)

    def give_up(self) -> None:
        """Nothing was taken."""
        for number in (self.raw.log_user, self.raw.progress_user, self.raw.execute_user):
            if number:
                _callbacks.forget(number)


def _state_bytes(state: ctypes.c_void_p) -> bytes:
    size = ctypes.c_size_t()
    data = lib.gw_state_data(state, ctypes.byref(size))
    return ctypes.string_at(data, size.value)


def _memory(raw: _abi.gw_memory) -> Memory:
    return Memory(*(getattr(raw, f.name) for f in fields(Memory)))


@atexit.register
def _close_all() -> None:
    """Engines end before the interpreter does."""
    for engine in list(_engines):
        engine._calls.pop(threading.get_ident(), None)  # A signal may have come between a call and its end.
        engine.close()


def _forget_all() -> None:
    """In a child process an engine has no threads: it can only be left alone."""
    for engine in list(_engines):
        engine._lock = threading.RLock()
        engine._changed = threading.Condition(engine._lock)
        engine._closed, engine._handle = True, None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_all)

assert EngineKeywords.__annotations__.keys() == {f.name for f in fields(EngineOptions)}
