"""The C library: found, loaded, checked; and the calls that turn its statuses into exceptions."""

from __future__ import annotations

import ctypes
import operator
import os
import sys
from pathlib import Path
from typing import Any

from graftwork import _abi
from graftwork.errors import Error, InvalidArgError, error_class


def file_name() -> str:
    """What the library is called on this system."""
    if sys.platform == "win32":
        return "graftwork.dll"
    return "libgraftwork.dylib" if sys.platform == "darwin" else "libgraftwork.so"


def _load() -> ctypes.CDLL:
    path = os.environ.get("GRAFTWORK_LIBRARY") or str(Path(__file__).with_name(file_name()))
    try:
        library = ctypes.CDLL(path)
    except OSError as error:
        raise ImportError(
            f"{path}: {error}; install the package with pip, or name a libgraftwork in GRAFTWORK_LIBRARY"
        ) from None
    for name, (result, parameters) in _abi.FUNCTIONS.items():
        try:
            function = getattr(library, name)
        except AttributeError:
            raise ImportError(f"{path}: expected a function {name}, found none") from None
        function.restype = result
        function.argtypes = parameters
    found = library.gw_abi_version()
    if found != _abi.GW_ABI_VERSION:
        raise ImportError(f"{path}: expected ABI {_abi.GW_ABI_VERSION}, found {found}")
    return library


lib = _load()


def text_at(address: int | None, size: int) -> str:
    """Text of the library."""
    return ctypes.string_at(address, size).decode("utf-8", "replace") if address and size else ""


def make_error(status: int, handle: ctypes.c_void_p) -> Error:
    """The exception of a failed call; frees the error."""
    size = ctypes.c_size_t()
    message = text_at(lib.gw_error_message(handle, ctypes.byref(size)), size.value)
    size.value = 0
    detail = text_at(lib.gw_error_detail(handle, ctypes.byref(size)), size.value)
    lib.gw_error_free(ctypes.byref(handle))
    return error(status, message, detail)


def error(status: int, message: str, detail: str = "") -> Error:
    """The exception of a status."""
    kind = ctypes.string_at(lib.gw_status_name(status)).decode()
    return error_class(status)(status, kind, message or kind, detail)


def check(function: Any, *arguments: Any) -> None:
    """Calls a function whose last parameter is a gw_error **."""
    handle = ctypes.c_void_p()
    status = function(*arguments, ctypes.byref(handle))
    if status:
        raise make_error(status, handle)


def invalid(name: str, expected: str, found: object) -> InvalidArgError:
    """The exception of an argument without a meaning."""
    message = f"{name}: expected {expected}, found {found}"
    return InvalidArgError(_abi.GW_ERR_INVALID_ARG, "GW_ERR_INVALID_ARG", message, name)


def unsigned(name: str, value: object, bits: int = 32) -> int:
    """An unsigned number for C, which would take any other modulo 2^bits."""
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(f"{name}: expected an integer, found {type(value).__name__}") from None
    if not 0 <= number < 1 << bits:
        raise invalid(name, f"0 to 2^{bits} - 1", number)
    return number


def real(name: str, value: object) -> float:
    """A number for C."""
    if isinstance(value, (str, bytes)):
        raise TypeError(f"{name}: expected a number, found {type(value).__name__}")
    try:
        return float(value)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(f"{name}: expected a number, found {type(value).__name__}") from None


def utf8(name: str, value: object) -> bytes:
    """Text for C."""
    if not isinstance(value, str):
        raise TypeError(f"{name}: expected a str, found {type(value).__name__}")
    try:
        return value.encode("utf-8")
    except UnicodeEncodeError:
        raise invalid(name, "text that UTF-8 can hold", "a lone surrogate") from None


def abi_version() -> int:
    """The ABI of the library: GW_ABI_VERSION, or importing fails."""
    return int(lib.gw_abi_version())


def version() -> str:
    """The version of the library, such as "0.2.0"."""
    return ctypes.string_at(lib.gw_version()).decode()


def has_feature(name: str) -> bool:
    """Whether the library has a capability: "lora", "q4_1", "gguf", "fd", "cpu", ..."""
    text = utf8("name", name)
    return bool(lib.gw_has_feature(text, len(text)))
