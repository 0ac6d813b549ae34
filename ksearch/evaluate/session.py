"""What runs inside the isolated worker: one workload on one device, candidate after candidate.

All that candidates share (inputs, float64 references, PyTorch's own errors) is made once; one more
then costs a few launches and some thirty tensor operations.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from ksearch import backends
from ksearch.backends.base import Kernel, LaunchError
from ksearch.certificate import Packing
from ksearch.errors import BadShape
from ksearch.evaluate import environment, faults, intact, memory, nearby, timing
from ksearch.evaluate.buffers import Guarded, Scratch
from ksearch.evaluate.ceilings import ceilings
from ksearch.evaluate.check import Run, Subset, few_rows
from ksearch.evaluate.messages import DAMAGED, Finding, Job, Laps, Nearby, Ready
from ksearch.evaluate.packs import CheckedPack, Pack, pack_once
from ksearch.evaluate.problem import Problem
from ksearch.evaluate.process import Answer
from ksearch.evaluate.whole import check_whole
from ksearch.invoke import Starter
from ksearch.launch import Launch
from ksearch.packing import Packer, packed_bytes
from ksearch.types import Candidate, Status, digest

_WARM_S = {"cuda": 0.2, "cpu": 0.05}


class Session:
    """Screens, verifies and races the candidates of one job."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._backend = backends.get(job.target.backend)
        self._is_cuda = job.target.backend == "cuda"
        torch.set_grad_enabled(False)
        # What PyTorch may do is up to the policy, whatever the environment says. No device is in use yet.
        os.environ.pop("NVIDIA_TF32_OVERRIDE", None)
        torch.set_float32_matmul_precision("high" if job.workload.policy == "tf32" else "highest")
        if self._is_cuda:
            torch.cuda.set_device(job.target.index)
            if job.memory_limit_bytes is not None:
                total = torch.cuda.get_device_properties(job.target.index).total_memory
                torch.cuda.set_per_process_memory_fraction(min(1.0, job.memory_limit_bytes / total))
            # The default stream and others wait for one another: what is left to another would be in time.
            torch.cuda.set_stream(torch.cuda.Stream())
        else:
            memory.keep_heap()
        self._problem = Problem(job)
        self._subset = Subset(self._problem, job.seed)
        self._checksum = intact.checksum(self._subset.judges())
        self._clock = timing.clock(job.target)
        if not self._is_cuda:
            memory.bound(job.memory_limit_bytes or job.target.memory_bytes)
        self._bound: tuple[timing.Call, float] | None = None
        self._copy: tuple[timing.Call, float] | None = None
        """Where it is not what bounds every kernel; known with `_bound`."""

    def start(self) -> Ready:
        """Time PyTorch's own function, and what bounds every kernel."""
        self._problem.fill_for_timing()
        baseline = self._problem.baseline()
        timing.warm_up(self._clock, baseline, _WARM_S[self._problem.device.type])
        baseline_us = timing.measure(self._clock, baseline).time_us
        call, scale = self._ceiling()
        ceiling_us = scale * timing.measure(self._clock, call).time_us
        versions, held_bytes = environment.versions(self._job.target), memory.held_bytes(self._problem.device)
        return Ready(baseline_us, ceiling_us, versions, held_bytes)

    def screen(self, candidate: Candidate, incumbent_us: float | None) -> Finding:
        """Check on some rows with every kind of value; if right, time on the whole workload."""

        def evaluate(kernel: Kernel) -> Finding:
            began = time.perf_counter()
            finding = self._check_some(kernel, candidate.launch, self._subset, incumbent_us)
            finding = replace(finding, check_s=time.perf_counter() - began)
            if finding.status in (Status.WRONG, Status.NONDETERMINISTIC) and not self._is_intact():
                return Finding(Status.OUT_OF_BOUNDS, DAMAGED, finding.error, healthy=False)
            if finding.status is not Status.PASSED:
                return finding
            self._problem.fill_for_timing()
            call = self._call(self._timed(kernel, candidate.launch))
            return replace(finding, timing=timing.measure(self._clock, call, incumbent_us))

        return self._attempt(candidate, evaluate)

    def _is_intact(self) -> bool:
        """Whether nobody changed what is right; asked only where a candidate seems to be wrong, for a right
        one is not right by damage, and the winner is checked on other values."""
        return intact.checksum(self._subset.judges()) == self._checksum

    def verify(self, candidate: Candidate) -> Finding:
        """Check on the whole workload, with values that no screening has used."""

        def evaluate(kernel: Kernel) -> Finding:
            return self._check(kernel, candidate.launch, lambda run: check_whole(self._problem, run))

        return self._attempt(candidate, evaluate)

    def probe(self, candidate: Candidate, fault: str, whole: bool, many: bool) -> Finding:
        """What the check of screening, or that of the whole workload, makes of a planted wrong kernel. Of
        screening, without `many` on fewer rows: each is judged by itself, and is as long as the workload's.

        `fault` is one of `faults`, or empty. What such a kernel does beside its outputs is known, and is
        mended here: it need not cost the process.
        """

        def evaluate(kernel: Kernel) -> Finding:
            planted = faults.with_fault(kernel, fault)
            if whole:
                return self._check(planted, candidate.launch, lambda run: check_whole(self._problem, run))
            some = self._subset if many else self._few
            finding = self._check_some(planted, candidate.launch, some)
            if finding.status is Status.OUT_OF_BOUNDS and some.mend():
                return replace(finding, healthy=True)
            return finding

        return self._attempt(candidate, evaluate)

    @cached_property
    def _few(self) -> Subset:
        return few_rows(self._problem, self._job.seed, self._subset)

    def agree(self, one: Candidate, other: Candidate) -> bool:
        """Whether two candidates give the same bits on all that `probe` tries. Raises LaunchError."""
        kernels = [self._load(one), self._load(other)]
        try:
            first, second = kernels
            return self._few.agree(self._run(first, one.launch), self._run(second, other.launch))
        finally:
            for kernel in kernels:
                kernel.unload()

    def race(self, candidates: Sequence[Candidate], budget_s: float) -> Laps:
        """Candidates, PyTorch and the ceiling, each once a round; and the copy, where the ceiling is none."""
        self._problem.fill_for_timing()
        bounds = [self._ceiling()]
        if self._copy is not None:
            bounds.append(self._copy)
        kernels = [self._load(candidate) for candidate in candidates]
        try:
            pairs = list(zip(kernels, candidates, strict=True))
            runs = [self._timed(kernel, candidate.launch) for kernel, candidate in pairs]
            calls = [*map(self._call, runs), self._problem.baseline(), *(call for call, _ in bounds)]
            with environment.watched(self._job.target) as state:
                before = state("before")
                laps = timing.race(self._clock, calls, budget_s=budget_s, seed=self._job.seed)
                after = state("after")
            packings = [self._packing(*pair) for pair in pairs] if self._job.workload.is_prepacked else []
        finally:
            for kernel in kernels:
                kernel.unload()
        count = len(candidates)
        bound_laps = zip(laps[count + 1 :], bounds, strict=True)
        ceiling, *copy = [[scale * sample_us for sample_us in samples] for samples, (_, scale) in bound_laps]
        return Laps(
            laps[:count],
            laps[count],
            ceiling,
            environment.versions(self._job.target),
            copy[0] if copy else [],
            (before, after),
            packings,
        )

    def nearby(self, candidate: Candidate, rows: int, budget_s: float) -> Nearby | None:
        """The candidate on another number of rows; None where that does not fit into the memory left."""
        if nearby.bytes_of(self._problem, rows) > memory.free_bytes(self._problem.device) // 2:
            return None
        try:
            kernel = self._load(candidate)
            try:
                run, seed = self._timed(kernel, candidate.launch), self._job.seed
                return nearby.measure(self._problem, run, rows, self._clock, budget_s=budget_s, seed=seed)
            finally:
                kernel.unload()
        except LaunchError:
            return Nearby(rows, 0.0)
        except torch.OutOfMemoryError:
            return None

    def _load(self, candidate: Candidate) -> Kernel:
        """Raises LaunchError, also for a file that is not what was compiled."""
        binary = Path(candidate.artifact.binary)
        try:
            is_it = digest(binary.read_bytes()) == candidate.artifact.digest
        except OSError as error:
            raise LaunchError(f"{binary} cannot be read: {error.strerror}") from error
        if not is_it:
            raise LaunchError(f"{binary} is not what was compiled: its SHA-256 differs")
        return self._backend.load(binary, candidate.launch, self._job.target.index)

    def _ceiling(self) -> tuple[timing.Call, float]:
        """What bounds every kernel, of what may the slowest, and the factor for its time."""
        if self._bound is None:
            copy, *others = found = ceilings(self._problem)
            if others:
                found.sort(key=lambda each: each[1] * timing.measure(self._clock, each[0]).time_us)
            self._bound = found[-1]
            self._copy = copy if self._bound is not copy else None
        return self._bound

    def _check_some(
        self, kernel: Kernel, launch: Launch, some: Subset, best_us: float | None = None
    ) -> Finding:
        """On some rows with every kind of value; off alignment, too, where the launch allows it."""
        misaligned = launch.alignment <= self._problem.dtype.itemsize
        return self._check(
            kernel, launch, lambda run: some.check(run, misaligned=misaligned, best_us=best_us)
        )

    def _check(self, kernel: Kernel, launch: Launch, check: Callable[[Run], Finding]) -> Finding:
        """What `check` finds of runs whose own memory is watched, too."""
        problem = self._problem
        scratch = Scratch(launch.scratch_bytes, problem.device) if launch.scratch_bytes else None
        packs = problem.workload.is_prepacked
        pack = CheckedPack(self._packer(kernel, launch), problem.device) if packs else None
        taken = scratch.take if scratch is not None else None
        finding = check(self._run(kernel, launch, taken, pack.packed if pack is not None else None))
        if scratch is not None and scratch.is_damaged():
            message = "wrote outside its scratch"
            return Finding(Status.OUT_OF_BOUNDS, message, finding.error, healthy=False)
        return finding if pack is None else pack.judged(finding)

    def _run(
        self,
        kernel: Kernel,
        launch: Launch,
        scratch: Callable[[], torch.Tensor] | None = None,
        pack: Pack | None = None,
    ) -> Run:
        """`scratch`, `pack`: where a call's memory and its packed weight come from; else a weight is packed
        for each call."""
        stream = self._stream
        problem, weight = self._problem, self._problem.weight_place
        start = Starter(kernel, launch, problem.workload, problem.declared, problem.device, scratch)
        if pack is None and problem.workload.is_prepacked:
            pack = self._packer(kernel, launch)

        def run(tensors: Sequence[Guarded], outputs: Sequence[Guarded]) -> None:
            pointers = tuple(tensor.pointer for tensor in (*tensors, *outputs))
            matrices = [tensor.values for tensor in tensors]
            packed = None if pack is None or weight is None else pack(matrices[weight], stream)
            start(matrices, pointers, tensors[0].values.shape[0], stream, packed)

        return run

    def _timed(self, kernel: Kernel, launch: Launch) -> Run:
        """On a weight that stays as it is: it is packed before the first call."""
        if not self._problem.workload.is_prepacked:
            return self._run(kernel, launch)
        return self._run(kernel, launch, pack=pack_once(self._packer(kernel, launch)))

    @property
    def _stream(self) -> int:
        return torch.cuda.current_stream().cuda_stream if self._is_cuda else 0

    def _packer(self, kernel: Kernel, launch: Launch) -> Packer:
        return Packer(kernel, launch, self._problem.workload, self._problem.device)

    def _packing(self, kernel: Kernel, candidate: Candidate) -> Packing:
        """What it takes to pack the weight of a prepacked workload."""
        assert self._problem.weight is not None
        packer, weight = self._packer(kernel, candidate.launch), self._problem.weight.values
        stream = self._stream
        size_bytes = packed_bytes(packer(weight, stream))
        found = timing.measure(self._clock, lambda: packer(weight, stream))
        return Packing(found.time_us, size_bytes)

    def _call(self, run: Run) -> timing.Call:
        return lambda: run(self._problem.inputs, self._problem.outputs)

    def _attempt(self, candidate: Candidate, evaluate: Callable[[Kernel], Finding]) -> Finding:
        try:
            kernel = self._load(candidate)
            try:
                return evaluate(kernel)
            finally:
                kernel.unload()
        except LaunchError as error:
            status = Status.CRASHED if error.sticky else Status.LAUNCH_ERROR
            return Finding(status, str(error), healthy=not error.sticky and self._is_healthy())
        except RuntimeError as error:
            if not self._is_cuda:  # a C++ kernel raises nothing, so this is ours
                raise
            return Finding(Status.CRASHED, str(error).partition("\n")[0], healthy=False)

    def _is_healthy(self) -> bool:
        """Whether the device still answers; a CUDA error may have come with the refusal."""
        try:
            if self._is_cuda:
                torch.cuda.synchronize()
        except RuntimeError:
            return False
        return True


def open_session() -> Answer:
    """The worker's side: `("open", job)` first, then the name of a method of Session and its arguments.

    None is answered with None: by then torch is imported, and the process is a warm spare.
    """
    session: Session | None = None

    def answer(message: tuple[Any, ...] | None) -> Any:
        nonlocal session
        if message is None:
            return None
        verb, *arguments = message
        try:
            if verb == "open":
                session = Session(*arguments)
                return None
            return getattr(session, verb)(*arguments)
        except torch.OutOfMemoryError as error:
            reason = str(error).partition("\n")[0]
            raise BadShape(f"the workload does not fit into the device's memory: {reason}") from error

    return answer
