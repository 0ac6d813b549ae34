"""Every planted fault is found, on each backend, for each family and dtype; a hole in the check shows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from ksearch import backends, families, operators
from ksearch.errors import SelftestError
from ksearch.evaluate import check, tolerance
from ksearch.evaluate.pool import CompilePool
from ksearch.evaluate.worker import Worker
from ksearch.plan import make_plan
from ksearch.selftest import alone, edits, gate
from ksearch.selftest.edits import Edit
from ksearch.selftest.mutants import mutants
from ksearch.selftest.run import run
from ksearch.store import Kill, KillTable, Store
from ksearch.types import Config
from tests.selftest.benches import InProcess

DTYPES = ("float32", "float16", "bfloat16")
SHAPES = {"sigmoid": (67, 1000), "softmax": (67, 1000), "linear_gelu": (40, 120, 200)}
SMALL = (40, 100)


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    """A session in this process turns gradients off, and says what PyTorch may do with float32."""
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_grad_enabled(True)
    torch.set_float32_matmul_precision(before)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def _one_cache(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel is compiled once for all tests here."""
    monkeypatch.setenv("KSEARCH_CACHE_DIR", str(cache))


@pytest.fixture(scope="module")
def pool() -> Iterator[CompilePool]:
    with CompilePool("cpu", 2) as pool:
        yield pool


def kills(op: str, shape: tuple[int, ...], dtype: str, device: str, pool: CompilePool) -> dict[str, Kill]:
    """As `ksearch selftest` finds them; on a CPU only float32 in its own process, which takes seconds."""
    plan = make_plan(op, shape, dtype, device, {})
    if device == "cpu" and dtype != "float32":
        found = run(plan, InProcess(plan.job(0)), pool, plan.guesses[:1])  # type: ignore[arg-type]
        return {kill.fault: kill for kill in found}
    with Worker(plan.job(0)) as worker:
        worker.start()
        return {kill.fault: kill for kill in run(plan, worker, pool, plan.guesses[:1])}


def survivors(found: dict[str, Kill]) -> list[str]:
    return [kill.fault for kill in found.values() if kill.verdict == "passed"]


def absent(found: dict[str, Kill]) -> set[str]:
    return {kill.fault for kill in found.values() if not kill.verdict}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("op", SHAPES)
def test_every_fault_is_found_on_a_cpu(op: str, dtype: str, pool: CompilePool) -> None:
    found = kills(op, SHAPES[op], dtype, "cpu", pool)
    assert survivors(found) == []
    never = {"wrong beyond 2^31 bytes", "left to another stream", "missing barrier", "last input overwritten"}
    sums = {"sums in float16", "no maximum subtracted"}
    if (
        op == "linear_gelu"
    ):  # PyTorch has multiplied and added the bias: the kernel gets nothing of the caller
        never |= {"input overwritten"}
    else:
        assert found["input overwritten"].verdict == "out_of_bounds"
    assert absent(found) == (never if op == "softmax" else never | sums)
    assert found["lost tail"].message == "left elements of the result unwritten"
    assert found["written before"].verdict == "out_of_bounds"


