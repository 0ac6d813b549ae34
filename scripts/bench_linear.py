"""Linears against PyTorch and torch.compile, with errors: `python scripts/bench_linear.py`.

Every workload is tuned first (into a database of its own run), then the winner, loaded as production code
loads it, races the others: interleaved, cold L2, medians. PyTorch and torch.compile run under the row's
policy: with TF32 off, or allowed. Errors are against float64, beside PyTorch's own: of the op's result, and
of the linear alone by a kernel of the winner's config, as a sum or a sigmoid hides what the products lost.

With --prepacked the kernels take a weight that was packed once; what that took stands beside their times, in
a table of their own: they are no peers of the plain ones.
"""

from __future__ import annotations

import argparse
import functools
import gc
import math
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
from _bench import against, parser, race, save, table, warnings
from _rivals import Call, Case, make_case
from _seats import Row, Run, add_options, collect, command_of, first_line, limits, make_seats, serve

import ksearch
from ksearch import artifacts, backends, families, operators
from ksearch.evaluate.process import Answer
from ksearch.invoke import Starter
from ksearch.operators.program import Role, as_tuple
from ksearch.packing import Packer
from ksearch.render import render
from ksearch.types import Config, Target


class Workload(NamedTuple):
    op: str
    dims: tuple[int, int, int]
    """BATCH, IN, OUT."""
    dtype: str = "float32"
    policy: str = "strict"
    prepacked: bool = False

    def __str__(self) -> str:
        policy = "" if self.policy == "strict" else f" {self.policy}"
        prepacked = " prepacked" if self.prepacked else ""
        return f"{self.op} {'x'.join(map(str, self.dims))} {self.dtype}{policy}{prepacked}"

    @property
    def operations(self) -> int:
        return 2 * math.prod(self.dims)


NAMED = (
    ("linear_sigmoid_scale_residual", (1024, 8192, 8192)),
    ("linear_sigmoid_sum", (128, 32768, 32768)),
)
OTHERS = (  # those of studies/linear.toml: skinny, square, tall, odd
    *(("linear_silu", dims) for dims in ((1, 4096, 14336), (16, 8192, 8192))),
    *(("linear_gelu", dims) for dims in ((2048, 2048, 2048), (4096, 4096, 4096))),
    *(("linear_relu", dims) for dims in ((65536, 512, 512), (16384, 1024, 4096))),
    *(("linear_sigmoid_sum", dims) for dims in ((1000, 4095, 1001), (257, 2050, 4097))),
)
KINDS = (("float32", "strict"), ("float32", "tf32"), ("bfloat16", "strict"))
WORKLOADS = tuple(Workload(*each, *kind) for kind in KINDS for each in (*NAMED, *OTHERS))
PREPACKED = tuple(Workload(*each, prepacked=True) for each in (*NAMED, *OTHERS) if each[1][1] % 4 == 0)
"""A weight is packed where it is split: in float32 under `strict`, with rows of whole vectors."""
VALUES = ("uniform", "normal", "saturating")
"""x in 0 to 1 and weights as torch.nn.Linear starts; x normal, times ten; weights sixteen times as large."""
COLUMNS = (
    *("workload", "ksearch us", "times eager", "times torch.compile", "times max-autotune", "TFLOP/s"),
    *("packing us", "packed MB", "kernel", "candidates", "ended", "tuned in s", "config", "error"),
)
ERRORS = ("rms", "max")
_DECIDING = ("strategy", "scheme", "promote")
"""Parameters that the errors of products depend on."""


def open_seat() -> Answer:
    """What a seat's process runs."""
    return serve(measure)


