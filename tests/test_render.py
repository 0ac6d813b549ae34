from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from ksearch import backends, families, operators
from ksearch.errors import CompileError, RenderError
from ksearch.operators import Op
from ksearch.render import render, render_text, search_path, template_folder
from ksearch.types import Source, Target
from tests.own_op import OWN

CPU = Target("cpu", "x86_64-avx2", "a CPU", units=2, memory_bytes=8 << 30)
GPU = Target("cuda", "sm_90", "H100", units=132, memory_bytes=80 << 30, smem_bytes=232448)


def source_of(name: str, target: Target, dtype: str = "float32") -> Source:
    op = operators.get(name)
    workload = op.workload((64, 4096), dtype)
    family = families.find(op, target.backend)
    config = next(iter(family.space(op.program(), workload, target)))
    return render(op, workload, config, target)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


def write(folder: Path, **templates: str) -> None:
    for name, text in templates.items():
        (folder / f"{name}.j2").write_text(text)


def text_of(folder: Path, **variables: object) -> str:
    return render_text("main.j2", variables, [str(folder)])[0]


# ---- complete sources ---------------------------------------------------------------------------------


@pytest.mark.parametrize("target", [CPU, GPU], ids=["cpu", "cuda"])
@pytest.mark.parametrize("name", ["softmax", "sigmoid"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_source_is_complete_in_itself(name: str, target: Target, dtype: str) -> None:
    source = source_of(name, target, dtype)
    assert (source.backend, source.arch) == (target.backend, target.arch)
    assert "\x01" not in source.text, "the marks of lines are gone"
    assert not re.search(r"\{%|%\}|\{\{\s*\w+ *\}\}|\{#", source.text), "no Jinja is left"
    included = re.findall(r'#include\s+"([^"]+)"', source.text)
    assert included == [], "own headers are inside"
    assert source.text.count("ksearch_kernel") >= 1
    assert "constexpr long long COLS = 4096;" in source.text
    assert len(source.origin) == len(source.text.split("\n"))


def test_equal_configs_give_equal_text() -> None:
    assert source_of("softmax", GPU) == source_of("softmax", GPU)
    assert source_of("softmax", GPU).text != source_of("sigmoid", GPU).text


# ---- errors -------------------------------------------------------------------------------------------

LOOP = "first line\n{% for i in range(3) %}\n    value {{ i }};\n    {{ PLACE }}\n{% endfor %}\n"


@pytest.mark.parametrize(
    ("templates", "where"),
    [
        ({"main": "int a;\nint b = {{ missing }};\n"}, "main.j2:2"),
        ({"main": "int a;\n" + LOOP.replace("PLACE", "missing")}, "main.j2:5"),
        ({"main": "int a;\n{% include 'part.j2' %}\n", "part": "\n\nint b = {{ missing }};\n"}, "part.j2:3"),
        ({"main": "{% include 'part.j2' %}\n", "part": LOOP.replace("PLACE", "missing")}, "part.j2:4"),
        (
            {"main": "{% macro f(a) %}\n  {{ a }}\n  {{ missing }}\n{% endmacro %}\n\n\n{{ f(1) }}\n"},
            "main.j2:3",
        ),
        (
            {
                "main": "{% from 'part.j2' import f with context %}\n{{ f() }}\n",
                "part": "\n{% macro f() %}\n{{ missing }}{% endmacro %}\n",
            },
            "part.j2:3",
        ),
        ({"main": "{% if missing > 1 %}\nint a;\n{% endif %}\n"}, "main.j2:1"),
        ({"main": "\n\n\n{{ {'a': 1}[missing] }}\n"}, "main.j2:4"),
    ],
    ids=["plain", "loop", "include", "loop in include", "macro", "imported macro", "if", "subscript"],
)
def test_an_undefined_variable_is_named_with_template_and_line(
    folder: Path, templates: dict[str, str], where: str
) -> None:
    write(folder, **templates)
    with pytest.raises(RenderError) as caught:
        text_of(folder)
    assert str(caught.value) == f"{where}: 'missing' is undefined"


def test_the_name_of_a_template_does_not_matter_for_its_line(folder: Path) -> None:
    (folder / "kernel.cu").write_text("\nint a = {{ missing }};\n")
    with pytest.raises(RenderError, match=r"^kernel\.cu:2: 'missing' is undefined$"):
        render_text("kernel.cu", {}, [str(folder)])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("ok\n{% for i in x %}\n", r"^main\.j2:3: Unexpected end of template.*for"),
        ("ok\n{{ 1 +* 2 }}\n", r"^main\.j2:2: "),
        ("ok\n\n{{ x | no_such }}\n", r"^main\.j2:3: No filter named 'no_such'"),
        ("ok\n{{ 1 // 0 }}\n", r"^main\.j2:2: .*zero"),
        ("ok\n{{ 'a' + 1 }}\n", r"^main\.j2:2: "),
        ("ok\n{{ config.vec }}\n", r"^main\.j2:2: .*has no attribute 'vec'"),
        ("ok\n{% include 'gone.j2' %}\n", r"no template 'gone\.j2' in "),
    ],
)
def test_other_mistakes_of_a_template_are_one_line_too(folder: Path, text: str, says: str) -> None:
    write(folder, main=text)
    with pytest.raises(RenderError, match=says) as caught:
        text_of(folder, config={})
    assert "\n" not in str(caught.value)


