"""Kernels as source files: compiled here, and those for the CPU run against PyTorch."""

from __future__ import annotations

import ast
import dataclasses
import importlib.util
import shutil
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch

from ksearch import backends, operators
from ksearch.errors import UsageError
from ksearch.export.kernel import ExportedKernel
from ksearch.export.reference import reference_name, reference_text
from ksearch.export.source import source_text
from ksearch.launch import Launch
from ksearch.types import Target
from tests.export.exported import H200, kernel_of

CPU = backends.get("cpu").target(0)
PLAIN_FLAGS = ["-std=c++17", "-O1", "-march=native", "-fopenmp", "-Wall", "-Wno-unused-function"]

CLUSTER = ("softmax", (256, 393216), "float32", lambda config, launch: launch.cluster > 8)
TICKET = (
    "softmax",
    (1024, 65536),
    "float32",
    lambda config, launch: launch.workspace_bytes and launch.split == 1 and launch.cluster > 1,
)
SPLIT = ("softmax", (8, 1048576), "float32", lambda config, launch: launch.split > 1)
POINTWISE = ("sigmoid", (256, 8192), "bfloat16", lambda config, launch: True)
OUTPUTS = ("add_rmsnorm", (256, 8192), "bfloat16", lambda config, launch: True)
LINEAR = ("linear_sigmoid_sum", (128, 1024, 512), "float32", lambda config, launch: launch.maps)
LIBRARY = ("linear_gelu", (128, 1024, 512), "bfloat16", lambda config, launch: launch.torch_product)
CASES = {
    "cluster": CLUSTER, "ticket": TICKET, "split": SPLIT, "pointwise": POINTWISE, "outputs": OUTPUTS,
    "linear": LINEAR, "library": LIBRARY,
}  # fmt: skip


def cuda_kernel(case: tuple, target: Target = H200) -> ExportedKernel:
    name, shape, dtype, is_wanted = case
    return kernel_of(name, shape, dtype, target, is_wanted)


def module_of(text: str, path: Path) -> types.ModuleType:
    path.write_text(text)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def _extensions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ninja is found beside the interpreter, and what is compiled goes away with the test."""
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "extensions"))
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=":")


def tensors_for(module: types.ModuleType, dtype: torch.dtype, device: str) -> list[torch.Tensor]:
    generator = torch.Generator(device).manual_seed(1)
    return [
        torch.randn(shapes[0], dtype=dtype, device=device, generator=generator) for shapes in module.SHAPES
    ]


RTOL = {torch.float32: 1.3e-6, torch.float16: 1e-3, torch.bfloat16: 1.6e-2}
"""Those of torch.testing.assert_close."""


def check_module(module: types.ModuleType, kernel: ExportedKernel, device: str) -> None:
    """The kernel's results are PyTorch's, and what it does not take runs PyTorch."""
    dtype = getattr(torch, kernel.workload.dtype)
    tensors = tensors_for(module, dtype, device)
    model = module.ModelNew()
    assert module._takes(*tensors)
    found = model(*tensors)
    for result, expected in zip(
        _listed(found), _listed(kernel.op.reference(*tensors, **dict(kernel.workload.options))), strict=True
    ):
        torch.testing.assert_close(result, expected, rtol=RTOL[dtype], atol=1e-5)
    again = model(*tensors)
    assert all(torch.equal(*pair) for pair in zip(_listed(found), _listed(again), strict=True))
    gradient = [tensor.clone().requires_grad_() for tensor in tensors]
    double = [tensor.double() for tensor in tensors]
    strided = [torch.stack([tensor, tensor], -1)[..., 0] for tensor in tensors]
    for others in (gradient, double, strided):
        assert not module._takes(*others)
        expected = _listed(kernel.op.reference(*others, **dict(kernel.workload.options)))
        assert all(torch.equal(*pair) for pair in zip(_listed(model(*others)), expected, strict=True))


def _listed(result) -> tuple[torch.Tensor, ...]:
    return result if isinstance(result, tuple) else (result,)


# ---- Python files ---------------------------------------------------------------------------------------


ON_CPU = (
    ("add_rmsnorm", (16, 777), "bfloat16", {}),
    ("linear_sigmoid_sum", (16, 40, 64), "float32", {"bias": "row"}),
)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a file that was compiled once is not compiled again: it takes 10 s."""
    return tmp_path_factory.mktemp("built")


