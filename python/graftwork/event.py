"""Events: what happens to a request."""

from __future__ import annotations

import ctypes
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Union

from graftwork import _abi
from graftwork._library import error, text_at
from graftwork.errors import Error

if TYPE_CHECKING:
    import numpy
    import numpy.typing

# With numpy an array, else a memoryview of the same shape.
Logits = Union["numpy.typing.NDArray[numpy.float32]", memoryview]

_FINISH = {
    _abi.GW_FINISH_STOP: "stop",
    _abi.GW_FINISH_STOP_TEXT: "stop_text",
    _abi.GW_FINISH_LENGTH: "length",
    _abi.GW_FINISH_CANCELLED: "cancelled",
}


class Logprob(NamedTuple):
    """A token and the natural logarithm of its probability."""

    token: int
    logprob: float


@dataclass(slots=True)
class Event:
    """What happened to a request. Fields are those of gw_event; what a kind does not have is 0 or None."""

    kind: int
    """GW_EVENT_TOKEN, GW_EVENT_FINISHED or GW_EVENT_FAILED."""
    request: int
    """The id that submit() gave."""
    text: str
    """What became certain of the text; the pieces of all events, put together, are the answer."""
    token: int = 0
    finish: int = 0
    """GW_EVENT_FINISHED: GW_FINISH_..."""
    logprob: float = 0.0
    status: int = 0
    """GW_EVENT_FAILED: GW_ERR_..."""
    message: str = ""
    """GW_EVENT_FAILED: what happened, for people."""
    top: tuple[Logprob, ...] = ()
    logits: Logits | None = None

    @property
    def last(self) -> bool:
        """Whether nothing follows."""
        return self.kind != _abi.GW_EVENT_TOKEN

    @property
    def finish_reason(self) -> str | None:
        """"stop", "stop_text", "length" or "cancelled" of an answer that ended."""
        return _FINISH.get(self.finish, "unknown") if self.kind == _abi.GW_EVENT_FINISHED else None

    @property
    def error(self) -> Error | None:
        """The exception of a request that failed."""
        return error(self.status, self.message) if self.kind == _abi.GW_EVENT_FAILED else None


# One call that reads all fields: between two passes over a model's weights the interpreter finds its caches cold, and
# pays for everything that it touches.
_KINDS = [getattr(field[1], "_type_", None) for field in _abi.gw_event._fields_]
_EVENT = struct.Struct("@" + "".join(kind if isinstance(kind, str) else "P" for kind in _KINDS))
_Bytes = ctypes.c_char * _EVENT.size


def read_event(address: int) -> Event:
    """A copy of the event of the library that lies there."""
    (_, kind, request, text, text_size, token, finish, logprob, status, top, top_count, logits, logits_count, *rest) = (
        _EVENT.unpack_from(_Bytes.from_address(address))
    )
    piece = ctypes.string_at(text, text_size).decode("utf-8", "replace") if text_size else ""
    if kind != _abi.GW_EVENT_TOKEN:
        return Event(kind, request, piece, 0, finish, 0.0, status, text_at(*rest))
    event = Event(kind, request, piece, token, 0, logprob)
    if top_count:
        pairs = ctypes.cast(top, ctypes.POINTER(_abi.gw_logprob))
        event.top = tuple(Logprob(pairs[i].token, pairs[i].logprob) for i in range(top_count))
    if logits_count:
        event.logits = floats(ctypes.string_at(logits, 4 * logits_count), [logits_count])
    return event


def floats(data: bytes | bytearray, shape: list[int]) -> Logits:
    """Numbers in f32: as an array of numpy if that is installed, else as a memoryview, of one or two dimensions."""
    try:
        import numpy
    except ImportError:
        view: Any = memoryview(data)
        if 0 in shape:
            return memoryview(b"").cast("f")
        return view.cast("f") if len(shape) == 1 else view.cast("f", shape)
    return numpy.frombuffer(data, numpy.float32).reshape(shape)
