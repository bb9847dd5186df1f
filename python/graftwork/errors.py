"""Exceptions: one class for each status of the C interface."""

from __future__ import annotations

from graftwork import _abi


class Error(Exception):
    """Why a call failed.

    `kind` is the status by name, such as "GW_ERR_BUDGET", and `status` by number. `message` says what happened, for
    people. `detail` says what it is about, for programs: the tensor, key, option, file or adapter, or "".
    """

    def __init__(self, status: int, kind: str, message: str, detail: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind
        self.message = message
        self.detail = detail

    def __reduce__(self) -> tuple[type[Error], tuple[int, str, str, str]]:
        return type(self), (self.status, self.kind, self.message, self.detail)

    def __str__(self) -> str:
        return self.message


class InvalidArgError(Error, ValueError):
    """An argument or option has no meaning."""


class ClosedError(InvalidArgError):
    """The engine is closed."""


class NotFoundError(Error, LookupError):
    """No such file, adapter or request."""

    __str__ = Error.__str__


class FormatError(Error, ValueError):
    """A file is malformed."""


class UnsupportedError(Error, NotImplementedError):
    """Understood, or not, but nothing that this version can compute."""


class IncompatibleAdapterError(Error, ValueError):
    """The adapter does not fit the model."""


class OutOfMemoryError(Error, MemoryError):
    """The system refused memory."""


class BudgetError(Error):
    """A limit of the engine's options would be exceeded."""


class BusyError(Error):
    """Not now."""


class CancelledError(Error):
    """A callback asked for the end."""


class IoError(Error):
    """Reading or writing failed."""


class DeviceLostError(Error):
    """The device that computes is gone."""


class InternalError(Error, RuntimeError):
    """A bug in the library."""


class AbiError(Error):
    """A struct is too small, or sets fields that the library does not know."""


class ConflictError(Error):
    """The adapter's name is taken, or belongs to another generation."""


_CLASSES: dict[int, type[Error]] = {
    _abi.GW_ERR_INVALID_ARG: InvalidArgError,
    _abi.GW_ERR_NOT_FOUND: NotFoundError,
    _abi.GW_ERR_FORMAT: FormatError,
    _abi.GW_ERR_UNSUPPORTED: UnsupportedError,
    _abi.GW_ERR_INCOMPATIBLE_ADAPTER: IncompatibleAdapterError,
    _abi.GW_ERR_OUT_OF_MEMORY: OutOfMemoryError,
    _abi.GW_ERR_BUDGET: BudgetError,
    _abi.GW_ERR_BUSY: BusyError,
    _abi.GW_ERR_CANCELLED: CancelledError,
    _abi.GW_ERR_IO: IoError,
    _abi.GW_ERR_DEVICE_LOST: DeviceLostError,
    _abi.GW_ERR_INTERNAL: InternalError,
    _abi.GW_ERR_ABI: AbiError,
    _abi.GW_ERR_CONFLICT: ConflictError,
}


def error_class(status: int) -> type[Error]:
    """The class of a status; later versions may have statuses that have none here."""
    return _CLASSES.get(status, Error)
