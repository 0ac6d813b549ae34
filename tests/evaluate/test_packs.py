"""Planted kernels that take a packed weight: what is wrong with packing is found, and its time kept apart."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import ksearch
from ksearch.types import Status
from tests.evaluate.kernels import CPU_LINEAR, CPU_LINEAR_PROLOGUE

_COLS, _INNER = 33, 300
_BYTES = 4 * _COLS * _INNER
_SCRIPT = """
import json, sys
from pathlib import Path
from ksearch import backends, operators
from ksearch.evaluate.messages import Job
from ksearch.evaluate.session import Session
from ksearch.launch import Launch
from tests.evaluate.kernels import build

launch = Launch(pack=Launch(entry="pack"), packed_bytes={size}, alignment=4, most_rows=1 << 20)
workload = operators.get("linear_sigmoid_sum").workload((40, {inner}, {cols}), prepacked=True)
session = Session(Job("linear_sigmoid_sum", workload, backends.get("cpu").target()))
found = {{}}
for name, (prologue, body) in json.load(sys.stdin).items():
    candidate = build(body, {cols}, Path(sys.argv[1]), launch, prologue=prologue)
    findings = [session.screen(candidate, None), session.verify(candidate)]
    found[name] = [[str(each.status), each.message] for each in findings]
    if name == "right":
        (packing,) = session.race([candidate], 0.2).packings
        found["packing"] = [packing.time_us, packing.size_bytes]
        found["near"] = session.nearby(candidate, 20, 0.2).speedup
        found["same"] = session.agree(candidate, candidate)
print(json.dumps(found))
"""
_PACK = """
extern "C" void pack(const float* weight, float* packed, int64_t rows, int32_t threads) {{
  for (int64_t c = 0; c < rows; c++)
    for (int64_t k = 0; k < INNER; k++) packed[k * COLS + c] = weight[c * INNER + k];
  /* flaw */
}}
"""
_HEAD, _SIGNATURE = CPU_LINEAR_PROLOGUE.split('extern "C"')
_PROLOGUE = f'{_HEAD}{_PACK}extern "C"{_SIGNATURE}'.replace(
    "float* out, int64_t", "float* out, const float* packed, int64_t"
)
_BODY = CPU_LINEAR["linear_sigmoid_sum"].replace("exact(w[k])", "packed[k * COLS + c]")

_FLAWS = {
    "right": ("", "", Status.PASSED, ""),
    "packed weight written": (
        "", "const_cast<float*>(packed)[5] += 1;", Status.OUT_OF_BOUNDS, "packed weight modified",
    ),
    "packed past its end": (
        "packed[COLS * INNER] = 0;", "", Status.OUT_OF_BOUNDS, "outside its packed weight",
    ),
    "another packing each time": (
        "static int calls = 0; packed[5] += ++calls % 2;", "", Status.NONDETERMINISTIC, "two packings",
    ),
    "a row lost": ("packed[7] = 0;", "", Status.WRONG, "times the allowed|misplaced"),
    "the first weight for ever": (
        """static float kept[COLS * INNER]; static bool has = false;
           if (!has) std::memcpy(kept, packed, sizeof kept);
           has = true; std::memcpy(packed, kept, sizeof kept);""",
        "", Status.WRONG, "times the allowed|misplaced",
    ),
    "the weight written": (
        "const_cast<float*>(weight)[5] += 1;", "", Status.OUT_OF_BOUNDS, "input modified",
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    planted = {}
    for name, (in_pack, in_kernel, _, _) in _FLAWS.items():
        escaped = in_pack.replace("{", "{{").replace("}", "}}")
        planted[name] = _PROLOGUE.replace("/* flaw */", escaped), _BODY + in_kernel
    script = _SCRIPT.format(size=_BYTES, inner=_INNER, cols=_COLS)
    output = subprocess.check_output(
        [sys.executable, "-c", script, str(tmp_path_factory.mktemp("planted"))],
        input=json.dumps(planted), text=True, cwd=Path(ksearch.__file__).parents[1],
    )  # fmt: skip
    answers: dict[str, object] = json.loads(output)
    return answers


@pytest.mark.parametrize("name", _FLAWS)
def test_what_is_wrong_with_packing_is_found(found: dict[str, object], name: str) -> None:
    """By screening, and by the check of the whole workload, which has one weight."""
    _, _, status, message = _FLAWS[name]
    findings = found[name]
    assert isinstance(findings, list)
    for each in findings[:1] if name == "the first weight for ever" else findings:
        assert each[0] == status, findings
        assert re.search(message, each[1]), findings


def test_packing_is_timed_and_measured_by_itself(found: dict[str, object]) -> None:
    time_us, size_bytes = found["packing"]  # type: ignore[misc]
    assert size_bytes == _BYTES
    assert 0 < time_us < 1e6


def test_other_numbers_of_rows_and_comparisons_have_their_packed_weight(found: dict[str, object]) -> None:
    assert found["near"] > 0  # type: ignore[operator]
    assert found["same"] is True
