"""What the documents say is run, parsed, or compared with the code that it speaks of."""

from __future__ import annotations

import re
import runpy
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import torch

import ksearch
from ksearch import backends, cli, families, operators, runtime, study_file, tuner
from ksearch.render import render
from ksearch.types import Target

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")])
EXAMPLE = ROOT / "docs/examples/running_sum.py"
_FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(document: Path, language: str) -> Iterator[str]:
    """The fenced blocks of that language."""
    for found in _FENCE.finditer(document.read_text()):
        if found[1] == language:
            yield found[2]


def commands(document: Path) -> list[list[str]]:
    """Every line of an indented block or a shell block that runs a program of ours, as words."""
    text = document.read_text()
    lines = [line.strip() for line in _FENCE.sub("", text).splitlines() if line.startswith("    ")]
    lines += [line for block in blocks(document, "sh") for line in block.splitlines()]
    spoken = [line for line in re.findall(r"`([^`\n]+)`", _FENCE.sub("", text)) if "[" not in line]
    starts = ("ksearch ", "scripts/", ".ci/", "KSEARCH_")
    words = [shlex.split(line, comments=True) for line in [*lines, *spoken] if line.startswith(starts)]
    return [line for line in words if line]


def name_of(path: Path) -> str:
    return path.name


# ---- Python -------------------------------------------------------------------------------------------


def test_the_python_of_the_readme_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    found = list(blocks(ROOT / "README.md", "python"))
    assert len(found) >= 2
    for number, block in enumerate(found):
        named = re.match(r"# (\w+\.py)\n", block)
        path = tmp_path / (named[1] if named else f"block_{number}.py")
        path.write_text(block)
        result = runpy.run_path(str(path), init_globals={"x": torch.randn(2048, 4096)})
        if "y" in result:
            assert torch.allclose(result["y"], torch.softmax(result["x"], -1))
    assert operators.get("swish").location == f"{tmp_path / 'my_ops.py'}:swish"


def test_the_python_about_shipping_runs(
    run: Callable[..., tuple[int, str, str]], filled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bundle.key").write_bytes(b"key" * 8)
    assert run("export", "--bundle", "ops.ksb", "--sign", "bundle.key", "--db", filled)[0] == 0
    x = torch.randn(4, 8)
    known: dict[str, Any] = {"ksearch": ksearch, "x": x, "model": torch.nn.Softmax(-1), "batch": x}
    try:
        for block in blocks(ROOT / "docs/shipping.md", "python"):
            exec(compile(block, "shipping.md", "exec"), known)
    finally:
        ksearch.use(None)
    assert torch.equal(known["y"], torch.softmax(x, -1))
    (entry,) = study_file.read(tmp_path / "workloads.toml").entries
    assert (entry.op, entry.shape, entry.calls) == ("softmax", (4, 8), 1)


@pytest.mark.parametrize("language", ["python", "cpp", "cuda"])
def test_the_code_about_own_templates_is_that_of_the_example(language: str) -> None:
    suffix = {"python": ".py", "cpp": ".cpp.j2", "cuda": ".cu.j2"}[language]
    text = EXAMPLE.with_name(EXAMPLE.stem + suffix).read_text()
    quoted = list(blocks(ROOT / "docs/own-template.md", language))
    assert quoted
    assert [block for block in quoted if block not in text] == []


def test_every_part_of_a_template_op_is_described() -> None:
    text = (ROOT / "docs/own-template.md").read_text()
    public = {name for name in vars(operators.TemplateOp) if not name.startswith("_")} - {"program"}
    assert {name for name in public if f"| `{name}" not in text} == set()


# ---- commands -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_every_command_in_a_document_can_be_given(document: Path) -> None:
    """Programs exist, and ksearch's arguments are ones that it takes; placeholders in capitals pass."""
    for words in commands(document):
        program, *arguments = [word for word in words if not re.match(r"KSEARCH_\w+(=|$)", word)] or [""]
        if "/" in program:
            assert list(ROOT.glob(program)), program
        if program not in ("ksearch", "scripts/ksearch") or not arguments or arguments[0] == "COMMAND":
            continue
        name, *rest = arguments
        command = cli.commands.get_command(click.Context(cli.commands), name)
        assert command is not None, f"{document.name}: ksearch {name}"
        if rest:
            # the command parses, and is not run
            command.make_context(name, [word.replace("NxM", "2x3") for word in rest])


def test_every_command_is_in_the_readme_and_has_help() -> None:
    readme = (ROOT / "README.md").read_text()
    table = readme.partition("## Commands")[2].partition("\n## ")[0]
    described = set(re.findall(r"^\| `ksearch (\w+)", table, re.MULTILINE))
    assert described == set(cli.commands.commands)
    for command in cli.commands.commands.values():
        assert command.help
        for parameter in command.params:
            described_option = not isinstance(parameter, click.Option) or parameter.help or parameter.metavar
            assert described_option or isinstance(parameter.type, click.Choice), (
                command.name,
                parameter.name,
            )


def test_the_table_of_variables_is_complete_and_true() -> None:
    readme = (ROOT / "README.md").read_text()
    table = readme.partition("## Environment variables")[2].partition("\n## ")[0]
    described = set(re.findall(r"^\| `(KSEARCH_\w+)`", table, re.MULTILINE))
    read = set(re.findall(r'"(KSEARCH_\w+)"', (ROOT / "ksearch/env.py").read_text()))
    assert read <= described
    scripts = "".join(path.read_text() for path in (ROOT / "scripts").iterdir() if path.is_file())
    assert {name for name in described - read if name not in scripts} == set()


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_links_lead_somewhere(document: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)\)", document.read_text())
    local = [link for link in links if "://" not in link]
    assert [link for link in local if not (document.parent / link).exists()] == []


# ---- the example --------------------------------------------------------------------------------------


def test_the_example_tunes_on_the_cpu_and_its_winner_is_right(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuner, "_FINAL_S", 0.3)
    op = f"{EXAMPLE}:running_sum"
    report = tuner.tune(op, (37, 1003), device="cpu", trials=4)
    assert (report.trials, report.failures) == (4, {})
    x = torch.randn(37, 1003)
    result = runtime.load(op, shape=(37, 1003), device="cpu")(x)
    assert torch.allclose(result, torch.cumsum(x, -1), atol=1e-4)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
def test_the_example_compiles_for_gpus(arch: str, dtype: str) -> None:
    op = operators.resolve(f"{EXAMPLE}:running_sum")
    target = Target("cuda", arch, "a GPU", units=100, memory_bytes=40 << 30, smem_bytes=166912)
    workload = op.workload((64, 5000), dtype)
    family = families.find(op, "cuda")
    configs = list(family.space(op.program(), workload, target))
    assert len(configs) >= 10
    assert all(config in configs for config in family.guesses(op.program(), workload, target))
    for config in configs[::4]:
        compiled = backends.get("cuda").compile(render(op, workload, config, target))
        assert compiled.spill_bytes == 0
