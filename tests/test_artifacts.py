from __future__ import annotations

import errno
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from ksearch import artifacts, env
from ksearch.backends.base import Compiled
from ksearch.errors import CompileError
from ksearch.types import Source

SOURCE = Source(text="int one;\n", backend="cpu", arch="x86_64", options=("-O3",))


class Counting:
    """A backend that only counts; its binaries name the text that they came from."""

    name, extension, exclusive = "cpu", "so", True

    def __init__(self, compiler: str = "cc 1") -> None:
        self.compiler = compiler
        self.compiled = 0

    def compiler_id(self) -> str:
        return self.compiler

    def compile(self, source: Source) -> Compiled:
        self.compiled += 1
        if "error" in source.text:
            raise CompileError("line 1: error", "the log")
        return Compiled(source.text.encode() + b"\0binary", "said nothing", 7, 0, 16)


@pytest.mark.parametrize(
    "other",
    [
        replace(SOURCE, text="int two;\n"),
        replace(SOURCE, options=("-O2",)),
        replace(SOURCE, options=("-O3", "-g")),
        replace(SOURCE, arch="x86_64-avx2"),
        replace(SOURCE, backend="cuda"),
    ],
    ids=["text", "option", "more options", "arch", "backend"],
)
def test_the_key_changes_with_everything_that_makes_the_binary(other: Source) -> None:
    assert artifacts.key(SOURCE, "cc 1") != artifacts.key(other, "cc 1")


def test_the_key_is_content_alone() -> None:
    assert artifacts.key(SOURCE, "cc 1") != artifacts.key(SOURCE, "cc 2")
    same = replace(SOURCE, origin=(("somewhere.j2", 1),))
    assert artifacts.key(SOURCE, "cc 1") == artifacts.key(same, "cc 1"), "moving a template changes nothing"


def test_a_second_build_is_found() -> None:
    backend = Counting()
    first, second = artifacts.build(backend, SOURCE), artifacts.build(backend, SOURCE)
    assert backend.compiled == 1
    assert first.compile_s > 0 == second.compile_s
    assert replace(first, compile_s=0.0) == second == artifacts.find(first.key)
    assert (first.registers, first.spill_bytes, first.smem_bytes) == (7, 0, 16)
    assert Path(first.binary).read_bytes() == b"int one;\n\0binary"
    assert artifacts.read_source(second) == SOURCE.text
    assert artifacts.read_log(second) == "said nothing"
    assert artifacts.build(Counting("cc 2"), SOURCE).key != first.key


@pytest.mark.parametrize("damage", ["no json", "half a json", "other json", "no binary", "half a binary"])
def test_a_damaged_entry_is_a_miss_and_is_built_again(damage: str) -> None:
    backend = Counting()
    first = artifacts.build(backend, SOURCE)
    facts, binary = Path(first.folder) / "artifact.json", Path(first.binary)
    {
        "no json": facts.unlink,
        "half a json": lambda: facts.write_text(facts.read_text()[:20]),
        "other json": lambda: facts.write_text(json.dumps({"binary": str(binary)})),
        "no binary": binary.unlink,
        "half a binary": lambda: binary.write_bytes(binary.read_bytes()[:3]),
    }[damage]()
    assert artifacts.find(first.key) is None
    again = artifacts.build(backend, SOURCE)
    assert backend.compiled == 2
    assert Path(again.binary).read_bytes() == b"int one;\n\0binary"
    assert artifacts.find(first.key) == replace(again, compile_s=0.0)


def test_what_does_not_compile_leaves_nothing() -> None:
    with pytest.raises(CompileError):
        artifacts.build(Counting(), replace(SOURCE, text="error"))
    assert [path for path in env.cache_dir().rglob("*") if path.is_file()] == []


BUILDER = """
import sys, time
from ksearch import artifacts
from tests.test_artifacts import SOURCE, Counting

class Slow(Counting):
    def compile(self, source):
        print("compiling", flush=True)
        sys.stdin.readline()
        return super().compile(source)

artifact = artifacts.build(Slow(), SOURCE)
print(artifact.digest, open(artifact.binary, "rb").read() == SOURCE.text.encode() + b"\\0binary")
"""


def test_two_processes_may_build_the_same_at_once() -> None:
    command = [sys.executable, "-c", BUILDER]
    root = Path(__file__).parents[1]
    pipe = subprocess.PIPE
    both = [
        subprocess.Popen(command, cwd=root, stdin=pipe, stdout=pipe, stderr=pipe, text=True) for _ in range(2)
    ]
    for process in both:
        assert process.stdout is not None
        assert process.stdout.readline() == "compiling\n", "both found nothing"
    said = [process.communicate("go\n", timeout=60) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert said[0][0] == said[1][0]
    assert said[0][0].endswith("True\n")
    (entry,) = (env.cache_dir() / "artifacts").glob("*/*")
    assert artifacts.find(entry.name) is not None


def test_a_full_disk_surfaces_and_leaves_no_scraps(monkeypatch: pytest.MonkeyPatch) -> None:
    write = Path.write_text

    def full(self: Path, text: str, *more: object) -> int:
        if self.name == "log.txt":
            raise OSError(errno.ENOSPC, "No space left on device", str(self))
        return write(self, text)

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space left") as caught:
        artifacts.build(Counting(), SOURCE)
    assert caught.value.errno == errno.ENOSPC
    assert [path for path in env.cache_dir().rglob("*") if path.is_file()] == []
    monkeypatch.setattr(Path, "write_text", write)
    assert artifacts.build(Counting(), SOURCE).compile_s > 0
