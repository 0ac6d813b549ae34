"""Turn a template and a config into one complete source text, and remember which line came from where.

Every template line carries an invisible mark through rendering, so that a compiler's error can be
shown at the template's own line.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
from jinja2.ext import Extension

from ksearch import env, families
from ksearch.errors import RenderError
from ksearch.types import Config, Source, Target, Workload, digest

if TYPE_CHECKING:
    from ksearch.operators import Op

ENTRY = "ksearch_kernel"
"""The one exported symbol of every kernel."""

_MARK = "\x01"
_TOKEN = re.compile(r"\{%|%\}|\{\{|\}\}|\{#|#\}")
_MARKED = re.compile(f"{_MARK}([^{_MARK}]*):([0-9]+){_MARK}")


class _LineMarks(Extension):
    """Appends \\x01template:line\\x01 to each template line that does not end inside a Jinja tag."""

    def preprocess(self, source: str, name: str | None, filename: str | None = None) -> str:
        lines, inside = source.split("\n"), ""
        for i, line in enumerate(lines):
            for token in _TOKEN.findall(line):
                if inside:
                    inside = "" if token == {"{%": "%}", "{{": "}}", "{#": "#}"}[inside] else inside
                elif token in ("{%", "{{", "{#"):
                    inside = token
            # a line that is only a tag is removed whole by trim_blocks and lstrip_blocks: leave it bare
            if not inside and not line.rstrip().endswith(("%}", "#}")):
                lines[i] = f"{line}{_MARK}{name}:{i + 1}{_MARK}"
        return "\n".join(lines)


@functools.cache
def template_folder() -> Path:
    """The templates that ship with ksearch: package data of a wheel, or the checkout's folder."""
    package = Path(__file__).parent
    installed = package / "_templates"
    return installed if installed.is_dir() else package.parent / "templates"


@functools.cache
def _environment(folders: tuple[str, ...]) -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(folders),
        extensions=[_LineMarks],
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # noqa: S701  (C++ text, not HTML)
    )


def search_path(op: Op) -> tuple[str, ...]:
    """Where templates are looked for, first match wins: beside a user's file, KSEARCH_TEMPLATES, ours."""
    folders: list[Path] = []
    if op.template_op is not None:
        folders.append(Path(op.location.rpartition(":")[0]).parent)
    if (extra := env.template_dir()) is not None:
        folders.append(extra)
    return tuple(str(folder) for folder in [*folders, template_folder()])


def render_text(
    template: str, variables: dict[str, Any], folders: Sequence[str]
) -> tuple[str, tuple[tuple[str, int], ...]]:
    """The rendered text, and for each of its lines the template and line it came from.

    Raises RenderError naming the template, the line and the variable.
    """
    try:
        marked = _environment(tuple(folders)).get_template(template).render(variables)
    except jinja2.TemplateNotFound as error:
        raise RenderError(f"no template {error.name!r} in {', '.join(folders)}") from error
    except jinja2.TemplateSyntaxError as error:
        raise RenderError(f"{error.name}:{error.lineno}: {error.message}") from error
    except (jinja2.TemplateRuntimeError, TypeError, ValueError, ArithmeticError, LookupError) as error:
        raise RenderError(f"{_where(error, template)}: {error}") from error
    origin: list[tuple[str, int]] = []
    came_from = (template, 1)
    for line in reversed(marked.split("\n")):  # a value of many lines has its mark at its end
        if marks := _MARKED.findall(line):
            came_from = (marks[-1][0], int(marks[-1][1]))
        origin.append(came_from)
    return _MARKED.sub("", marked), tuple(reversed(origin))


def _where(error: Exception, template: str) -> str:
    """`template:line` of the innermost template frame; Jinja rewrites tracebacks to template lines."""
    where, trace = template, error.__traceback__
    while trace is not None:
        if "__jinja_exception__" in trace.tb_frame.f_globals:
            where = f"{Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}"
        trace = trace.tb_next
    return where


def render(op: Op, workload: Workload, config: Config, target: Target) -> Source:
    """The source of one candidate. Raises RenderError."""
    options = dict(workload.options)
    family = families.find(op, target.backend, **options)
    program = op.program(**options)
    variables = {
        "workload": workload,
        "cols": workload.cols,
        "dtype": workload.dtype,
        "entry": ENTRY,
        "target": target,
        "config": dict(config),
        "options": options,
        **config,
        **family.variables(config, program, workload, target),
    }
    text, origin = render_text(family.template, variables, search_path(op))
    return Source(text=text, backend=target.backend, arch=target.arch, origin=origin)


def template_digests(op: Op, source: Source) -> dict[str, str]:
    """For each template file that lines of a source came from, the SHA-256 of its text as it is now."""
    digests = {}
    for name in sorted({name for name, _ in source.origin}):
        files = (Path(folder, name) for folder in search_path(op))
        digests[name] = next(digest(file.read_text()) for file in files if file.is_file())
    return digests
