"""What the tests of the CUDA families share: ops that people write, machines, and samples of a space."""

from __future__ import annotations

import itertools
import random
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ksearch import backends, families, operators
from ksearch.families import cuda, rowwise_registers
from ksearch.families.base import Family
from ksearch.operators import Op
from ksearch.operators.program import Role
from ksearch.render import render
from ksearch.types import Config, ConfigValue, Source, Target, Workload

LENGTHS = (1, 5, 256, 1003, 4096, 8192, 50257, 131072, 393216, 10_000_000)
DTYPES = ("float32", "float16", "bfloat16")
TARGETS = {
    "sm_80": Target("cuda", "sm_80", "A100", units=108, memory_bytes=40 << 30, smem_bytes=166912),
    "sm_90": Target("cuda", "sm_90", "H100", units=132, memory_bytes=80 << 30, smem_bytes=232448),
}


MY_OPS = Path(__file__).with_name("my_ops.py")
POINTWISE = (
    *("sigmoid", "swish", "tanh_gelu", "add_gated", "biased_relu", "gated_pair", "scaled_tanh"),
    *("mish", "swiglu"),
)
ROWWISE = ("softmax", "rmsnorm", "l2norm", "log_softmax", "residual_softmax", "layernorm", "sum_and_norm")
NAMES = (*POINTWISE, *ROWWISE)


def find(name: str) -> Op:
    """A built-in op, or one of the file of our own."""
    return operators.resolve(name if name in operators.names() else f"{MY_OPS}:{name}")


def misfits(device: Target, todo: Sequence[tuple[Workload, Config]]) -> list[str]:
    """Those whose kernel spills registers, or has more of them or of shared memory than it may."""

    def misfit(item: tuple[Workload, Config]) -> str | None:
        workload, config = item
        op, options = find(workload.op), dict(workload.options)
        found = backends.get("cuda").compile(render(op, workload, config, device))
        launch = families.find(op, "cuda", **options).launch(config, op.program(**options), workload, device)
        cap = cuda.register_cap(launch.block, int(config["min_blocks"]))
        fits = found.spill_bytes == 0 and 0 < found.registers <= cap and found.smem_bytes <= 48 << 10
        return None if fits else f"{found.spill_bytes} bytes spilled, {found.registers}: {workload} {config}"

    with ThreadPoolExecutor(2) as pool:  # NVRTC lets go of the GIL
        return [found for found in pool.map(misfit, todo) if found]


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
        """Registers between what the rules count for a config and what its threads may have."""
        min_blocks, itemsize = int(config["min_blocks"]), self.workload.itemsize
        outputs = len(self.program.outputs)
        if self.family.name == "pointwise":
            vec, reads = int(config["vec"]), len(self.program.inputs)
            words = int(config["unroll"]) * max(1, vec * itemsize // 4) * reads + vec * outputs
            return cuda.register_cap(int(config["block"]), min_blocks) - words
        roles = [item.role for item in self.program.inputs]
        needed = rowwise_registers.registers(
            config,
            self.workload.cols,
            itemsize,
            roles.count(Role.FULL),
            roles.count(Role.ROW),
            cuda.compute_capability(self.target.arch),
        )
        needed += (outputs - 1) * int(config["vec"])
        return cuda.register_cap(int(config["threads"]) * int(config["rows"]), min_blocks) - int(needed)

    def region(self, config: Config) -> tuple[ConfigValue, ...]:
        """Configs of one region have the same code but for sizes."""
        if self.family.name == "pointwise":
            return (config["grid"], config["vec"], config["math"])
        names = ("storage", "prefetch", "order", "weights", "keep", "reduction", "math")
        return (*(config[name] for name in names), int(config["cluster"]) > 1, int(config["split"]) > 1)

    def regions(self, rng: random.Random) -> list[list[dict[str, ConfigValue]]]:
        """The whole space by region, each in order of slack; cache policies are drawn, not crossed."""
        found: dict[tuple[ConfigValue, ...], list[dict[str, ConfigValue]]] = defaultdict(list)
        axes = list(self.space.axes)
        for _, tails in itertools.groupby(self.space, lambda config: [config[name] for name in axes]):
            config = rng.choice(list(tails))
            found[self.region(config)].append(config)
        return [sorted(configs, key=lambda c: (self.slack(c), rng.random())) for configs in found.values()]

    def sample(self, rng: random.Random, tight: int, others: int) -> list[dict[str, ConfigValue]]:
        """Of every region the `tight` configs with the least slack, and `others` at random."""
        picked = []
        for configs in self.regions(rng):
            picked += configs[:tight]
            picked += rng.sample(configs[tight:], min(others, len(configs[tight:])))
        return picked