def measure(task: tuple[Workload, int, float, bool], device: str, database: Path) -> Row:
    """One row: the workload, tuned with at most so many trials and raced for at most so many seconds."""
    workload, trials, seconds, searched = task
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()  # what the last row left, also where it failed
    target = backends.get(device).target()
    op, dims, dtype, policy, prepacked = workload
    how: dict[str, Any] = {"policy": policy, "device": device, "db": database}
    report = ksearch.tune(op, dims, dtype=dtype, prepacked=prepacked, trials=trials, **how)
    config = report.winner.config
    with precision(policy), torch.no_grad(), warnings() as said:
        case = make_case(op, dims, dtype, device)
        fill(case, "uniform", seed=0)
        handle = load(case, workload, how)
        mine = functools.partial(handle, *case.inputs, **({"out": case.out} if config else {}))
        eager = functools.partial(case.op.caller({}), *case.inputs)
        compilers, facts = peers(case, searched)
        times = race({"ksearch": mine, "eager": eager, **compilers}, target, seconds=seconds)
        found = errors(case, workload, config, target, handle)
    row = {
        "workload": str(workload),
        **{f"{name} us": time_us for name, time_us in times.items()},
        **{f"times {name}": times[name] / times["ksearch"] for name in times if name != "ksearch"},
        "TFLOP/s": workload.operations / times["ksearch"] / 1e6,
        "kernel": kernel_name(config),
        "candidates": report.trials,
        "failed": sum(report.failures.values()),
        "ended": str(report.ended),
        "tuned in s": report.elapsed_s,
        "config": "PyTorch" if not config else " ".join(f"{k}={v}" for k, v in config.items()),
        "errors": found,
        **facts,
    }
    if packing := report.winner.certificate.get("packing"):
        row |= {"packing us": packing["time_us"], "packed MB": packing["size_bytes"] / 1e6}
    if said:  # a kernel that was tuned, and did not run
        row["config"] = row["kernel"] = f"PyTorch: {said[0]}"
    print(row, flush=True)
    return row


def load(case: Case, workload: Workload, how: Mapping[str, Any]) -> Callable[..., Any]:
    """The winner as a function of all tensors of the op; one that keeps its weight has the case's."""
    op, dims, dtype, _, prepacked = workload
    if not prepacked:
        return ksearch.load(op, dims, dtype, **how)
    place = [item.role for item in case.op.program().inputs].index(Role.RIGHT)
    handle = ksearch.load(op, dims, dtype, prepacked=case.inputs[place], **how)
    return lambda *tensors, **named: handle(*tensors[:place], *tensors[place + 1 :], **named)


@contextmanager
def precision(policy: str) -> Iterator[None]:
    """What PyTorch may do with float32 under a policy."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if policy == "tf32" else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def fill(case: Case, values: str, seed: int) -> None:
    """The operands and the bias as one of VALUES says."""
    device = case.inputs[0].device
    draw = torch.Generator(device).manual_seed(seed)
    for tensor, item in zip(case.inputs, case.op.program().inputs, strict=True):
        bound = 1 / math.sqrt(case.inputs[0].shape[-1])
        if item.role is Role.LEFT and values == "uniform":
            tensor.uniform_(0.0, 1.0, generator=draw)
        elif item.role is Role.LEFT:
            tensor.normal_(0.0, 10.0 if values == "normal" else 1.0, generator=draw)
        elif item.role is Role.RIGHT and values == "saturating":
            tensor.uniform_(-16 * bound, 16 * bound, generator=draw)
        else:
            tensor.uniform_(-bound, bound, generator=draw)


def peers(case: Case, searched: bool) -> tuple[dict[str, Call], Row]:
    """torch.compile, with its own search too where asked for; and why one is not among them."""
    modes = {"torch.compile": None, **({"max-autotune": "max-autotune-no-cudagraphs"} if searched else {})}
    found: dict[str, Call] = {}
    facts: Row = {}
    wanted = as_tuple(case.op.reference(*case.inputs))
    for name, mode in modes.items():
        torch._dynamo.reset()
        fast = torch.compile(case.op.caller({}), mode=mode, fullgraph=True, dynamic=False)
        try:
            for result, right in zip(as_tuple(fast(*case.inputs)), wanted, strict=True):
                off = (result.float() - right.float()).abs().max().item()
                most = right.float().abs().max().item()
                if not off <= 0.03 * most:
                    raise ArithmeticError(f"off by {off:.3g} where the largest value is {most:.3g}")
        except Exception as error:  # noqa: BLE001  (a rival's own: whatever it is, the row says so)
            facts[f"no {name}"] = f"{type(error).__name__}: {first_line(error)}"
        else:
            found[name] = functools.partial(fast, *case.inputs)
    return found, facts


def errors(
    case: Case, workload: Workload, config: Config | None, target: Target, handle: Callable[..., Any]
) -> dict[str, dict[str, list[float]]]:
    """For each of VALUES: `output` and `linear` (alone), each as rms, maximum, PyTorch's rms, its maximum."""
    plain: Bare | None = None
    with suppress(LookupError):
        plain = Bare(workload, config, target) if config else None
    found = {}
    for seed, values in enumerate(VALUES, 1):
        fill(case, values, seed)
        wide = [tensor.double() for tensor in case.inputs]
        exact = as_tuple(case.op.reference(*wide))
        own = as_tuple(case.op.reference(*case.inputs))
        facts = {"output": [*off(as_tuple(handle(*case.inputs)), exact), *off(own, exact)]}
        linear = torch.nn.functional.linear
        exact, own = (linear(*wide[:3]),), (linear(*case.inputs[:3]),)
        if plain is not None:
            facts["linear"] = [*off((plain(case.inputs[:3]),), exact), *off(own, exact)]
        found[values] = facts
        del wide, exact, own
    return found


