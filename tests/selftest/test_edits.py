"""Every planted fault finds its place in the text that the templates give, or says why there is none."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ksearch import backends
from ksearch.errors import SelftestError
from ksearch.selftest import appended, edits
from ksearch.selftest.faults import FAULTS
from ksearch.selftest.mutants import Mutant, descriptions, mutants
from ksearch.types import Target
from tests.families.cuda_cases import TARGETS
from tests.selftest.benches import plan_for

WORKLOADS = [
    ("sigmoid", (131, 1000)),
    ("swiglu", (131, 999)),
    ("softmax", (131, 300)),
    ("softmax", (131, 4096)),
    ("softmax", (3, 100_000)),
    ("log_softmax", (131, 4096)),
    ("layernorm", (131, 4096)),
    ("rmsnorm", (131, 1000)),
    ("add_rmsnorm", (131, 4096)),
    ("linear_gelu", (128, 512, 256)),
    ("linear_relu", (63, 33, 51)),
    ("linear_logsumexp", (128, 512, 256)),
]


def cpu() -> Target:
    return backends.get("cpu").target()


def made(op: str, shape: tuple[int, ...], dtype: str, target: Target, **options: str) -> dict[str, Mutant]:
    plan = plan_for(op, shape, dtype, target, **options)
    config = plan.guesses[0]
    return {mutant.fault: mutant for mutant in mutants(plan, config, plan.render(config))}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("arch", ["cpu", "sm_80", "sm_90"])
@pytest.mark.parametrize(("op", "shape"), WORKLOADS, ids=str)
def test_every_fault_is_planted_or_has_a_reason_not_to_be(
    op: str, shape: tuple[int, ...], arch: str, dtype: str
) -> None:
    target = cpu() if arch == "cpu" else TARGETS[arch]
    plan = plan_for(op, shape, dtype, target)
    for config in [*plan.guesses[:1], plan.guesses[-1]]:
        source = plan.render(config)
        found = {mutant.fault: mutant for mutant in mutants(plan, config, source)}
        assert list(found) == list(descriptions())
        for mutant in found.values():
            assert (mutant.source is None) == bool(mutant.absent), mutant
            assert mutant.source is None or mutant.source.text != source.text


def test_what_an_op_has_not_is_not_planted() -> None:
    absent = {name: mutant.absent for name, mutant in made("relu", (131, 1000), "float32", cpu()).items()}
    assert absent["approximate exponential"] == "the op takes no exponential"
    assert absent["sums in float16"] == "the kernel takes no sum"
    assert absent["no maximum subtracted"] == "the op subtracts no maximum"
    assert (
        absent["missing barrier"] == "no kernel for this op and shape has threads that wait for one another"
    )
    assert absent["wrong beyond 2^31 bytes"] == "the result has no byte beyond 2^31"
    assert absent["last input overwritten"] == "there is one input"
    assert not absent["zeros"]
    far = made("relu", (1 << 17, 4097), "float32", cpu())
    assert far["wrong beyond 2^31 bytes"].needs_whole


def test_a_fault_is_planted_in_the_kernel_that_has_its_place() -> None:
    """The first guess for few long rows shares them; that for many does not, and subtracts in one pass."""
    for op in ("softmax", "cumsum"):
        few = made(op, (1, 100_000), "float32", cpu())["missing barrier"]
        assert few.config is not None
        assert few.config["split"] is True
    plan = plan_for("softmax", (131, 65_536), "float32", TARGETS["sm_90"])
    assert plan.guesses[0]["reduction"] == "online"
    no_max = made("softmax", (131, 65_536), "float32", TARGETS["sm_90"])["no maximum subtracted"]
    assert no_max.config is not None
    assert no_max.config["reduction"] == "two_step"
    off = made("sigmoid", (131, 4096), "float32", TARGETS["sm_90"])["wrong off alignment"]
    assert off.launch is not None
    assert off.launch.alignment == 4


def test_rows_of_two_threads_each_wait_for_no_barrier() -> None:
    """To take one out changed nothing in the binary, and so ended the search."""
    found = made("sum", (1_000_000, 64), "bfloat16", TARGETS["sm_90"], dim="-1")["missing barrier"]
    assert found.absent == "no kernel for this op and shape has threads that wait for one another"


@pytest.mark.parametrize("edit", edits.EDITS, ids=lambda edit: edit.name)
def test_an_edit_without_its_place_is_an_error(edit: edits.Edit) -> None:
    for change in (("no such text", "y"), ("x", "x"), lambda text: text):
        broken = replace(edit, changes={"x": (change,)})
        with pytest.raises(SelftestError, match=rf"{edit.name}.*finds no place"):
            broken.apply("x")


def test_names_and_functions_of_the_faults_are_all_different() -> None:
    names = [appended.entry(fault) for fault in FAULTS]
    assert len(set(names)) == len(names)
    assert all(name.isidentifier() for name in names)
    assert len(descriptions()) == len(FAULTS) + len(edits.EDITS) + 1
