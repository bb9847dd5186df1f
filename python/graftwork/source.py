"""Sources: where a model or an adapter comes from."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Mapping
from typing import Any, BinaryIO, Union

from graftwork import _abi, _callbacks
from graftwork._library import check, lib, unsigned, utf8

SourceLike = Union[
    "Source", str, "os.PathLike[Any]", bytes, bytearray, memoryview, "Mapping[str, SourceLike]", BinaryIO
]


class Source:
    """Where a model or an adapter comes from: a file, a directory, bytes, or files by name.

    Wherever a source is expected, what it would be made of does as well: a path, bytes, a dict of files by name, or a
    binary file that can be read and sought.
    """

    __slots__ = ("_handle", "__weakref__")

    def __init__(self, handle: ctypes.c_void_p) -> None:
        self._handle = handle

    def __del__(self) -> None:
        handle = getattr(self, "_handle", None)
        if handle:
            lib.gw_source_free(ctypes.byref(handle))

    @classmethod
    def path(cls, path: str | bytes | os.PathLike[Any], *, copy: bool = False) -> Source:
        """A file or a directory. Mapped, unless `copy`: then read into memory."""
        name = path_bytes(path)
        return cls(_make(lib.gw_source_path, name, len(name), _flags(copy)))

    @classmethod
    def fd(cls, fd: int, offset: int = 0, length: int = 0, *, copy: bool = False) -> Source:
        """A part of an open file, by its descriptor; length 0: all up to the end. The descriptor may be closed after."""
        unsigned("fd", fd, 31)
        return cls(
            _make(lib.gw_source_fd, fd, unsigned("offset", offset, 64), unsigned("length", length, 64), _flags(copy))
        )

    @classmethod
    def memory(cls, data: bytes | bytearray | memoryview) -> Source:
        """A file in memory. `bytes` stay where they are; anything else that can change is copied."""
        kept = data if isinstance(data, bytes) else bytes(memoryview(data))
        number = _callbacks.keep(kept)
        address = ctypes.cast(ctypes.c_char_p(kept), ctypes.c_void_p)
        try:
            return cls(_make(lib.gw_source_memory, address, len(kept), 0, _callbacks.drop, number))
        except BaseException:
            _callbacks.forget(number)
            raise

    @classmethod
    def reader(cls, file: BinaryIO) -> Source:
        """A file that only Python can read: anything with seek() and read(). Read before this returns."""
        length = file.seek(0, os.SEEK_END)
        reader = _callbacks.Reader(file)
        number = _callbacks.keep(reader)
        watched = _callbacks.watch()
        raw = _abi.gw_reader(ctypes.sizeof(_abi.gw_reader), 0, length, _callbacks.read, number)
        try:
            source = cls(_make(lib.gw_source_reader, ctypes.byref(raw)))
        except BaseException:
            if reader.raised is not None:
                raise reader.raised from None
            raise
        finally:
            _callbacks.forget(number)
            if watched:
                _callbacks.end_watch()
        interruption = _callbacks.interruption()
        if interruption is not None:
            raise interruption
        return source

    @classmethod
    def directory(cls, files: Mapping[str, SourceLike]) -> Source:
        """A directory in memory: files by name."""
        source = cls(_make(lib.gw_source_directory))
        for name, file in files.items():
            text = utf8("name", name)
            part = to_source(file)  # Stays until the call returns.
            check(lib.gw_source_add, source._handle, text, len(text), part._handle)
        return source


def to_source(source: SourceLike) -> Source:
    """The source that something means."""
    if isinstance(source, Source):
        return source
    if isinstance(source, (bytes, bytearray, memoryview)):
        return Source.memory(source)
    if isinstance(source, (str, os.PathLike)):
        return Source.path(source)
    if isinstance(source, Mapping):
        return Source.directory(source)
    if hasattr(source, "read") and hasattr(source, "seek"):
        return Source.reader(source)
    raise TypeError(f"source: expected a path, bytes, a dict of files, or a file, found {type(source).__name__}")


def path_bytes(path: str | bytes | os.PathLike[Any]) -> bytes:
    """A path for C."""
    given = os.fspath(path)
    if sys.platform == "win32" and isinstance(given, str):
        return utf8("path", given)
    return os.fsencode(given)


def _flags(copy: bool) -> int:
    return _abi.GW_SOURCE_COPY if copy else 0


def _make(function: Any, *arguments: Any) -> ctypes.c_void_p:
    handle = ctypes.c_void_p()
    check(function, *arguments, ctypes.byref(handle))
    return handle
