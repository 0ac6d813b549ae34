"""Compiled kernels put in force without a search, and a count of how often one is started.

A module's tests share a folder that `put_in_force` fills once; each of them works on it by `in_use`.
"""

from __future__ import annotations

import os
import random
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from ksearch import backends, env, families, operators, runtime
from ksearch.evaluate.pool import CompilePool
from ksearch.families import Space
from ksearch.launch import Launch
from ksearch.render import render
from ksearch.store import Store
from ksearch.types import Artifact, Config, Winner, Workload


@contextmanager
def at(folder: Path) -> Iterator[pytest.MonkeyPatch]:
    """The database and cache of a folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KSEARCH_DB", str(folder / "ksearch.db"))
        patch.setenv("KSEARCH_CACHE_DIR", str(folder / "cache"))
        yield patch


def forced(
    tmp_path_factory: pytest.TempPathFactory, device: str, names: Sequence[str], shape: tuple[int, ...]
) -> Path:
    """A folder where these ops have winners of float32."""
    folder = tmp_path_factory.mktemp("winners")
    put_in_force(folder, device, [operators.get(name).workload(shape) for name in names])
    return folder


@contextmanager
def in_use(folder: Path, backend: str) -> Iterator[Launches]:
    """The kernels of a folder are those that run, and each start of one is counted."""
    launches, kind = Launches(), type(backends.get(backend))
    load = kind.load

    def load_counted(this: backends.Backend, binary: Path, launch: Launch, index: int) -> backends.Kernel:
        return _Counted(load(this, binary, launch, index), launches)

    with at(folder) as patch:
        patch.setattr(kind, "load", load_counted)
        runtime.refresh()
        yield launches
        runtime.refresh()


def put_in_force(folder: Path, backend: str, workloads: Sequence[Workload]) -> None:
    """One kernel for each: the first guess for the first workload of an op and dtype, for the others a
    config that is drawn by the workload's key. All with exact math: the fast one is right on the scale of a
    row, but `torch.testing.assert_close` asks it of every element."""
    with at(folder):
        _put_in_force(backend, workloads)


def _put_in_force(backend: str, workloads: Sequence[Workload]) -> None:
    target = backends.get(backend).target(0)
    chosen: dict[int, tuple[Config, Launch]] = {}
    guessed: set[tuple[str, str]] = set()
    width = min(14, os.cpu_count() or 1)
    with CompilePool(backend, width) as pool:
        for number, workload in enumerate(workloads):
            op, options = operators.get(workload.op), dict(workload.options)
            family, program = families.find(op, backend, **options), op.program(**options)
            space = family.space(program, workload, target)
            kind = (workload.op, workload.dtype)
            guesses = [] if kind in guessed else family.guesses(program, workload, target)
            guessed.add(kind)
            exact = [{**guess, **({"math": "exact"} if "math" in guess else {})} for guess in guesses]
            config = next((each for each in exact if is_in(space, each)), None) or draw(space, workload)
            chosen[number] = config, family.launch(config, program, workload, target)
            pool.submit(number, render(op, workload, config, target))
        builds = pool.completed(wait_for_all=True)
    assert [build.message for build in builds if build.artifact is None] == []
    with Store.open(env.database_path()) as store:
        for build in builds:
            assert isinstance(build.artifact, Artifact)
            assert isinstance(build.tag, int)
            config, launch = chosen[build.tag]
            artifact = build.artifact
            winner = Winner(
                workload=workloads[build.tag],
                target=target,
                config=dict(config),
                launch=launch,
                artifact=artifact.digest,
                time_us=1.0,
                baseline_us=2.0,
                ceiling_us=1.0,
                created="2026-01-02T03:04:05+00:00",
            )
            binary = Path(artifact.binary).read_bytes()
            store.promote(winner, source="", binary=binary, environment={})


def is_in(space: Space, config: Config) -> bool:
    values = space.values
    fits = config.keys() == values.keys() and all(config[name] in values[name] for name in values)
    return fits and space.allows(config)


def draw(space: Space, workload: Workload) -> Config:
    """The same config in every run. None with three products of bfloat16: it is in the space, but the sums
    of a float32 linear are off by 2^-16 of their terms, for which `admission` bars it from every search."""
    values = {**space.values, **({"math": ("exact",)} if "math" in space.values else {})}
    if "scheme" in values:
        values["scheme"] = tuple(each for each in values["scheme"] if each != "bf16x3")
    rng = random.Random(zlib.crc32(workload.key.encode()))
    for _ in range(100_000):
        config = {name: rng.choice(choices) for name, choices in values.items()}
        if is_in(space, config):
            return config
    raise AssertionError(f"no config found for {workload}")


class Launches:
    def __init__(self) -> None:
        self.count = 0


class _Counted:
    def __init__(self, kernel: backends.Kernel, launches: Launches) -> None:
        self._kernel = kernel
        self._launches = launches

    def __call__(self, pointers: tuple[int, ...], rows: int, stream: int) -> None:
        self._launches.count += 1
        self._kernel(pointers, rows, stream)

    def pack(self, weight: int, packed: int, rows: int, stream: int) -> None:
        self._kernel.pack(weight, packed, rows, stream)

    def entry(self, rows: int) -> None:
        """None: every start is to be counted."""

    def unload(self) -> None:
        self._kernel.unload()
