from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import ksearch
from ksearch import operators
from ksearch.errors import UnknownOp, UsageError, UserFileError
from ksearch.operators import registry

SWISH = """\
import torch
import ksearch

@ksearch.op
def swish(x):
    return x * torch.sigmoid(x)

@ksearch.op(name="scaled", s="column")
def anything(x, s, *, by=2.0):
    return x * s * by

def plain(x):
    return x
"""


@pytest.fixture(autouse=True)
def _own_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    operators.names()
    monkeypatch.setattr(registry, "_ops", dict(registry._ops))


@pytest.fixture
def my_ops(tmp_path: Path) -> Path:
    path = tmp_path / "my_ops.py"
    path.write_text(SWISH)
    return path


def run_python(*arguments: str) -> str:
    """What a fresh interpreter prints; it finds this checkout even where nothing is installed."""
    environment = {**os.environ, "PYTHONPATH": str(Path(ksearch.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, check=True, env=environment
    )
    return done.stdout.strip()


def test_a_decorated_function_stays_a_function() -> None:
    @ksearch.op
    def double(x: Any) -> Any:
        return x * 2

    assert torch.equal(double(torch.ones(2)), torch.full((2,), 2.0))
    assert operators.get("double").function is double
    assert operators.resolve(double) is operators.get("double") is operators.resolve(operators.get("double"))
    assert operators.get("double").location == f"{Path(__file__).resolve()}:double"


def test_names_are_sorted_and_hold_the_built_ins() -> None:
    assert operators.names() == sorted(operators.names())
    assert {"sigmoid", "softmax"} <= set(operators.names())


def test_unknown_names_suggest_near_ones() -> None:
    with pytest.raises(UnknownOp, match="no op 'sotfmax'; did you mean softmax"):
        operators.get("sotfmax")
    with pytest.raises(UnknownOp, match=r"known: .*sigmoid, .*softmax"):
        operators.resolve("qqqq")


def test_a_built_in_name_is_refused() -> None:
    def softmax(x: Any) -> Any:
        return x

    with pytest.raises(UsageError, match=r"'softmax' is taken by an op built in.*name='my_softmax'"):
        ksearch.op(softmax)
    ksearch.op(name="my_softmax")(softmax)
    assert operators.get("my_softmax").function is softmax


def test_the_same_place_may_define_its_op_again() -> None:
    def define(factor: int) -> None:
        @ksearch.op
        def times(x: Any) -> Any:
            return x * factor

    define(2)
    first = operators.get("times").program().digest
    define(3)
    assert operators.get("times").program().digest != first


def test_what_is_no_op_is_refused() -> None:
    with pytest.raises(UsageError, match="needs a function or a TemplateOp class"):
        ksearch.op(torch.sigmoid)
    with pytest.raises(UsageError, match=r"class Thing is no ksearch.TemplateOp"):
        ksearch.op(type("Thing", (), {}))
    with pytest.raises(UsageError, match="cannot be the name of an op"):
        ksearch.op(name="my op")(lambda x: x)
    with pytest.raises(UsageError, match=r"is no op: write @ksearch.op above it"):
        operators.resolve(lambda x: x)


def test_a_file_is_found_and_run_once(my_ops: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    op = operators.resolve(f"{my_ops}:swish")
    assert op.location == f"{my_ops}:swish"
    assert op is operators.resolve(f"{my_ops}:swish")
    assert operators.resolve(f"{my_ops}:scaled").options == {"by": 2.0}
    monkeypatch.chdir(my_ops.parent)
    assert operators.resolve("my_ops.py:swish") is op
    assert operators.resolve(op.location) is op
    assert operators.get("swish") is op


def test_an_edited_file_is_run_again(my_ops: Path) -> None:
    before = operators.resolve(f"{my_ops}:swish").workload((4, 4))
    my_ops.write_text(SWISH.replace("sigmoid", "tanh").replace("scaled", "other"))
    after = operators.resolve(f"{my_ops}:swish").workload((4, 4))
    assert before.program != after.program
    with pytest.raises(UserFileError, match="its ops: other, swish"):
        operators.resolve(f"{my_ops}:scaled")


def test_a_mended_file_works_again(my_ops: Path) -> None:
    operators.resolve(f"{my_ops}:swish")
    my_ops.write_text(SWISH + "oops\n")
    with pytest.raises(UserFileError, match="NameError: name 'oops' is not defined"):
        operators.resolve(f"{my_ops}:swish")
    my_ops.write_text(SWISH)
    assert operators.resolve(f"{my_ops}:swish").name == "swish"


def test_a_location_works_in_another_process(my_ops: Path) -> None:
    op = operators.resolve(f"{my_ops}:scaled")
    code = (
        "from ksearch import operators;"
        f"print(operators.resolve({op.location!r}).workload((4, 8), by=3.0).key)"
    )
    assert run_python("-c", code) == op.workload((4, 8), by=3.0).key


def test_a_script_that_resolves_itself_is_not_run_twice(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "print('ran')\nimport ksearch\nfrom ksearch.operators import resolve\n"
        "@ksearch.op\ndef f(x): return x + 1\n"
        "print(resolve(f'{__file__}:f').function is f)\n"
    )
    assert run_python(str(script)).split() == ["ran", "True"]


def test_missing_ops_list_what_there_is(my_ops: Path) -> None:
    with pytest.raises(UserFileError, match=r"defines no op 'swich'; its ops: scaled, swish"):
        operators.resolve(f"{my_ops}:swich")
    with pytest.raises(UserFileError, match=r"plain is no op: write @ksearch.op above it"):
        operators.resolve(f"{my_ops}:plain")
    with pytest.raises(UserFileError, match=r"write my_ops.py:NAME; its ops: scaled, swish"):
        operators.resolve(str(my_ops))


def test_two_files_may_not_fight_over_a_name(my_ops: Path, tmp_path: Path) -> None:
    operators.resolve(f"{my_ops}:swish")
    other = tmp_path / "other.py"
    other.write_text(SWISH)
    with pytest.raises(UserFileError, match=r"other.py:4: UsageError: the name 'swish' is taken.*my_ops.py"):
        operators.resolve(f"{other}:swish")
