"""A linear by PyTorch's own product, and one kernel for all that follows it.

The kernel is that of the pointwise or the rowwise family on `Program.epilogue`, whose first input is the
product; the caller computes that first (`Launch.torch_product`, ksearch/invoke.py). A bias is PyTorch's, too,
where nothing else needs what it is added to: PyTorch adds it before it rounds to 16 bits, which a kernel that
gets the product cannot. It is the whole of the CPU's linear family, and one strategy among others of a GPU's,
which takes it as a few `presets`.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import Any

from ksearch.families.base import Family, Space, nearest
from ksearch.launch import Launch
from ksearch.operators.program import Program
from ksearch.types import Config, ConfigValue, Target, Workload


@dataclass(frozen=True)
class LinearLibrary:
    """The families' verbs on what follows a linear. All take the program with the linear."""

    pointwise: Family
    rowwise: Family

    def rest(self, program: Program) -> Program:
        """What the kernel computes."""
        return program.epilogue if program.bias is None else program.after_bias

    def family(self, program: Program) -> Family:
        """Of the kernel that follows the product: its `template` is what is to be rendered."""
        return self.pointwise if self.rest(program).family == "pointwise" else self.rowwise

    def space(self, program: Program, workload: Workload, target: Target) -> Space:
        return self.family(program).space(self.rest(program), workload, target)

    def guesses(self, program: Program, workload: Workload, target: Target) -> list[dict[str, ConfigValue]]:
        return self.family(program).guesses(self.rest(program), workload, target)

    def presets(self, program: Program, workload: Workload, target: Target) -> tuple[Config, ...]:
        """The guesses as points of the space, best first; the same ones in every call.

        The product takes most of the time, so a search of other strategies needs no more of this one than
        these, as the values of one axis.
        """
        return _presets(self, program, workload, target)

    def launch(self, config: Config, program: Program, workload: Workload, target: Target) -> Launch:
        found = self.family(program).launch(config, self.rest(program), workload, target)
        bias = None if program.bias is None else program.inputs.index(program.bias)
        return replace(found, torch_product=True, torch_bias=bias)

    def variables(
        self, config: Config, program: Program, workload: Workload, target: Target
    ) -> dict[str, Any]:
        """What the template sees besides the config; its `program` is what follows the linear."""
        family = self.family(program)
        found = family.variables(config, self.rest(program), workload, target)
        return {**found, "epilogue_template": family.template}


@functools.lru_cache(maxsize=64)
def _presets(
    library: LinearLibrary, program: Program, workload: Workload, target: Target
) -> tuple[Config, ...]:
    """Kept, because launching and rendering ask for it again: to walk through a space takes up to 0.3 s."""
    wishes = library.guesses(program, workload, target)
    return tuple(nearest(library.space(program, workload, target), *wishes))
