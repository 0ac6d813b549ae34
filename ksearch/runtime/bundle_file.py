"""Reading a bundle: winners with their binaries and evidence in one file, found without reading all of it.

The file, from its beginning: the line MAGIC with the format's number; blobs (the JSON of a winner, a binary,
a source, a log); pages, each the JSON index of PAGE winners; the header, the JSON index of the pages, on one
line; the seal, on one line, with the SHA-256 of the first line and the header, and their HMAC where it is
signed. The header has the SHA-256 of every page and a page that of every blob, so that the seal vouches for
everything, and to find one winner reads the header, one page, and what belongs to this winner.
"""

from __future__ import annotations

import bisect
import hashlib
import hmac
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ksearch.errors import BundleError, UsageError
from ksearch.launch import Launch
from ksearch.records import UNREADABLE, check_winner
from ksearch.runtime.lookup import Found
from ksearch.runtime.region import Neighbour
from ksearch.types import Target, Winner, Workload, canonical_json, digest

MAGIC = b"ksearch bundle "
FORMAT = 1
PAGE = 256
"""Winners in a page: a page is 0.1 MB then, and the header of 100,000 winners 0.05 MB."""

MOST_NEAR = 1024
"""Winners of a bundle that is searched for other numbers of rows: to read so many takes 0.1 s."""

_TAIL_BYTES = 4096
"""The seal is shorter."""
_LEAST_KEY_BYTES = 16


@dataclass(frozen=True, slots=True)
class Member:
    """A winner and what belongs to it."""

    winner: Winner
    environment: dict[str, str]
    """The versions under which it was measured."""
    binary: bytes | None
    """None, as are the next two, where PyTorch won."""
    source: str | None
    log: str | None


