"""Linears by PyTorch's product and one kernel: rows of one value each, for both backends."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

import ksearch
from ksearch import artifacts, backends, families, operators
from ksearch.errors import UsageError
from ksearch.families.linear_library import LinearLibrary
from ksearch.families.pointwise_cpu import PointwiseCpu
from ksearch.families.pointwise_cuda import PointwiseCuda
from ksearch.families.rowwise_cpu import RowwiseCpu
from ksearch.families.rowwise_cuda import RowwiseCuda
from ksearch.operators import Op
from ksearch.operators.program import as_tuple
from ksearch.render import ENTRY, render, render_text, template_folder
from ksearch.types import Config, ConfigValue, Source, Target, Workload
from tests.families.cuda_cases import TARGETS
from tests.families.test_cpu_families import cover

CPU = LinearLibrary(PointwiseCpu(), RowwiseCpu())
CUDA = LinearLibrary(PointwiseCuda(), RowwiseCuda())
CPU_TARGET = replace(backends.get("cpu").target(), units=2)
INNER = 16
DTYPES = ("float32", "float16", "bfloat16")


def extremes(x: Tensor, weight: Tensor, bias: Tensor, scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Three values a row, two of them of one pass, and one that more is done to."""
    y = functional.linear(x, weight, bias) * scale
    return y.logsumexp(-1), y.amax(-1, keepdim=True), torch.tanh(y.mean(-1))


def residual(x: Tensor, weight: Tensor, other: Tensor) -> Tensor:
    return torch.relu(functional.linear(x, weight)) + other


