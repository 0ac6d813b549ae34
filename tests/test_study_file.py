from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from ksearch import study, study_file
from ksearch.errors import UsageError
from ksearch.study import StudyFile

SWISH = """\
import ksearch

@ksearch.op
def swish(x, *, beta=1.0, exact=False):
    return x * (beta * x).sigmoid()
"""
ONE = '[[workload]]\nop = "softmax"\nshape = [2, 3]\n'
Read = Callable[[str], StudyFile]


@pytest.fixture
def read(tmp_path: Path) -> Read:
    """Reads a study of that text, which lies beside `my_ops.py`."""
    (tmp_path / "my_ops.py").write_text(SWISH)

    def read(text: str) -> StudyFile:
        path = tmp_path / "mine.toml"
        path.write_text(text)
        return study_file.read(path)

    return read


def mistakes(read: Read, text: str) -> str:
    with pytest.raises(UsageError) as caught:
        read(text)
    assert "\n" not in str(caught.value)
    assert "mine.toml: " in str(caught.value)
    return str(caught.value)


def test_the_smallest_study_is_one_workload_under_the_name_of_its_file(read: Read) -> None:
    content = read(ONE)
    (entry,) = content.entries
    assert (content.name, content.budget_s, content.trials, content.device) == ("mine", None, None, None)
    assert (entry.op, entry.shape, entry.dtype, entry.options) == ("softmax", (2, 3), "float32", ())
    assert (entry.needs, entry.weight, str(entry)) == ("", 1.0, "softmax 2x3 float32")


def test_the_head_holds_for_every_workload_that_does_not_say_otherwise(read: Read) -> None:
    head = '[study]\nname = "night"\nbudget_s = 90\ntrials = 7\ndtype = "bfloat16"\ndevice = "cuda:1"\n'
    content = read(f'{head}{ONE}{ONE}dtype = "float16"\nweight = 2.5\n')
    assert (content.name, content.budget_s, content.trials) == ("night", 90.0, 7)
    assert content.device == "cuda:1"
    assert [(e.number, e.dtype, e.weight) for e in content.entries] == [
        (1, "bfloat16", 1.0),
        (2, "float16", 2.5),
    ]


def test_lists_multiply_out_in_the_order_of_the_file(read: Read) -> None:
    content = read(
        '[[workload]]\nop = "my_ops.py:swish"\nshapes = [[4, 8], "2x3"]\ndtypes = ["float32", "float16"]\n'
        "options = { exact = true, beta = [0.5, 2] }\n"
    )
    assert len(content.entries) == 8
    assert [str(entry) for entry in content.entries[:3]] == [
        "swish 4x8 float32 beta=0.5 exact=True",
        "swish 4x8 float32 beta=2.0 exact=True",
        "swish 4x8 float16 beta=0.5 exact=True",
    ]
    assert {entry.number for entry in content.entries} == {1}
    assert type(dict(content.entries[1].options)["beta"]) is float


