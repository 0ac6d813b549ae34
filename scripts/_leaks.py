"""What a search of many candidates leaves behind: memory, processes, open files, files on the disk.

The candidates are one small kernel with another number in each, so that no two binaries are equal and each
is compiled, loaded, checked and timed. In the first half some crash, are wrong or do not compile; in the
second none does, so that one worker lives through it. All but the first do their work 5,000 times over: what
is clearly slower than the best is timed three times only.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

import ksearch
from ksearch.tuner import Progress

_OP = """\
import ksearch

@ksearch.op
class Twice(ksearch.TemplateOp):
    name = "twice"
    templates = {{"cpu": "twice.cpp", "cuda": "twice.cu"}}

    def reference(self, x):
        return x * 2

    def space(self, workload, target):
        return {{"step": list(range(1, {count} + 1))}}

    def guesses(self, workload, target):
        return [{{"step": step}} for step in range(1, {count} + 1)]

    def launch(self, config, workload, target):
        return ksearch.Launch(block=64)

    def variables(self, config, workload, target):
        kinds = {{7: "wrong", 57: "crash", 87: "syntax"}} if config["step"] <= {count} // 2 else {{}}
        return {{"kind": kinds.get(config["step"] % 100, "")}}
"""
_BODY = """\
    volatile int which = {{ step }};  // no two binaries are equal
{% if kind == "crash" %}
    *(volatile int*)8 = which;
{% elif kind == "syntax" %}
    does not compile;
{% endif %}
"""
_CPP = f"""\
typedef long i64;
extern "C" void {{{{ entry }}}}(const float* x, float* out, i64 rows, int threads) {{
{_BODY}
    for (int again = 0; again < {{{{ 1 if step == 1 else 5000 }}}}; ++again) {{
        for (i64 i = 0; i < rows * {{{{ cols }}}}; ++i) out[i] = x[i] * {{{{ 3 if kind == "wrong" else 2 }}}};
        asm volatile("" ::: "memory");
    }}
}}
"""
_CU = f"""\
extern "C" __global__ void {{{{ entry }}}}(const float* x, float* out, long long rows) {{
{_BODY}
    const float* a = x + blockIdx.x * (long long){{{{ cols }}}};
    float* b = out + blockIdx.x * (long long){{{{ cols }}}};
    const float factor = {{{{ 3 if kind == "wrong" else 2 }}}};
    for (int i = threadIdx.x; i < {{{{ cols }}}}; i += 64) b[i] = a[i] * factor;
}}
"""


def run(
    count: int,
    every: int,
    device: str,
    show: Callable[[dict[str, Any]], None],
    within_s: float | None = None,
) -> list[dict[str, Any]]:
    """Tune among `count` candidates, or as many as `within_s` seconds are enough for; what is held before,
    after each `every` of them, and in the end."""
    me = psutil.Process()
    rows: list[dict[str, Any]] = []
    outside = me.children(recursive=True)
    before = os.environ.get("KSEARCH_CACHE_DIR")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / "tmp").mkdir()
        (root / "mine.py").write_text(_OP.format(count=count))
        (root / "twice.cpp").write_text(_CPP)
        (root / "twice.cu").write_text(_CU)
        kept = tempfile.tempdir
        tempfile.tempdir = str(root / "tmp")
        os.environ["KSEARCH_CACHE_DIR"] = str(root / "cache")

        def look(when: str) -> None:
            rows.append({"when": when, **_held(me, outside, root / "tmp")})
            show(rows[-1])

        def watch(step: Progress) -> None:
            if step.phase == "search" and step.trials_done % every == 0:
                look(f"after {step.trials_done}")

        try:
            look("before")
            report = ksearch.tune(
                f"{root / 'mine.py'}:twice",
                (8, 64),
                device=device,
                trials=count,
                budget_s=within_s,
                early_stop=False,
                jobs=2 if device == "cpu" else None,
                db=root / "k.db",
                progress=watch,
            )
            look("in the end")
            rows[-1] |= {"candidates": report.trials, "failed": dict(report.failures), "s": report.elapsed_s}
        finally:
            tempfile.tempdir = kept
            if before is None:
                del os.environ["KSEARCH_CACHE_DIR"]
            else:
                os.environ["KSEARCH_CACHE_DIR"] = before
    return rows


def _held(me: psutil.Process, outside: list[psutil.Process], scratch: Path) -> dict[str, Any]:
    """By this process and those that it started."""
    worker, compilers = [], []
    for child in me.children(recursive=True):
        try:
            if child in outside or child.status() == psutil.STATUS_ZOMBIE:
                continue
            name = " ".join(child.cmdline())
            kind = worker if "open_session" in name else compilers
            kind.append((child.memory_info().rss, child.num_fds()))
        except psutil.NoSuchProcess:  # it has just ended
            continue
    return {
        "MB": me.memory_info().rss / 1e6,
        "files": me.num_fds(),
        "threads": me.num_threads(),
        "processes": len(worker) + len(compilers),
        "worker MB": max((rss for rss, _ in worker), default=0) / 1e6,
        "worker files": max((files for _, files in worker), default=0),
        "compiler MB": max((rss for rss, _ in compilers), default=0) / 1e6,
        "temporary folders": len(list(scratch.iterdir())),
    }
