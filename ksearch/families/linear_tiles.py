"""How linears are multiplied on a GPU, and what follows: sizes of tiles, shared memory and scratch."""

from __future__ import annotations

from dataclasses import dataclass

from ksearch.families.linear_thin import THIN
from ksearch.launch import TensorMap
from ksearch.operators.program import Program
from ksearch.operators.stages import Stage
from ksearch.types import Config, Workload

_BOX_COLS_W = 16
"""Columns of the weight's tiles where it is split in registers: of 64 bytes, so that the reads of a warp, 16
bytes from each of 8 rows at a time, meet no bank twice."""
_SIDE = 64
"""Of the square tiles of plain arithmetic."""


@dataclass(frozen=True, slots=True)
class Scheme:
    """How products are taken."""

    term: str
    """What the tensor cores multiply: `float16`, `bfloat16` or `tf32`; empty for plain float32 arithmetic."""
    terms: int = 0
    """How many of these an operand is split into; 0 where it is taken as it is."""
    products: tuple[tuple[int, int], ...] = ()
    """Which term of the weight meets which one of x, the smallest products first."""
    scaled: bool = False
    """Rows are scaled by powers of two into float16's range."""

    @property
    def block_k(self) -> int:
        """Elements of one 128-byte row of a tile."""
        return 32 if self.term == "tf32" else 64


_THREE = ((1, 0), (0, 1), (0, 0))
_SIX = ((1, 1), (2, 0), (0, 2), *_THREE)
SCHEMES = {
    "fp16x3": Scheme("float16", 2, _THREE, scaled=True),
    "bf16x6": Scheme("bfloat16", 3, _SIX),
    "tf32x3": Scheme("tf32", 2, _THREE),
    "bf16x3": Scheme("bfloat16", 2, _THREE),
    "tf32": Scheme("tf32"),
    "float16": Scheme("float16"),
    "bfloat16": Scheme("bfloat16"),
    "simt": Scheme(""),
}


def is_pingpong(config: Config) -> bool:
    """Whether each warpgroup that multiplies has a tile of its own. Configs from before do not say: none."""
    return config.get("schedule") == "pingpong"


