"""Kernels that count or meet in global memory: launch after launch, on several streams, in several graphs."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ksearch import backends, operators
from ksearch.backends.cuda_kernel import CudaKernel
from ksearch.families.rowwise_cuda import RowwiseCuda
from ksearch.render import render
from ksearch.types import Config

pytestmark = pytest.mark.gpu

PLAIN: Config = {
    "threads": 128, "rows": 1, "cluster": 1, "split": 1, "vec": 4, "storage": "registers", "prefetch": 0,
    "min_blocks": 1, "unroll": 1, "order": "static", "weights": "global", "reduction": "online",
    "keep": False, "math": "exact", "load": "default", "store": "default",
}  # fmt: skip
CONFIGS = {
    "ticket in a cluster": (1024, 16384, {"cluster": 8, "prefetch": 1, "order": "ticket"}),
    "ticket in a block": (4096, 2048, {"prefetch": 2, "order": "ticket"}),
    "split": (8, 131072, {"threads": 512, "split": 16}),
}


class Softmax:
    """One compiled config, on tensors."""

    def __init__(self, name: str, folder: Path) -> None:
        rows, self.cols, changed = CONFIGS[name]
        self.rows = rows
        op, backend = operators.get("softmax"), backends.get("cuda")
        workload, target = op.workload((rows, self.cols)), backend.target(0)
        config = {**PLAIN, **changed}
        family, program = RowwiseCuda(), op.program()
        assert family.space(program, workload, target).allows(config)
        binary = folder / "kernel.cubin"
        binary.write_bytes(backend.compile(render(op, workload, config, target)).binary)
        launch = family.launch(config, program, workload, target)
        assert launch.workspace_bytes > 0
        kernel = backend.load(binary, launch, 0)
        assert isinstance(kernel, CudaKernel)
        self.kernel = kernel

    def __call__(self, x: Tensor, y: Tensor) -> None:
        self.kernel((x.data_ptr(), y.data_ptr()), x.shape[0], torch.cuda.current_stream().cuda_stream)

    def tensors(self, seed: int, rows: int | None = None) -> tuple[Tensor, Tensor]:
        generator = torch.Generator("cuda").manual_seed(seed)
        x = torch.randn(rows or self.rows, self.cols, device="cuda", generator=generator)
        return x, torch.full_like(x, torch.nan)


def is_right(x: Tensor, y: Tensor) -> bool:
    return torch.allclose(y, torch.softmax(x.double(), -1).float(), rtol=1e-5, atol=1e-12)


@pytest.fixture(params=CONFIGS)
def softmax(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Softmax]:
    made = Softmax(request.param, tmp_path)
    yield made
    torch.cuda.synchronize()
    made.kernel.unload()


def test_a_launch_leaves_the_workspace_ready_for_the_next(softmax: Softmax) -> None:
    """Whatever the number of rows: more than there are teams, fewer, one."""
    for seed, rows in enumerate([softmax.rows, 1, softmax.rows, 3, 2, softmax.rows]):
        x, y = softmax.tensors(seed, rows)
        softmax(x, y)
        assert is_right(x, y), rows


def test_streams_do_not_disturb_one_another(softmax: Softmax) -> None:
    streams = [torch.cuda.Stream() for _ in range(3)]
    pairs = [softmax.tensors(seed) for seed in range(3)]
    torch.cuda.synchronize()
    for _ in range(30):
        for stream, (x, y) in zip(streams, pairs, strict=True):
            with torch.cuda.stream(stream):
                y.fill_(torch.nan)
                softmax(x, y)
    torch.cuda.synchronize()
    assert all(is_right(x, y) for x, y in pairs)


def test_graphs_captured_on_one_stream_run_side_by_side(softmax: Softmax) -> None:
    pairs = [softmax.tensors(seed) for seed in range(2)]
    softmax(*pairs[0])
    capturing = torch.cuda.Stream()
    graphs = []
    for x, y in pairs:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=capturing):
            for _ in range(20):
                y.fill_(torch.nan)
                softmax(x, y)
        graphs.append(graph)
    streams = [torch.cuda.Stream() for _ in graphs]
    torch.cuda.synchronize()
    for _ in range(5):
        for stream, graph in zip(streams, graphs, strict=True):
            with torch.cuda.stream(stream):
                graph.replay()
    torch.cuda.synchronize()
    assert all(is_right(x, y) for x, y in pairs)


def test_a_thread_that_never_used_cuda_may_start_it(softmax: Softmax) -> None:
    x, y = softmax.tensors(1)
    stream = torch.cuda.current_stream().cuda_stream
    errors: list[Exception] = []

    def start() -> None:
        try:
            softmax.kernel((x.data_ptr(), y.data_ptr()), x.shape[0], stream)
        except Exception as error:  # noqa: BLE001  (told to the thread that asserts)
            errors.append(error)

    thread = threading.Thread(target=start)
    thread.start()
    thread.join()
    torch.cuda.synchronize()
    assert errors == []
    assert is_right(x, y)
