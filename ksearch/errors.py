"""Every exception that ksearch raises on purpose.

KsearchError                  base: catch this to show one clear line instead of a traceback
├── UsageError                what was asked for cannot be done as asked (exit status 2)
│   ├── UnknownOp             no op of that name; carries the nearest names
│   ├── BadShape              a shape that does not parse, is empty, or does not fit the device
│   ├── UnsupportedDtype      the op has no kernel for that dtype
│   ├── NoSuchDevice          the device is not there
│   └── UserFileError         a user's file does not import, or has no such op
├── TraceError                an op's function cannot be traced; carries file and line
├── RenderError               a template does not render; carries template and line
├── CompileError              a source does not compile; carries the compiler's log
├── ToolMissing               a compiler or library is not installed; says how to get it
├── StoreError                the database cannot be opened, read or written
│   └── NewerSchema           the database was written by a newer ksearch
├── BundleError               a bundle is changed, cut short, foreign, newer, or not signed as asked
├── NoWinner                  nothing was tuned for a call, and KSEARCH_REQUIRE is set
├── DeviceBusy                another tuner holds the same device
├── SelftestError             a planted wrong kernel passes the check, or cannot be made
└── WorkerError               the isolated worker could not be started or kept alive

A candidate kernel that fails is *not* an exception: it is an `Outcome` with a `Status`.
"""

from __future__ import annotations


class KsearchError(Exception):
    """Base of all errors that ksearch raises on purpose; `str()` is one line for a person."""

    exit_status = 1


class UsageError(KsearchError):
    """What was asked for cannot be done as asked."""

    exit_status = 2


class UnknownOp(UsageError):
    """No op of that name is registered."""


class BadShape(UsageError):
    """A shape that does not parse, has an empty dimension, or does not fit the device."""


class UnsupportedDtype(UsageError):
    """The op has no kernel for that dtype."""


class NoSuchDevice(UsageError):
    """The device is not there."""


class UserFileError(UsageError):
    """A user's file does not import, or does not define the op."""


class TraceError(KsearchError):
    """An op's function cannot be traced into a Program."""


class RenderError(KsearchError):
    """A template does not render."""


class CompileError(KsearchError):
    """A source does not compile; `log` holds the compiler's whole output."""

    def __init__(self, message: str, log: str = "") -> None:
        super().__init__(message)
        self.log = log


class ToolMissing(KsearchError):
    """A compiler or library is not installed; the message says how to get it."""


class StoreError(KsearchError):
    """The database cannot be opened, read or written."""


class NewerSchema(StoreError):
    """The database was written by a newer ksearch."""


class BundleError(KsearchError):
    """A bundle is changed, cut short, foreign, of a newer format, or not signed as asked; or not written."""


class NoWinner(KsearchError):
    """Nothing that was tuned answers a call, and KSEARCH_REQUIRE says that it must."""


class DeviceBusy(KsearchError):
    """Another tuner holds the same device and database."""


class SelftestError(KsearchError):
    """A planted wrong kernel passes the check, so that nothing may be promoted; or one cannot be made."""


class WorkerError(KsearchError):
    """The isolated worker could not be started or kept alive."""