def bias_twice(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return torch.relu(functional.linear(x, weight, bias)) + bias


def shifted(x: Tensor, weight: Tensor, shift: Tensor) -> Tensor:
    """What is added has one value a row, so that it is no bias."""
    return torch.relu(functional.linear(x, weight) + shift)


def soft(x: Tensor, weight: Tensor) -> Tensor:
    """A reduction, and an output of the full shape."""
    return torch.softmax(functional.linear(x, weight), -1)


def mixed(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    y = functional.linear(x, weight)
    return y, y.sum(-1)


@pytest.fixture
def ops() -> Mapping[str, Op]:
    names = ("linear_sigmoid_sum", "linear_sigmoid_scale_residual", "linear")
    made = {name: operators.get(name) for name in names}
    made["extremes"] = operators.resolve(ksearch.op(scale="column")(extremes))
    made["bias_twice"] = operators.resolve(ksearch.op(bias="row")(bias_twice))
    made["shifted"] = operators.resolve(ksearch.op(shift="column")(shifted))
    made |= {each.__name__: operators.resolve(ksearch.op(each)) for each in (residual, soft, mixed)}
    return made


def source(library: LinearLibrary, op: Op, workload: Workload, config: Config, target: Target) -> Source:
    """What `render` gives where the family is found by the op; here it may be another's strategy."""
    program = op.program(**dict(workload.options))
    variables: dict[str, Any] = {
        "workload": workload, "cols": workload.cols, "dtype": workload.dtype, "entry": ENTRY,
        "target": target, **config, **library.variables(config, program, workload, target),
    }  # fmt: skip
    text, origin = render_text(library.family(program).template, variables, [str(template_folder())])
    return Source(text, target.backend, target.arch, origin=origin)


def epilogue(op: Op, workload: Workload, config: Config, tensors: list[Tensor]) -> tuple[Tensor, ...]:
    """The CPU kernel's outputs for a product and the other inputs, between guards."""
    program = op.program(**dict(workload.options))
    family = families.find(op, "cpu", **dict(workload.options))
    launch = family.launch(config, program, workload, CPU_TARGET)
    assert launch.torch_product
    artifact = artifacts.build(backends.get("cpu"), render(op, workload, config, CPU_TARGET))
    kernel = backends.get("cpu").load(Path(artifact.binary), launch, 0)
    sizes = [workload.rows if per_row else workload.numel for per_row in program.per_row]
    outs = [torch.full((size + 16,), -777.0, dtype=tensors[0].dtype) for size in sizes]
    pointers = [tensor.data_ptr() for tensor in tensors]
    kernel((*pointers, *(out[8:].data_ptr() for out in outs)), workload.rows, 0)
    kernel.unload()
    for out in outs:
        assert (out[:8] == -777).all(), "wrote before the output"
        assert (out[-8:] == -777).all(), "wrote past the output"
    return tuple(out[8:-8] for out in outs)


def check(op: Op, workload: Workload, config: Config) -> None:
    """Against PyTorch on the same product in float64, to which the bias is added where that is PyTorch's."""
    dtype: torch.dtype = getattr(torch, workload.dtype)
    options = dict(workload.options)
    draw = torch.Generator().manual_seed(5)
    shapes = op.input_shapes(workload.shape, options, INNER)[2:]
    others = [torch.randn(shape, generator=draw).to(dtype) for shape in shapes]
    product = torch.randn(workload.shape, generator=draw).to(dtype)
    product[0, 0] = torch.nan
    product[-1, -1] = torch.inf
    program = op.program(**options)
    left_out = None if program.bias is None else program.inputs.index(program.bias) - 2
    given = [other for place, other in enumerate(others) if place != left_out]
    got = epilogue(op, workload, config, [product, *given])
    if left_out is not None:
        others[left_out] = torch.zeros_like(others[left_out])
    with _Multiplied():
        wanted = as_tuple(
            op.reference(*(tensor.double() for tensor in (product, product, *others)), **options)
        )
    tolerance = {"float32": 3e-6, "float16": 2e-3, "bfloat16": 1.6e-2}[workload.dtype]
    for each, right in zip(got, wanted, strict=True):
        torch.testing.assert_close(
            each.double(), right.reshape(-1), rtol=tolerance, atol=tolerance, equal_nan=True
        )


class _Multiplied(torch.overrides.TorchFunctionMode):
    """Takes the first operand of a linear for its product with the second."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is functional.linear:
            bias = args[2] if len(args) > 2 else None
            return args[0] if bias is None else args[0] + bias
        return func(*args, **(kwargs or {}))


NAMES = (
    *("linear_sigmoid_sum", "linear_sigmoid_scale_residual", "extremes", "residual", "soft"),
    *("bias_twice", "shifted"),
)


@pytest.mark.parametrize("shape", [(3, 1), (5, 7), (6, 1000), (2, 50257)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", NAMES)
def test_values_of_a_config_from_the_space(
    name: str, dtype: str, shape: tuple[int, int], ops: Mapping[str, Op]
) -> None:
    op = ops[name]
    workload = op.workload((shape[0], INNER, shape[1]), dtype)
    program = op.program(**dict(workload.options))
    configs = list(CPU.space(program, workload, CPU_TARGET))
    check(op, workload, configs[7919 * (NAMES.index(name) + len(NAMES) * DTYPES.index(dtype)) % len(configs)])


@pytest.mark.parametrize("name", ["linear_sigmoid_sum", "extremes"])
def test_every_value_of_every_parameter(name: str, ops: Mapping[str, Op]) -> None:
    op = ops[name]
    for shape in ((37, INNER, 1000), (2, INNER, 40_001)):  # the threads share a row of the second
        workload = op.workload(shape)
        for config in cover(CPU.space(op.program(**dict(workload.options)), workload, CPU_TARGET)):
            check(op, workload, config)


def test_rows_of_one_value_each_are_not_streamed_nor_read_for_the_output(ops: Mapping[str, Op]) -> None:
    op = ops["linear_sigmoid_sum"]
    workload = op.workload((64, INNER, 4096))
    program = op.program(**dict(workload.options))
    assert {config["store"] for config in CPU.space(program, workload, CPU_TARGET)} == {"temporal"}
    text = render(op, workload, CPU.guesses(program, workload, CPU_TARGET)[0], CPU_TARGET).text
    assert "sweep_out<STREAM" not in text
    target = TARGETS["sm_90"]
    space = CUDA.space(program, workload, target)
    assert "retain" not in space.values["load"]
    text = source(CUDA, op, workload, CUDA.presets(program, workload, target)[0], target).text
    assert "ks::store<BYTES" not in text
    assert text.count("D::store(out0") == 1


@pytest.mark.parametrize(("library", "target"), [(CPU, CPU_TARGET), *((CUDA, t) for t in TARGETS.values())])
@pytest.mark.parametrize("name", ["linear_sigmoid_sum", "linear_sigmoid_scale_residual", "extremes", "soft"])
def test_presets_are_points_of_the_space(
    name: str, library: LinearLibrary, target: Target, ops: Mapping[str, Op]
) -> None:
    op = ops[name]
    for shape in ((1, INNER, 1), (40, INNER, 1003), (128, INNER, 32768)):
        workload = op.workload(shape, "bfloat16")
        program = op.program(**dict(workload.options))
        space = library.space(program, workload, target)
        presets = library.presets(program, workload, target)
        assert 1 <= len(presets) <= 12
        assert all(space.allows(preset) for preset in presets)
        assert len({tuple(preset.items()) for preset in presets}) == len(presets)
        assert presets is library.presets(program, workload, target)
        assert library.launch(presets[0], program, workload, target).torch_product


LENGTHS = (256, 1003, 32768, 393216)


@pytest.mark.parametrize("arch", TARGETS)
@pytest.mark.parametrize("name", ["linear_sigmoid_sum", "extremes"])
def test_every_region_compiles_and_fits(name: str, arch: str, ops: Mapping[str, Op]) -> None:
    """Every order, split and prefetch that a row of one value may be reduced in."""
    op, target, rng = ops[name], TARGETS[arch], random.Random(f"{name} {arch}")
    todo: list[tuple[Workload, Config]] = []
    for number, cols in enumerate(LENGTHS):
        workload = op.workload((64, INNER, cols), DTYPES[number % 3])
        found: dict[tuple[ConfigValue, ...], list[Config]] = defaultdict(list)
        for config in CUDA.space(op.program(**dict(workload.options)), workload, target):
            region = ("storage", "prefetch", "order", "weights", "reduction")
            team = (int(config["cluster"]) > 1, int(config["split"]) > 1)
            found[(*(config[axis] for axis in region), *team)].append(config)
        todo += [(workload, rng.choice(configs)) for configs in found.values()]
    todo = rng.sample(todo, min(24, len(todo)))

    def problem(item: tuple[Workload, Config]) -> str | None:
        compiled = backends.get("cuda").compile(source(CUDA, op, *item, target))
        smem_bytes = CUDA.launch(item[1], op.program(), item[0], target).smem_bytes + compiled.smem_bytes
        is_fine = compiled.registers > 0 and compiled.spill_bytes == 0 and smem_bytes <= target.smem_bytes
        return None if is_fine else f"{item}: {compiled.registers}, {compiled.spill_bytes}, {smem_bytes}"

    with ThreadPoolExecutor(2) as pool:  # NVRTC lets go of the GIL
        assert [found for found in pool.map(problem, todo) if found] == []


def test_outputs_of_both_shapes_are_refused(ops: Mapping[str, Op]) -> None:
    with pytest.raises(UsageError, match="make two ops of it"):
        families.find(ops["mixed"], "cpu")
