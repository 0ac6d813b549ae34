"""optuna-dashboard over a database of ours that it may only read."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import optuna
import optuna_dashboard

from ksearch.database import open_readonly

_TIMEOUT_S = 10.0
"""That a writer is waited for."""


def has_studies(path: Path) -> bool:
    """Whether Optuna's tables are in the file: they come into it when the first search ends.

    Raises sqlite3.Error.
    """
    with closing(open_readonly(path, _TIMEOUT_S)) as connection:
        found = connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'version_info'")
        return found.fetchone() is not None


class Dashboard:
    """Of one file, which must have Optuna's tables."""

    def __init__(self, path: Path) -> None:
        # Its checks and tables are what would be written.
        self._storage = optuna.storages.RDBStorage(
            f"sqlite:///{path}",
            engine_kwargs={"creator": lambda: open_readonly(path, _TIMEOUT_S)},
            skip_compatibility_check=True,
            skip_table_creation=True,
        )

    def app(self) -> Any:
        """A WSGI application for `/dashboard`, `/api` and `/static` of a server: its pages name them so."""
        return optuna_dashboard.wsgi(self._storage)

    def number(self, study: str) -> int | None:
        """Of the study of that name, which its address has; None without one."""
        try:
            return self._storage.get_study_id_from_name(study)
        except KeyError:
            return None
