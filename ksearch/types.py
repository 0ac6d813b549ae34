"""The values that travel through ksearch; frozen, torch-free, and each with one meaning.

`Workload` never holds tunables and `Config` never holds a shape: the problem and the choice stay apart.
"""

from __future__ import annotations

import enum
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from ksearch.launch import Launch

ConfigValue: TypeAlias = int | str | bool
Config: TypeAlias = Mapping[str, ConfigValue]
"""One point of a space: a plain mapping, because Optuna, Jinja and JSON all speak it."""

Option: TypeAlias = float | int | bool | str

ITEMSIZE = {"float32": 4, "float16": 2, "bfloat16": 2}
"""Supported dtypes and their sizes in bytes; arithmetic is in float32 for all of them."""

INDEX_BYTES = 8
"""Of an index, an int64 that a kernel takes or gives beside tensors of those dtypes."""

CONTIGUOUS = "contiguous"
"""The layout in which a row is the last dimension."""

CHANNELS = "channels"
EACH = "each"
ACROSS = "across"
"""See `Workload.layout`."""

PREPACKED = "prepacked"
"""See `Workload.regime`."""

POLICIES = ("strict", "tf32")
"""How exact a result must be; see `Workload.policy`."""


_encode = json.JSONEncoder(sort_keys=True, separators=(",", ":")).encode


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal values give equal text."""
    return _encode(value)


def digest(text: str | bytes) -> str:
    """Content identity: the SHA-256 of the text, in hex."""
    return hashlib.sha256(text.encode() if isinstance(text, str) else text).hexdigest()


@dataclass(frozen=True, slots=True)
class Workload:
    """What is to be computed: an op on tensors of one shape and dtype.

    `shape` is that of the op's full tensors; it is seen as `rows` x `cols`, where `cols` is the product of
    the dimensions that `layout` names (compiled into the kernel) and `rows` that of the others (a launch
    argument). Of an op that starts with a linear it is the shape of what the linear gives, and `inner` the
    length of the sums.
    """

    op: str
    shape: tuple[int, ...]
    dtype: str = "float32"
    options: tuple[tuple[str, Option], ...] = ()
    """Keyword options of the op, sorted by name; compiled in."""
    program: str = ""
    """Digest of what the op computes, so that an edited op never meets an old kernel."""
    layout: str = CONTIGUOUS
    """Which dimensions make up a row: `contiguous`, the last one; `over -2,-1`; `over all`; `channels`, the
    last one, and something has a value for each place of the second; `groups 8`, an eighth of the second and
    all behind it; `groups each`, all behind the second; `groups across`, these and the first."""
    policy: str = "strict"
    """Numerics policy; `strict`: error no worse than PyTorch's own in this dtype, up to a small factor.
    `tf32`: what PyTorch gives where it may round a linear's float32 operands to TF32."""
    regime: str = "cold"
    """`cold`: the L2 cache (on a CPU, the last-level cache) does not hold the inputs when timed. `prepacked`:
    nor is the time counted in which a linear's weight, a constant, is brought into the form that the kernel
    takes it in: once, when it is loaded."""
    inner: int = 0
    """Features that a linear sums over; 0 where the op has none."""

    @property
    def over(self) -> tuple[int, ...]:
        """The dimensions that make up a row, counted from the last; empty where all do."""
        if not self.layout.startswith("over "):
            return (-1,)
        dims = self.layout.removeprefix("over ")
        return () if dims == "all" else tuple(map(int, dims.split(",")))

    @property
    def groups(self) -> int:
        """Rows that each have a part of the second dimension, and all behind it; 0 where they are others."""
        if not self.layout.startswith("groups "):
            return 0
        number = self.layout.removeprefix("groups ")
        return self.shape[1] if number in (EACH, ACROSS) else int(number)

    @property
    def segment(self) -> int:
        """Elements of each piece of a row, where it is in as many pieces as there are places of the first
        dimension; 0 where it is not."""
        return math.prod(self.shape[2:]) if self.layout == f"groups {ACROSS}" else 0

    @property
    def channels(self) -> int:
        """Places of the second dimension."""
        return self.shape[1] if len(self.shape) > 1 else 1

    @property
    def together(self) -> int:
        """Rows that the op's function cannot take one without the others: it tells them apart."""
        if self.layout == CHANNELS:
            return math.prod(self.shape[1:-1])
        return 1 if self.segment else self.groups or self.stride

    @property
    def is_prepacked(self) -> bool:
        return self.regime == PREPACKED

    @property
    def mode(self) -> str:
        """Policy and regime, as they are shown: `strict`, `tf32 prepacked`."""
        return f"{self.policy} {PREPACKED}" if self.is_prepacked else self.policy

    @property
    def cols(self) -> int:
        if self.groups:
            return (self.numel if self.segment else math.prod(self.shape[1:])) // self.groups
        over = self.over or range(-len(self.shape), 0)
        return math.prod(self.shape[dim] for dim in over if -dim <= len(self.shape))

    @property
    def rows(self) -> int:
        return self.numel // self.cols

    @property
    def stride(self) -> int:
        """Elements from one column of a row to the next: 1 where a row is in one piece."""
        return math.prod(self.shape[len(self.shape) + self.over[-1] + 1 :]) if self.over else 1

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def itemsize(self) -> int:
        return ITEMSIZE[self.dtype]

    @property
    def key(self) -> str:
        """Identity in the database: every field counts; `inner` where there is one."""
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__}  # asdict copies: 7 us more
        if not self.inner:
            del fields["inner"]
        return digest(canonical_json(fields))[:32]

    @property
    def dims(self) -> tuple[int, ...]:
        """The shape as it is stated on the command line: of a linear BATCH, IN, OUT."""
        return (*self.shape[:-1], self.inner, self.cols) if self.inner else self.shape

    @property
    def shape_text(self) -> str:
        """`dims` as they are written: `4096x8192`."""
        return "x".join(map(str, self.dims))

    def __str__(self) -> str:
        options = "".join(f" {name}={value}" for name, value in self.options)
        policy = "" if self.policy == "strict" else f" {self.policy}"
        regime = f" {PREPACKED}" if self.is_prepacked else ""
        return f"{self.op} {self.shape_text} {self.dtype}{policy}{regime}{options}"


