"""An op with templates of its own: the running sum along the last dimension, one row a block."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch

import ksearch
from ksearch.types import Config, ConfigValue, Target


@ksearch.op
class RunningSum(ksearch.TemplateOp):
    name = "running_sum"
    templates: ClassVar = {"cpu": "running_sum.cpp.j2", "cuda": "running_sum.cu.j2"}

    def reference(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cumsum(x, dim=-1)

    def space(self, workload: ksearch.Workload, target: Target) -> Mapping[str, Sequence[ConfigValue]]:
        if target.backend == "cpu":
            return {"chains": [1, 2, 4, 8, 16], "threads": sorted({1, target.units})}
        return {"block": [64, 128, 256, 512, 1024], "items": [1, 2, 4, 8]}

    def is_valid(self, config: Config, workload: ksearch.Workload, target: Target) -> bool:
        if target.backend == "cpu":
            return config["chains"] == 1 or int(config["chains"]) * int(config["threads"]) <= workload.rows
        chunk = int(config["block"]) * int(config["items"])
        return chunk < 2 * workload.cols or chunk == 64  # more than half of the threads have work

    def guesses(self, workload: ksearch.Workload, target: Target) -> Sequence[Config]:
        if target.backend == "cpu":
            return [{"chains": 8, "threads": target.units}]
        return [{"block": 256, "items": 4}]

    def launch(self, config: Config, workload: ksearch.Workload, target: Target) -> ksearch.Launch:
        if target.backend == "cpu":
            return ksearch.Launch(threads=int(config["threads"]), alignment=workload.itemsize)
        # A block takes a row: work is counted in rows, and there is 1 of them in each block.
        return ksearch.Launch(
            work_per_row=1, work_per_block=1, block=int(config["block"]), alignment=workload.itemsize
        )

    def variables(self, config: Config, workload: ksearch.Workload, target: Target) -> Mapping[str, Any]:
        names = {
            "cpu": {"float32": "float", "float16": "ks::float16", "bfloat16": "ks::bfloat16"},
            "cuda": {"float32": "ks::Float32", "float16": "ks::Float16", "bfloat16": "ks::BFloat16"},
        }
        return {"element": names[target.backend][workload.dtype]}
