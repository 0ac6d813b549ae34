"""Writing a bundle, and reading one back into a database. What its parts are is told in
`ksearch.runtime.bundle_file`.

Equal winners give equal bytes: everything is sorted, and no time or place of the export is in it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import ksearch
from ksearch import files
from ksearch.errors import BundleError, StoreError, UsageError
from ksearch.runtime.bundle_file import FORMAT, MAGIC, PAGE, BundleFile, key_of, read_key, sign
from ksearch.store import Record, Store, StoredArtifact
from ksearch.types import Winner, canonical_json, digest


@dataclass(frozen=True, slots=True)
class Written:
    """What is in a bundle that was written."""

    path: Path
    winners: int
    kernels: int
    """Binaries; the other winners are PyTorch, or share one."""
    size_bytes: int
    sha256: str
    """Of the first line and the header, which vouch for all of it."""
    signed: bool


def write_bundle(
    path: Path,
    store: Store,
    winners: Sequence[Winner],
    key: str | os.PathLike[str] | None = None,
) -> Written:
    """Put these winners of `store` into one file, over what is there.

    `key` is a file to sign it with. Raises UsageError where that is not there or `path` cannot be written,
    StoreError.
    """
    if not winners:
        raise UsageError(f"there is nothing to put into {path}: no winner was chosen")
    secret = None if key is None else read_key(key)
    path = path.expanduser().absolute()
    with files.written(path) as file:
        return _write(_Body(file), path, store, winners, secret)


def _write(body: _Body, path: Path, store: Store, winners: Sequence[Winner], secret: bytes | None) -> Written:
    first = MAGIC + f"{FORMAT}\n".encode()
    body.add(first)
    index: dict[str, dict[str, Any]] = {}
    artifacts: dict[str | None, dict[str, Any]] = {None: {"binary": None, "source": None, "log": None}}
    for winner in sorted(winners, key=lambda each: key_of(each.workload, each.target)):
        index[key_of(winner.workload, winner.target)] = _parts(body, store, winner, artifacts)
    keys, pages = list(index), []
    for start in range(0, len(keys), PAGE):
        page = {key: index[key] for key in keys[start : start + PAGE]}
        pages.append([keys[start], *body.add(canonical_json(page).encode())])
    header = {
        "ksearch": ksearch.__version__,
        "ops": sorted({winner.workload.op for winner in winners}),
        "pages": pages,
        "targets": sorted({winner.target.key for winner in winners}),
        "winners": len(keys),
    }
    text = canonical_json(header).encode() + b"\n"
    start, length, _ = body.add(b"\n" + text)  # on a line of its own, so that `tail -n 2` shows it
    seal = {
        "header": [start + 1, length - 1],
        "hmac_sha256": None if secret is None else sign(first + text, secret),
        "sha256": digest(first + text),
    }
    body.add(canonical_json(seal).encode() + b"\n")
    kernels = len({winner.artifact for winner in winners if winner.artifact is not None})
    return Written(path, len(keys), kernels, body.size_bytes, str(seal["sha256"]), secret is not None)


def _parts(
    body: _Body, store: Store, winner: Winner, artifacts: dict[str | None, dict[str, Any]]
) -> dict[str, Any]:
    """Where in the file the winner and what belongs to it are; `artifacts`: those that are in it already."""
    fields = asdict(winner)
    fields["environment"] = store.environment(winner.workload, winner.target)
    where = body.add(canonical_json(fields).encode())
    if winner.artifact not in artifacts:
        stored = store.artifact(str(winner.artifact))
        if stored is None:
            raise StoreError(f"database {store.path} has lost the binary of {winner.workload}: tune it again")
        artifacts[winner.artifact] = {
            "binary": body.add(stored.binary),
            "source": body.add(stored.source.encode()),
            "log": body.add(stored.log.encode()),
        }
    return {"winner": where, **artifacts[winner.artifact]}


class _Body:
    """A file that only grows; equal blobs are in it once."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._known: dict[str, list[Any]] = {}
        self.size_bytes = 0

    def add(self, blob: bytes) -> list[Any]:
        """Start, length and SHA-256 of the blob."""
        name = digest(blob)
        if name not in self._known:
            self._known[name] = [self.size_bytes, len(blob), name]
            self.size_bytes += self._file.write(blob)
        return self._known[name]


def records(bundle: BundleFile) -> Iterator[Record]:
    """A bundle's winners as the store takes them. Raises BundleError where anything of it was changed."""
    for member in bundle.members():
        winner, binary = member.winner, member.binary
        if (binary is None) != (winner.artifact is None) or (binary and digest(binary) != winner.artifact):
            raise BundleError(
                f"the bundle {bundle.path} has another binary for {winner.workload} than its winner"
            )
        read: Callable[[], StoredArtifact] | None = None
        if binary is not None:
            artifact = StoredArtifact(source=member.source or "", binary=binary, log=member.log or "")
            read = lambda artifact=artifact: artifact  # noqa: E731
        yield Record(winner, member.environment, None, read)