def test_a_template_that_is_not_there_says_where_it_was_looked_for(folder: Path) -> None:
    with pytest.raises(RenderError, match=rf"no template 'gone\.j2' in {re.escape(str(folder))}"):
        render_text("gone.j2", {}, [str(folder)])


# ---- where a line came from ---------------------------------------------------------------------------


def test_every_line_knows_its_template_line(folder: Path) -> None:
    """Each line says where it stands; whatever Jinja does with it, that must be what `origin` says."""
    part = ["// part.j2:1", "{% for j in [1, 2] %}", "// part.j2:3", "{% endfor %}", "// part.j2:5", ""]
    main = [
        "// main.j2:1",
        "{% include 'part.j2' %}",
        "// main.j2:3 {# a comment #} // main.j2:3",
        "{# a comment",
        "   of two lines #}",
        "// main.j2:6",
        "{% macro twice(a) %}",
        "// main.j2:8 {{ a }}",
        "// main.j2:9",
        "{% endmacro %}",
        "// main.j2:11 {{ 'text' }}",
        "{% for i in range(3) %}",
        "{% if i == 1 %}",
        "// main.j2:14",
        "{% else %}",
        "// main.j2:16 {% if i %}// main.j2:16 {% endif %} // main.j2:16",
        "{% endif %}",
        "{{ twice(1) }}",
        "// main.j2:19 \\",
        "// main.j2:20 {{ [1,",
        "2] | join }} // main.j2:21",
        "{% endfor %}",
        "{{ lines }}",
        "// main.j2:24",
        "{%- if true %} // main.j2:25{% endif %} // main.j2:25",
        "// main.j2:26",
        "{% set names = ['a', 'b'] %}",
        "// main.j2:28 {% for n in names %}{{ n }} {% endfor %}.",
        "// main.j2:29",
        "",
    ]
    write(folder, main="\n".join(main), part="\n".join(part))
    variables = {"lines": "// main.j2:23\n// main.j2:23\n// main.j2:23"}
    text, origin = render_text("main.j2", variables, [str(folder)])
    lines = text.split("\n")
    assert len(lines) == len(origin)
    stated = {i: re.findall(r"(\w+\.j2):(\d+)", line) for i, line in enumerate(lines)}
    assert sum(map(bool, stated.values())) == 30
    wrong = {
        line: origin[i]
        for i, line in enumerate(lines)
        if stated[i] and (origin[i][0], str(origin[i][1])) != stated[i][-1]
    }
    assert wrong == {}


PLANTED = "int planted = no_such_name;"


def planted(folder: Path, template: str, before: str) -> int:
    """Copies our templates, plants a mistake before the line that holds `before`, gives its line."""
    for path in template_folder().rglob("*.*"):
        copy = folder / path.relative_to(template_folder())
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(path.read_text())
    lines = (folder / template).read_text().split("\n")
    at = next(i for i, line in enumerate(lines) if before in line)
    lines.insert(at, PLANTED)
    (folder / template).write_text("\n".join(lines))
    return at + 1


