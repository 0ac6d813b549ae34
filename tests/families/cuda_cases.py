"""What the tests of the CUDA families share: ops that people write, machines, and samples of a space."""

from __future__ import annotations

import math
import random
from collections import defaultdict
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ksearch import families, operators
from ksearch.families import cuda, rowwise_cuda
from ksearch.families.base import Family
from ksearch.operators import Op
from ksearch.operators.program import Role
from ksearch.operators.registry import op as define
from ksearch.render import render
from ksearch.types import Config, ConfigValue, Source, Target, Workload

SMEM_PER_SM = {"sm_80": 167936, "sm_90": 233472}
"""Shared memory of a multiprocessor, in bytes; a block may have 1 KB less (CUDA C++ Programming Guide)."""
TARGETS = {
    "sm_80": Target("cuda", "sm_80", "A100", units=108, memory_bytes=40 << 30, smem_bytes=166912),
    "sm_90": Target("cuda", "sm_90", "H100", units=132, memory_bytes=80 << 30, smem_bytes=232448),
}


def swish(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)


def tanh_gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x * x * x)))


def add_gated(x: Tensor, s: Tensor) -> Tensor:
    return x + s * torch.sigmoid(x)


def biased_relu(x: Tensor, bias: Tensor, scale: Tensor) -> Tensor:
    return torch.relu(x + bias) * scale


def rmsnorm(x: Tensor, weight: Tensor, *, eps: float = 1e-6) -> Tensor:
    return x * torch.rsqrt((x * x).mean(dim=-1, keepdim=True) + eps) * weight


def l2norm(x: Tensor, *, eps: float = 1e-12) -> Tensor:
    return x / (x * x).sum(dim=-1, keepdim=True).sqrt().clamp_min(eps)


def log_softmax(x: Tensor) -> Tensor:
    return torch.log_softmax(x, dim=-1)


def residual_softmax(x: Tensor, residual: Tensor) -> Tensor:
    return torch.softmax(x + residual, dim=-1)


def layernorm(x: Tensor, weight: Tensor, bias: Tensor, *, eps: float = 1e-5) -> Tensor:
    centered = x - x.mean(dim=-1, keepdim=True)
    return centered * torch.rsqrt((centered * centered).mean(dim=-1, keepdim=True) + eps) * weight + bias


POINTWISE: tuple[Callable[..., Tensor], ...] = (swish, tanh_gelu, add_gated, biased_relu)
ROWWISE: tuple[Callable[..., Tensor], ...] = (rmsnorm, l2norm, log_softmax, residual_softmax, layernorm)
NAMES = ("sigmoid", "softmax", *(function.__name__ for function in (*POINTWISE, *ROWWISE)))
ROWWISE_NAMES = ("softmax", *(function.__name__ for function in ROWWISE))
POINTWISE_NAMES = ("sigmoid", *(function.__name__ for function in POINTWISE))


def find(name: str) -> Op:
    """The op of that name; ours are registered when first asked for, and gone after each test."""
    if name in operators.names():
        return operators.get(name)
    function = next(f for f in (*POINTWISE, *ROWWISE) if f.__name__ == name)
    define(**({"scale": "column"} if function is biased_relu else {}))(function)
    return operators.get(name)


class Case:
    """One op on one workload and architecture, with what its family says of it."""

    def __init__(self, name: str, shape: tuple[int, ...], dtype: str, arch: str) -> None:
        self.op = find(name)
        self.workload: Workload = self.op.workload(shape, dtype)
        self.target = TARGETS[arch]
        self.program = self.op.program()
        self.family: Family = families.find(self.op, "cuda")
        self.space = self.family.space(self.program, self.workload, self.target)

    def __str__(self) -> str:
        return f"{self.workload} {self.target.arch}"

    def source(self, config: Config) -> Source:
        return render(self.op, self.workload, config, self.target)

    def slack(self, config: Config) -> int:
        """Registers between what the rule counts for a config and what its threads may have."""
        reads = max(1, sum(item.role is Role.FULL for item in self.program.inputs))
        vec, unroll, min_blocks = int(config["vec"]), int(config["unroll"]), int(config["min_blocks"])
        words = max(1, vec * self.workload.itemsize // 4)
        if self.family.name == "pointwise":
            cap = cuda.register_cap(int(config["block"]), min_blocks)
            return cap - unroll * words * len(self.program.inputs) - vec
        cap = cuda.register_cap(int(config["threads"]) * int(config["rows"]), min_blocks)
        if config["storage"] == "registers":
            return cap - rowwise_cuda.items(config, self.workload.cols) * words * reads
        return cap - unroll * vec * reads

    def region(self, config: Config) -> tuple[ConfigValue, ...]:
        """Configs of one region have the same code but for sizes."""
        if self.family.name == "pointwise":
            return (config["grid"], config["vec"], config["math"])
        cluster, many = int(config["cluster"]) > 1, int(config["rows"]) > 1
        names = ("storage", "prefetch", "reduction", "vec", "math")
        return (*(config[name] for name in names), cluster, many)

    def regions(self, rng: random.Random) -> dict[tuple[ConfigValue, ...], list[dict[str, ConfigValue]]]:
        """The whole space by region, each in order of slack; cache policies are drawn, not crossed."""
        free, found = self.space.free, defaultdict(list)
        drawn: set[tuple[ConfigValue, ...]] = set()
        for config in self.space:
            axes = tuple(config[name] for name in self.space.axes)
            if axes not in drawn:  # the first of its tails
                drawn.add(axes)
                tail = {name: rng.choice(list(values)) for name, values in free.items()}
                full = {**config, **tail}
                found[self.region(full)].append(full)
        for configs in found.values():
            configs.sort(key=self.slack)
        return found

    def sample(self, rng: random.Random, tight: int, others: int) -> Iterator[dict[str, ConfigValue]]:
        """Of every region the `tight` configs with the least slack, and `others` at random."""
        for configs in self.regions(rng).values():
            yield from configs[:tight]
            rest = configs[tight:]
            yield from rng.sample(rest, min(others, len(rest)))
