"""Kernels of a real compiler, promoted, loaded back and run: what production does."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest
import torch

import ksearch
from ksearch import backends, env, operators
from ksearch.launch import Launch
from ksearch.runtime import Match
from ksearch.store import Store
from ksearch.types import Source, Winner, digest

SIGMOID_CPP = """
#include <cmath>
#include <cstdint>
extern "C" void ksearch_kernel(const float* x, float* y, int64_t rows, int32_t threads) {
#pragma omp parallel for num_threads(threads)
  for (int64_t i = 0; i < rows * COLS; i++) y[i] = SCALE / (1.0f + std::exp(-x[i]));
}
"""
SIGMOID_CUDA = """
extern "C" __global__ void ksearch_kernel(const float* x, float* y, long long rows) {
  long long i = blockIdx.x * 256ll + threadIdx.x;
  if (i < rows * COLS) y[i] = SCALE / (1.0f + expf(-x[i]));
}
"""


def tune(device: str, shape: tuple[int, int], scale: float = 1.0) -> Winner:
    """Compile the sigmoid above for this machine and put it in force. A `scale` tells it from PyTorch's."""
    name, index = backends.parse_device(device)
    backend = backends.get(name)
    target = backend.target(index)
    text = SIGMOID_CPP if name == "cpu" else SIGMOID_CUDA
    text = text.replace("COLS", f"{shape[1]}ll").replace("SCALE", f"{scale}f")
    compiled = backend.compile(Source(text, name, target.arch))
    winner = Winner(
        workload=operators.get("sigmoid").workload(shape, "float32"),
        target=target,
        config={"unroll": 1},
        launch=Launch(work_per_row=shape[1], work_per_block=256, block=256, threads=2, alignment=4),
        artifact=digest(compiled.binary),
        time_us=1.0,
        baseline_us=2.0,
        ceiling_us=1.0,
        created="2026-01-02T03:04:05+00:00",
    )
    with Store.open(env.database_path()) as store:
        store.promote(winner, source=text, binary=compiled.binary, log=compiled.log, environment={})
    return winner


def test_a_cpu_kernel_round_trip():
    winner = tune("cpu", (33, 129))
    handle = ksearch.load("sigmoid", (33, 129), torch.float32, "cpu")
    assert handle.match is Match.EXACT
    assert handle.winner == winner
    x = torch.randn(33, 129) * 10
    torch.testing.assert_close(handle(x), torch.sigmoid(x))
    out = torch.full_like(x, torch.nan)
    assert handle(x, out=out) is out
    torch.testing.assert_close(out, torch.sigmoid(x))


def test_it_is_the_kernel_that_runs():
    tune("cpu", (4, 8), scale=3.0)
    x = torch.randn(4, 8)
    torch.testing.assert_close(ksearch.ops.sigmoid(x), 3 * torch.sigmoid(x))


def test_a_newer_kernel_is_loaded_beside_the_older():
    """Two libraries export the same symbol: each handle keeps its own."""
    x = torch.randn(4, 8)
    tune("cpu", (4, 8), scale=2.0)
    older = ksearch.load("sigmoid", (4, 8), device="cpu")
    tune("cpu", (4, 8), scale=3.0)
    newer = ksearch.load("sigmoid", (4, 8), device="cpu")
    torch.testing.assert_close(older(x), 2 * torch.sigmoid(x))
    torch.testing.assert_close(newer(x), 3 * torch.sigmoid(x))


def test_another_process_runs_it_without_a_compiler():
    tune("cpu", (4, 8), scale=3.0)
    code = """
        import os
        os.environ["PATH"] = ""
        import sys, torch, ksearch
        x = torch.randn(4, 8)
        handle = ksearch.load("sigmoid", (4, 8), device="cpu")
        torch.testing.assert_close(handle(x), 3 * torch.sigmoid(x))
        heavy = {"sqlalchemy", "optuna", "jinja2", "alembic", "ksearch.store", "ksearch.render"}
        print(handle.match, sorted(heavy & set(sys.modules)))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == "exact []", done.stderr
    assert done.stderr == ""


def test_a_library_that_is_no_library_is_refused_by_the_system_and_pytorch_runs(caplog):
    winner = tune("cpu", (4, 8))
    junk = b"\x7fELF but not really"
    changed = Winner(
        winner.workload, winner.target, winner.config, winner.launch, digest(junk), 1.0, 2.0, 1.0
    )
    with Store.open(env.database_path()) as store:
        store.promote(changed, source="junk", binary=junk, environment={})
    handle = ksearch.load("sigmoid", (4, 8), device="cpu")
    assert handle.match is Match.FALLBACK
    x = torch.randn(4, 8)
    assert torch.equal(handle(x), torch.sigmoid(x))
    assert "cannot be loaded" in caplog.text


@pytest.mark.gpu
def test_a_cuda_kernel_round_trip_on_the_current_stream():
    tune("cuda", (1024, 1000), scale=3.0)
    handle = ksearch.load("sigmoid", (1024, 1000), torch.float32, "cuda")
    assert handle.match is Match.EXACT
    x = torch.empty(1024, 1000, device="cuda")
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(20_000_000)
        x.normal_()
        result = handle(x)  # on another stream it would read x before it is there
    stream.synchronize()
    torch.testing.assert_close(result, 3 * torch.sigmoid(x))


@pytest.mark.gpu
def test_a_cuda_graph_holds_the_kernel():
    tune("cuda", (64, 256), scale=3.0)
    x = torch.zeros(64, 256, device="cuda")
    out = torch.empty_like(x)
    ksearch.ops.sigmoid(x, out=out)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        ksearch.ops.sigmoid(x, out=out)
    x.normal_()
    graph.replay()
    torch.cuda.synchronize()
    torch.testing.assert_close(out, 3 * torch.sigmoid(x))


@pytest.mark.gpu
def test_a_kernel_first_met_inside_a_capture_is_left_to_pytorch(caplog):
    tune("cuda", (64, 256), scale=3.0)
    x, warm = torch.randn(64, 256, device="cuda"), torch.randn(2, 2, device="cuda")
    torch.sigmoid(warm)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = ksearch.ops.sigmoid(x)
    graph.replay()
    torch.cuda.synchronize()
    torch.testing.assert_close(out, torch.sigmoid(x))
    assert "CUDA graph" in caplog.text
    torch.testing.assert_close(ksearch.ops.sigmoid(x), 3 * torch.sigmoid(x))


@pytest.mark.gpu
def test_threads_that_never_used_cuda_may_call(caplog):
    import threading

    tune("cuda", (64, 256), scale=3.0)
    x = torch.randn(64, 256, device="cuda")
    results = []
    threads = [threading.Thread(target=lambda: results.append(ksearch.ops.sigmoid(x))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    torch.cuda.synchronize()
    assert len(results) == 4
    for result in results:
        torch.testing.assert_close(result, 3 * torch.sigmoid(x))
    assert caplog.text == ""
