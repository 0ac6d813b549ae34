"""A winner as one Python file that needs torch, ninja and a compiler, and no ksearch."""

from __future__ import annotations

import json
import math

from ksearch.export import cpp, cuda
from ksearch.export.kernel import ExportedKernel
from ksearch.export.reference import reference_name, reference_text
from ksearch.render import render_text, template_folder
from ksearch.types import Option


def python_file(kernel: ExportedKernel) -> str:
    """The file. Raises UsageError where the op's function cannot be written out."""
    op, workload, target = kernel.op, kernel.workload, kernel.winner.target
    is_cuda = target.backend == "cuda"
    accepted = op.accepted_shapes(workload.shape, dict(workload.options), workload.inner)
    facts = {"kernel": kernel, "cuda": is_cuda, "output_shapes": op.output_shapes(workload)}
    variables = {
        **facts,
        "reference": "\n" + reference_text(op).rstrip() + "\n",
        "reference_name": reference_name(op),
        "source": _quoted(cuda.launched(kernel) if is_cuda else cpp.launched(kernel)),
        "binding": _quoted(_render("export/binding.cpp.j2", facts)),
        "extension": f"ksearch_{op.name}_{(kernel.winner.artifact or '')[:12]}",
        "flags": json.dumps([cuda.arch_flag(kernel), "-O3"] if is_cuda else cpp.compiler_flags()),
        "workspace": bool(kernel.launch.workspace_bytes),
        "shapes": repr([list(dict.fromkeys(shapes)) for shapes in accepted]),
        "arguments": ", ".join(kernel.inputs),
        "call": _call(kernel),
        "device": target.backend,
        "capability": _capability(target.arch) if is_cuda else "",
    }
    return _render("export/module.py.j2", variables)


def _render(template: str, variables: dict[str, object]) -> str:
    return render_text(template, variables, [str(template_folder())])[0]


def _call(kernel: ExportedKernel) -> str:
    """The op's function of the tensors that there are, with its options."""
    op, options = kernel.op, dict(kernel.workload.options)
    present = {item.name: name for item, name in zip(op.inputs_for(options), kernel.inputs, strict=True)}
    words = [present.get(item.name, "None") for item in op.inputs]
    words += [f"{name}={_literal(value)}" for name, value in op.keywords(options).items()]
    return f"{reference_name(op)}({', '.join(words)})"


def _literal(value: Option) -> str:
    is_number = not isinstance(value, float) or math.isfinite(value)
    return repr(value) if is_number else f'float("{value}")'


def _capability(arch: str) -> str:
    """`(9, 0)` of sm_90."""
    digits = arch.removeprefix("sm_")
    return f"({digits[:-1]}, {digits[-1]})"


def _quoted(text: str) -> str:
    """As it is, between quotes; escaped where it holds these itself."""
    return repr(text) if "'''" in text else f"r'''\n{text.strip()}\n'''"
