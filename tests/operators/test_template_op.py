from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ksearch import operators
from ksearch.errors import UserFileError
from ksearch.launch import Launch
from ksearch.types import Target

TEXT = """\
import ksearch

@ksearch.op
class Sorted(ksearch.TemplateOp):
    name = "{name}"
    inputs = {{"x": "full", "weight": "row"}}
    options = {{"descending": False}}
    templates = {{"cpu": "sorted.cpp.j2"}}

    def reference(self, x, weight, *, descending):
        return (x * weight).sort(dim=-1, descending=descending)[0]

    def space(self, workload, target):
        return {{"threads": [1, 2]}}

    def launch(self, config, workload, target):
        return ksearch.Launch(threads=config["threads"])
"""


def write(folder: Path, text: str) -> Path:
    (folder / "sorted.cpp.j2").write_text("// a template\n")
    path = folder / "mine.py"
    path.write_text(text)
    return path


def test_a_class_becomes_an_op(tmp_path: Path) -> None:
    path = write(tmp_path, TEXT.format(name="sorted_a"))
    op = operators.resolve(f"{path}:sorted_a")
    assert (op.name, op.location) == ("sorted_a", f"{path}:sorted_a")
    assert [(item.name, item.role.value) for item in op.inputs] == [("x", "full"), ("weight", "row")]
    x, weight = torch.randn(3, 4), torch.randn(4)
    expected = (x * weight).sort(dim=-1)[0]
    assert torch.equal(op.reference(x, weight), expected)
    assert torch.equal(op.reference(x, weight, descending=True), expected.flip(-1))
    assert op.input_shapes((3, 4)) == [(3, 4), (4,)]
    workload = op.workload((3, 4), descending=True)
    assert workload.options == (("descending", True),)
    template_op = op.template_op
    assert template_op is not None
    target = Target("cpu", "x86_64", "a CPU")
    assert template_op.is_valid({"threads": 1}, workload, target)
    assert list(template_op.guesses(workload, target)) == []
    assert template_op.variables({"threads": 1}, workload, target) == {}
    assert template_op.launch({"threads": 2}, workload, target) == Launch(threads=2)
    assert operators.resolve(type(template_op)) is op


def test_its_program_changes_with_the_reference_and_the_inputs(tmp_path: Path) -> None:
    def digest(text: str) -> str:
        path = write(tmp_path, text)
        return operators.resolve(f"{path}:sorted_b").program().digest

    text = TEXT.format(name="sorted_b")
    assert digest(text) == digest(text.replace("[1, 2]", "[1, 2, 4]"))
    assert digest(text) != digest(text.replace("x * weight", "x + weight"))
    assert digest(text) != digest(text.replace('"row"', '"full"'))


def test_traced_ops_have_no_template() -> None:
    assert operators.get("softmax").template_op is None


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('name = "bad"', "", r"Sorted.name is ''"),
        ('name = "bad"', "name = 3", r"Sorted.name is 3"),
        ('name = "bad"', 'name = "bad"; outputs = 0', r"Sorted.outputs is 0: it must be a whole number"),
        ('name = "bad"', 'name = "bad"; outputs = ["y"]', r"Sorted.outputs is \['y'\]"),
        ('"x": "full"', '"x": "row"', "first tensor, 'x', must be 'full'"),
        ('"row"', '"side"', "the role of 'weight' is 'side'"),
        (
            '{"x": "full", "weight": "row"}',
            '{"x": "left", "weight": "right"}',
            "Sorted.inputs: the role 'left' of 'x' is for a linear that ksearch computes",
        ),
        ('inputs = {"x": "full", "weight": "row"}', "inputs = {}", "at least one tensor"),
        ('inputs = {"x": "full", "weight": "row"}', "inputs = ['x']", r"Sorted.inputs is \['x'\]"),
        ('{"descending": False}', '{"descending": None}', "option 'descending' is None"),
        ('{"cpu": "sorted.cpp.j2"}', "{}", r"Sorted.templates is empty"),
        ('"cpu"', '"tpu"', r"Sorted.templates names backend 'tpu'; there is cpu, cuda"),
        ("sorted.cpp.j2", "gone.cpp.j2", r"Sorted.templates\['cpu'\]: there is no file .*gone.cpp.j2"),
        ("def space", "def spaces", "Sorted: method 'space' is missing"),
        ("def reference", "def compute", "Sorted: method 'reference' is missing"),
        ("@ksearch.op", "@ksearch.op(x='full')", "roles belong into its attribute `inputs`"),
    ],
)
def test_malformed_classes_name_the_attribute(old: str, new: str, says: str, tmp_path: Path) -> None:
    text = TEXT.format(name="bad")
    assert old in text
    path = write(tmp_path, text.replace(old, new))
    with pytest.raises(UserFileError, match=says):
        operators.resolve(f"{path}:bad")
