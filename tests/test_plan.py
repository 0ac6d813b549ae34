from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from ksearch import env
from ksearch.backends.cpu import CpuBackend
from ksearch.errors import (
    BadShape,
    DeviceBusy,
    KsearchError,
    NoSuchDevice,
    RenderError,
    ToolMissing,
    UnknownOp,
    UnsupportedDtype,
    UsageError,
    UserFileError,
)
from ksearch.plan import Plan, device_lock, make_plan
from ksearch.render import template_folder
from ksearch.types import Target
from tests.own_op import OWN

TEMPLATE = "void {{ entry }}() {}\n{% if step == 2 %}\n// two\n{% endif %}\n"


def own(folder: Path, text: str = OWN, template: str = TEMPLATE) -> str:
    (folder / "mine.py").write_text(text)
    (folder / "mine.cpp").write_text(template)
    return f"{folder / 'mine.py'}:mine"


def plan(
    op: str = "softmax", shape: tuple[int, ...] = (8, 64), dtype: str = "float32", **more: object
) -> Plan:
    return make_plan(op, shape, dtype, "cpu", more)  # type: ignore[arg-type]


def test_a_plan_holds_all_that_a_search_needs() -> None:
    made = plan()
    assert (made.op.name, made.workload.shape, made.target.backend) == ("softmax", (8, 64), "cpu")
    config = made.guesses[0]
    assert made.space.allows(config)
    assert "ksearch_kernel" in made.render(config).text
    job = made.job(7)
    assert (job.op, job.workload, job.seed) == ("softmax", made.workload, 7)


def test_a_linear_layer_is_planned_with_its_policy() -> None:
    made = make_plan("linear_relu", (4, 64, 32), "float32", "cpu", {}, "tf32")
    assert (made.workload.shape, made.workload.inner, made.workload.policy) == ((4, 32), 64, "tf32")
    assert made.study_name().startswith("linear_relu 4x64x32 float32 tf32 bias=row on cpu/")
    assert made.study_name() != make_plan("linear_relu", (4, 64, 32), "float32", "cpu", {}).study_name()


def test_options_reach_the_workload(tmp_path: Path) -> None:
    assert plan(own(tmp_path), alpha=3.0).workload.options == (("alpha", 3.0),)


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"op": "sofmax"}, UnknownOp, "did you mean softmax"),
        ({"op": "absent.py:swish"}, UserFileError, "absent.py"),
        ({"shape": (0, 4)}, BadShape, "0"),
        ({"dtype": "int8"}, UnsupportedDtype, "int8"),
        ({"beta": 1.0}, UsageError, "no option 'beta'"),
    ],
)
def test_what_cannot_be_done_is_refused(
    change: dict[str, object], error: type[KsearchError], says: str
) -> None:
    with pytest.raises(error, match=says) as caught:
        plan(**change)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("device", ["tpu", "cpu:1", "cuda:x"])
def test_a_device_that_is_not_there_is_refused(device: str) -> None:
    with pytest.raises(UsageError, match=device.split(":", maxsplit=1)[0]) as caught:
        make_plan("softmax", (8, 8), "float32", device, {})
    assert isinstance(caught.value, NoSuchDevice) or device == "cuda:x"


def test_a_missing_compiler_is_told_before_anything_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KSEARCH_CXX", "no-such-compiler")
    with pytest.raises(ToolMissing, match="KSEARCH_CXX=no-such-compiler"):
        plan()


def test_what_does_not_fit_says_how_much_it_needs() -> None:
    """Two rows of 10^12 floats: input, output and PyTorch's result are 24 TB."""
    with pytest.raises(BadShape, match=r"2x1000000000000 in float32 needs 24,000\.3 GB .*choose fewer rows"):
        plan(shape=(2, 10**12))


