"""Compiled candidates on disk: one folder each, named by its content, holding source, binary and log.

An entry appears by one rename, so readers never see half of it, and an unreadable entry is a miss.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

from ksearch import env, private
from ksearch.backends.base import Backend
from ksearch.types import Artifact, Source, canonical_json, digest

SCHEMA = 1
"""Part of every key: raise it when the meaning of an entry changes."""


def key(source: Source, compiler_id: str) -> str:
    """Identity of a binary: text, options, architecture, compiler."""
    facts = [SCHEMA, source.backend, source.arch, list(source.options), compiler_id, source.text]
    return digest(canonical_json(facts))


def folder(entry: str) -> Path:
    return env.cache_dir() / "artifacts" / entry[:2] / entry


def find(entry: str) -> Artifact | None:
    """The artifact of that key, or None where it is missing, unreadable or not what was compiled."""
    try:
        facts = json.loads((folder(entry) / "artifact.json").read_text())
        binary = folder(entry) / Path(facts.pop("binary")).name  # here, wherever the entry says
        artifact = Artifact(key=entry, folder=str(folder(entry)), compile_s=0.0, binary=str(binary), **facts)
        return artifact if digest(binary.read_bytes()) == artifact.digest else None
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None


def build(backend: Backend, source: Source) -> Artifact:
    """Compile, or find compiled. Raises CompileError, ToolMissing, OSError (a full disk)."""
    entry = key(source, backend.compiler_id())
    if (found := find(entry)) is not None:
        return found
    began = time.perf_counter()
    compiled = backend.compile(source)
    compile_s = time.perf_counter() - began
    final = private.make_cache(env.cache_dir(), "artifacts", entry[:2]) / entry
    binary = final / f"kernel.{backend.extension}"
    facts: dict[str, Any] = {
        "binary": str(binary),
        "digest": digest(compiled.binary),
        "registers": compiled.registers,
        "spill_bytes": compiled.spill_bytes,
        "smem_bytes": compiled.smem_bytes,
    }
    scratch = Path(tempfile.mkdtemp(dir=final.parent, prefix=".tmp-"))
    try:
        (scratch / binary.name).write_bytes(compiled.binary)
        (scratch / ("source.cu" if backend.name == "cuda" else "source.cpp")).write_text(source.text)
        (scratch / "log.txt").write_text(compiled.log)
        (scratch / "artifact.json").write_text(json.dumps(facts))
        try:
            scratch.rename(final)
        except OSError:
            if find(entry) is None:  # not a lost race: an unreadable entry stands in the way
                shutil.rmtree(final, ignore_errors=True)
                scratch.replace(final)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return Artifact(key=entry, folder=str(final), compile_s=compile_s, **facts)


def read_source(artifact: Artifact) -> str:
    return next(Path(artifact.folder).glob("source.*")).read_text()


def read_log(artifact: Artifact) -> str:
    return (Path(artifact.folder) / "log.txt").read_text()
