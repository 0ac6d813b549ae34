"""The compiled launcher: calls of a kernel without Python in between, where somebody has built it.

From Python a call of a handle takes 0.2 to 0.6 us more on the host of an H200, of 3 to 4 in all, and one that
comes through PyTorch's dispatcher, as in a compiled graph, 0.9. The library belongs to one version of Python
and of PyTorch, so that one for another is never loaded; it is built where somebody asks for it, never by a
program that runs winners, and without any everything works as well.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.machinery
import importlib.util
import os
import sysconfig
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ksearch import env, private
from ksearch.backends.cpu import compiler_command, run_compiler
from ksearch.errors import ToolMissing
from ksearch.runtime.notice import warn_once

_SOURCE = Path(__file__).with_name("native") / "module.cpp"
_NAME = "ksearch_launcher"
_LIBRARIES = ("c10", "torch", "torch_cpu", "torch_python")


def default_path() -> Path:
    """Where `ksearch launcher` puts the one for this Python and this PyTorch, and where it is looked for."""
    return env.cache_dir() / "launcher" / f"{_key()}.so"


def build(path: Path) -> None:
    """Compile it. Raises ToolMissing where there is no C++ compiler, or where it fails."""
    import torch.utils.cpp_extension as extension  # takes 0.1 s, and only building needs it

    root = Path(torch.__file__).parent
    includes = [*extension.include_paths(), sysconfig.get_paths()["include"]]
    options = [
        "-std=c++20", "-O2", "-shared", "-fPIC", "-fvisibility=hidden", "-w",
        f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}",
        *(f"-isystem{each}" for each in includes),
    ]  # fmt: skip
    libraries = [f"-L{root / 'lib'}", f"-Wl,-rpath,{root / 'lib'}", *(f"-l{name}" for name in _LIBRARIES)]
    private.make_folder(path.parent)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        made = Path(folder, path.name)
        result = run_compiler([*compiler_command(), *options, str(_SOURCE), "-o", str(made), *libraries])
        if result.returncode != 0:
            lines = [line for line in result.stderr.splitlines() if "error" in line] or [
                result.stderr.strip()
            ]
            raise ToolMissing(f"the launcher was not built; the C++ compiler said: {lines[0]}")
        made.replace(path)  # in one step: another process may be loading the one that was there
    forget()


def make(**kernel: Any) -> Callable[..., Any] | None:
    """What calls a kernel (see native/launcher.h for the arguments); None where no launcher was built."""
    found = module()
    return None if found is None else found.Launcher(**kernel)


def router() -> Any:
    """What finds the launcher for a call by its first tensor; None where no launcher was built."""
    found = module()
    return None if found is None else found.Router()


def operator(name: str, run: Callable[..., Any], differentiably: Callable[..., Any]) -> Any:
    """What PyTorch's dispatcher calls from now on for an op that it knows by `name`; None where no launcher
    was built. Calls that are not launched go to these functions, to the second one with the dispatch keys as
    a number first."""
    found = module()
    return None if found is None else found.Operator(name=name, run=run, differentiably=differentiably)


def is_usable() -> bool:
    """Whether one was built, and loads."""
    return module() is not None


def forget() -> None:
    """Look anew whether there is one."""
    _loaded.cache_clear()


def module() -> Any:
    """The one that there is; None where none was built, or where it does not load."""
    return _loaded(env.launcher() or default_path())


@functools.cache
def _loaded(path: Path) -> Any:
    """The module; None where there is none, or where it cannot be used: the log says why, once."""
    if not path.exists():
        return None
    spec = importlib.util.spec_from_file_location(
        _NAME, path, loader=importlib.machinery.ExtensionFileLoader(_NAME, os.fspath(path))
    )
    if spec is None or spec.loader is None:
        return None
    try:
        private.check_folder(path.parent)
        if path == default_path():
            private.check_folder(env.cache_dir())
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    except (ImportError, OSError) as error:
        warn_once(("launcher", path), f"the launcher {path} cannot be loaded, calls go without: {error}")
        return None
    return module


@functools.cache
def _key() -> str:
    """Of what its binary depends on."""
    text = f"{torch.__version__} {torch.version.git_version} {sysconfig.get_config_var('SOABI')}"
    sources = b"".join(each.read_bytes() for each in sorted(_SOURCE.parent.iterdir()))
    return hashlib.sha256(text.encode() + sources).hexdigest()[:16]
