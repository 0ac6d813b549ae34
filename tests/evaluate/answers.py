"""What the child processes of these tests run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

from ksearch.errors import CompileError


def open_echo() -> Callable[[Any], Any]:
    """Answers with what it is told, or does what it is told."""
    seen: list[Any] = []

    def answer(message: Any) -> Any:
        seen.append(message)
        match message:
            case ("modules", name):
                return name in sys.modules
            case "seen":
                return seen
            case ("sleep", seconds):
                time.sleep(seconds)
            case ("die", status):
                print("last words", file=sys.stderr, flush=True)
                os._exit(status)
            case ("signal", number):
                os.kill(os.getpid(), number)
            case "compile error":
                raise CompileError("no", log="the log")
            case "disk full":
                raise OSError(28, "No space left on device", "/full")
            case "bug":
                raise ZeroDivisionError("of ours")
            case "ignores interrupts":
                return signal.getsignal(signal.SIGINT) is signal.SIG_IGN
            case "start a child":
                return subprocess.Popen(["sleep", "300"]).pid
            case "print":
                print("noise on stdout", flush=True)
        return message

    return answer


def open_broken() -> Callable[[Any], Any]:
    raise RuntimeError("cannot start")
