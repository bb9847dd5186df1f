"""Graftwork: one base model, many adapters, each request through its own, all in one batch.

    import graftwork

    with graftwork.Engine("model.gguf") as engine:
        for event in engine.generate([{"role": "user", "content": "Why is the sky blue?"}], max_tokens=48):
            print(event.text, end="", flush=True)

Names and meanings are those of the C interface, include/graftwork.h, which says more.
"""

from __future__ import annotations

from graftwork import _abi
from graftwork._abi import *  # noqa: F403 - the constants
from graftwork._library import abi_version, has_feature, version
from graftwork.adapter import Adapter, AdapterInfo
from graftwork.aio import AsyncStream
from graftwork.engine import Engine, EngineInfo, EngineOptions, Memory
from graftwork.errors import (
    AbiError,
    BudgetError,
    BusyError,
    CancelledError,
    ClosedError,
    ConflictError,
    DeviceLostError,
    Error,
    FormatError,
    IncompatibleAdapterError,
    InternalError,
    InvalidArgError,
    IoError,
    NotFoundError,
    OutOfMemoryError,
    UnsupportedError,
)
from graftwork.event import Event, Logits, Logprob
from graftwork.request import Message, Request
from graftwork.source import Source
from graftwork.stream import Answer, Stream

__version__ = version()

__all__ = [
    "AbiError",
    "Adapter",
    "AdapterInfo",
    "Answer",
    "AsyncStream",
    "BudgetError",
    "BusyError",
    "CancelledError",
    "ClosedError",
    "ConflictError",
    "DeviceLostError",
    "Engine",
    "EngineInfo",
    "EngineOptions",
    "Error",
    "Event",
    "FormatError",
    "IncompatibleAdapterError",
    "InternalError",
    "InvalidArgError",
    "IoError",
    "Logits",
    "Logprob",
    "Memory",
    "Message",
    "NotFoundError",
    "OutOfMemoryError",
    "Request",
    "Source",
    "Stream",
    "UnsupportedError",
    "abi_version",
    "has_feature",
    "version",
]
__all__ += _abi.__all__
