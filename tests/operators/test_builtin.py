from __future__ import annotations

import inspect
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ksearch import operators
from ksearch.errors import BadShape, UsageError
from ksearch.operators.program import Role, as_tuple
from ksearch.operators.registry import _aliases
from ksearch.runtime.reading import torch_function
from ksearch.types import Option
from tests.builtins_table import LINEAR_VARIANTS, VARIANTS, label
from tests.operators.interpreter import evaluate_all, nasty

BUILT_IN = [name for name in operators.names() if operators.get(name).location == name]


REDUCTIONS = (
    *("sum", "mean", "prod", "amax", "amin", "argmax", "argmin", "logsumexp", "norm", "var", "std"),
)


def nasty_inputs(op: operators.Op, options: dict[str, Option]) -> list[torch.Tensor]:
    """Every input of `op` with the values that formulas get wrong, each in other places."""
    first = nasty()
    if op.program(**options).layout.startswith(("groups", "channels")):  # two samples of six channels
        first = first[[0, 1, 2, 9, 10, 1, 3, 4, 0, 9, 1, 10]].view(2, 6, 24)
        channels = torch.linspace(0.5, 1.5, 6, dtype=torch.float64)
        return [first, *[channels.roll(n) for n in range(len(op.inputs_for(options)) - 1)]]
    tensors = []
    for number, item in enumerate(op.inputs_for(options)):
        full = first.roll(3 * number, 0).flip(-1) if number else first
        part = {Role.FULL: full, Role.ROW: full[1] / 30, Role.COLUMN: full[:, :1], Role.SCALAR: full[0, 0]}
        part[Role.MASK] = full > 0.1
        part[Role.INDEX] = torch.arange(len(full)) * 7 % full.shape[1]
        tensors.append(part[item.role].contiguous())
    return tensors


@pytest.mark.parametrize("variant", VARIANTS, ids=label)
def test_what_is_traced_agrees_with_torch(variant: tuple[str, dict[str, Option]]) -> None:
    op, options = operators.get(variant[0]), variant[1]
    program = op.program(**options)
    # Of one value for all rows nothing is left but a NaN, where any of them is odd: then also without these.
    is_one = program.is_total or not program.over
    for rows in (slice(None), *([slice(8, None), slice(0, 2)] if is_one else [])):
        pairs = zip(nasty_inputs(op, options), op.inputs_for(options), strict=True)
        spread = (Role.FULL, Role.COLUMN, Role.INDEX)
        tensors = [each[rows] if item.role in spread else each for each, item in pairs]
        expected = op.reference(*tensors, **options)
        # differences of sums lose their last digits
        atol = 1e-300 if program.family == "pointwise" else 1e-15
        if program.layout.startswith(("groups", "channels")):  # which PyTorch takes to pieces in another way
            atol = 1e-13
        for result, exact in zip(evaluate_all(program, *tensors), as_tuple(expected), strict=True):
            torch.testing.assert_close(
                result.reshape(exact.shape), exact, rtol=1e-12, atol=atol, equal_nan=True
            )


def test_the_table_of_variants_has_every_op_and_every_role() -> None:
    variants = (*VARIANTS, *LINEAR_VARIANTS)
    assert {name for name, _ in variants} == set(BUILT_IN)
    for name in BUILT_IN:
        op = operators.get(name)
        assert op.location == name
        for tensor, roles in op.choices.items():
            tried = {options.get(tensor, roles[0]) for other, options in variants if other == name}
            assert tried == set(roles)


def test_the_keys_of_what_has_no_choice_stay_as_they_were() -> None:
    """A winner that was kept before ops had choices is still found."""
    softmax, sigmoid = (operators.get(name).workload((4, 8)) for name in ("softmax", "sigmoid"))
    assert (softmax.options, softmax.program) == ((), "102e1318ef47c5e9")
    assert (sigmoid.options, sigmoid.program) == ((), "63dab5d5ca336885")
    assert (softmax.key[:8], sigmoid.key[:8]) == ("36766078", "fd0caf1a")


def test_the_readme_names_every_one() -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    assert [name for name in BUILT_IN if f"`{name}`" not in readme] == []


def test_families() -> None:
    reducing = {name for name in BUILT_IN if operators.get(name).program().family == "rowwise"}
    others = {"norm", "batchnorm"}
    assert reducing == {name for name in BUILT_IN if "norm" in name or "softmax" in name} - others
    assert {n for n in BUILT_IN if operators.get(n).program().family == "scan"} == {
        *(name for name in BUILT_IN if name.startswith("cum") or name.endswith("_cumsum"))
    }
    reduction = {name for name in BUILT_IN if operators.get(name).program().family == "reduction"}
    losses = {name for name in reduction if name.endswith("_loss")} | {"cross_entropy", "kl_div"}
    assert {*REDUCTIONS} == reduction - losses
    assert {name for name in BUILT_IN if name.endswith("_loss")} < reduction
    linear = {name for name in BUILT_IN if operators.get(name).program().family == "linear"}
    assert linear == {name for name in BUILT_IN if name.startswith("linear")}


@pytest.mark.parametrize("name", [name for name in BUILT_IN if operators.get(name).torch_function])
def test_options_are_called_as_torch_calls_them(name: str) -> None:
    """By the same names and with the same meaning, so that a call of either form can be handed on."""
    op = operators.get(name)
    function = torch_function(op)
    assert function is not None
    if op.adapter is not None:
        parameters = [*inspect.signature(op.adapter).parameters][1:]
        arguments = inspect.signature(op.adapter).bind(torch.randn(3, 4)).arguments
        known = inspect.signature(function).parameters if inspect.isfunction(function) else None
        assert known is None or set(parameters) <= known.keys()
        assert len(arguments) == 1, "whatever comes after the first is optional"
        return
    for variant in (options for other, options in VARIANTS if other == name):
        tensors = nasty_inputs(op, variant)
        given = op.keywords(variant)
        torch.testing.assert_close(
            function(*tensors, **given), op.reference(*tensors, **variant), rtol=0, atol=0, equal_nan=True
        )


def test_clamp_wants_a_bound() -> None:
    with pytest.raises(BadShape, match=r"clamp does not run on shape 4x8: .*both min and max are none"):
        operators.get("clamp").workload((4, 8))


def test_aliases_are_the_ops_themselves() -> None:
    assert operators.get("rms_norm") is operators.get("rmsnorm") is operators.resolve("rms_norm")
    assert operators.get("layer_norm").workload((4, 8)) == operators.get("layernorm").workload((4, 8))
    assert operators.canonical("layer_norm") == operators.canonical("layernorm") == "layernorm"
    assert operators.canonical("no_such_op") == "no_such_op"
    assert not set(_aliases) & set(operators.names()), "listed once, by their own name"
    with pytest.raises(UsageError, match="did you mean"):
        operators.get("layer_nrm")


def test_looking_ops_up_does_not_import_torch() -> None:
    code = (
        "import sys; from ksearch import operators as o; o.resolve('softmax'); print('torch' in sys.modules)"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(operators.__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    assert done.stdout.strip() == "False"
