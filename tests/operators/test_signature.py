from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from ksearch.errors import UsageError
from ksearch.operators.program import Input, Role
from ksearch.operators.signature import check_option, parse_option, read_signature


def test_roles_by_convention_and_by_statement() -> None:
    def function(x: Any, weight: Any, y: Any, mask: Any, *, eps: float = 1e-6, wide: bool = True) -> Any: ...

    read = read_signature(function, {"mask": "column"})
    assert read.choices == {}
    assert read.inputs == (
        Input("x"),
        Input("weight", Role.ROW),
        Input("y"),
        Input("mask", Role.COLUMN),
    )
    assert read.options == {"eps": 1e-6, "wide": True}


def test_several_roles_are_a_choice() -> None:
    def function(x: Any, y: Any, bias: Any = None, mask: Any = None, *, eps: float = 1e-6) -> Any: ...

    read = read_signature(function, {"y": ("column", "full"), "mask": ("none", "full")})
    assert read.choices == {"y": ("column", "full"), "bias": ("row", "none"), "mask": ("none", "full")}
    assert [item.role for item in read.inputs] == [Role.FULL, Role.COLUMN, Role.ROW, Role.FULL]
    assert read.options == {"y": "column", "bias": "row", "mask": "none", "eps": 1e-6}


def test_the_first_tensor_is_full_whatever_its_name() -> None:
    read = read_signature(lambda weight, bias: weight + bias, {"bias": "full"})
    assert [item.role for item in read.inputs] == [Role.FULL, Role.FULL]


def _default(x: Any, eps: float = 1e-6) -> Any: ...
def _star(*xs: Any) -> Any: ...
def _stars(x: Any, **options: Any) -> Any: ...
def _no_default(x: Any, *, eps: float) -> Any: ...
def _none(x: Any, *, eps: float | None = None) -> Any: ...
def _nothing(*, eps: float = 1.0) -> Any: ...
def _keyword(x: Any, float: Any) -> Any: ...
def _generated(x: Any, r0: Any) -> Any: ...
def _output(x: Any, out1: Any) -> Any: ...
def _accent(é: Any) -> Any: ...  # noqa: PLC2401  # noqa: PLC2401
def _plain(x: Any, y: Any) -> Any: ...
def _named_policy(x: Any, *, policy: str = "strict") -> Any: ...
def _named_shape(x: Any, shape: Any = None) -> Any: ...
def _optional(x: Any, y: Any = None) -> Any: ...


@pytest.mark.parametrize(
    ("function", "roles", "says"),
    [
        (_default, {}, "'eps' is a tensor, as it stands before the '\\*'"),
        (_star, {}, "'xs' collects arguments"),
        (_stars, {}, "'options' collects arguments"),
        (_no_default, {}, "'eps' is an option and needs a default"),
        (_none, {}, "'eps' is None: it must be a number"),
        (_nothing, {}, "at least one tensor"),
        (_keyword, {}, "'float' cannot be used in C\\+\\+"),
        (_generated, {}, "'r0' cannot be used in C\\+\\+"),
        (_output, {}, "'out1' cannot be used in C\\+\\+"),
        (_accent, {}, "cannot be used in C\\+\\+"),
        (_plain, {"y": "diagonal"}, "'diagonal', but must be one of 'full', 'row', 'column', 'scalar'"),
        (_plain, {"y": ("full", "diagonal")}, "'diagonal', but must be one of"),
        (_plain, {"y": ()}, "the roles of 'y' are \\(\\): give one or more"),
        (_plain, {"y": ("row", "row")}, "give one or more, none of them twice"),
        (_plain, {"y": ("row", "none")}, "the tensor 'y' may be absent where its default is None and"),
        (_optional, {"y": "row"}, "the tensor 'y' may be absent where its default is None and"),
        (_optional, {"y": ("none",)}, "give one or more"),
        (_plain, {"x": ("full", "row")}, "the role of the first tensor, 'x', must be 'full'"),
        (_plain, {"z": "row"}, "no tensor 'z'"),
        (_plain, {"x": "left"}, "one tensor in the role 'left' and one 'right', not \\['left'\\]"),
        (_plain, {"y": "right"}, "one tensor in the role 'left' and one 'right', not \\['right'\\]"),
        (_plain, {"x": "right", "y": "left"}, "the first tensor, 'x', must be 'full', or 'left'"),
        (_plain, {"x": "left", "y": ("right", "row")}, "'y' is an operand of a linear: it can have no other"),
        (_optional, {"x": "left", "y": ("right", "none")}, "it can have no other role, nor none"),
        (_named_policy, {}, "an option cannot be called 'policy'"),
        (_named_shape, {}, "an option cannot be called 'shape'"),
        (_plain, {"x": "row"}, "must be 'full'"),
    ],
)
def test_bad_signatures_name_the_parameter(
    function: Callable[..., Any], roles: dict[str, str], says: str
) -> None:
    with pytest.raises(UsageError, match=says) as refused:
        read_signature(function, roles)
    assert str(refused.value).startswith(f"{function.__name__}: ")


def test_options_take_the_type_of_their_default() -> None:
    assert repr(check_option("f", "eps", 1, 0.5)) == "1.0"
    assert check_option("f", "n", 3, 1) == 3
    for value, default in ((True, 0.5), (True, 1), (0.5, 1), ("a", 1.0), (1, "a"), (1, False)):
        with pytest.raises(UsageError, match="option eps is"):
            check_option("f", "eps", value, default)


def test_options_parse_as_written_on_a_command_line() -> None:
    assert parse_option("f", "eps", "1e-5", 1.0) == 1e-5
    assert parse_option("f", "n", "7", 1) == 7
    assert parse_option("f", "on", "False", True) is False
    assert parse_option("f", "mode", "tanh", "none") == "tanh"
    for text, default in (("x", 1.0), ("1.5", 1), ("maybe", True)):
        with pytest.raises(UsageError, match=f"eps={text} does not parse"):
            parse_option("f", "eps", text, default)
