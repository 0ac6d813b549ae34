"""The space of fused linears on the tensor cores of every architecture but sm_90: mma.sync and cp.async.

The schemes, the scratch and the steps before and after are those of `linear_cuda`; the tiles are not.
"""

from __future__ import annotations

import itertools

from ksearch.families import linear_thin
from ksearch.families.base import Rule, Space
from ksearch.families.cuda import MAX_REGISTERS, math_axis
from ksearch.families.linear_tiles import SCHEMES, Tiles, round_up, tile_rows
from ksearch.operators.program import Program
from ksearch.types import Config, ConfigValue, Target, Workload

_OTHERS = 36
"""Registers beside sums and operands: pointers, places in the buffers, what is under way."""


def mma_space(
    program: Program, workload: Workload, target: Target, schemes: tuple[str, ...], presets: int
) -> Space:
    """Of the strategies `mma`, `direct` (plain float32 arithmetic) and `library`, of `presets` presets."""
    tensor = tuple(scheme for scheme in schemes if SCHEMES[scheme].term)
    plain = ["direct"] if "simt" in schemes else []
    plain += [linear_thin.THIN] if schemes and linear_thin.is_thin(workload) else []
    axes: dict[str, tuple[ConfigValue, ...]] = {
        "strategy": (*(("mma",) if tensor else ()), *plain, *(("library",) if presets else ())),
        "scheme": schemes or ("none",),
        "promote": (0, 16, 32),
        "tile_m": (128, 256, 64),
        "tile_n": tile_rows(workload),
        "warps_m": (4, 8, 2),
        "warps_n": (1, 2, 4),
        "steps": (1, 2),
        "stages": (4, 3, 2, 6),
        "order": ("batch", "feature"),
        "library": tuple(range(presets)) or (0,),
    }
    shape = [name for name in axes if name not in ("strategy", "scheme", "promote", "library")]

    def uses_tensor_cores(config: Config) -> bool:
        return config["strategy"] == "mma"

    def agrees(config: Config) -> bool:
        """Which schemes are whose; a library's product has none."""
        scheme = SCHEMES.get(str(config["scheme"]))
        if config["strategy"] == "library":
            return config["scheme"] == axes["scheme"][0]
        return scheme is not None and bool(scheme.term) == uses_tensor_cores(config)

    def promotes(config: Config) -> bool:
        """After the products that a thread has operands of at once: no further registers hold sums."""
        scheme = SCHEMES.get(str(config["scheme"]))
        splits = scheme is not None and uses_tensor_cores(config) and scheme.terms > 0
        return config["promote"] == (0 if not splits else 16 if scheme and scheme.term == "tf32" else 32)

    def divides(config: Config) -> bool:
        """Whole fragments for every warp, 4 or 8 of them."""
        warps_m, warps_n = int(config["warps_m"]), int(config["warps_n"])
        whole = int(config["tile_m"]) % (16 * warps_m) == 0 and int(config["tile_n"]) % (8 * warps_n) == 0
        return not uses_tensor_cores(config) or (whole and warps_m * warps_n in (4, 8))

    def has_registers(config: Config) -> bool:
        """One fragment of features goes with few rows: more of them spilled, whatever the registers."""
        if not uses_tensor_cores(config):
            return True
        features, rows = _fragments(config)
        return features * rows <= 32 and (features > 1 or rows <= 4) and registers(config) <= MAX_REGISTERS

    def fits(config: Config) -> bool:
        if not uses_tensor_cores(config):
            return True
        return Tiles.of(config, program, workload).smem_bytes <= target.smem_bytes

    return Space(
        axes=axes | linear_thin.axes(workload),
        rules=(
            *linear_thin.rules(workload, axes),
            Rule(("strategy", "scheme"), agrees),
            Rule(("strategy", "scheme", "promote"), promotes),
            Rule(("strategy", "library"), lambda c: c["strategy"] == "library" or c["library"] == 0),
            Rule(
                ("strategy", *shape),
                lambda c: uses_tensor_cores(c) or all(c[name] == axes[name][0] for name in shape),
            ),
            Rule(("strategy", "tile_m", "tile_n", "warps_m", "warps_n"), divides),
            Rule(("strategy", "scheme", "tile_m", "tile_n", "warps_m", "warps_n"), has_registers),
            Rule(("strategy", "scheme", "tile_m", "tile_n", "warps_m", "warps_n", "steps", "stages"), fits),
        ),
        free={"math": math_axis(program)},
    )


def registers(config: Config) -> int:
    """What a thread is given.

    Where W is split no more than what is counted here: the compiler fills what is left with reads far ahead,
    and then spills in the main loop (18 words, where 103 registers were left, 2 with this).
    """
    scheme = SCHEMES[str(config["scheme"])]
    if not scheme.terms:
        return MAX_REGISTERS
    fragments, rows = _fragments(config)
    pair = 2 - rows % 2
    sums = 4 * fragments * (rows + pair)
    operands = 8 * fragments * scheme.terms + 4 * pair * scheme.terms
    return round_up(sums + operands + 4 * fragments * scheme.scaled + _OTHERS, 8)


def _fragments(config: Config) -> tuple[int, int]:
    """Of a warp: in features, 16 each, and in rows, 8 each."""
    features = int(config["tile_m"]) // 16 // int(config["warps_m"])
    return features, int(config["tile_n"]) // 8 // int(config["warps_n"])


_RESERVED_BYTES = 1024
"""Of shared memory, by the system for each block."""
_SHAPES = ((128, 128, 4, 1), (128, 128, 4, 2), (256, 128, 8, 1), (128, 64, 4, 1), (64, 64, 4, 1))
"""Features and, at most, rows of a tile; warps along each."""


def mma_guesses(
    space: Space, program: Program, workload: Workload, target: Target
) -> list[dict[str, ConfigValue]]:
    """Few warps that hold many rows each, so that the weight is split once; 8 of them on a multiprocessor."""
    tiles = [int(n) for n in space.axes["tile_n"] if isinstance(n, int)]
    plain = {name: values[0] for name, values in space.values.items()}
    found: dict[str, dict[str, ConfigValue]] = {}
    schemes = [str(name) for name in space.axes["scheme"]]
    kinds = [(rank, place) for rank in range(len(schemes)) for place in range(len(_SHAPES))]
    for rank, place in sorted(kinds, key=sum):  # the better of either first
        tile_m, most, warps_m, warps_n = _SHAPES[place]
        tile_n = next((n for n in tiles if n <= most), tiles[-1])
        blocks = 8 // (warps_m * warps_n)
        for fit, promote, stages in itertools.product((blocks, 1), space.axes["promote"], (4, 3, 2)):
            wish: dict[str, ConfigValue] = {
                **plain, "strategy": "mma", "scheme": schemes[rank], "promote": promote, "tile_m": tile_m,
                "tile_n": tile_n, "warps_m": warps_m, "warps_n": warps_n, "stages": stages,
            }  # fmt: skip
            if not space.allows(wish):
                continue
            smem_bytes = Tiles.of(wish, program, workload).smem_bytes + _RESERVED_BYTES
            if fit * smem_bytes <= target.smem_bytes + _RESERVED_BYTES:  # the most stages with which they fit
                found.setdefault(str({**wish, "stages": 0}), wish)
    library = [
        {**plain, "strategy": "library", "promote": 0, "library": number}
        for number in range(len(space.axes["library"]))
        if "library" in space.axes["strategy"]
    ]
    thin = [wish for wish in linear_thin.guesses(plain, workload) if space.allows(wish)]
    return [*thin, *list(found.values())[:6], *library[:2]] if found else library
