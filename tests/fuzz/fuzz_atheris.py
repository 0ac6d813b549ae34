"""The same targets, led by coverage: `python tests/fuzz/fuzz_atheris.py TARGET -max_total_time=60 [CORPUS]`.

Needs `pip install atheris` (CPython 3.11 to 3.13 on Linux or macOS), which is no dependency, not even of the
tests. TARGET is one of those in TARGETS; what follows is for libFuzzer. It ends with a traceback and a file
`crash-...` at the first input for which something other than an answer or one clear error came back; the file
is an input to give again: `python tests/fuzz/fuzz_atheris.py TARGET crash-...`.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
with atheris.instrument_imports(include=["ksearch", "tomllib"]):
    from tests.fuzz import targets

import shlex

FOLDER = Path(tempfile.mkdtemp(prefix="ksearch-fuzz-"))


def study(data: bytes) -> None:
    targets.read_study(data, FOLDER)


def shape(data: bytes) -> None:
    targets.read_shape(data.decode("utf-8", "surrogateescape"))


def bundle(data: bytes) -> None:
    """Bytes over a part of a whole bundle, or in the place of a winner whose digests are right."""
    given = atheris.FuzzedDataProvider(data)
    if given.ConsumeBool():
        whole = targets.bundle()
        at = given.ConsumeIntInRange(0, len(whole))
        some = given.ConsumeBytes(given.ConsumeIntInRange(0, 64))
        targets.open_bundle(whole[:at] + some + whole[at + len(some) :], FOLDER)
        return
    parts = targets.parts_of_bundle()
    keys = [*next(iter(parts["winners"].values()))]
    name, text = given.PickValueInList(keys), given.ConsumeUnicode(given.ConsumeIntInRange(0, 200))
    targets.open_bundle(targets.sealed(parts, winner=lambda it: {**it, name: _read(text)}), FOLDER)


def database(data: bytes) -> None:
    given = atheris.FuzzedDataProvider(data)
    cell = given.PickValueInList(list(targets.CELLS))
    targets.read_database(targets.database(), FOLDER, (*cell, given.ConsumeUnicodeNoSurrogates(200)))


def command(data: bytes) -> None:
    """Never one that writes where it is told."""
    text = data.decode("utf-8", "replace").replace("\0", "")
    try:
        words = shlex.split(text)
    except ValueError:
        words = text.split()
    targets.fill_default_database()
    kind = ("list", "show", "trials", "ops", "tune")[len(data) % 5]
    targets.run_command([kind, *(word for word in words if "/" not in word)])


def _read(text: str) -> object:
    import json

    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


TARGETS: dict[str, Callable[[bytes], None]] = {
    each.__name__: each for each in (study, shape, bundle, database, command)
}

if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1] not in TARGETS:
        sys.exit(f"which of {', '.join(TARGETS)}? {__doc__}")
    os.environ["KSEARCH_DB"], os.environ["KSEARCH_CACHE_DIR"] = (
        str(FOLDER / "d" / "k.db"),
        str(FOLDER / "cache"),
    )
    atheris.Setup([sys.argv[0], *sys.argv[2:]], TARGETS[sys.argv[1]])
    atheris.Fuzz()
