from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from types import FrameType

import psutil
import pytest

from ksearch.errors import CompileError
from ksearch.evaluate.process import Child, ChildDied, ChildError, ChildTimeout

ECHO = "tests.evaluate.answers:open_echo"


def is_running(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def wait_until_gone(pid: int, seconds: float = 5.0) -> bool:
    deadline = time.monotonic() + seconds
    while is_running(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not is_running(pid)


def test_answers_keep_their_state_between_calls() -> None:
    with Child(ECHO) as child:
        assert child.call("first", 10) == "first"
        assert child.call("seen", 10) == ["first", "seen"]


def test_starts_without_torch_and_ignores_interrupts() -> None:
    with Child(ECHO) as child:
        assert child.call(("modules", "torch"), 10) is False
        assert child.call("ignores interrupts", 10) is True


def test_does_not_import_the_main_module_of_the_user(tmp_path: Path) -> None:
    """A script without an `if __name__ == "__main__"` guard must not run again in each child."""
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent(f"""
            from ksearch.evaluate.process import Child
            print("ran", flush=True)
            with Child("{ECHO}") as child:
                child.call("print", 10)
        """)
    )
    environment = {**os.environ, "PYTHONPATH": str(Path.cwd())}
    done = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, env=environment, check=True
    )
    assert done.stdout == "ran\n"  # nor does what a child prints reach our own output


def test_errors_meant_for_people_arrive_as_themselves() -> None:
    with Child(ECHO) as child:
        with pytest.raises(CompileError) as compile_error:
            child.call("compile error", 10)
        assert compile_error.value.log == "the log"
        with pytest.raises(OSError, match="No space left") as full:
            child.call("disk full", 10)
        assert (full.value.errno, full.value.filename) == (28, "/full")
        assert child.call("still there", 10) == "still there"


def test_other_errors_carry_their_traceback() -> None:
    with Child(ECHO) as child, pytest.raises(ChildError, match="ZeroDivisionError: of ours") as error:
        child.call("bug", 10)
    assert "in answer" in error.value.log


def test_death_tells_the_exit_status_and_the_last_words() -> None:
    with Child(ECHO) as child:
        with pytest.raises(ChildDied, match="exit status 3: last words") as death:
            child.call(("die", 3), 10)
        assert death.value.returncode == 3
        assert not child.is_alive


def test_death_by_signal_tells_its_name() -> None:
    with Child(ECHO) as child, pytest.raises(ChildDied, match="SIGSEGV"):
        child.call(("signal", signal.SIGSEGV), 10)


def test_a_child_that_cannot_start_says_why() -> None:
    with Child("tests.evaluate.answers:open_broken") as child, pytest.raises(ChildDied, match="cannot start"):
        child.call("anything", 10)


def test_timeout_ends_the_child_and_its_own_children() -> None:
    with Child(ECHO) as child:
        grandchild = child.call("start a child", 10)
        assert is_running(grandchild)
        began = time.monotonic()
        with pytest.raises(ChildTimeout, match=r"0\.2 s"):
            child.call(("sleep", 60), 0.2)
        assert time.monotonic() - began < 5
        assert not is_running(child.pid)
        assert wait_until_gone(grandchild)


def test_the_late_reply_to_an_interrupted_call_is_dropped() -> None:
    def interrupt(signum: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        with Child(ECHO) as child:
            child.call("started", 10)
            signal.setitimer(signal.ITIMER_REAL, 0.2)
            with pytest.raises(KeyboardInterrupt):
                child.call(("sleep", 0.8), 10)
            assert child.call("next", 10) == "next"
    finally:
        signal.signal(signal.SIGALRM, before)


def test_terminate_from_elsewhere_ends_a_call() -> None:
    with Child(ECHO) as child:
        child.call("started", 10)
        child.terminate()
        with pytest.raises(ChildDied):
            child.call(("sleep", 60), 10)


def test_kill_may_be_repeated_and_leaves_nothing() -> None:
    child = Child(ECHO)
    child.kill()
    child.kill()
    assert not psutil.pid_exists(child.pid)


@pytest.mark.parametrize("busy", ["time.sleep(60)", "sum(iter(int, 1))"], ids=["waiting", "computing"])
def test_nobody_outlives_the_parent(busy: str, tmp_path: Path) -> None:
    """The parent is killed without a chance to clean up, while the child waits or holds the interpreter."""
    target = tmp_path / "busy_answers.py"
    target.write_text(
        textwrap.dedent(f"""
            import subprocess, time
            def open_busy():
                def answer(message):
                    if message == "start":
                        return subprocess.Popen(["sleep", "300"]).pid
                    {busy}
                return answer
        """)
    )
    script = textwrap.dedent(f"""
        import sys
        sys.path.insert(0, {str(tmp_path)!r})
        from ksearch.evaluate.process import Child
        child = Child("busy_answers:open_busy")
        print(child.pid, child.call("start", 20), flush=True)
        child.call("work", 60)
    """)
    environment = {**os.environ, "PYTHONPATH": str(Path.cwd())}
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, env=environment) as parent:
        assert parent.stdout is not None
        child, grandchild = map(int, parent.stdout.readline().split())
        time.sleep(0.3)
        assert is_running(child)
        parent.kill()
    try:
        assert wait_until_gone(child)
        if busy.startswith("time"):  # where the interpreter is held, this process alone is ended
            assert wait_until_gone(grandchild)
    finally:
        for pid in (child, grandchild):
            if is_running(pid):
                os.kill(pid, signal.SIGKILL)