def test_memory_is_counted_exactly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Input, output and result of 64 MB each, and 256 MB for whatever else there is."""
    needed = 3 * (1 << 26) + (1 << 28)
    for memory_bytes, fits in ((needed, True), (needed - 1, False)):
        target = Target("cpu", "x86_64", "Small", units=1, memory_bytes=memory_bytes)
        monkeypatch.setattr(CpuBackend, "target", lambda self, index=0, target=target: target)
        if fits:
            assert plan(shape=(4096, 4096)).target.device == "Small"
        else:
            with pytest.raises(BadShape, match="Small has"):
                plan(shape=(4096, 4096))


# ---- the name of a study ------------------------------------------------------------------------------


def test_a_study_has_the_same_name_again_and_another_for_another_workload(tmp_path: Path) -> None:
    name = plan().study_name()
    assert name == plan().study_name()
    assert name.startswith("softmax 8x64 float32 on cpu/")
    others = [plan("sigmoid"), plan(shape=(16, 64)), plan(shape=(8, 65)), plan(dtype="float16")]
    assert len({name, *(other.study_name() for other in others)}) == 5


def test_a_changed_template_starts_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = plan().study_name()
    (tmp_path / "cpu").mkdir()
    text = (template_folder() / "cpu/rowwise.cpp.j2").read_text()
    (tmp_path / "cpu/rowwise.cpp.j2").write_text(text)
    monkeypatch.setenv("KSEARCH_TEMPLATES", str(tmp_path))
    assert plan().study_name() == name
    (tmp_path / "cpu/rowwise.cpp.j2").write_text(f"// changed\n{text}")
    assert plan().study_name() != name


@pytest.mark.parametrize(
    ("old", "new"),
    [("[1, 2]", "[1, 2, 4]"), ("threads=1", "threads=2"), ("alpha * x", "x * alpha"), ("// two", "// zwei")],
    ids=["space", "launch", "reference", "a branch that the first config does not take"],
)
def test_a_changed_op_of_ones_own_starts_anew(tmp_path: Path, old: str, new: str) -> None:
    name = plan(own(tmp_path)).study_name()
    assert plan(own(tmp_path)).study_name() == name
    assert old in OWN + TEMPLATE
    location = own(tmp_path, OWN.replace(old, new), TEMPLATE.replace(old, new))
    assert plan(location).study_name() != name


def test_a_template_that_does_not_render_is_told_by_name_and_line(tmp_path: Path) -> None:
    location = own(tmp_path, template="int a;\nint b = {{ missing }};\n")
    with pytest.raises(RenderError, match=r"mine\.cpp:2: 'missing' is undefined"):
        plan(location).study_name()


# ---- one tuner a device -------------------------------------------------------------------------------

CPU, GPU0, GPU1 = Target("cpu", "x", "c"), Target("cuda", "sm_90", "g"), Target("cuda", "sm_90", "g", index=1)


def test_a_device_is_held_by_one() -> None:
    with device_lock(GPU0), device_lock(GPU1), device_lock(CPU):
        with pytest.raises(DeviceBusy, match="another ksearch is tuning on cuda:1"), device_lock(GPU1):
            pass
        with pytest.raises(DeviceBusy, match="another ksearch is tuning on cpu "), device_lock(CPU):
            pass
    with device_lock(GPU1), device_lock(CPU):
        pass


def test_processes_that_see_other_gpus_do_not_wait_for_one_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each counts its own from 0."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,GPU-5b3a")
    with device_lock(GPU0), device_lock(GPU1):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
        with device_lock(GPU0):
            pass
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-5b3a")
        with pytest.raises(DeviceBusy), device_lock(GPU0):
            pass
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    with device_lock(GPU0), device_lock(GPU1):
        pass


def test_a_process_that_dies_lets_go() -> None:
    code = (
        "import os\nfrom ksearch.plan import device_lock\nfrom ksearch.types import Target\n"
        "with device_lock(Target('cpu', 'x', 'c')):\n    print('held', flush=True)\n    input()\n"
    )
    root = Path(__file__).parents[1]
    pipe = subprocess.PIPE
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=root, stdin=pipe, stdout=pipe, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(DeviceBusy), device_lock(CPU):
            pass
        holder.kill()
    with device_lock(CPU):
        pass


def test_a_cache_folder_that_cannot_be_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("KSEARCH_CACHE_DIR", str(tmp_path / "file"))
    assert env.cache_dir() == tmp_path / "file"
    with pytest.raises(KsearchError, match="KSEARCH_CACHE_DIR"), device_lock(CPU):
        pass
