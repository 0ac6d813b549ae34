"""A CPU kernel as plain C++: its source with a launcher in C."""

from __future__ import annotations

import re

from ksearch.backends.cpu import FLAGS
from ksearch.export.kernel import ExportedKernel, head
from ksearch.render import render_text, template_folder

_INCLUDE = re.compile(r"^\s*#\s*include\b.*$")
_CONDITION = re.compile(r"^\s*#\s*(if|ifdef|ifndef|endif)\b")
_ENTRY = re.compile(r'extern\s+"C"\s+(?=void\s+ksearch_kernel\b)')


def compiler_flags() -> list[str]:
    """What the winner was compiled with, but for the language's version and what makes a library of it."""
    return [flag for flag in FLAGS if flag not in ("-shared", "-fPIC") and not flag.startswith("-std=")]


def cpp_file(kernel: ExportedKernel) -> str:
    """A file for a C++ compiler. Raises UsageError where PyTorch computes a part of the op."""
    command = f"g++ -std=c++17 {' '.join(compiler_flags())} -c FILE.cpp"
    returns = "returns when it is done: 0, or -1 where it does not take the arguments."
    return head(kernel, command, (), returns) + "\n" + launched(kernel)


def launched(kernel: ExportedKernel) -> str:
    """The kernel and its launcher NAME_launch, with C linkage."""
    variables = {"kernel": kernel, "text": _isolated(kernel.text)}
    return render_text("export/launcher.cpp.j2", variables, [str(template_folder())])[0]


def _isolated(text: str) -> str:
    """The kernel in a namespace without a name, so that two of them may be linked into one program.

    As it is where an include depends on a condition, and so cannot be moved out of the namespace.
    """
    depth, includes, rest = 0, [], []
    for line in text.splitlines():
        if (found := _CONDITION.match(line)) is not None:
            depth += -1 if found[1] == "endif" else 1
        if _INCLUDE.match(line) is None:
            rest.append(line)
        elif depth == 0:
            includes.append(line.strip())
        else:
            return text
    body = _ENTRY.sub("", "\n".join(rest))
    return "\n".join([*dict.fromkeys(includes), "", "namespace {", body, "}  // namespace"])