@pytest.mark.parametrize(
    ("name", "template", "before"),
    [
        ("softmax", "cuda/rowwise.cu.j2", "int rank, thread, head;"),
        ("softmax", "cuda/rowwise.cu.j2", "const Partial{{ s }} all = reduce{{ s }}"),  # in a loop
        ("softmax", "cuda/rowwise.cu.j2", "Element<float> e;"),  # in a macro
        ("softmax", "include/device.cuh", "asm volatile("),
        ("sigmoid", "cuda/pointwise.cu.j2", "Results results;"),
        ("sigmoid", "include/math.cuh", "float r;"),
    ],
)
def test_nvrtc_errors_are_at_the_line_of_the_template(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, template: str, before: str
) -> None:
    line = planted(tmp_path, template, before)
    monkeypatch.setenv("KSEARCH_TEMPLATES", str(tmp_path))
    source = source_of(name, GPU)
    with pytest.raises(CompileError) as caught:
        backends.get("cuda").compile(source)
    message = 'identifier "no_such_name" is undefined'
    assert str(caught.value) == f"{template}:{line}: {message}"
    assert message in caught.value.log


@pytest.mark.parametrize("template", ["cpu/pointwise.cpp.j2", "include/simd.hpp"])
def test_errors_of_the_cpp_compiler_are_at_the_line_of_the_template(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, template: str
) -> None:
    line = planted(tmp_path, template, "template <")
    monkeypatch.setenv("KSEARCH_TEMPLATES", str(tmp_path))
    backend = backends.get("cpu")
    with pytest.raises(CompileError, match="no_such_name") as caught:
        backend.compile(source_of("sigmoid", backend.target()))
    assert str(caught.value).startswith(f"{template}:{line}: ")


# ---- whose template wins ------------------------------------------------------------------------------


def test_ksearch_templates_win_over_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    op = operators.get("sigmoid")
    assert search_path(op) == (str(template_folder()),)
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu/pointwise.cpp.j2").write_text("// mine, of {{ cols }} columns\n")
    monkeypatch.setenv("KSEARCH_TEMPLATES", str(tmp_path))
    assert search_path(op) == (str(tmp_path), str(template_folder()))
    assert source_of("sigmoid", CPU).text == "// mine, of 4096 columns\n"
    assert "Rowwise" in source_of("softmax", GPU).text, "what is not there is still taken from ours"


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Op]:
    folder = tmp_path / "user"
    folder.mkdir()
    (folder / "mine_ops.py").write_text(OWN)
    (folder / "mine.cpp").write_text(
        "{{ workload.rows }} {{ cols }} {{ dtype }} {{ entry }} {{ options.alpha }} {{ step }} {{ extra }}"
        " {{ config.step }} {{ target.units }}\n{% include 'shared.hpp' %}"
    )
    return operators.resolve(f"{folder / 'mine_ops.py'}:mine")


def test_a_users_own_folder_comes_before_both(
    own: Op, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    common = tmp_path / "common"
    common.mkdir()
    (common / "mine.cpp").write_text("not this one")
    (common / "shared.hpp").write_text("from KSEARCH_TEMPLATES")
    monkeypatch.setenv("KSEARCH_TEMPLATES", str(common))
    workload = own.workload((3, 5))
    text = render(own, workload, {"step": 2}, CPU).text
    assert text == "3 5 float32 ksearch_kernel 2.0 2 3 2 2\nfrom KSEARCH_TEMPLATES"
    assert search_path(own) == (str(tmp_path / "user"), str(common), str(template_folder()))


def test_our_headers_can_be_included_by_a_users_template(own: Op, tmp_path: Path) -> None:
    (tmp_path / "user/shared.hpp").write_text("{% include 'include/math.hpp' %}")
    source = render(own, own.workload((3, 5)), {"step": 1}, CPU)
    assert "namespace ks" in source.text
