"""Linears with what follows them on a GPU: PyTorch's product and one more kernel, or one fused kernel.

The fused kernel multiplies on the tensor cores, float32 in several narrow products: on sm_90 by wgmma,
elsewhere by mma.sync (`linear_mma`). docs/architecture.md tells what was measured.
"""

from __future__ import annotations

import itertools
from typing import Any

from ksearch.errors import UsageError
from ksearch.families import linear_thin
from ksearch.families.base import Rule, Space
from ksearch.families.cuda import common_variables, compute_capability, math_axis
from ksearch.families.linear_library import LinearLibrary
from ksearch.families.linear_mma import mma_guesses, mma_space, registers
from ksearch.families.linear_tiles import SCHEMES, Scheme, Tiles, ceil_div, is_pingpong, tile_rows
from ksearch.families.pointwise_cuda import PointwiseCuda
from ksearch.families.rowwise_cuda import RowwiseCuda
from ksearch.launch import Launch
from ksearch.operators.program import Program
from ksearch.types import Config, ConfigValue, Target, Workload

WGMMA_ARCH = 90
"""No other architecture has these instructions, not even a later one."""
_ALIGN_BLOCK = 256


class LinearCuda:
    name = "linear"
    template = "cuda/linear.cu.j2"

    def __init__(self) -> None:
        self._library = LinearLibrary(PointwiseCuda(), RowwiseCuda())

    def space(self, program: Program, workload: Workload, target: Target) -> Space:
        """One flat space: where the strategy is `library`, only the number of its preset counts.

        A packed weight is for the tensor cores alone. Raises UsageError where no kernel takes one.
        """
        schemes = _schemes(program, workload)
        if workload.is_prepacked and not schemes:
            raise UsageError(
                f"{workload} has no prepacked kernel on {target.device}: a weight is packed where it is "
                "split, which is in float32 under the policy strict, where what follows the linear reduces "
                "its rows once at most; leave prepacked out"
            )
        presets = () if workload.is_prepacked else self._library.presets(program, workload, target)
        if compute_capability(target.arch) != WGMMA_ARCH:
            return mma_space(program, workload, target, schemes, len(presets))
        axes: dict[str, tuple[ConfigValue, ...]] = {
            "strategy": (
                *(("direct",) if schemes else ()),
                *((linear_thin.THIN,) if schemes and linear_thin.is_thin(workload) else ()),
                *(("library",) if presets else ()),
            ),
            "scheme": schemes or ("none",),
            "tile_n": tile_rows(workload),
            "schedule": ("cooperative", "pingpong"),
            "consumers": (2, 1),
            "blocks_m": (1, 2),
            "stages": (8, 6, 5, 4, 3, 2),
            "cluster": (1, 2, 4),
            "promote": (0, 256, 128, 64),
            "pending": (1,) if workload.is_prepacked else (1, 3),
            "order": ("batch", "feature"),
            "library": tuple(range(len(presets))) or (0,),
        }
        first = {name: values[0] for name, values in axes.items()}
        direct = [name for name in axes if name not in ("strategy", "library")]

        def is_fused(config: Config) -> bool:
            return config["strategy"] == "direct"

        def uses_tensor_cores(config: Config) -> bool:
            return is_fused(config) and config["scheme"] != "simt"

        def is_plain(config: Config, *names: str) -> bool:
            return all(config[name] == first[name] for name in names)

        def fits(config: Config) -> bool:
            if not uses_tensor_cores(config):
                return True
            return Tiles.of(config, program, workload).smem_bytes <= target.smem_bytes

        def accumulates(config: Config) -> bool:
            """Registers: a thread's share of a tile, twice where sums are promoted."""
            if not uses_tensor_cores(config):
                return True
            scheme = SCHEMES[str(config["scheme"])]
            values = int(config["tile_n"]) // 2 * int(config["blocks_m"])
            if not scheme.terms:
                return values <= 128
            return values <= (96 if workload.is_prepacked else 64) and config["blocks_m"] == 1

        def promotes(config: Config) -> bool:
            splits = uses_tensor_cores(config) and SCHEMES[str(config["scheme"])].terms > 0
            if not splits:
                return config["promote"] == 0 and config["pending"] == 1
            return 0 < int(config["promote"]) <= _longest_run(workload, SCHEMES[str(config["scheme"])])

        def takes_turns(config: Config) -> bool:
            """Alone, a warpgroup that splits W leaves the tensor cores idle meanwhile: that cost 6 % at
            65536x512x512, and 20 % at 1024x8192x8192."""
            splits = uses_tensor_cores(config) and SCHEMES[str(config["scheme"])].terms > 0
            can = config["consumers"] == 2 and (workload.is_prepacked or not splits)
            return can or not is_pingpong(config)

        def shares(config: Config) -> bool:
            """A cluster's blocks each copy some of the rows of x, in whole swizzle patterns of 8."""
            cluster = int(config["cluster"])
            sharing = 1 if is_pingpong(config) else int(config["consumers"])
            blocks = ceil_div(workload.cols, 64 * sharing * int(config["blocks_m"]))
            return cluster == 1 or (cluster <= blocks and int(config["tile_n"]) % (8 * cluster) == 0)

        return Space(
            axes=axes | linear_thin.axes(workload),
            rules=(
                *linear_thin.rules(workload, axes),
                Rule(tuple(axes), lambda c: c["strategy"] != "library" or is_plain(c, *direct)),
                Rule(("strategy", "library"), lambda c: c["strategy"] == "library" or c["library"] == 0),
                Rule(
                    ("strategy", *direct),
                    lambda c: (
                        uses_tensor_cores(c)
                        or is_plain(c, *(name for name in direct if name not in ("scheme", "promote")))
                    ),
                ),
                Rule(("strategy", "scheme", "schedule", "consumers"), takes_turns),
                Rule(("strategy", "scheme", "tile_n", "blocks_m"), accumulates),
                Rule(("strategy", "scheme", "tile_n", "schedule", "consumers", "blocks_m", "stages"), fits),
                Rule(("tile_n", "schedule", "consumers", "blocks_m", "cluster"), shares),
                Rule(("strategy", "scheme", "promote", "pending"), promotes),
                Rule(("pending", "scheme"), lambda c: c["pending"] == 1 or _slices(c) == 4),
            ),
            free={"keep_in_l2": ("none", "x"), "math": math_axis(program)},
            matters=lambda c: uses_tensor_cores(c) or c["keep_in_l2"] == "none",
        )

    def guesses(self, program: Program, workload: Workload, target: Target) -> list[dict[str, ConfigValue]]:
        """What led on an H200 at 1024x8192x8192 and 128x32768x32768; then the library's own."""
        if compute_capability(target.arch) != WGMMA_ARCH:
            return mma_guesses(self.space(program, workload, target), program, workload, target)
        schemes = _schemes(program, workload)
        tiles = tile_rows(workload)
        base: dict[str, ConfigValue] = {
            "strategy": "direct", "scheme": "simt", "tile_n": tiles[0], "schedule": "cooperative",
            "consumers": 2, "blocks_m": 1, "stages": 8, "cluster": 1, "promote": 0, "pending": 1,
            "order": "batch", "library": 0, "keep_in_l2": "none", "math": math_axis(program)[0],
            **{name: values[0] for name, values in linear_thin.axes(workload).items()},
        }  # fmt: skip
        wishes: list[dict[str, ConfigValue]] = []
        for scheme in schemes:
            if scheme == "simt":
                continue
            split = SCHEMES[scheme].terms > 0
            tile_n = next((n for n in tiles if n <= (128 if split else 256)), tiles[-1])
            run = min(256, _longest_run(workload, SCHEMES[scheme])) if split else 0
            runs = dict.fromkeys((run, max(64, run // 2))) if split else (0,)  # the longest may be barred
            square = {"blocks_m": 2, "tile_n": min(tile_n, 128)}
            tiles_in_all = ceil_div(workload.cols, 128) * ceil_div(workload.rows, int(square["tile_n"]))
            # Of short sums the epilogue is a large share; of 64 steps 5 % were lost to tiles half as large.
            steps = ceil_div(workload.inner, SCHEMES[scheme].block_k)
            has_turns = steps <= 32 and tiles_in_all > target.units
            turns = {"schedule": "pingpong", "order": "feature"}
            ways = ({"tile_n": 192},) if split else (square, {"cluster": 2})
            for run, extra in itertools.product(
                runs,
                (
                    {},
                    {"cluster": 2},
                    {**square, "cluster": 2},
                    {"pending": 3},
                    *({**turns, **each} for each in ways if has_turns),
                ),
            ):
                kind = {**base, "scheme": scheme, "tile_n": tile_n, "promote": run, **extra}
                wishes += [{**kind, "stages": stages} for stages in (6, 4, 3, 2)]
        space = self.space(program, workload, target)
        found = [wish for wish in wishes if space.allows(wish)]
        best_of: dict[str, dict[str, ConfigValue]] = {}
        for wish in found:  # the most stages that fit
            best_of.setdefault(str({**wish, "stages": 0}), wish)
        plain = {name: values[0] for name, values in space.values.items()}
        library = [
            {**plain, "strategy": "library", "library": number, "math": base["math"]}
            for number in range(len(space.axes["library"]))
            if "library" in space.axes["strategy"]
        ]
        thin = [wish for wish in linear_thin.guesses(plain, workload) if space.allows(wish)]
        return [*thin, *list(best_of.values())[:8], *library[:2]] if best_of else library

    def way(self, config: Config) -> str:
        """The scheme, and after how many products its sums are rounded to float32."""
        scheme = SCHEMES.get(str(config["scheme"]))
        if config["strategy"] == "library" or scheme is None or not scheme.terms:
            return ""
        return f"{config['scheme']}/{config['promote']}"

    def _preset(self, config: Config, program: Program, workload: Workload, target: Target) -> Config:
        """Raises UsageError where there is none of that number, as a winner from before may say."""
        presets = self._library.presets(program, workload, target)
        number = int(config["library"])
        if number >= len(presets):
            raise UsageError(f"library={number} is none of the {len(presets)} presets for {workload}")
        return presets[number]

    def launch(self, config: Config, program: Program, workload: Workload, target: Target) -> Launch:
        if config["strategy"] == "library":
            preset = self._preset(config, program, workload, target)
            return self._library.launch(preset, program, workload, target)
        tiles = Tiles.of(config, program, workload)
        itemsize, scheme = workload.itemsize, tiles.scheme
        after = (Launch(entry="finish", work_per_block=4, block=128),) if tiles.stage else ()
        units = ceil_div(workload.cols, tiles.tile_m)
        if not scheme.term:
            is_thin = config["strategy"] == linear_thin.THIN
            return Launch(
                work_per_row=tiles.per_row(units, workload), work_per_block=tiles.tile_n,
                block=32 * int(config["warps"]) if is_thin else 256,
                alignment=itemsize * (linear_thin.vector(workload) if is_thin else 1),
                scratch_bytes=tiles.scratch_bytes, after=after, most_rows=workload.rows,
            )  # fmt: skip
        before: tuple[Launch, ...] = ()
        if tiles.is_realigned:
            lines = ceil_div(workload.cols + workload.rows, workload.rows)
            before = (Launch(entry="align", work_per_row=lines, block=_ALIGN_BLOCK, persistent=True),)
        if scheme.terms:
            before = (*before, Launch(entry="prepare", block=tiles.prepare_block))
            after = (Launch(entry="rescue", work_per_row=units, block=256, persistent=True), *after)
        if config["strategy"] == "mma":
            block, cluster = 32 * int(config["warps_m"]) * int(config["warps_n"]), 1
        else:
            block, cluster = 128 * (int(config["consumers"]) + 1), int(config["cluster"])
        return Launch(
            work_per_row=tiles.per_row(ceil_div(units, cluster), workload),
            work_per_block=tiles.tile_n,
            block=block,
            cluster=cluster,
            smem_bytes=tiles.smem_bytes,
            persistent=True,
            alignment=16,
            scratch_bytes=tiles.scratch_bytes,
            most_rows=workload.rows,
            maps=() if config["strategy"] == "mma" else tiles.maps(program, workload, cluster),
            before=before,
            after=after,
            pack=Launch(entry="pack", block=tiles.prepare_block) if tiles.packed_rows else None,
            packed_bytes=tiles.packed_bytes,
        )

    def variables(
        self, config: Config, program: Program, workload: Workload, target: Target
    ) -> dict[str, Any]:
        if config["strategy"] == "library":
            preset = self._preset(config, program, workload, target)
            return {**preset, **self._library.variables(preset, program, workload, target)}
        tiles = Tiles.of(config, program, workload)
        epilogue = program.epilogue
        left, right = program.linear.args if program.linear else ("", "")
        common = common_variables(epilogue)
        return {
            **common,
            "program": program,
            "full_inputs": [name for name in common["full_inputs"] if name != epilogue.inputs[0].name],
            "schedule": epilogue.schedule(epilogue.online_kinds),
            "stage": tiles.stage,
            "left": left,
            "right": right,
            "inner": workload.inner,
            "terms": tiles.scheme.terms,
            "packed": tiles.packed_rows > 0,
            "pingpong": is_pingpong(config),
            "term_type": tiles.scheme.term,
            "products": tiles.scheme.products,
            "scaled": tiles.scheme.scaled,
            "block_k": tiles.block_k,
            "tile_m": tiles.tile_m,
            "tile_n": tiles.tile_n,
            "padded": tiles.padded,
            "most_rows": workload.rows,
            "scratch_bytes": tiles.scratch_bytes,
            "realigned": tiles.is_realigned,
            "align_block": _ALIGN_BLOCK,
            "offset_x": tiles.offset_x,
            "offset_w": tiles.offset_w,
            "offset_scales": tiles.offset_scales,
            "offset_flags": tiles.offset_flags,
            "offset_partials": tiles.offset_partials,
            "prepare_block": tiles.prepare_block,
            "ring_offset": tiles.ring_offset,
            "partials_offset": tiles.partials_offset,
            "staged_rows": tiles.staged_rows,
            "vec_k": linear_thin.vector(workload),
            "vec": next(v for v in (8, 4, 2, 1) if v * workload.itemsize <= 16 and workload.cols % v == 0),
            # Of 65536 registers: 128 threads that copy, CONSUMERS * 128 that multiply (multiples of 8).
            "registers": registers(config) if config["strategy"] == "mma" else 0,
            "producer_registers": 56,
            "consumer_registers": 224,
        }


def _schemes(program: Program, workload: Workload) -> tuple[str, ...]:
    """How the fused kernel may multiply here; empty where only PyTorch's product will do.

    Of a prepacked workload those that split the weight; empty where none does.
    """
    epilogue = program.epilogue
    if (
        len(epilogue.schedule(epilogue.online_kinds).stages) > 1
    ):  # a second pass would need the first one's result
        return ()
    plain = ("simt",) if workload.dtype == "float32" and not workload.is_prepacked else ()
    if workload.is_prepacked and (workload.dtype, workload.policy) != ("float32", "strict"):
        return ()  # what is not split is taken as it is
    if workload.dtype != "float32":
        return (workload.dtype,)
    if workload.policy == "tf32":
        return ("tf32", *(plain if linear_thin.is_thin(workload) else ()))
    return ("fp16x3", "bf16x6", "tf32x3", "bf16x3", *plain)


def _longest_run(workload: Workload, scheme: Scheme) -> int:
    """Products that may be added up on tensor cores, which cut sums off, before float32 takes over.

    The cut-off grows with the run, PyTorch's own error with the length of the sum. By emulation the former is
    as large after a sixteenth of it, or half that where six products or steps of eight are cut off.
    """
    share = 16 if len(scheme.products) == 3 and scheme.term != "tf32" else 32
    return max(64, 1 << (workload.inner // share).bit_length() - 1 if workload.inner >= share else 64)


def _slices(config: Config) -> int:
    """In how many steps a block of the summed dimension is split."""
    scheme = SCHEMES.get(str(config["scheme"]))
    return scheme.block_k // 16 if scheme else 0
