"""Running winners in production: workload -> winner -> loaded kernel, or PyTorch where there is none.

It never compiles and never searches. Winners that are added later are seen after `refresh()`, or by a
new process.
"""

from __future__ import annotations

from ksearch.runtime.dispatch import Dispatcher
from ksearch.runtime.handle import Handle, Match
from ksearch.runtime.loader import load
from ksearch.runtime.table import dispatcher, refresh

__all__ = ["Dispatcher", "Handle", "Match", "dispatcher", "load", "refresh"]