class BundleFile:
    """An open bundle. Threads may share it; what it read once stays right when the file is replaced."""

    def __init__(
        self, path: str | os.PathLike[str], key: str | os.PathLike[str] | bytes | None = None
    ) -> None:
        """`key` is the content of the file that it was signed with, or that file.

        Raises BundleError where the file is no bundle of this format, changed, cut short, or not signed with
        that key; UsageError where the key cannot be read.
        """
        self.path = Path(path).expanduser().absolute()
        self._regions: dict[tuple[object, ...], list[Neighbour]] | None = None
        secret = None if key is None else read_key(key)
        self.is_signed = secret is not None
        """A key was given, and it was signed with that."""
        self.seal = ""
        """The SHA-256 of its header, and with that of everything."""
        try:
            self._descriptor = os.open(self.path, os.O_RDONLY)
        except OSError as error:
            raise BundleError(f"cannot read the bundle {self.path}: {error.strerror}") from error
        try:
            self._header = self._open(secret)
        except BaseException:
            self.close()
            raise
        self._firsts = [page[0] for page in self._header["pages"]]

    @property
    def count(self) -> int:
        """Winners in it."""
        return int(self._header["winners"])

    def find(self, workload: Workload, target: Target) -> Found:
        """The winner for them, as `lookup.find` gives it.

        Raises LookupError where there is none, BundleError where its part of the file was changed.
        """
        key = key_of(workload, target)
        place = bisect.bisect_right(self._firsts, key) - 1
        parts = self._page(place).get(key) if place >= 0 else None
        if parts is None:
            raise LookupError(f"no winner for it in {self.path}")
        winner, _ = self._winner(key, parts, workload, target)
        return Found(winner, self._blob(parts["binary"]))

    @property
    def state(self) -> str:
        """Differs from that of any bundle that holds something else."""
        return digest(canonical_json(self._header))

    def winners(self) -> Iterator[Winner]:
        """Without what belongs to them, by their keys. Raises BundleError where one was changed."""
        for place in range(len(self._firsts)):
            for key, parts in self._page(place).items():
                yield self._winner(key, parts)[0]

    def neighbours(self, workload: Workload) -> list[Neighbour]:
        """Kernels of the same op, dtype and row length, on any target; none out of a file of more than
        MOST_NEAR winners, all of which are read the first time. Raises BundleError."""
        if self._regions is None:
            regions: dict[tuple[object, ...], list[Neighbour]] = {}
            for winner in self.winners() if self.count <= MOST_NEAR else ():
                if winner.launch is not None:
                    near = winner.certificate.get("near", ())
                    facts = (winner.workload, winner.target, winner.speedup, winner.launch.most_rows, near)
                    regions.setdefault(_region(winner.workload), []).append(Neighbour(*facts))
            self._regions = regions
        return self._regions.get(_region(workload), [])

    def members(self) -> Iterator[Member]:
        """All of it, in the order of the keys. Raises BundleError where anything was changed."""
        for place in range(len(self._firsts)):
            for key, parts in self._page(place).items():
                winner, environment = self._winner(key, parts)
                source, log = self._blob(parts["source"]), self._blob(parts["log"])
                yield Member(
                    winner,
                    environment,
                    self._blob(parts["binary"]),
                    self._text(source),
                    self._text(log),
                )

    def close(self) -> None:
        if self._descriptor >= 0:
            descriptor, self._descriptor = self._descriptor, -1
            os.close(descriptor)

    def __repr__(self) -> str:
        return f"<ksearch bundle {self.path}: {self.count} winners>"

    def __del__(self) -> None:
        if getattr(self, "_descriptor", -1) >= 0:
            self.close()

    def _open(self, secret: bytes | None) -> dict[str, Any]:
        """The header, which the seal vouches for."""
        size = os.fstat(self._descriptor).st_size
        first = self._read(0, min(size, 64)).partition(b"\n")[0] + b"\n"
        if not first.startswith(MAGIC):
            raise BundleError(
                f"{self.path} is no bundle of ksearch; `ksearch export --bundle FILE` writes one"
            )
        number = first[len(MAGIC) :].strip()
        if not number.isdigit() or int(number) > FORMAT:
            raise BundleError(
                f"{self.path} was written by a newer ksearch (format {number.decode(errors='replace')}, this "
                f"one knows {FORMAT}); upgrade ksearch, or export it again with this one"
            )
        tail = self._read(max(0, size - _TAIL_BYTES), min(size, _TAIL_BYTES))
        line = tail[tail.rfind(b"\n", 0, -1) + 1 :]
        try:
            seal = json.loads(line)
            start, length = int(seal["header"][0]), int(seal["header"][1])
            stated, signature = str(seal["sha256"]), seal["hmac_sha256"]
        except UNREADABLE:
            raise self._damaged("its end is missing") from None
        ends = start + length + len(line) == size and line.endswith(b"\n")
        if start < len(first) or length < 0 or not ends:
            raise self._damaged("its length is not the one that it states")
        sealed = first + self._read(start, length)
        if digest(sealed) != stated:
            raise self._damaged("the SHA-256 of its header differs")
        if secret is not None:
            self._check_signature(sealed, signature, secret)
        self.seal = stated
        with self._readable("its header"):
            header: dict[str, Any] = json.loads(sealed[len(first) :])
            for name, *part in header["pages"]:
                _check_part(part)
                _check_text(name)
            if type(header["winners"]) is not int:
                raise ValueError(f"winners is {header['winners']!r}")
        return header

    def _check_signature(self, sealed: bytes, signature: str | None, secret: bytes) -> None:
        if signature is None:
            raise BundleError(f"{self.path} is not signed, and a key was given: who made it cannot be told")
        if not hmac.compare_digest(sign(sealed, secret).encode(), str(signature).encode(errors="replace")):
            raise BundleError(
                f"{self.path} was not signed with this key: do not trust it, or give the right key"
            )

    def _page(self, place: int) -> dict[str, Any]:
        _, start, length, stated = self._header["pages"][place]
        text = self._checked(start, length, stated)
        with self._readable("a page"):
            page = json.loads(text)
            if not isinstance(page, dict):
                raise ValueError(f"it is {page!r:.60}")
        return page

    def _winner(
        self, key: str, parts: dict[str, Any], workload: Workload | None = None, target: Target | None = None
    ) -> tuple[Winner, dict[str, str]]:
        with self._readable("a page"):
            _check_parts(parts)
        text = self._checked(*parts["winner"])
        with self._readable("a winner"):
            fields = json.loads(text)
            environment = fields.pop("environment")
            own_workload, own_target = read_workload(fields.pop("workload")), Target(**fields.pop("target"))
            launch = fields.pop("launch")
            winner = Winner(
                workload=workload or own_workload,
                target=target or own_target,
                launch=None if launch is None else Launch.read(launch),
                **fields,
            )
            check_winner(replace(winner, workload=own_workload, target=own_target))
            if not all(isinstance(each, str) and each.isprintable() for each in environment.values()):
                raise ValueError(f"environment is {environment!r:.60}")
        if key_of(own_workload, own_target) != key:
            raise self._damaged(f"what it holds for {key} is for {own_workload}")
        return winner, environment

    def _blob(self, part: list[Any] | None) -> bytes | None:
        return None if part is None else self._checked(*part)

    def _text(self, blob: bytes | None) -> str | None:
        with self._readable("a text"):
            return None if blob is None else blob.decode()

    def _checked(self, start: int, length: int, stated: str) -> bytes:
        found = self._read(start, length)
        if digest(found) != stated:
            raise self._damaged(f"the SHA-256 of the {length} bytes at {start} differs")
        return found

    def _read(self, start: int, length: int) -> bytes:
        """Raises BundleError where there is less; memory for it is taken only where there can be as much."""
        try:
            if start + length > os.fstat(self._descriptor).st_size:
                raise self._damaged("it is shorter than it states")
            found = os.pread(self._descriptor, length, start)
        except OSError as error:
            raise BundleError(f"cannot read the bundle {self.path}: {error.strerror}") from error
        if len(found) != length:
            raise self._damaged("it is shorter than it states")
        return found

    @contextmanager
    def _readable(self, what: str) -> Iterator[None]:
        """A part that is whole, and not what this ksearch would write."""
        try:
            yield
        except UNREADABLE as error:
            raise BundleError(
                f"{what} in {self.path} does not read ({error}), as another ksearch wrote it; upgrade "
                "ksearch, or export it again with this one"
            ) from error

    def _damaged(self, what: str) -> BundleError:
        return BundleError(f"the bundle {self.path} was changed or cut short ({what}); copy it again")


