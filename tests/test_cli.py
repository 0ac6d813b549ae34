from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ksearch import cli, env, operators, tuner
from ksearch.errors import DeviceBusy, UnknownOp
from ksearch.launch import Launch
from ksearch.store import Store
from ksearch.types import Outcome, Status, Target, Winner, Workload, digest

BINARY = b"\x7fELF not really"
WINNER = Winner(
    workload=Workload("softmax", (64, 256)),
    target=Target("cpu", "x86_64-avx2", "Test CPU (2 threads)"),
    config={"simd": 32, "unroll": 2},
    launch=Launch(threads=2),
    artifact=digest(BINARY),
    time_us=10.0,
    baseline_us=15.0,
    ceiling_us=8.0,
    certificate={"speedup_ci": [1.4, 1.6]},
    created="2026-11-20T12:00:00Z",
)
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the command asked the tuner for; the search itself is replaced by its result."""
    seen: dict[str, Any] = {}

    def tune(op: str, shape: tuple[int, ...], **more: Any) -> tuner.Report:
        seen.update(more, op=op, shape=shape)
        db = str(more["db"] or env.database_path())
        return tuner.Report(WINNER, 50, {"wrong": 1}, 4.2, db, {"wrong": "zeros"}, {"compile": 1.0})

    monkeypatch.setattr(tuner, "tune", tune)
    return seen


@pytest.fixture
def tuned() -> Path:
    """The default database with one kernel, one other shape that PyTorch won, and three trials."""
    with Store.open(env.database_path()) as store:
        passed, wrong = Outcome(Status.PASSED, time_us=10.0), Outcome(Status.WRONG, message="row 3 is zero")
        for number, outcome in enumerate([wrong, passed, Outcome(Status.PASSED, time_us=12.0)]):
            store.record(WINNER.workload, WINNER.target, "study", number, {"simd": number}, outcome)
        store.promote(WINNER, source="// the source\n", binary=BINARY, environment={"torch": "2.13.0"})
        other = replace(WINNER, workload=Workload("softmax", (8, 8), dtype="float16"), certificate={})
        lost = replace(other, config=None, launch=None, artifact=None)
        store.promote(lost, source=None, binary=None, environment={"torch": "2.13.0"})
    return env.database_path()


def error_of(result: tuple[int, str, str]) -> str:
    """The one line on stderr of a failed command that printed nothing else."""
    status, out, err = result
    assert status != 0
    assert out == ""
    assert err.startswith("ksearch: error: ")
    assert err.count("\n") == 1
    return err


def test_tune_hands_over_everything_that_was_asked(run: Run, asked: dict[str, Any], tmp_path: Path) -> None:
    my_ops = tmp_path / "my_ops.py"
    my_ops.write_text(
        "import ksearch\n@ksearch.op\n"
        "def swish(x, *, beta=1.0, exact=False, mode='none', n=1): return x * (beta * x).sigmoid()\n"
    )
    status, out, _ = run(
        "tune", f"{my_ops}:swish", "--shape", "4096x8192", "--dtype", "bfloat16", "--device", "cuda:1",
        "--trials", "20", "--budget", "5m", "--sampler", "random", "--seed", "7", "--jobs", "3",
        "--option", "beta=2", "--option", "exact=true", "--option", "mode=tanh", "--option", "n=2",
        "--db", str(tmp_path / "other.db"), "--no-progress",
    )  # fmt: skip
    assert status == 0
    assert asked == {
        "op": f"{my_ops}:swish",
        "shape": (4096, 8192),
        "dtype": "bfloat16",
        "policy": "strict",
        "prepacked": False,
        "device": "cuda:1",
        "options": {"beta": 2.0, "exact": True, "mode": "tanh", "n": 2},
        "trials": 20,
        "budget_s": 300.0,
        "sampler": "random",
        "seed": 7,
        "jobs": 3,
        "early_stop": True,
        "sanitize": False,
        "db": tmp_path / "other.db",
        "progress": None,
    }
    assert type(asked["options"]["exact"]) is bool
    assert type(asked["options"]["beta"]) is float
    assert "1.50x" in out
    assert f"ksearch.load('{my_ops}:swish'" in out


def test_the_role_of_a_tensor_is_an_option(run: Run, asked: dict[str, Any]) -> None:
    assert run("tune", "add", "--shape", "64x256", "--option", "other=row", "--option", "alpha=2")[0] == 0
    assert asked["options"] == {"other": "row", "alpha": 2.0}
    error = error_of(run("tune", "add", "--shape", "64x256", "--option", "other=diagonal"))
    assert "add: option other is 'diagonal', but must be one of full, row, column, scalar" in error
    assert "must be one of row, none" in error_of(
        run("tune", "rms_norm", "--shape", "64x256", "--option", "weight=full")
    )


def test_a_linear_layer_has_three_dims_and_a_policy(run: Run, asked: dict[str, Any]) -> None:
    arguments = ("tune", "linear", "--shape", "1024x8192x4096", "--policy", "tf32")
    assert run(*arguments)[0] == 0
    assert (asked["op"], asked["shape"], asked["policy"]) == ("linear", (1024, 8192, 4096), "tf32")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("linear", "--shape", "1024x8192"), "shape 1024x8192 is too short: linear .* BATCHxINxOUT, such as"),
        (("linear", "--shape", "4x8x8", "--policy", "fast"), "no policy 'fast'; known: strict, tf32"),
        (
            ("linear", "--shape", "4x8x8", "--policy", "tf32", "--dtype", "float16"),
            "'tf32' is for linear layers in float32, and this is float16: leave it out",
        ),
        (("softmax", "--shape", "4x8", "--policy", "tf32"), "and softmax has none: leave it out"),
    ],
)
def test_what_a_linear_layer_cannot_be_is_one_error(
    run: Run, arguments: tuple[str, ...], expected: str
) -> None:
    assert re.search(expected, error_of(run("tune", *arguments, "--device", "cpu", "--trials", "1")))


def test_results_of_a_linear_layer_show_its_three_dims_and_its_policy(run: Run) -> None:
    op = operators.get("linear_relu")
    with Store.open(env.database_path()) as store:
        for policy, time_us in (("strict", 10.0), ("tf32", 5.0)):
            workload = op.workload((64, 256, 128), policy=policy)
            store.record(
                workload, WINNER.target, "s", 0, {"simd": 1}, Outcome(Status.PASSED, time_us=time_us)
            )
            winner = replace(WINNER, workload=workload, time_us=time_us)
            store.promote(winner, source="// the source\n", binary=BINARY, environment={})
    strict, tf32 = run("list")[1].splitlines()[-2:]
    assert "64x256x128  float32  strict" in strict
    assert "64x256x128  float32  tf32" in tf32
    rows = json.loads(run("list", "--json")[1])
    assert [(row["shape"], row["policy"]) for row in rows] == [
        ([64, 256, 128], "strict"),
        ([64, 256, 128], "tf32"),
    ]
    one = ("linear_relu", "--shape", "64x256x128")
    assert len(json.loads(run("show", *one, "--json")[1])) == 2
    (row,) = json.loads(run("show", *one, "--policy", "tf32", "--json")[1])
    assert (row["time_us"], row["policy"], row["shape"]) == (5.0, "tf32", [64, 256, 128])
    shown = run("show", *one, "--policy", "tf32")[1]
    assert "linear_relu 64x256x128 float32 tf32 bias=row" in shown
    assert "shape=(64, 256, 128), dtype=torch.float32, device='cpu', policy='tf32'" in shown
    assert "y = linear_relu(x, weight, bias)" in shown
    assert "ceiling (copy or product)" in shown
    listed = run("trials", *one)[1]
    assert "linear_relu 64x256x128 float32 bias=row on Test CPU" in listed
    assert "linear_relu 64x256x128 float32 tf32 bias=row on Test CPU" in listed
    (trial,) = json.loads(run("trials", *one, "--policy", "strict", "--json")[1])
    assert (trial["shape"], trial["policy"]) == ([64, 256, 128], "strict")
    assert "no winner for linear_relu 64x128 " in error_of(run("show", "linear_relu", "--shape", "64x128"))


def test_ops_shows_what_a_linear_takes(run: Run) -> None:
    rows = {row["op"]: row for row in json.loads(run("ops", "--json")[1])}
    row = rows["linear_sigmoid_scale_residual"]
    assert (row["family"], row["options"]) == ("linear", {"bias": "row", "scale": 2.0})
    assert [(each["name"], each["role"]) for each in row["inputs"]] == [
        ("x", "left"),
        ("weight", "right"),
        ("bias", "row"),
    ]


def test_tune_leaves_to_the_tuner_what_was_not_asked(run: Run, asked: dict[str, Any]) -> None:
    assert run("tune", "softmax", "--shape", "64x256")[0] == 0
    assert (asked["device"], asked["trials"], asked["budget_s"], asked["jobs"], asked["db"]) == (None,) * 5
    assert (asked["dtype"], asked["sampler"], asked["options"]) == ("float32", "tpe", {})


def test_tune_as_json_is_exactly_one_object(run: Run, asked: dict[str, Any]) -> None:
    status, out, err = run("tune", "softmax", "--shape", "64x256", "--json")
    row = json.loads(out)
    assert (status, err) == (0, "")
    assert row["op"] == "softmax"
    assert row["shape"] == [64, 256]
    assert (row["status"], row["time_us"], row["speedup"]) == ("winner", 10.0, 1.5)
    assert (row["percent_of_ceiling"], row["trials"], row["failures"]) == (80.0, 50, {"wrong": 1})


def test_quiet_is_one_line(run: Run, asked: dict[str, Any]) -> None:
    status, out, err = run("tune", "softmax", "--shape", "64x256", "-q")
    assert (status, out.count("\n"), err) == (0, 1, "")


@pytest.mark.parametrize("text", ["60s", "1m", "60", "0.016666666666666666h", "60 s"])
def test_budget_is_a_time(run: Run, asked: dict[str, Any], text: str) -> None:
    run("tune", "softmax", "--shape", "64x256", "--budget", text)
    assert asked["budget_s"] == pytest.approx(60.0)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--budget", "soon"], "write 60s, 5m, 1h or 90"),
        (["--budget", "0"], "write 60s, 5m, 1h or 90"),
        (["--option", "beta"], "is not name=value"),
        (["--sampler", "best"], "tpe"),
        (["--trials", "0"], "--trials"),
        (["--no-such-flag"], "--no-such-flag"),
    ],
)
def test_bad_arguments_are_one_line_and_status_2(
    run: Run, asked: dict[str, Any], arguments: list[str], expected: str
) -> None:
    result = run("tune", "softmax", "--shape", "64x256", *arguments)
    assert result[0] == 2
    assert expected in error_of(result)
    assert not asked


@pytest.mark.parametrize("shape", ["4096xx", "0x4", "4x0", "0", "-3x4", "big", "()"])
def test_a_bad_shape_is_one_line(run: Run, asked: dict[str, Any], shape: str) -> None:
    result = run("tune", "softmax", "--shape", shape)
    assert result[0] == 2
    assert shape in error_of(result)


def failing(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def tune(*_: Any, **__: Any) -> tuner.Report:
        raise error

    monkeypatch.setattr(tuner, "tune", tune)


def test_an_error_is_a_line_and_with_json_an_object_too(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch, UnknownOp("no op 'sofmax':\nperhaps softmax"))
    assert (
        error_of(run("tune", "sofmax", "--shape", "2x2"))
        == "ksearch: error: no op 'sofmax': perhaps softmax\n"
    )
    status, out, err = run("tune", "sofmax", "--shape", "2x2", "--json")
    assert status == 2
    assert json.loads(out) == {"error": {"type": "UnknownOp", "message": "no op 'sofmax':\nperhaps softmax"}}
    assert err.count("\n") == 1


def test_the_status_is_that_of_the_error(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch, DeviceBusy("another tuner"))
    assert run("tune", "softmax", "--shape", "2x2")[0] == 1


@pytest.mark.parametrize("flags", [["-vv"], ["-v", "-v"], ["--verbose", "--verbose"]])
def test_a_traceback_only_where_it_is_asked_for(
    run: Run, monkeypatch: pytest.MonkeyPatch, flags: list[str]
) -> None:
    failing(monkeypatch, RuntimeError("a bug"))
    arguments = ["tune", "softmax", "--shape", "2x2"]
    assert "a bug" in error_of(run(*arguments))
    status, _, err = run(*arguments, *flags)
    assert status == 1
    assert "Traceback" in err


def test_an_interrupt_that_kept_nothing_is_130(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch, KeyboardInterrupt())
    status, out, err = run("tune", "softmax", "--shape", "2x2")
    assert (status, out) == (130, "")
    assert err.strip() == "ksearch: error: interrupted, and nothing was kept"


def test_list_shows_winners_and_where_pytorch_won(run: Run, tuned: Path) -> None:
    status, out, _ = run("list")
    lines = out.splitlines()
    assert status == 0
    assert len(lines) == 3
    assert any("64x256" in line and "1.50x" in line and "simd=32" in line for line in lines)
    assert any("8x8" in line and "PyTorch" in line for line in lines[1:])


def test_list_as_json_is_a_list_of_rows(run: Run, tuned: Path) -> None:
    rows = json.loads(run("list", "--json")[1])
    assert {(tuple(row["shape"]), row["status"]) for row in rows} == {
        ((64, 256), "winner"),
        ((8, 8), "baseline"),
    }
    assert {row["db"] for row in rows} == {str(tuned)}


@pytest.mark.parametrize(
    ("arguments", "count"),
    [
        (["--op", "softmax"], 2),
        (["--op", "sigmoid"], 0),
        (["--dtype", "float16"], 1),
        (["--device", "cpu"], 2),
        (["--device", "test cpu"], 2),
        (["--device", "cuda"], 0),
    ],
)
def test_list_is_narrowed(run: Run, tuned: Path, arguments: list[str], count: int) -> None:
    assert len(json.loads(run("list", "--json", *arguments)[1])) == count


def test_before_anything_was_tuned_the_list_is_empty(run: Run, tmp_path: Path) -> None:
    assert run("list", "--json")[:2] == (0, "[]\n")
    status, out, err = run("list")
    assert (status, out) == (0, "")
    assert "no winners" in err
    assert "no database" in error_of(run("list", "--db", str(tmp_path / "absent.db")))


def test_a_file_that_is_no_database_is_one_line(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "letter.db"
    path.write_text("Dear database, " * 100)
    for command in (
        ["list"],
        ["show", "softmax", "--shape", "64x256"],
        ["trials", "softmax", "--shape", "2"],
    ):
        assert str(path) in error_of(run(*command, "--db", str(path)))


def test_show_has_the_evidence_and_a_source_that_can_be_read(run: Run, tuned: Path) -> None:
    status, out, _ = run("show", "softmax", "--shape", "64x256")
    assert status == 0
    for expected in ("simd=32 unroll=2", "1.40x to 1.60x", "3 candidates, 1 failed: 1 wrong", str(tuned)):
        assert expected in out
    (row,) = json.loads(run("show", "softmax", "--shape", "64x256", "--json")[1])
    assert Path(row["source"]).read_text() == "// the source\n"
    assert row["certificate"] == {"speedup_ci": [1.4, 1.6]}
    assert row["trials"] == 3


def test_show_source_prints_the_kernel_alone(run: Run, tuned: Path) -> None:
    assert run("show", "softmax", "--shape", "64x256", "--source")[1].rstrip("\n") == "// the source"
    assert "PyTorch won" in run("show", "softmax", "--shape", "8x8", "--source")[1]


def test_show_without_a_winner_says_what_there_is_and_how_to_get_one(run: Run, tuned: Path) -> None:
    result = run("show", "softmax", "--shape", "9x9")
    line = error_of(result)
    assert result[0] == 2
    assert "64x256 float32" in line
    assert "ksearch tune softmax --shape 9x9" in line
    for narrowed in (["--dtype", "float16"], ["--option", "scale=2"], ["--device", "cuda"]):
        assert run("show", "softmax", "--shape", "64x256", *narrowed)[0] == 2


def test_show_takes_the_options_of_the_workload(run: Run, tuned: Path) -> None:
    with Store.open(tuned) as store:
        scaled = replace(WINNER, workload=replace(WINNER.workload, options=(("scale", 0.5),)))
        store.promote(scaled, source="// scaled", binary=BINARY, environment={})
    assert len(json.loads(run("show", "softmax", "--shape", "64x256", "--json")[1])) == 2
    (row,) = json.loads(run("show", "softmax", "--shape", "64x256", "--option", "scale=0.50", "--json")[1])
    assert row["options"] == {"scale": 0.5}
    assert run("show", "softmax", "--shape", "64x256", "--option", "scale=2")[0] == 2


def test_an_op_of_a_user_file_is_found_by_its_name(run: Run, tuned: Path) -> None:
    assert run("show", "ops/mine.py:softmax", "--shape", "64x256")[0] == 0


def test_trials_are_listed_with_their_failures(run: Run, tuned: Path) -> None:
    lines = run("trials", "softmax", "--shape", "64x256")[1].splitlines()
    assert "Test CPU" in lines[0]
    assert lines[2].split()[:3] == ["1", "passed", "10.00"]
    assert "row 3 is zero" in lines[-1]
    rows = json.loads(run("trials", "softmax", "--shape", "64x256", "--json")[1])
    assert [row["status"] for row in rows] == ["wrong", "passed", "passed"]


def test_ops_lists_what_can_be_tuned(run: Run) -> None:
    rows = {row["op"]: row for row in json.loads(run("ops", "--json")[1])}
    assert rows["softmax"]["family"] == "rowwise"
    assert rows["sigmoid"]["family"] == "pointwise"
    assert rows["softmax"]["inputs"][0] == {"name": "x", "role": "full", "roles": ["full"]}
    assert rows["add"]["inputs"][1]["roles"] == ["full", "row", "column", "scalar"]
    assert rows["layernorm"]["options"] == {"weight": "row", "bias": "row", "eps": 1e-05}
    assert rows["gelu"]["torch_function"] == "torch.nn.functional.gelu"
    lines = {line.split()[0]: line for line in run("ops")[1].splitlines() if line}
    assert "other (full|row|column|scalar)" in lines["add"]
    assert "approximate=none" in lines["gelu"]


def test_an_alias_is_shown_and_listed_as_the_op(run: Run) -> None:
    workload = operators.get("rmsnorm").workload((64, 256))
    with Store.open(env.database_path()) as store:
        store.promote(replace(WINNER, workload=workload), source="// it\n", binary=BINARY, environment={})
    for name in ("rmsnorm", "rms_norm"):
        assert run("show", name, "--shape", "64x256", "--option", "weight=row")[0] == 0
        assert len(json.loads(run("list", "--op", name, "--json")[1])) == 1
    error = error_of(run("show", "rmsnorm", "--shape", "64x256", "--option", "weight=none"))
    assert "no winner for rmsnorm 64x256 weight=none in " in error
    assert "; it has rmsnorm 64x256 float32 eps=1e-06 weight=row on Test CPU" in error


def test_an_op_of_ones_own_may_be_called_like_an_alias(run: Run) -> None:
    workload = Workload("rms_norm", (64, 256))
    with Store.open(env.database_path()) as store:
        store.promote(replace(WINNER, workload=workload), source="// it\n", binary=BINARY, environment={})
    for command in ("show", "trials"):
        assert run(command, "my_ops.py:rms_norm", "--shape", "64x256")[0] == 0
    assert "no winner for rms_norm" in error_of(run("show", "rms_norm", "--shape", "64x256"))


def test_help_is_fast_because_it_imports_nothing_heavy() -> None:
    code = (
        "import sys; from ksearch import cli; cli.main(['tune', '--help'])\n"
        "heavy = {'torch', 'optuna', 'sqlalchemy', 'jinja2', 'rich'} & set(sys.modules)\n"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--budget" in done.stdout


def test_without_a_command_it_says_what_there_is_a_line_each(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    status, out, err = run()
    assert (status, err) == (0, "")
    listed = out.partition("Commands:\n")[2].splitlines()
    assert [line.split()[0] for line in listed] == list(cli.commands.commands)
    assert not [line for line in listed if line.endswith("...")], "a first sentence is too long"


def test_every_command_has_help_and_is_in_the_readme() -> None:
    readme = (Path(__file__).parents[1] / "README.md").read_text()
    for name, command in cli.commands.commands.items():
        assert command.help, name
        assert f"`ksearch {name}" in readme, name
        flags = {flag for parameter in command.params for flag in parameter.opts}
        assert ({"--json"} if name == "launcher" else {"--json", "--db"}) <= flags, name


def test_as_a_program_it_says_its_version_and_survives_a_closed_pipe(tuned: Path) -> None:
    command = f"{sys.executable} -m ksearch"
    version = subprocess.run(
        [*command.split(), "--version"], capture_output=True, text=True, check=True
    ).stdout
    assert version.startswith("ksearch, version ")
    for reading in ("list", "list --json", "trials softmax --shape 64x256"):
        line = f"{command} {reading} | true"
        piped = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=True)
        assert piped.stderr == "", reading