def test_an_op_of_ones_own_lies_beside_the_study(
    read: Read, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    (entry,) = read('[[workload]]\nop = "my_ops.py:swish"\nshape = [2, 3]').entries
    assert (entry.op, entry.name) == (f"{tmp_path}/my_ops.py:swish", "swish")


def test_what_ksearch_cannot_tune_yet_is_read_all_the_same(read: Read) -> None:
    (entry,) = read(
        '[[workload]]\nop = "linear"\nshape = [2, 3]\nneeds = "linear"\noptions = { features = 4 }'
    ).entries
    assert (entry.needs, str(entry)) == ("linear", "linear 2x3 float32 features=4")


LINEAR = '[[workload]]\nop = "linear"\n'


def test_a_linear_layer_has_three_dims_and_policies(read: Read) -> None:
    content = read(f'{LINEAR}shapes = ["4x16x8", [2, 3, 16, 8]]\npolicies = ["strict", "tf32"]\n')
    assert [str(entry) for entry in content.entries] == [
        "linear 4x16x8 float32",
        "linear 4x16x8 float32 tf32",
        "linear 2x3x16x8 float32",
        "linear 2x3x16x8 float32 tf32",
    ]
    (entry,) = read(f'{LINEAR}shape = "4x16x8"\npolicy = "tf32"').entries
    assert (entry.shape, entry.policy) == ((4, 16, 8), "tf32")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"{LINEAR}shape = [4, 8]", "shape: shape 4x8 is too short: linear starts with a linear"),
        (f'{LINEAR}shape = "4x8x8"\npolicy = "fast"', "policy: there is no policy 'fast'; known: strict"),
        (f'{LINEAR}shape = "4x8x8"\npolicy = 3', "policy: 3 must be a text"),
        (f'{LINEAR}shape = "4x8x8"\npolicy = "tf32"\ndtype = "float16"', "and this is float16: leave it out"),
        (f'{ONE}policy = "tf32"', "policy 'tf32' is for linear layers in float32, and softmax has none"),
        (f'{LINEAR}shape = "4x8x8"\npolicy = "tf32"\npolicies = ["tf32"]', "stands beside 'policy'"),
        ("", "the file, workload: must be one table or more"),
        ("workload = 3", "the file, workload: must be one table or more"),
        (f'study = "mine"\n{ONE}', "the file, study: must be one table"),
        (f"[studdy]\n{ONE}", "the file, studdy: is no key here; known keys: study, workload"),
        (f"[study]\nbudget = 3\n{ONE}", "budget: is no key here; known keys: name, budget_s, trials"),
        (f"[study]\nbudget_s = 0\n{ONE}", "[study], budget_s: 0 must be a number above 0"),
        (f"[study]\nbudget_s = inf\n{ONE}", "[study], budget_s: inf must be a number above 0"),
        (f"[study]\ntrials = 2.5\n{ONE}", "[study], trials: 2.5 must be a whole number"),
        (f"[study]\ntrials = true\n{ONE}", "[study], trials: True must be a whole number"),
        (f'[study]\ndtype = "float64"\n{ONE}', "dtype: there is no dtype 'float64'; supported: float32"),
        (f'[study]\ndevice = "tpu"\n{ONE}', "device: 'tpu' is no device: use auto, cpu, cuda or cuda:N"),
        (f"[study]\nname = 3\n{ONE}", "name: 3 must be a text"),
        (f'{ONE}[[workload]]\nop = "softmax"', "[[workload]] 2, shape: is missing: give 'shape' or 'shapes'"),
        ("[[workload]]\nshape = [2, 3]", "[[workload]] 1, op: is missing"),
        (f'{ONE}shapo = 1', "[[workload]] 1, shapo: is no key here; known keys: op, shape, shapes, dtype"),
        (f"{ONE}shapes = [[4, 4]]", "shapes: stands beside 'shape'"),
        ('[[workload]]\nop = "softmax"\nshapes = []', "shapes: is []: it must be a list of one shape"),
        ('[[workload]]\nop = "softmax"\nshape = 3', "shape: 3 must be a list such as [4096, 8192]"),
        ('[[workload]]\nop = "softmax"\nshape = [2, 0]', "shape: shape 2x0 has an empty dimension"),
        ('[[workload]]\nop = "softmax"\nshape = [2, "a"]', "must be made of whole numbers"),
        ('[[workload]]\nop = "softmax"\nshape = "2xx3"', "shape: shape '2xx3' does not parse"),
        ('[[workload]]\nop = "sofmax"\nshape = [2, 3]', "op: no op 'sofmax'; did you mean softmax"),
        ('[[workload]]\nop = "my_ops.py:swash"\nshape = [2, 3]', "defines no op 'swash'; its ops: swish"),
        ('[[workload]]\nop = "my_ops.py"\nshape = [2, 3]', "my_ops.py? write my_ops.py:NAME; its ops: swish"),
        ('[[workload]]\nop = "no_ops.py:a"\nshape = [2, 3]', "no_ops.py: No such file"),
        (f'{ONE}dtypes = ["float32", "int8"]', "dtypes: there is no dtype 'int8'"),
        (f"{ONE}dtypes = [[1]]", "dtypes: there is no dtype [1]"),
        (f"{ONE}options = {{ beta = 1 }}", "options: softmax has no option 'beta'; its options: dim"),
        (f"{ONE}options = 3", "options: is 3: it must be a table"),
        (f"{ONE}options = {{ a = {{ b = 1 }} }}", "a is {'b': 1}: it must be a number, a bool or a text"),
        (f"{ONE}weight = 0", "weight: 0 must be a number above 0"),
        (f'{ONE}needs = ""', "needs: '' must be a text that is not empty"),
        (f"{ONE}{ONE}", "[[workload]] 2, op: softmax 2x3 float32 is in [[workload]] 1 already"),
    ],
)  # fmt: skip
def test_a_mistake_names_the_entry_and_the_key(read: Read, text: str, expected: str) -> None:
    assert expected in mistakes(read, text)


