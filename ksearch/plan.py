"""What is to be tuned and where: everything that can be refused is refused here, before anything starts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from filelock import FileLock, Timeout

from ksearch import backends, env, families, operators, private
from ksearch.backends import Backend
from ksearch.errors import BadShape, DeviceBusy, KsearchError, NoSuchDevice
from ksearch.evaluate.messages import Job
from ksearch.families import Family, Space
from ksearch.families.base import Multiplier
from ksearch.families.cuda import OLDEST_ARCH, compute_capability
from ksearch.operators import Op
from ksearch.operators.cost import cost_of
from ksearch.operators.program import Program
from ksearch.render import render
from ksearch.types import (
    Artifact,
    Candidate,
    Config,
    Option,
    Source,
    Target,
    Workload,
    canonical_json,
    digest,
)


@dataclass(frozen=True, slots=True)
class Plan:
    """One op on one workload and device, with the family that computes it."""

    op: Op
    workload: Workload
    target: Target
    backend: Backend
    family: Family
    program: Program
    way_errors: Mapping[str, float] = field(default_factory=dict)
    """For each way of taking a linear's products that was admitted, its largest error as a multiple of what
    is allowed (`admission`)."""
    barred_ways: Mapping[str, str] = field(default_factory=dict)
    """Those that were not, and why."""

    @property
    def space(self) -> Space:
        space = self.family.space(self.program, self.workload, self.target)
        if not self.barred_ways:
            return space
        return replace(space, is_valid=lambda config: space.is_valid(config) and not self._is_barred(config))

    @property
    def guesses(self) -> list[Config]:
        known = self.family.guesses(self.program, self.workload, self.target)
        return [config for config in known if not self._is_barred(config)]

    def way(self, config: Config) -> str:
        """How a linear's products are taken; empty where all ways are alike."""
        return self.family.way(config) if isinstance(self.family, Multiplier) else ""

    def _is_barred(self, config: Config) -> bool:
        return self.way(config) in self.barred_ways

    def job(self, seed: int) -> Job:
        return Job(self.op.location, self.workload, self.target, seed)

    def render(self, config: Config) -> Source:
        """Raises RenderError."""
        return render(self.op, self.workload, config, self.target)

    def candidate(self, config: Config, artifact: Artifact) -> Candidate:
        launch = self.family.launch(config, self.program, self.workload, self.target)
        return Candidate(dict(config), launch, artifact)

    def study_name(self) -> str:
        """The same space, templates and program give the same name, and so resume; any change starts anew."""
        space = self.space
        values = {name: list(choices) for name, choices in space.values.items()}
        first = next(iter(space), None)
        texts = [self.workload.program, self.render(first).text if first is not None else ""]
        if self.op.template_op is not None:  # its launch and its template's other branches are in no text
            file = Path(self.op.location.rpartition(":")[0])
            texts += [file.read_text(), (file.parent / self.family.template).read_text()]
        return f"{self.workload} on {self.target.key} [{digest(canonical_json([values, texts]))[:8]}]"


def make_plan(
    op: str,
    shape: tuple[int, ...],
    dtype: str,
    device: str | None,
    options: Mapping[str, Option],
    policy: str = "strict",
    prepacked: bool = False,
) -> Plan:
    """`shape` is as `Op.workload` takes it. Raises UsageError and its kind, TraceError, ToolMissing."""
    found = operators.resolve(op)
    workload = found.workload(shape, dtype, policy=policy, prepacked=prepacked, **options)
    name, index = backends.parse_device(device)
    backend = backends.get(name)
    target = backend.target(index)
    _check_arch(target)
    backend.compiler_id()  # a missing compiler is told now, not by the first candidate
    program = found.program(**dict(workload.options))
    _check_memory(workload, program, target)
    family = families.find(found, name, **dict(workload.options))
    if prepacked:
        family.space(program, workload, target)  # which refuses what has no kernel of that kind
    return Plan(found, workload, target, backend, family, program)


def _check_arch(target: Target) -> None:
    if target.backend == "cuda" and compute_capability(target.arch) < OLDEST_ARCH:
        raise NoSuchDevice(
            f"{target.device} is {target.arch}; the CUDA templates need sm_{OLDEST_ARCH} or later: "
            "tune on the CPU with --device cpu"
        )


def _check_memory(workload: Workload, program: Program, target: Target) -> None:
    """Inputs, outputs and PyTorch's own results must be on the device at once."""
    results = len(program.outputs) * workload.numel * workload.itemsize
    needed = cost_of(program, workload).bytes + results + (1 << 28)
    if needed > target.memory_bytes:
        raise BadShape(
            f"shape {workload.shape_text} in {workload.dtype} needs {needed / 1e9:,.1f} GB for inputs, "
            f"outputs and PyTorch's results, but {target.device} has {target.memory_bytes / 1e9:,.1f} GB: "
            "choose fewer rows"
        )


@contextmanager
def device_lock(target: Target) -> Iterator[None]:
    """One tuner a device: two would spoil each other's times. Raises DeviceBusy, KsearchError."""
    which = target.backend if target.backend == "cpu" else f"cuda-{env.gpu_name(target.index)}"
    path = env.cache_dir() / "locks" / f"{which}.lock"
    lock = FileLock(path)
    try:
        private.make_cache(env.cache_dir(), "locks")
        lock.acquire(timeout=0)
    except Timeout as error:
        name = target.backend if target.backend == "cpu" else f"{target.backend}:{target.index}"
        raise DeviceBusy(f"another ksearch is tuning on {name} ({path}); wait for it to end") from error
    except OSError as error:
        raise KsearchError(
            f"cannot write into the cache folder: {error.strerror or error} ({path.parent}); "
            "mend that, or point KSEARCH_CACHE_DIR elsewhere"
        ) from error
    try:
        yield
    finally:
        lock.release()
