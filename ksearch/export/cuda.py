"""A CUDA kernel as plain CUDA: its source with a launcher in C, for the runtime API alone."""

from __future__ import annotations

import re

from ksearch.export.kernel import ExportedKernel, head
from ksearch.render import render_text, template_folder

_ENTRY = re.compile(r'extern\s+"C"\s+__global__')


def cuda_file(kernel: ExportedKernel) -> str:
    """A file for nvcc. Raises UsageError where PyTorch computes a part of the op."""
    command = f"nvcc -O3 -std=c++17 {arch_flag(kernel)} -c FILE.cu"
    returns = "starts it on the current device and returns a cudaError_t, 0 for success."
    return head(kernel, command, ("cudaStream_t stream",), returns) + "\n" + launched(kernel)


def launched(kernel: ExportedKernel) -> str:
    """The kernel and its launcher, with C linkage: NAME_launch, and what it is made of, NAME_workspace_bytes
    and NAME_start."""
    launch = kernel.launch
    arguments = [*kernel.operands, *kernel.outputs, "rows"]
    arguments += ["scratch"] if launch.scratch_bytes else []
    arguments += ["workspace"] if launch.workspace_bytes else []
    arguments += [f"map{number}" for number in range(len(launch.maps))]
    text = _ENTRY.sub("static __global__", kernel.text).rstrip()  # two files may be linked into one program
    variables = {"kernel": kernel, "text": text, "arguments": arguments}
    return render_text("export/launcher.cu.j2", variables, [str(template_folder())])[0]


def arch_flag(kernel: ExportedKernel) -> str:
    """What nvcc is to compile for: with what only this architecture has, such as wgmma of sm_90a."""
    arch = kernel.winner.target.arch.removeprefix("sm_")
    full = f"{arch}a" if arch == "90" else arch
    return f"-gencode=arch=compute_{full},code=sm_{full}"
