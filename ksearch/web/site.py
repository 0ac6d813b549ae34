"""The database behind the pages: opened when it is first needed, and again when it is another file.

SQLite goes on reading a file that was deleted, so each request looks whether it is still the one at its path.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path

from ksearch.errors import StoreError
from ksearch.store import Store
from ksearch.web.catalogue import Catalogue


@dataclass(frozen=True, slots=True, eq=False)
class Opened:
    """One file, while it is there."""

    store: Store
    catalogue: Catalogue


class Site:
    """The database at `path`; threads may share it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._file: tuple[int, int] | None = None
        self._opened: Opened | None = None

    def opened(self) -> Opened:
        """With everything that was committed until now. Raises StoreError, NewerSchema."""
        with self._lock:
            file = self._look()
            if self._opened is None or file != self._file:
                self._close()
                store = Store.open(self.path, create=False, readonly=True)
                self._opened, self._file = Opened(store, Catalogue(store)), file
            opened = self._opened
        opened.catalogue.refresh()
        return opened

    def close(self) -> None:
        with self._lock:
            self._close()

    def _look(self) -> tuple[int, int]:
        try:
            found = self.path.stat()
        except OSError as error:
            if self._file is None:  # it never was: the store says what to do
                Store.open(self.path, create=False, readonly=True)
            self._close()
            raise StoreError(
                f"the database {self.path} is not there any more; the pages come back when it does"
            ) from error
        return found.st_dev, found.st_ino

    def _close(self) -> None:
        if self._opened is not None:
            self._opened.catalogue.close()
            self._opened.store.close()
            self._opened = None