def off(results: Sequence[torch.Tensor], exact: Sequence[torch.Tensor]) -> list[float]:
    """The rms and the largest error of all outputs."""
    gaps = torch.cat([(a.double() - b).reshape(-1) for a, b in zip(results, exact, strict=True)])
    return [gaps.square().mean().sqrt().item(), gaps.abs().max().item()]


class Bare:
    """The op `linear` by a kernel of a winner's config, or of the one most like it that fits."""

    def __init__(self, workload: Workload, config: Config, target: Target) -> None:
        """Raises LookupError where no linear alone takes its products as the winner does."""
        op = operators.get("linear")
        how: dict[str, Any] = {"policy": workload.policy, "prepacked": workload.prepacked}
        self._workload = op.workload(workload.dims, workload.dtype, **how)
        program, family = op.program(), families.find(op, target.backend)
        alike = [
            each
            for each in family.space(program, self._workload, target)
            if all(each[name] == config[name] for name in _DECIDING if name in each.keys() & config.keys())
        ]
        if not alike:
            raise LookupError(f"no linear alone has {config}")
        found = max(alike, key=lambda each: sum(each[name] == config.get(name) for name in each))
        backend, self._device = backends.get(target.backend), torch.device(target.backend)
        artifact = artifacts.build(backend, render(op, self._workload, found, target))
        launch = family.launch(found, program, self._workload, target)
        self._kernel = backend.load(Path(artifact.binary), launch, target.index)
        self._start = Starter(self._kernel, launch, self._workload, program.inputs, self._device)
        self._pack = Packer(self._kernel, launch, self._workload, self._device)

    def __call__(self, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        result = torch.empty(self._workload.shape, dtype=tensors[0].dtype, device=self._device)
        stream = torch.cuda.current_stream().cuda_stream if self._device.type == "cuda" else 0
        pointers = tuple(tensor.data_ptr() for tensor in (*tensors, result))
        packed = self._pack(tensors[1], stream) if self._workload.is_prepacked else None
        self._start(tensors, pointers, self._workload.rows, stream, packed)
        return result


def kernel_name(config: Config | None) -> str:
    """The strategy, and how its products are taken."""
    if not config:
        return "PyTorch"
    if config.get("strategy", "library") == "library":
        return "library"
    promote = f"/{config['promote']}" if config.get("promote") else ""
    return f"{config['scheme']}{promote}"


def measure_all(
    workloads: Sequence[Workload],
    keep: Callable[[Row], None],
    *,
    device: str = "cuda",
    gpus: int = 1,
    trials: int = 60,
    seconds: float = 2.0,
    within_s: float | None = None,
    max_autotune: bool = False,
) -> None:
    """`keep` gets a row for each workload, the largest first, so that no long one is left to the last."""
    tasks = [
        (str(each), (each, trials, seconds, max_autotune and (each.op, each.dims) in NAMED))
        for each in sorted(workloads, key=lambda each: each.operations, reverse=True)
    ]
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        run = Run("bench_linear:open_seat", tasks, keep, within_s, tell=tell)
        run.on(make_seats(device, gpus, Path(folder)))


def tell(row: Row) -> str:
    compiled = f", {row['times torch.compile']:.2f} torch.compile" if "times torch.compile" in row else ""
    return f"{row['ksearch us']:.1f} us, {row['times eager']:.2f} times eager{compiled}, {row['kernel']}"


def missing(workloads: Sequence[Workload], select: str, known: Mapping[str, Row]) -> list[Workload]:
    """Those that the expression finds and that have no row yet, or one that says that they failed."""
    found = [each for each in workloads if re.search(select, str(each))]
    return [each for each in found if str(each) not in known or "error" in known[str(each)]]


def ratios(facts: Sequence[float]) -> tuple[float, float]:
    """Of rms and maximum to PyTorch's; where PyTorch is exact, as it is in a sum of one, 1 or infinity."""
    mine, own = facts[:2], facts[2:]
    rms, most = (a / b if b else (1.0 if not a else math.inf) for a, b in zip(mine, own, strict=True))
    return rms, most


def error_table(rows: Mapping[str, Row]) -> str:
    """In Markdown: for each workload and kind of values the errors, and how many times PyTorch's they are."""
    lines = []
    for name, row in rows.items():
        for values, found in row.get("errors", {}).items():
            line: dict[str, Any] = {"workload": name, "values": values, "kernel": row["kernel"]}
            for what, facts in found.items():
                for place, each in enumerate(ERRORS):
                    line[f"{what} {each}"] = f"{facts[place]:.2e}"
                    line[f"PyTorch's {what} {each}"] = f"{facts[2 + place]:.2e}"
                    line[f"{what} {each} ratio"] = f"{ratios(facts)[place]:.2f}"
            lines.append(line)
    return table(lines)


def summarize(rows: Mapping[str, Row], suite: Sequence[Workload] = WORKLOADS) -> list[str]:
    """What the tables say in all, as lines of a Markdown list."""
    good = {name: row for name, row in rows.items() if "error" not in row}
    lines = against(("eager", "torch.compile", "max-autotune"), good)
    for what in ("output", "linear"):
        strict = [
            (*ratios(found[what]), f"{name}, {values}")
            for name, row in good.items()
            if "float32" in name and not name.endswith("tf32") and not row["kernel"].startswith("PyTorch")
            for values, found in row["errors"].items()
            if what in found
        ]
        if strict:
            rms, most = max(strict), max(strict, key=lambda each: each[1])
            title = "the linear alone" if what == "linear" else "the op's result"
            lines.append(
                f"Errors under `strict` in float32, {title}, as multiples of PyTorch's: rms at most "
                f"{rms[0]:.2f} ({rms[2]}), maximum at most {most[1]:.2f} ({most[2]})."
            )
    won = sum(row["kernel"] == "PyTorch" for row in good.values())
    lines.append(
        f"PyTorch won {won} of {len(good)} rows. "
        f"Workloads of the suite: {len(suite)}; measured {len(good)}, failed {len(rows) - len(good)}."
    )
    return lines


def shorten(row: Row) -> Row:
    """As the table shows it: the config without what the kernel's name says, and what is not used by it."""
    if "=" not in row.get("config", ""):
        return row
    said = ("strategy=", "scheme=", "promote=", "library=0")
    if row["kernel"] == "library":
        parts = [part for part in row["config"].split() if part.startswith("library=")]
    else:
        parts = [part for part in row["config"].split() if not part.startswith(said)]
    return {**row, "config": " ".join(parts)}


def report(
    arguments: argparse.Namespace,
    target: Target,
    rows: Mapping[str, Row],
    command: str,
    suite: Sequence[Workload] = WORKLOADS,
) -> None:
    """The results file and the page, of the rows there are."""
    body = table([shorten(row) for row in rows.values()], COLUMNS)
    body += "\n\n" + "\n".join(f"- {line}" for line in summarize(rows, suite))
    body += "\n\n## Errors against float64\n\n" + error_table(rows)
    save(arguments, target, list(rows.values()), command, body=body)


def main() -> None:
    options = parser(__doc__, "linear-h200", 60)
    add_options(options)
    options.add_argument(
        "--max-autotune", action="store_true", help="torch.compile's own search for the two named workloads"
    )
    options.add_argument(
        "--prepacked", action="store_true", help="kernels whose weight is packed once; NAME is their own"
    )
    arguments = options.parse_args()
    suite = PREPACKED if arguments.prepacked else WORKLOADS
    if arguments.prepacked and arguments.name == options.get_default("name"):
        arguments.name = "linear-prepacked-h200"

    def measure(known: Mapping[str, Row], keep: Callable[[Row], None]) -> None:
        found = missing(suite, arguments.select, known)
        measure_all(found, keep, **limits(arguments), max_autotune=arguments.max_autotune)

    known = collect(arguments, measure)
    rows = {str(each): known[str(each)] for each in suite if str(each) in known}
    command = command_of(arguments, Path(__file__)) + " --max-autotune" * arguments.max_autotune
    command += " --prepacked" * arguments.prepacked
    report(arguments, backends.get("cuda").target(0), rows, command, suite)


if __name__ == "__main__":
    import bench_linear  # the processes of the seats know its classes by this name

    bench_linear.main()