@pytest.mark.slow
@pytest.mark.usefixtures("_extensions")
@pytest.mark.parametrize(("name", "shape", "dtype", "options"), ON_CPU)
def test_a_python_file_for_the_cpu_runs(
    name: str, shape, dtype: str, options: dict, tmp_path: Path, built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(built))
    kernel = kernel_of(name, shape, dtype, CPU, options=options)
    module = module_of(source_text(kernel, ".py"), tmp_path / "exported.py")
    check_module(module, kernel, "cpu")


@pytest.mark.slow
@pytest.mark.usefixtures("_extensions")
def test_it_runs_as_a_program_where_there_is_no_ksearch(
    tmp_path: Path, built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(built))
    name, shape, dtype, options = ON_CPU[1]
    kernel = kernel_of(name, shape, dtype, CPU, options=options)
    path = tmp_path / "exported.py"
    path.write_text(source_text(kernel, ".py"))
    code = (
        "import sys, runpy; sys.modules['ksearch'] = None; runpy.run_path('exported.py', run_name='__main__')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert float(done.stdout.rpartition(":")[2]) < 1e-4, "of a sum of 64 sigmoids"


def test_pytorch_adds_the_bias_that_the_kernel_does_not_get() -> None:
    for bias, product in (("row", "addmm_out(product, bias.view({-1}), x"), ("none", "mm_out(product, x")):
        kernel = kernel_of("linear_relu", (16, 40, 64), "float32", CPU, options={"bias": bias})
        assert kernel.operands == ("product",)
        assert f"at::{product}" in source_text(kernel, ".py")


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_python_file_for_a_gpu_runs_pytorch_here(case: tuple, tmp_path: Path) -> None:
    """Importing it compiles nothing, and what is not on its device is computed by PyTorch."""
    name, shape, dtype, is_wanted = case
    kernel = kernel_of(name, shape, dtype, H200, is_wanted)
    text = source_text(kernel, ".py")
    module = module_of(text, tmp_path / "exported.py")
    assert max(map(len, (line for line in text.partition("KERNEL_SOURCE")[0].splitlines()))) <= 120
    if name.startswith(("add", "sigmoid")):
        tensors = tensors_for(module, getattr(torch, dtype), "cpu")
        expected = kernel.op.reference(*tensors, **dict(kernel.workload.options))
        assert all(
            torch.equal(*pair)
            for pair in zip(_listed(module.ModelNew()(*tensors)), _listed(expected), strict=True)
        )


# ---- CUDA -----------------------------------------------------------------------------------------------

needs_nvcc = pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc here")


@needs_nvcc
@pytest.mark.parametrize(
    "case", [each for name, each in CASES.items() if name != "library"], ids=lambda case: case[0]
)
def test_a_cuda_file_compiles(case: tuple, tmp_path: Path) -> None:
    kernel = cuda_kernel(case)
    text = source_text(kernel, ".cu")
    path = tmp_path / "exported.cu"
    path.write_text(text)
    stated = next(line for line in text.splitlines() if "To compile it: nvcc" in line)
    command = stated.partition(": ")[2].replace("FILE.cu", str(path)).split()
    done = subprocess.run(
        [*command, "-o", str(tmp_path / "x.o")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    symbols = subprocess.run(["nm", str(tmp_path / "x.o")], capture_output=True, text=True, check=True).stdout
    exported = {line.split()[-1] for line in symbols.splitlines() if " T " in line}
    assert {f"{kernel.op.name}_{end}" for end in ("launch", "start", "workspace_bytes")} <= exported
    assert not {symbol for symbol in exported if "ksearch_kernel" in symbol}  # two may be linked together


@needs_nvcc
@pytest.mark.parametrize("case", [TICKET, LINEAR, LIBRARY], ids=lambda case: case[0])
def test_the_binding_of_a_python_file_compiles(case: tuple, tmp_path: Path) -> None:
    """Where PyTorch is for the CPU it has no library to link with, but the headers."""
    from torch.utils.cpp_extension import include_paths

    module = module_of(source_text(cuda_kernel(case), ".py"), tmp_path / "exported.py")
    binding = tmp_path / "binding.cpp"
    binding.write_text(module.BINDING_SOURCE)
    python = subprocess.run(
        [sys.executable, "-c", "import sysconfig; print(sysconfig.get_paths()['include'])"],
        capture_output=True, text=True, check=True,
    ).stdout.strip()  # fmt: skip
    made_with_it = tmp_path / "c10/cuda/impl/cuda_cmake_macros.h"  # a PyTorch for the CPU lacks this one
    made_with_it.parent.mkdir(parents=True)
    made_with_it.touch()
    folders = [*include_paths(), "/usr/local/cuda/include", python, str(tmp_path)]
    command = ["g++", "-std=c++20", "-fsyntax-only", *(f"-isystem{each}" for each in folders), str(binding)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.usefixtures("_extensions")
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_python_file_for_a_gpu_runs(case: tuple, tmp_path: Path) -> None:
    target = backends.get("cuda").target(0)
    if target.arch != "sm_90":
        pytest.skip("the configs are those of sm_90")
    kernel = cuda_kernel(case, target)
    module = module_of(source_text(kernel, ".py"), tmp_path / "exported.py")
    check_module(module, kernel, "cuda")
    tensors = tensors_for(module, getattr(torch, kernel.workload.dtype), "cuda")
    expected = _listed(module.ModelNew()(*tensors))
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    with torch.cuda.graph(graph):
        captured = _listed(module.ModelNew()(*tensors))
    for _ in range(3):
        for each in captured:
            each.fill_(torch.nan)
        graph.replay()
        assert all(torch.equal(*pair) for pair in zip(captured, expected, strict=True))
    with torch.cuda.stream(stream):
        other = _listed(module.ModelNew()(*tensors))
    stream.synchronize()
    assert all(torch.equal(*pair) for pair in zip(other, expected, strict=True))


@pytest.mark.gpu
@needs_nvcc
@pytest.mark.parametrize(
    "case", [each for name, each in CASES.items() if name != "library"], ids=lambda case: case[0]
)
def test_a_cuda_file_runs(case: tuple, tmp_path: Path) -> None:
    import ctypes

    target = backends.get("cuda").target(0)
    if target.arch != "sm_90":
        pytest.skip("the configs are those of sm_90")
    kernel = cuda_kernel(case, target)
    text = source_text(kernel, ".cu")
    path, library = tmp_path / "exported.cu", tmp_path / "exported.so"
    path.write_text(text)
    stated = next(line for line in text.splitlines() if "To compile it: nvcc" in line)
    command = stated.partition(": ")[2].replace("-c FILE.cu", f"-shared -Xcompiler -fPIC {path}").split()
    subprocess.run([*command, "-o", str(library)], check=True)
    launch = getattr(ctypes.CDLL(str(library)), f"{kernel.op.name}_launch")
    dtype, workload = getattr(torch, kernel.workload.dtype), kernel.workload
    shapes = kernel.op.input_shapes(workload.shape, dict(workload.options), workload.inner)
    tensors = [torch.randn(shape, dtype=dtype, device="cuda") for shape in shapes]
    outs = [
        torch.full(shape, torch.nan, dtype=dtype, device="cuda")
        for shape in kernel.op.output_shapes(workload)
    ]
    pointers = [ctypes.c_void_p(each.data_ptr()) for each in (*tensors, *outs)]
    stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
    for _ in range(3):
        assert launch(*pointers, ctypes.c_longlong(workload.rows), stream) == 0
    torch.cuda.synchronize()
    for found, expected in zip(
        outs, _listed(kernel.op.reference(*tensors, **dict(workload.options))), strict=True
    ):
        torch.testing.assert_close(found, expected)
    assert launch(*pointers, ctypes.c_longlong(0), stream) == 1  # cudaErrorInvalidValue
    odd = [ctypes.c_void_p(pointers[0].value + 1), *pointers[1:]]
    assert launch(*odd, ctypes.c_longlong(workload.rows), stream) == 716  # cudaErrorMisalignedAddress


def test_every_field_of_a_launch_is_known_to_the_launcher() -> None:
    """Who adds one must say here what the exported launcher does with it; what packs is refused before."""
    written = {
        "work_per_row", "work_per_block", "block", "cluster", "split", "smem_bytes", "persistent", "threads",
        "workspace_bytes", "alignment", "entry", "scratch_bytes", "maps", "before", "after", "torch_product",
        "most_rows", "in_place", "pack", "packed_bytes", "torch_bias",
    }  # fmt: skip
    assert {field.name for field in dataclasses.fields(Launch)} == written


# ---- C++ ------------------------------------------------------------------------------------------------


def test_two_cpp_files_in_one_program(tmp_path: Path) -> None:
    """Both have a ksearch_kernel, a Row and templates of the same names."""
    import ctypes

    objects = []
    kernels = [kernel_of(name, (5, 100), "float32", CPU) for name in ("softmax", "l2norm")]
    for kernel in kernels:
        path = tmp_path / f"{kernel.op.name}.cpp"
        path.write_text(source_text(kernel, ".cpp"))
        command = ["g++", *PLAIN_FLAGS, "-fPIC", "-c", str(path), "-o", str(path.with_suffix(".o"))]
        subprocess.run(command, check=True)
        objects.append(str(path.with_suffix(".o")))
    library = tmp_path / "both.so"
    subprocess.run(["g++", "-shared", "-fopenmp", *objects, "-o", str(library)], check=True)
    loaded = ctypes.CDLL(str(library))
    x = torch.randn(5, 100)
    for kernel in kernels:
        out = torch.empty_like(x)
        launch = getattr(loaded, f"{kernel.op.name}_launch")
        pointers = [ctypes.c_void_p(x.data_ptr()), ctypes.c_void_p(out.data_ptr())]
        assert launch(*pointers, ctypes.c_longlong(5)) == 0
        torch.testing.assert_close(out, kernel.op.reference(x))
        assert launch(*pointers, ctypes.c_longlong(0)) == -1
        assert launch(ctypes.c_void_p(x.data_ptr() + 1), pointers[1], ctypes.c_longlong(5)) == -1


def test_only_as_many_rows_as_the_kernel_is_known_to_take() -> None:
    kernel = kernel_of("sigmoid", (5, 100), "float32", CPU)
    few = dataclasses.replace(kernel, launch=dataclasses.replace(kernel.launch, most_rows=0, in_place=False))
    assert "if (rows < 5 || rows > 5) return -1;" in source_text(few, ".cpp")
    assert "It takes 5 to 5 rows. No output may" in " ".join(source_text(few, ".cpp").split("\n// "))
    many = dataclasses.replace(kernel, launch=dataclasses.replace(kernel.launch, most_rows=9, in_place=True))
    assert "if (rows < 1 || rows > 9) return -1;" in source_text(many, ".cpp")
    assert "An output may be an input of its shape" in " ".join(source_text(many, ".cpp").split("\n// "))


def test_an_include_under_a_condition_stays_where_it_is() -> None:
    kernel = kernel_of("sigmoid", (5, 100), "float32", CPU)
    text = "#ifdef __AVX2__\n#include <immintrin.h>\n#endif\n" + kernel.text
    assert source_text(dataclasses.replace(kernel, text=text), ".cpp").count(kernel.text.strip()) == 1


# ---- what cannot be written -----------------------------------------------------------------------------


def test_pytorchs_own_product_needs_pytorch() -> None:
    with pytest.raises(UsageError, match=r"goes on from PyTorch's own product.* export a \.py file"):
        source_text(cuda_kernel(LIBRARY), ".cu")
    with pytest.raises(UsageError, match=r"export a \.py file"):
        source_text(kernel_of("linear", (4, 8, 8), "float32", CPU), ".cpp")


@pytest.mark.parametrize(("target", "suffix"), [(CPU, ".cu"), (H200, ".cpp"), (H200, ""), (CPU, ".txt")])
def test_the_suffix_must_be_one_of_the_device(target: Target, suffix: str) -> None:
    with pytest.raises(UsageError, match=r"can be written as \.py or \.c"):
        source_text(kernel_of("sigmoid", (4, 8), "float32", target), suffix)


def test_what_pytorch_won_has_no_source() -> None:
    kernel = kernel_of("sigmoid", (4, 8), "float32", CPU)
    lost = dataclasses.replace(kernel.winner, config=None, launch=None, artifact=None)
    with pytest.raises(UsageError, match="PyTorch won for sigmoid 4x8 float32"):
        ExportedKernel.of(kernel.op, lost, None)
    other = dataclasses.replace(kernel.winner, workload=dataclasses.replace(kernel.workload, program="old"))
    with pytest.raises(UsageError, match="sigmoid was edited since"):
        ExportedKernel.of(kernel.op, other, kernel.text)


# ---- the function as text -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", operators.names())
def test_every_built_in_function_can_be_written_out(name: str) -> None:
    op = operators.get(name)
    text = reference_text(op)
    assert "ksearch" not in text
    space: dict = {}
    exec(compile("from __future__ import annotations\n" + text, name, "exec"), space)
    function = space[reference_name(op)]
    # Those that the defaults do not fit: a clamp wants a bound, and 6 channels are not 32 groups.
    options = dict(op.bind({"clamp": {"min": -0.5}, "groupnorm": {"groups": 3}}.get(name, {})))
    inner = 8 if op.states_linear else 0
    shape = (
        (4, 8) if inner or op.program(**options).index else (4, 6, 2, 8)
    )  # classes are the second of two dims
    inputs = op.inputs_for(options)
    tensors = [
        torch.rand(each).to(getattr(torch, item.dtype("float32")))
        for each, item in zip(op.input_shapes(shape, options, inner), inputs, strict=True)
    ]
    present = {item.name: tensor for item, tensor in zip(inputs, tensors, strict=True)}
    found = function(*[present.get(item.name) for item in op.inputs], **op.keywords(options))
    expected = op.reference(*tensors, **options)
    assert all(torch.equal(*pair) for pair in zip(_listed(found), _listed(expected), strict=True))


OWN = """
import math
import torch
from torch import sigmoid as squash
from torch.nn import functional as fun
import ksearch

SCALE, PAIR, TOP, STEP = 2.5, (1, 2.0, "a,,b"), math.inf, 0.25
THINGS = {}
doubled = lambda x: x * 2

def helper(x, step=STEP):
    return fun.relu(x).clamp(max=TOP) + PAIR[1] + len(PAIR[2]) * step

@ksearch.op
def own(x, *, beta=1.0):
    # a comment stays
    return helper(x) * SCALE + squash(x) * beta + math.pi

def around():
    inside = 2.0
    @ksearch.op
    def closed(x):
        return x * inside
    return closed

closed = around()

@ksearch.op
def strange(x):
    return x * len(THINGS)

@ksearch.op
def nameless(x):
    return doubled(x)

class Inner:
    SLOPE = 0.5
    def stepped(x, step=SLOPE):
        return x * step

stepped = Inner.stepped

@ksearch.op
def enclosed(x):
    return stepped(x)

@ksearch.op
def scaled(x, scaled, rows, rows_):
    return x * scaled + rows * rows_
"""


def test_a_function_of_ones_own_with_what_it_uses(tmp_path: Path) -> None:
    path = tmp_path / "my_ops.py"
    path.write_text(OWN)
    op = operators.resolve(f"{path}:own")
    text = reference_text(op)
    assert "# a comment stays" in text
    assert "@ksearch" not in text
    space: dict = {}
    exec(text, space)
    x = torch.randn(3, 4)
    assert torch.equal(space["own"](x, beta=0.5), op.reference(x, beta=0.5))
    ast.parse(text)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("closed", "closed uses variables of the function around it"),
        ("strange", "it uses 'THINGS', a dict"),
        ("nameless", r"doubled is a lambda \(write def doubled\)"),
        ("enclosed", "a default of stepped needs 'SLOPE', which is no global"),
    ],
)
def test_what_cannot_be_written_out_is_named(name: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "my_ops.py"
    path.write_text(OWN)
    with pytest.raises(UsageError, match=f"{name} cannot be written into one file: {says}"):
        reference_text(operators.resolve(f"{path}:{name}"))


def test_a_tensor_that_is_called_as_something_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "my_ops.py"
    path.write_text(OWN)
    kernel = kernel_of(f"{path}:scaled", (4, 8), "float32", CPU)
    assert kernel.inputs == ("x", "scaled_", "rows__", "rows_")
    module = module_of(source_text(kernel, ".py"), tmp_path / "exported.py")
    x, scaled, rows, rows_ = (torch.randn(4, 8).double() for _ in range(4))  # which runs the function
    assert torch.equal(module.ModelNew()(x, scaled, rows, rows_), x * scaled + rows * rows_)


def test_the_function_of_an_own_template() -> None:
    op = operators.resolve(f"{Path(__file__).parents[2] / 'docs/examples/running_sum.py'}:running_sum")
    space: dict = {}
    exec("from __future__ import annotations\n" + reference_text(op), space)
    x = torch.randn(3, 4)
    assert torch.equal(space[reference_name(op)](x), x.cumsum(-1))