def test_an_option_of_the_wrong_type_is_refused_with_its_default(read: Read) -> None:
    text = '[[workload]]\nop = "my_ops.py:swish"\nshape = [2, 3]\noptions = { beta = [1.0, "a"] }'
    expected = "options: swish: option beta is 'a', but must be of type float, as its default 1.0"
    assert expected in mistakes(read, text)


def test_the_same_workload_in_other_words_is_the_same(read: Read) -> None:
    swish = '[[workload]]\nop = "my_ops.py:swish"\nshape = "2x3"\n'
    assert "[[workload]] 1 already" in mistakes(read, f"{swish}{swish}options = {{ beta = 1 }}")
    assert len(read(f"{swish}{swish}options = {{ beta = 2 }}").entries) == 2


def test_all_mistakes_are_told_at_once(read: Read) -> None:
    text = mistakes(
        read,
        '[study]\ntrials = 0\n[[workload]]\nop = "sofmax"\nshapes = ["0x1", [3]]\ndtype = "int8"\n'
        f'{ONE}[[workload]]\nop = "my_ops.py:swish"\noptions = {{ beta = "a", gamma = 1 }}\n',
    )
    assert re.findall(r"\((\d+)\) (\[.*?), (\w+):", text) == [
        ("1", "[study]", "trials"),
        ("2", "[[workload]] 1", "op"),
        ("3", "[[workload]] 1", "shapes"),
        ("4", "[[workload]] 1", "dtype"),
        ("5", "[[workload]] 3", "shape"),
        ("6", "[[workload]] 3", "options"),
        ("7", "[[workload]] 3", "options"),
    ]


def test_a_file_that_is_no_study_is_one_error(tmp_path: Path) -> None:
    path = tmp_path / "broken.toml"
    path.write_text("[study\n")
    with pytest.raises(UsageError, match=r"broken.toml is not TOML: .*line 1"):
        study_file.read(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match=r"broken.toml is not TOML"):
        study_file.read(path)
    with pytest.raises(UsageError, match=r"cannot read the study .*: No such file"):
        study_file.read(tmp_path / "absent.toml")


def test_the_study_of_the_readme_can_be_read(read: Read) -> None:
    readme = (Path(__file__).parents[1] / "README.md").read_text()
    (text,) = re.findall(r"^```toml\n(.*?)^```$", readme, re.MULTILINE | re.DOTALL)
    content = read(text)
    assert (len(content.entries), content.budget_s) == (5, 600.0)


def test_a_shipped_study_is_found_by_its_bare_name_and_another_by_its_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shipped = sorted(path.stem for path in study.shipped_folder().glob("*.toml"))
    assert {"linear", "llm", "named"} <= set(shipped)
    monkeypatch.chdir(tmp_path)
    assert study.find("llm") == study.shipped_folder() / "llm.toml"
    (tmp_path / "mine.toml").write_text(ONE)
    assert study.find("mine.toml") == tmp_path / "mine.toml"
    for absent in ("nope", "nope.toml", str(tmp_path)):
        with pytest.raises(UsageError, match=f"one that ships: {', '.join(shipped)}"):
            study.find(absent)


def test_the_shipped_studies_have_the_workloads_that_they_are_for() -> None:
    named = study_file.read(study.find("named"))
    assert [str(entry) for entry in named.entries] == [
        "sigmoid 4096x393216 float32",
        "softmax 4096x393216 float32",
        "linear_sigmoid_scale_residual 1024x8192x8192 float32 scale=2.0",
        "linear_sigmoid_sum 128x32768x32768 float32",
    ]
    linear = study_file.read(study.find("linear")).entries
    assert len({entry.shape for entry in linear}) == 8
    kinds = {(entry.dtype, entry.policy) for entry in linear}
    assert kinds == {
        ("float32", "strict"), ("float32", "tf32"), ("float16", "strict"), ("bfloat16", "strict"),
    }  # fmt: skip
    assert len(linear) == 8 * len(kinds)
    llm = study_file.read(study.find("llm"))
    assert 30 <= len(llm.entries) <= 40
    ops = {"softmax", "log_softmax", "rmsnorm", "layernorm", "add_rmsnorm", "silu", "gelu", "swiglu"}
    assert ops <= {entry.op for entry in llm.entries}