def _check_parts(parts: Any) -> None:
    """Of one winner: those of the others in its page take 1 ms."""
    _check_part(parts["winner"])
    for name in ("binary", "source", "log"):
        if parts[name] is not None:
            _check_part(parts[name])


def _check_part(part: Any) -> None:
    """Where something is: start, length, SHA-256."""
    start, length, stated = part
    _check_text(stated)
    if not (type(start) is type(length) is int and min(start, length) >= 0):
        raise ValueError(f"a part is at {start!r}, of {length!r} bytes")


def _check_text(text: Any) -> None:
    if not isinstance(text, str):
        raise ValueError(f"{text!r} is no text")


def key_of(workload: Workload, target: Target) -> str:
    """What a winner is found by in a bundle."""
    return f"{workload.key} {target.key}"


def _region(workload: Workload) -> tuple[object, ...]:
    return workload.op, workload.cols, workload.inner, workload.dtype


def read_workload(fields: dict[str, Any]) -> Workload:
    """From what `dataclasses.asdict` gives, as JSON keeps it."""
    options = tuple((name, value) for name, value in fields["options"])
    return Workload(**{**fields, "shape": tuple(fields["shape"]), "options": options})


def sign(sealed: bytes, secret: bytes) -> str:
    """The HMAC of a bundle's first line and header."""
    return hmac.new(secret, sealed, hashlib.sha256).hexdigest()


def read_key(key: str | os.PathLike[str] | bytes) -> bytes:
    """The secret: every byte of the file `key`, or `key` itself where it is bytes. Raises UsageError."""
    if isinstance(key, bytes):
        secret, name = key, "the key"
    else:
        path = Path(key).expanduser()
        try:
            secret, name = path.read_bytes(), f"the key {path}"
        except OSError as error:
            raise UsageError(f"cannot read the key {path}: {error.strerror}") from error
    if len(secret) < _LEAST_KEY_BYTES:
        raise UsageError(
            f"{name} has {len(secret)} bytes, and {_LEAST_KEY_BYTES} are the least that is safe; "
            "make one with: head -c 32 /dev/urandom > KEYFILE"
        )
    return secret