def test_a_missing_barrier_is_found_where_threads_share_a_row(pool: CompilePool) -> None:
    found = kills("softmax", (3, 20_001), "float32", "cpu", pool)
    assert survivors(found) == []
    assert found["missing barrier"].verdict in ("wrong", "nondeterministic")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_what_is_wrong_beyond_2_31_bytes_only_is_found(
    pool: CompilePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """0.54e9 elements of four bytes, 8 GB with results and copies; of two bytes they would be twice as many.
    The other faults, which every other test here plants, are left out."""
    monkeypatch.setattr(
        "ksearch.selftest.run.mutants", lambda *given: [each for each in mutants(*given) if each.needs_whole]
    )
    plan = make_plan("relu", (2049, 1 << 18), "float32", "cpu", {})
    found = run(plan, InProcess(plan.job(0)), pool, plan.guesses[:1])  # type: ignore[arg-type]
    assert [(kill.fault, kill.verdict) for kill in found] == [("wrong beyond 2^31 bytes", "wrong")]


OWN = """\
import ksearch
import torch

@ksearch.op
class Halved(ksearch.TemplateOp):
    name = "halved"
    templates = {"cpu": "halved.cpp"}

    def reference(self, x):
        return torch.exp(x) / 2

    def space(self, workload, target):
        return {"step": [1]}

    def launch(self, config, workload, target):
        return ksearch.Launch(threads=1, alignment=4)
"""
TEMPLATE = """\
#include <cmath>
#include <cstdint>
extern "C" void {{ entry }}(const float* x, float* out, int64_t rows, int32_t threads) {
    for (int64_t i = 0; i < rows * {{ cols }}; i += {{ step }}) out[i] = std::exp(x[i]) / 2;
}
"""


def test_a_template_of_ones_own_is_tried_as_well(tmp_path: Path, pool: CompilePool) -> None:
    (tmp_path / "mine.py").write_text(OWN)
    (tmp_path / "halved.cpp").write_text(TEMPLATE)
    plan = make_plan(f"{tmp_path / 'mine.py'}:halved", SMALL, "float32", "cpu", {})
    found = {kill.fault: kill for kill in run(plan, InProcess(plan.job(0)), pool, [{"step": 1}])}  # type: ignore[arg-type]
    assert survivors(found) == []
    assert sum(bool(kill.verdict) for kill in found.values()) == 20
    wrong = TEMPLATE.replace("/ 2", "/ 3")
    (tmp_path / "halved.cpp").write_text(wrong)
    with pytest.raises(SelftestError, match=r"no kernel of halved 40x100 .* is right before .* the allowed"):
        run(plan, InProcess(plan.job(0)), pool, [{"step": 1}])  # type: ignore[arg-type]


# ---- a check with a hole ----------------------------------------------------------------------------------


def no_decoy(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(check.Subset, "_distract", lambda *_: [])


def no_guards(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(check.Guarded, "damaged", lambda self: torch.zeros((), dtype=torch.bool))


def loose(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(tolerance.Reference, "_limits", lambda _, errors, *__: torch.full_like(errors, 1e9))


def no_rounding(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(tolerance, "_MISROUNDED", 1.0)


HOLES = {
    "no decoy": (no_decoy, "float32", {"answer by address", "input overwritten"}),
    "no guards": (no_guards, "float32", {"written behind", "written far behind", "written before"}),
    "loose": (loose, "float32", {"approximate exponential", "sums in float16"}),
}


@pytest.mark.parametrize("name", HOLES)
def test_a_check_with_a_hole_promotes_nothing(
    name: str, pool: CompilePool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hole, dtype, missed = HOLES[name]
    hole(monkeypatch)
    monkeypatch.setattr(gate, "_validator_digest", lambda: name)  # its text is what it was
    plan = make_plan("softmax", SMALL, dtype, "cpu", {})
    worker = InProcess(plan.job(0))
    with (
        Store.open(tmp_path / "k.db") as store,
        pytest.raises(SelftestError, match=r"the check of softmax 40x100 .* lets \d of \d+ planted faults"),
    ):
        gate.require_kills(plan, worker, pool, store, plan.guesses[0])  # type: ignore[arg-type]
    with Store.open(tmp_path / "k.db") as store:
        kept = store.kills("softmax", plan.target, gate.facts(plan))
    assert kept is not None
    assert missed <= set(kept.survivors)


def test_rounding_alone_shows_a_small_error_in_bfloat16(
    pool: CompilePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else it is no worse than PyTorch by any other measure, and counts as none."""
    plan = make_plan("sigmoid", SHAPES["sigmoid"], "bfloat16", "cpu", {})
    name = edits.APPROXIMATE_EXPONENTIAL.name
    verdicts = {}
    for hole in (lambda _: None, no_rounding):
        hole(monkeypatch)
        found = run(plan, InProcess(plan.job(0)), pool, plan.guesses[:1])  # type: ignore[arg-type]
        verdicts[hole] = next(kill.verdict for kill in found if kill.fault == name)
    assert list(verdicts.values()) == ["wrong", ""]


# ---- the gate ---------------------------------------------------------------------------------------------


def test_a_table_is_made_once_for_a_form_and_made_again_where_anything_changes(
    pool: CompilePool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = make_plan("softmax", SMALL, "float32", "cpu", {})
    worker = InProcess(plan.job(0))
    monkeypatch.setattr(gate, "_validator_digest", lambda: "first")
    with Store.open(tmp_path / "k.db") as store:

        def made(shape: tuple[int, ...] = SMALL, dtype: str = "float32", op: str = "softmax") -> bool:
            other = make_plan(op, shape, dtype, "cpu", {})
            before = len(worker.probed)
            table = gate.require_kills(other, worker, pool, store, other.guesses[0])  # type: ignore[arg-type]
            assert gate.is_clean(table)
            return len(worker.probed) > before

        assert made()
        assert not made()
        assert not made((60, 120)), "of the same form"
        monkeypatch.setattr(gate, "_validator_digest", lambda: "second")
        assert made()
    for facts in (
        gate.facts(make_plan("softmax", SMALL, "float16", "cpu", {})),
        gate.facts(make_plan("softmax", (40, 300), "float32", "cpu", {})),
        gate.facts(make_plan("softmax", (40, 101), "float32", "cpu", {})),
        gate.facts(make_plan("softmax", (7, 100), "float32", "cpu", {})),
    ):
        assert facts != gate.facts(plan)


def test_a_table_without_a_fault_is_no_evidence() -> None:
    empty = KillTable("softmax", "cpu", {}, (Kill("zeros", "", "does not apply"),))
    assert not gate.is_clean(empty)
    assert empty.applied == ()


def test_a_fault_that_does_not_compile_or_changes_nothing_is_an_error(
    pool: CompilePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = make_plan("softmax", SMALL, "float32", "cpu", {})
    worker = InProcess(plan.job(0))
    for new, says in (("return 1 +;", "does not compile"), ("return a + b; // !", "changes nothing")):
        changes = {"KS_FN V combine": ((r"return a \+ b;", new),)}
        edit = Edit("odd", "", lambda _: True, "", changes)
        monkeypatch.setattr(edits, "EDITS", (edit,))
        with pytest.raises(SelftestError, match=f"the planted fault 'odd' {says}"):
            run(plan, worker, pool, plan.guesses[:1])  # type: ignore[arg-type]


def test_a_first_guess_that_is_wrong_by_itself_gives_way_to_the_winner(
    pool: CompilePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = make_plan("softmax", SMALL, "float32", "cpu", {})
    worker = InProcess(plan.job(0))
    good, bad = plan.guesses[0], plan.guesses[-1]
    render = type(plan).render

    def rendered(self: object, config: Config) -> object:
        source = render(plan, config)
        if config == bad:
            object.__setattr__(source, "text", source.text.replace("value[0] = t7;", "value[0] = t7 + t7;"))
        return source

    monkeypatch.setattr(type(plan), "render", rendered)
    found = run(plan, worker, pool, [bad, good])  # type: ignore[arg-type]
    assert [kill.fault for kill in found if kill.verdict == "passed"] == []
    with pytest.raises(SelftestError, match="is right before a fault is planted in it: "):
        run(plan, worker, pool, [bad])  # type: ignore[arg-type]


# ---- on a GPU ---------------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("op", "shape"),
    [("sigmoid", (131, 4096)), ("softmax", (131, 4096)), ("linear_gelu", (128, 1024, 1024))],
    ids=str,
)
def test_every_fault_is_found_on_a_gpu(op: str, shape: tuple[int, ...], dtype: str) -> None:
    with CompilePool("cuda", 8) as pool:
        found = kills(op, shape, dtype, "cuda", pool)
    assert survivors(found) == []
    assert found["left to another stream"].verdict
    assert op == "sigmoid" or found["missing barrier"].verdict


@pytest.mark.gpu
@pytest.mark.gpu_memory("whole")
def test_what_is_wrong_beyond_2_31_bytes_only_is_found_on_a_gpu() -> None:
    with CompilePool("cuda", 8) as pool:
        found = kills("softmax", ((1 << 17) + 1, 4096), "float32", "cuda", pool)
    assert survivors(found) == []
    assert found["wrong beyond 2^31 bytes"].verdict == "wrong"


def test_without_an_op_every_family_is_tried() -> None:
    tried = {operators.get(op).program(**options).family for op, options in alone.CASES}
    assert tried == {family for family, _ in families._FAMILIES}


def test_the_ops_of_each_family_are_those_that_are_tried() -> None:
    assert [operators.get(op).program().family for op in SHAPES] == ["pointwise", "rowwise", "linear"]
    assert backends.get("cpu").target().backend == "cpu"