@dataclass(frozen=True, slots=True)
class Tiles:
    """Sizes that follow from a config: of tiles, of shared memory, of the scratch."""

    scheme: Scheme
    stage: Stage | None
    """The reduction at the end, where there is one."""
    tile_m: int
    tile_n: int
    block_k: int
    """Elements of the summed dimension in one buffer."""
    prepare_block: int
    padded: int
    """Length of the summed dimension as the scratch keeps rows: whole tiles."""
    staged_rows: int
    partials_offset: int
    ring_offset: int
    smem_bytes: int
    offset_scales: int
    offset_flags: int
    offset_partials: int
    is_realigned: bool
    """Tensor copies need rows that begin at multiples of 16 bytes: where they do not, the scratch has the
    operands that are not split beforehand once more, in rows of `padded` elements."""
    offset_x: int
    offset_w: int
    scratch_bytes: int
    packed_rows: int
    """Rows of a packed weight in each of its terms, in whole tiles; 0 where it is taken as it is."""
    packed_bytes: int

    @classmethod
    def of(cls, config: Config, program: Program, workload: Workload) -> Tiles:
        scheme = SCHEMES[str(config["scheme"])]
        epilogue = program.epilogue
        laid_out = epilogue.schedule(epilogue.online_kinds)
        stage = laid_out.stages[0] if laid_out.stages else None
        width = len(stage.reductions) if stage else 0
        tile_m = tile_n = _SIDE
        stages = line = staged_rows = partials_offset = shares = teams = span = 0
        if config["strategy"] == "mma":
            tile_m, tile_n, stages = int(config["tile_m"]), int(config["tile_n"]), int(config["stages"])
            shares = int(config["warps_m"])
            teams, span = shares * int(config["warps_n"]), tile_m // shares
            staged_rows, line = 8, 64 * int(config["steps"])
        elif config["strategy"] == THIN:
            tile_m, tile_n = int(config["features"]) * int(config["warps"]), workload.rows
        elif scheme.term:
            teams, stages = int(config["consumers"]), int(config["stages"])
            sharing = 1 if is_pingpong(config) else teams
            tile_m, tile_n = 64 * sharing * int(config["blocks_m"]), int(config["tile_n"])
            shares, span = 4 * teams, 64
            staged_rows, line = next(n for n in (32, 16, 8) if tile_n % n == 0), 128
            partials_offset = 16 * stages  # two barriers a buffer
        kept = 4 * shares * tile_n * width if stage else 4 * teams * staged_rows * (span + 4)
        ring_offset = round_up(partials_offset + kept, 1024)
        block_k = line // (4 if scheme.term == "tf32" else 2)
        is_packed = workload.is_prepacked
        w_bytes = tile_m * (line * scheme.terms if is_packed else 4 * block_k if scheme.terms else line)
        stage_bytes = w_bytes + max(scheme.terms, 1) * tile_n * line
        padded = round_up(workload.inner, 64)
        itemsize = 128 // scheme.block_k
        offset_scales = round_up(scheme.terms * workload.rows * padded * itemsize, 256)
        offset_flags = round_up(offset_scales + (4 * workload.rows if scheme.terms else 0), 256)
        feature_tiles, batch_tiles = ceil_div(workload.cols, tile_m), ceil_div(workload.rows, tile_n)
        packed_rows = feature_tiles * tile_m if is_packed else 0
        flags = 4 * feature_tiles * batch_tiles if scheme.terms else 0
        offset_partials = round_up(offset_flags + flags, 256)
        offset_x = round_up(offset_partials + 4 * width * workload.rows * feature_tiles, 256)
        is_realigned = bool(scheme.term) and not is_packed and not has_aligned_rows(workload)
        line_bytes = padded * workload.itemsize if is_realigned else 0
        offset_w = offset_x + (0 if scheme.terms else workload.rows * line_bytes)
        return cls(
            scheme=scheme,
            stage=stage,
            tile_m=tile_m,
            tile_n=tile_n,
            block_k=block_k,
            # One block a row: many threads where rows are long, which are mostly few.
            prepare_block=256 if workload.inner <= 16384 else 1024,
            padded=padded,
            staged_rows=staged_rows,
            partials_offset=partials_offset,
            ring_offset=ring_offset,
            smem_bytes=ring_offset + stages * stage_bytes,
            offset_scales=offset_scales,
            offset_flags=offset_flags,
            offset_partials=offset_partials,
            is_realigned=is_realigned,
            offset_x=offset_x,
            offset_w=offset_w,
            scratch_bytes=round_up(offset_w + workload.cols * line_bytes, 256),
            packed_rows=packed_rows,
            packed_bytes=packed_rows * (scheme.terms * padded * itemsize + 4 * scheme.scaled),
        )

    def per_row(self, units: int, workload: Workload) -> int:
        """`Launch.work_per_row`, such that every tile of the workload has a block (or a cluster) of its own.

        The last tile of x is a whole one too: of a single row, `units` alone would start an eighth of them.
        """
        return ceil_div(units * self.tile_n * ceil_div(workload.rows, self.tile_n), workload.rows)

    def maps(self, program: Program, workload: Workload, cluster: int) -> tuple[TensorMap, ...]:
        """Of x and of the weight, as the copies take them."""
        names = [item.name for item in program.inputs]
        left, right = (names.index(str(name)) for name in program.linear.args) if program.linear else (0, 1)
        scheme, inner = self.scheme, workload.inner
        rows = self.tile_n // cluster
        scratch = len(program.inputs) + len(program.outputs)
        at_x = at_w = 0
        if self.is_realigned:
            left = right = scratch
            inner, at_x, at_w = self.padded, self.offset_x, self.offset_w
        if scheme.terms:
            kind, width = "float32" if scheme.term == "tf32" else scheme.term, scheme.block_k
            x = TensorMap(scratch, kind, self.padded, scheme.terms * workload.rows, width, rows)
            if self.packed_rows:
                lines = scheme.terms * self.packed_rows
                return x, TensorMap(scratch + 1, kind, self.padded, lines, width, self.tile_m)
            box = _BOX_COLS_W, self.tile_m
            return x, TensorMap(
                right, "float32", inner, workload.cols, *box, swizzled=False, offset_bytes=at_w
            )
        kind = "tfloat32" if scheme.term == "tf32" else scheme.term
        return (
            TensorMap(left, kind, inner, None, scheme.block_k, rows, offset_bytes=at_x),
            TensorMap(right, kind, inner, workload.cols, scheme.block_k, self.tile_m, offset_bytes=at_w),
        )


def has_aligned_rows(workload: Workload) -> bool:
    """Whether the rows of x and of the weight begin at multiples of 16 bytes."""
    return workload.inner * workload.itemsize % 16 == 0


def tile_rows(workload: Workload) -> tuple[int, ...]:
    """Rows of x in a tile: as many as there are, where these are few."""
    most = min(256, round_up(workload.rows, 8))
    sizes = [n for n in (192, 128, 96, 64, 32, 16, 8) if most // 8 <= n < most]
    return most, *sizes


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def round_up(value: int, multiple: int) -> int:
    return ceil_div(value, multiple) * multiple
