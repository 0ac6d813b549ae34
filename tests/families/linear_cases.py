"""What the tests of the CUDA linear family share: workloads, samples of a space, operands, errors."""

from __future__ import annotations

import math
import random
from collections import defaultdict
from pathlib import Path

import torch
from torch import Tensor

from ksearch import artifacts, backends, families
from ksearch.evaluate.buffers import Guarded
from ksearch.families.linear_tiles import SCHEMES
from ksearch.invoke import Starter
from ksearch.operators.program import Role
from ksearch.packing import Packer
from ksearch.render import render
from ksearch.types import Artifact, Config, ConfigValue, Source, Target
from tests.families.cuda_cases import TARGETS, find

SPLIT = tuple(name for name, scheme in SCHEMES.items() if scheme.terms)
EXACT = tuple(name for name in SPLIT if name != "bf16x3")
"""Schemes that are as good as PyTorch's float32; the remaining one is refused by the check."""
_SIZES = ("tile_n", "stages", "promote", "order", "library", "math", "keep_in_l2")
"""Parameters that change numbers in the text of a kernel, or little else."""


class Case:
    """One op on one workload and GPU, with what its family says of it."""

    def __init__(
        self,
        name: str,
        dims: tuple[int, ...],
        dtype: str = "float32",
        policy: str = "strict",
        target: Target = TARGETS["sm_90"],
        *,
        prepacked: bool = False,
    ) -> None:
        self.op = find(name)
        self.workload = self.op.workload(dims, dtype, policy=policy, prepacked=prepacked)
        self.target = target
        options = dict(self.workload.options)
        self.program = self.op.program(**options)
        self.family = families.find(self.op, "cuda", **options)
        self.space = self.family.space(self.program, self.workload, target)
        self.configs = list(self.space)

    def __str__(self) -> str:
        return f"{self.workload} {self.target.arch}"

    @property
    def schemes(self) -> tuple[str, ...]:
        """Those of the fused kernels."""
        return tuple({str(c["scheme"]): None for c in self.configs if c["strategy"] != "library"})

    def source(self, config: Config) -> Source:
        return render(self.op, self.workload, config, self.target)

    def sample(self, rng: random.Random, most: int | None = None) -> list[dict[str, ConfigValue]]:
        """One config of every region (configs of one have the same code but for sizes), or `most` of them."""
        regions: dict[tuple[ConfigValue, ...], list[dict[str, ConfigValue]]] = defaultdict(list)
        for config in self.configs:
            regions[tuple(value for name, value in config.items() if name not in _SIZES)].append(config)
        picked = [rng.choice(configs) for configs in regions.values()]
        return picked if most is None else rng.sample(picked, min(most, len(picked)))

    def pick(self, rng: random.Random, **wish: ConfigValue) -> dict[str, ConfigValue]:
        """Any config with these values."""
        found = [c for c in self.configs if all(c[name] == value for name, value in wish.items())]
        assert found, f"{self}: nothing in the space has {wish}"
        return rng.choice(found)


