from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ksearch import operators
from tests.operators.interpreter import evaluate, nasty


@pytest.mark.parametrize("name", ["sigmoid", "softmax"])
def test_built_in_ops_agree_with_torch(name: str) -> None:
    op = operators.get(name)
    assert (op.name, op.location, op.options) == (name, name, {})
    x = nasty()
    expected = torch.sigmoid(x) if name == "sigmoid" else torch.softmax(x, dim=-1)
    torch.testing.assert_close(evaluate(op.program(), x), expected, rtol=1e-12, atol=0, equal_nan=True)
    assert op.program().family == {"sigmoid": "pointwise", "softmax": "rowwise"}[name]


def test_looking_ops_up_does_not_import_torch() -> None:
    code = (
        "import sys; from ksearch import operators as o; o.resolve('softmax'); print('torch' in sys.modules)"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(operators.__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    assert done.stdout.strip() == "False"