def layout_over(dims: tuple[int, ...]) -> str:
    """The layout whose rows are of these dimensions; see `Workload.over`."""
    return CONTIGUOUS if dims == (-1,) else f"over {','.join(map(str, dims)) or 'all'}"


@dataclass(frozen=True, slots=True)
class Target:
    """Where it runs. `key` names the class of machine; the numbers below it bound the search."""

    backend: str
    arch: str
    """`sm_90`; on a CPU the instruction set that decides what code may run, such as `x86_64-avx512`."""
    device: str
    """Marketing name of the GPU; on a CPU its model and thread count."""
    index: int = 0
    units: int = 1
    """Streaming multiprocessors; on a CPU, threads."""
    memory_bytes: int = 0
    smem_bytes: int = 0
    """Shared memory that one thread block may ask for."""
    cache_bytes: int = 0
    """Last-level cache."""

    @property
    def key(self) -> str:
        return f"{self.backend}/{self.arch}/{self.device}"


@dataclass(frozen=True, slots=True)
class Source:
    """Rendered text, complete in itself, and how to compile it."""

    text: str
    backend: str
    arch: str
    options: tuple[str, ...] = ()
    origin: tuple[tuple[str, int], ...] = field(default=(), compare=False, repr=False)
    """For each line of `text`, the template and line that it came from."""

    def locate(self, line: int) -> str:
        """`template:line` for a 1-based line of `text`."""
        if 1 <= line <= len(self.origin):
            template, number = self.origin[line - 1]
            return f"{template}:{number}"
        return f"line {line}"


@dataclass(frozen=True, slots=True)
class Artifact:
    """A compiled binary on disk beside its source and log, in a folder named by their content."""

    key: str
    folder: str
    binary: str
    """Path of the cubin or shared library."""
    digest: str
    """SHA-256 of the binary: equal machine code is measured once."""
    registers: int = 0
    spill_bytes: int = 0
    smem_bytes: int = 0
    """Static shared memory."""
    compile_s: float = 0.0
    """0.0 when it was already on disk."""


class Status(enum.StrEnum):
    """What became of a candidate. A time exists if and only if it is PASSED."""

    PASSED = "passed"
    INVALID = "invalid"
    COMPILE_ERROR = "compile_error"
    COMPILE_TIMEOUT = "compile_timeout"
    LAUNCH_ERROR = "launch_error"
    CRASHED = "crashed"
    TIMEOUT = "timeout"
    WRONG = "wrong"
    OUT_OF_BOUNDS = "out_of_bounds"
    NONDETERMINISTIC = "nondeterministic"
    SUSPICIOUS = "suspicious"
    """Right as far as was seen, and faster than what bounds every kernel: not believed."""
    UNSAFE = "unsafe"
    """Right, and compute-sanitizer found an error in it."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of evaluating one candidate."""

    status: Status
    time_us: float | None = None
    """Median of the timed launches."""
    spread_us: float = 0.0
    """Half the distance between the quartiles."""
    repeats: int = 0
    error: float | None = None
    """Largest error over all regimes, as a multiple of what the tolerance allows (1.0 = at the limit)."""
    message: str = ""
    """One line: why it failed."""
    check_s: float = 0.0
    """What the check took; the rest of a screening is timing."""

    def __post_init__(self) -> None:
        if (self.time_us is not None) != (self.status is Status.PASSED):
            raise ValueError(f"a time exists if and only if the status is PASSED, got {self}")


@dataclass(frozen=True, slots=True)
class Candidate:
    """A config under evaluation, compiled, not yet trusted."""

    config: dict[str, ConfigValue]
    launch: Launch
    artifact: Artifact


@dataclass(frozen=True, slots=True)
class Winner:
    """The promoted answer for a (workload, target); `config` is None where PyTorch won."""

    workload: Workload
    target: Target
    config: dict[str, ConfigValue] | None
    launch: Launch | None
    artifact: str | None
    """Digest of the binary."""
    time_us: float
    """Of what runs: the kernel, or PyTorch where PyTorch won."""
    baseline_us: float
    ceiling_us: float
    certificate: Mapping[str, Any] = field(default_factory=dict)
    """Evidence: samples, confidence interval, errors, versions, environment."""
    created: str = ""
    """UTC, ISO 8601."""

    @property
    def status(self) -> str:
        return "baseline" if self.config is None else "winner"

    @property
    def speedup(self) -> float:
        return self.baseline_us / self.time_us

    @property
    def percent_of_ceiling(self) -> float:
        return 100.0 * self.ceiling_us / self.time_us