class Runner:
    """One config of a case on the GPU, started as the worker and the loader start it."""

    def __init__(self, case: Case, config: Config, artifact: Artifact | None = None) -> None:
        self.case, self.config = case, config
        backend = backends.get("cuda")
        built = artifact or artifacts.build(backend, case.source(config))
        self.launch = case.family.launch(config, case.program, case.workload, case.target)
        self.kernel = backend.load(Path(built.binary), self.launch, 0)
        self.device = torch.device("cuda")
        self._start = Starter(self.kernel, self.launch, case.workload, case.program.inputs, self.device)
        self._packer = Packer(self.kernel, self.launch, case.workload, self.device)

    def outputs(self) -> list[Guarded]:
        rows, cols = self.case.workload.rows, self.case.workload.cols
        dtype = getattr(torch, self.case.workload.dtype)
        shapes = [(rows, 1 if per_row else cols) for per_row in self.case.program.per_row]
        return [Guarded(shape, dtype, self.device) for shape in shapes]

    def start(self, inputs: list[Guarded], outputs: list[Guarded]) -> None:
        """On the current stream."""
        pointers = tuple(each.pointer for each in (*inputs, *outputs))
        stream = torch.cuda.current_stream().cuda_stream
        packed = self.packed(inputs) if self.launch.pack else None
        values = [each.values for each in inputs]
        self._start(values, pointers, self.case.workload.rows, stream, packed and packed.values)
        assert packed is None or torch.equal(packed.bits, self.packed(inputs).bits), "a packed weight changed"

    def packed(self, inputs: list[Guarded]) -> Guarded:
        """The weight, packed between guards."""
        made = Guarded((1, self.launch.packed_bytes // 4), torch.float32, self.device)
        place = [item.role for item in self.case.program.inputs].index(Role.RIGHT)
        self._packer(inputs[place].values, torch.cuda.current_stream().cuda_stream, made.values)
        assert not bool(made.damaged()), f"wrote past the packed weight: {self.config}"
        return made

    def __call__(self, inputs: list[Guarded]) -> list[Tensor]:
        """The outputs, the same from two runs over different poison, with no write beside them."""
        runs = []
        for number in range(2):
            outputs = self.outputs()
            for each in outputs:
                each.poison(number)
            self.start(inputs, outputs)
            assert not any(bool(each.damaged()) for each in outputs), f"wrote past an output: {self.config}"
            runs.append(outputs)
        same = all(torch.equal(a.bits, b.bits) for a, b in zip(*runs, strict=True))
        assert same, f"not the same twice: {self.config}"
        return [each.values for each in runs[1]]

    def with_scratch(self, inputs: list[Guarded]) -> tuple[list[Tensor], Tensor]:
        """The outputs, and the call's scratch as bytes; it held NaNs before, and lies between guards."""
        outputs, scratch = (
            self.outputs(),
            Guarded((1, self.launch.scratch_bytes // 4), torch.float32, self.device),
        )
        scratch.bits.fill_(-1)
        pointers = tuple(each.pointer for each in (*inputs, *outputs, scratch))
        self.kernel(pointers, self.case.workload.rows, torch.cuda.current_stream().cuda_stream)
        assert not bool(scratch.damaged()), f"wrote past the scratch: {self.config}"
        return [each.values for each in outputs], scratch.values.view(torch.uint8).view(-1)

    def marks(self, scratch: Tensor) -> tuple[Tensor, Tensor]:
        """Which rows of x, and which tiles (of features, of rows) the kernel left to `rescue`."""
        facts = self.case.family.variables(
            self.config, self.case.program, self.case.workload, self.case.target
        )
        rows, cols = self.case.workload.rows, self.case.workload.cols
        feature_tiles, batch_tiles = -(-cols // int(facts["tile_m"])), -(-rows // int(facts["tile_n"]))
        at = int(facts["offset_scales"])
        scales = scratch[at : at + 4 * rows].view(torch.float32)
        at = int(facts["offset_flags"])
        flags = scratch[at : at + 4 * feature_tiles * batch_tiles].view(torch.int32)
        return scales.isnan(), flags.view(feature_tiles, batch_tiles) != 0

    def unload(self) -> None:
        torch.cuda.synchronize()
        self.kernel.unload()


def operands(
    rows: int, inner: int, cols: int, kind: str, seed: int, device: str = "cpu"
) -> tuple[Tensor, Tensor]:
    """x and the weight in float32: `uniform` (0 to 1, and as torch.nn.Linear starts), `normal` (x ten times
    that), `saturating` (weights sixteen times as large), `wide` (magnitudes over twelve decades)."""
    draw = torch.Generator(device).manual_seed(seed)
    shapes, bound = ((rows, inner), (cols, inner)), 1 / math.sqrt(inner)

    def uniform(shape: tuple[int, int], low: float, high: float) -> Tensor:
        return torch.empty(shape, device=device).uniform_(low, high, generator=draw)

    def normal(shape: tuple[int, int], scale: float) -> Tensor:
        return torch.empty(shape, device=device).normal_(0.0, scale, generator=draw)

    if kind == "uniform":
        return uniform(shapes[0], 0.0, 1.0), uniform(shapes[1], -bound, bound)
    if kind == "normal":
        return normal(shapes[0], 10.0), normal(shapes[1], bound)
    if kind == "saturating":
        return normal(shapes[0], 1.0), uniform(shapes[1], -16 * bound, 16 * bound)
    assert kind == "wide", kind
    x, weight = normal(shapes[0], 1.0), normal(shapes[1], bound)
    return x * 10.0 ** uniform(shapes[0], -6, 6), weight * 10.0 ** uniform(shapes[1], -6, 6)


def guarded(case: Case, kind: str, seed: int) -> list[Guarded]:
    """All inputs of a case on the GPU."""
    workload, dtype, device = case.workload, getattr(torch, case.workload.dtype), torch.device("cuda")
    rows, cols, inner = workload.rows, workload.cols, workload.inner
    x, weight = operands(rows, inner, cols, kind, seed, "cuda")
    shapes = {
        Role.FULL: (rows, cols), Role.ROW: (1, cols), Role.COLUMN: (rows, 1), Role.SCALAR: (1, 1),
        Role.LEFT: (rows, inner), Role.RIGHT: (cols, inner),
    }  # fmt: skip
    made = []
    for item in case.program.inputs:
        each = Guarded(shapes[item.role], dtype, device)
        if item.role.is_operand:
            each.values.copy_(x if item.role is Role.LEFT else weight)
        else:
            each.values.normal_(generator=torch.Generator(device).manual_seed(seed + len(made)))
        made.append(each)
    return made


def rms(values: Tensor) -> float:
    return values.square().mean().sqrt().item()


def sums_of_magnitudes(x: Tensor, weight: Tensor) -> Tensor:
    """What errors of products are small beside, in float64."""
    return x.double().abs() @ weight.double().abs().t()
