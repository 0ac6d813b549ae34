"""One call of a kernel: is this what it was tuned for, then start it on raw pointers.

A kernel is tuned for one shape, dtype, device and alignment and believes what it is told, so everything is
checked on every call.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch.autograd import forward_ad

from ksearch.backends import Entry, Kernel, LaunchError
from ksearch.invoke import Starter
from ksearch.operators.program import Role, as_tuple
from ksearch.packing import Packer
from ksearch.runtime import launcher
from ksearch.runtime.outputs import Outputs
from ksearch.runtime.precision import allows_tf32
from ksearch.types import Launch, Target, Workload

if TYPE_CHECKING:
    from ksearch.operators import Op

_PLAIN = (torch.Tensor, torch.nn.Parameter)
"""Other classes (fake, distributed, quantized tensors) are more than their memory."""

_NO_MEMORY = "a tensor has no memory of its own"
_NO_ROOM = "the device's memory is full"

_MOST_GUARDS = 4
"""Ways that tensors that fit may look: with gradients on, in inference mode, a parameter."""
_MOST_PLACES = 512
"""Tensors mostly come back to the addresses that the allocator gave them before."""


class KernelCall:
    """One kernel with everything that a call is checked against."""

    def __init__(self, op: Op, kernel: Kernel, launch: Launch, workload: Workload, target: Target) -> None:
        """`workload` is what it is called with, by another number of rows perhaps than it was tuned for."""
        self._rows = workload.rows
        options = dict(workload.options)
        accepted = op.accepted_shapes(workload.shape, options, workload.inner)
        self._shapes = tuple(tuple(map(torch.Size, shapes)) for shapes in accepted)
        self._count = len(self._shapes)
        self._out_shapes = tuple((torch.Size(shape),) for shape in op.output_shapes(workload))
        self._out_count = len(self._out_shapes)
        inputs = op.inputs_for(options)
        names = [*(item.dtype(workload.dtype) for item in inputs), *op.output_dtypes(workload)]
        self._dtypes: list[torch.dtype] = [getattr(torch, name) for name in names]
        """Of each tensor, the inputs first."""
        self._dtype = self._dtypes[0]
        self._index = target.index if target.backend == "cuda" else None
        self._device = torch.device("cpu" if self._index is None else f"cuda:{self._index}")
        shapes = [first for first, *_ in (*self._shapes, *self._out_shapes)]
        pairs = zip(shapes, self._dtypes, strict=True)
        self._sizes = [shape.numel() * dtype.itemsize for shape, dtype in pairs]
        """Bytes of each tensor, the inputs first."""
        roles = [item.role for item in inputs]
        self._replaceable = {j for j, role in enumerate(roles) if launch.in_place and role is Role.FULL}
        """The inputs that an output may overwrite."""
        results = zip(self._out_shapes, self._dtypes[self._count :], strict=True)
        self._layouts = [(tuple(shape), _strides(shape), dtype) for (shape,), dtype in results]
        self._empty = _empty_strided(self._device)
        starter = Starter(kernel, launch, workload, op.inputs_for(options), self._device)
        self._starter = None if starter.is_plain else starter
        self._kernel = kernel
        self._packer = Packer(kernel, launch, workload, self._device) if workload.is_prepacked else None
        self._packed: torch.Tensor | None = None
        """The weight as `pack` left it; None where it could not."""
        self._held: torch.Tensor | None = None
        """Its memory, which stays the same: graphs were captured with it."""
        self._weight = roles.index(Role.RIGHT) if self._packer is not None else 0
        self._keeps_float32 = (
            launch.torch_product and workload.policy == "strict" and workload.dtype == "float32"
        )
        self._guards: dict[int, tuple[tuple[Callable[..., bool], bool], ...]] = {}
        """What tells that tensors are like those of an earlier call, by their number; and whether that holds
        only while no gradients are taken."""
        self._good: set[tuple[int, ...]] = set()
        """Places in memory, of inputs and outputs, that were found good."""
        self._alignment = launch.alignment
        self.launcher = self._make_launcher(kernel.entry(self._rows) if starter.is_plain else None)
        self._stream = _private("_cuda_getCurrentRawStream") or _current_stream
        self._current = _private("_cuda_getDevice") or torch.cuda.current_device

    def _make_launcher(self, entry: Entry | None) -> Any:
        """The compiled one, with all that a call is checked against; None where there is none."""
        if entry is None:
            return None
        return launcher.make(
            inputs=self._count,
            out_shapes=tuple(tuple(shape) for (shape,) in self._out_shapes),
            out_dtypes=tuple(self._dtypes[self._count :]),
            index=-1 if self._index is None else self._index,
            rows=self._rows,
            alignment=self._alignment,
            bytes=tuple(self._sizes),
            replaceable=tuple(place in self._replaceable for place in range(self._count)),
            start=entry.start,
            steps=entry.steps,
            threads=entry.threads,
            current_stream=_private("_cuda_getCurrentRawStream") or _current_stream,
        )

    def quick(self, tensors: tuple[torch.Tensor, ...], out: Outputs | None) -> Outputs | str:
        """The result where everything is as in an earlier call, else some text.

        It may be asked under modes and transforms, and when something is traced, but by a compiler: what
        tells that all is as before knows of these.
        """
        if self.launcher is not None:
            quickly: Outputs | str = self.launcher(tensors, out)
            return quickly
        given = tensors
        if out is not None:
            given = (*tensors, out) if isinstance(out, torch.Tensor) else (*tensors, *as_tuple(out))
        # Guards compare what they are given by place: an `out` is not to pass for an input that is missing.
        if len(tensors) != self._count or len(given) != self._count + (out is not None) * self._out_count:
            return "it is of another number of tensors"
        for is_alike, without_grad in self._guards.get(len(given), ()):
            if is_alike(*given) and not (without_grad and torch.is_grad_enabled()):
                return self._start(tensors, given, out is not None)
        return "it looks new"

    def __call__(self, tensors: tuple[torch.Tensor, ...], out: Outputs | None) -> Outputs | str:
        """The result, or why the kernel cannot give it."""
        given = tensors if out is None else (*tensors, *as_tuple(out))
        if reason := self._unfit(tensors, given[self._count :], out is not None):
            return reason
        result = self._start(tensors, given, out is not None)
        if not isinstance(result, str):
            self._learn(given)
        return result

    def _start(
        self, tensors: tuple[torch.Tensor, ...], given: tuple[torch.Tensor, ...], has_out: bool
    ) -> Outputs | str:
        """On tensors that fit (`given`: the inputs and what `out` holds)."""
        if forward_ad._current_level >= 0:
            return "forward-mode derivatives are being taken"
        if self._keeps_float32 and allows_tf32():
            return "PyTorch may use TF32 now, and the product that the kernel goes on from was tuned without"
        if self._index is None or self._current() == self._index:
            return self._run(tensors, given, has_out)
        with torch.cuda.device(self._index):
            return self._run(tensors, given, has_out)

    def _run(
        self, tensors: tuple[torch.Tensor, ...], given: tuple[torch.Tensor, ...], has_out: bool
    ) -> Outputs | str:
        """As `_start`, where the device is the current one."""
        packed = self._packed  # once: another thread may pack anew
        if self._packer is not None and packed is None:
            return "its weight is not packed, because it does not fit, or a graph is captured"
        try:
            if not has_out:
                given = (*tensors, *[self._empty(*layout) for layout in self._layouts])
            pointers = tuple([tensor.data_ptr() for tensor in given])
        except torch.OutOfMemoryError:
            return _NO_ROOM
        except RuntimeError:  # inside vmap
            return _NO_MEMORY
        if pointers not in self._good:
            if reason := self._misplaced(pointers):
                return reason
            if len(self._good) >= _MOST_PLACES:
                self._good.clear()
            self._good.add(pointers)
        results = given[self._count :]
        if has_out:
            torch.autograd.graph.increment_version(results)  # autograd must see that they were written
        stream = 0 if self._index is None else self._stream(self._index)
        try:
            if self._starter is None:
                self._kernel(pointers, self._rows, stream)
            else:
                self._starter(tensors, pointers, self._rows, stream, packed)
        except LaunchError as error:
            return f"the kernel did not start: {error}"
        except torch.OutOfMemoryError:  # for the memory that the kernel needs besides: PyTorch may need less
            return _NO_ROOM
        return results[0] if self._out_count == 1 else results

    def pack(self, weight: torch.Tensor) -> bool:
        """Pack the weight of a prepacked workload, for the calls that follow; False where that cannot be done
        now, and they are refused. Waits until it is there, whatever the stream of a call is."""
        assert self._packer is not None
        place = self._weight
        fits = not self._misfit(weight, self._shapes[place], self._dtypes[place])
        fits = fits and weight.data_ptr() % self._alignment == 0
        on_gpu = self._index is not None
        self._packed = None
        if not fits or (on_gpu and torch.cuda.is_current_stream_capturing()):
            return False
        try:
            with torch.cuda.device(self._index) if on_gpu else nullcontext():
                stream = self._stream(self._index) if self._index is not None else 0
                self._held = self._packer(weight, stream, self._held)
                if on_gpu:
                    torch.cuda.current_stream().synchronize()
        except (LaunchError, torch.OutOfMemoryError):
            return False
        self._packed = self._held
        return True

    def _learn(self, given: tuple[torch.Tensor, ...]) -> None:
        """Let torch's guards, which compiled graphs use, know tensors that fit.

        They compare in one step class, shape, strides, dtype, device, and all that changes what an operation
        does (modes, transforms, negation): what differs in any of it is looked at again. Not compared is
        whether gradients are taken now.
        """
        if self.launcher is not None:
            self.launcher.learn(given)
            return
        if _Guards is None or len({id(tensor) for tensor in given}) < len(given):
            return  # guards refuse one tensor in two places, such as an `out` that is an input
        guards = _Guards(*given, dynamic_dims_sizes=None, dynamic_dims_strides=None)
        known = self._guards.get(len(given), ())
        newest = (guards.check, any(tensor.requires_grad for tensor in given))
        self._guards = {**self._guards, len(given): (newest, *known[: _MOST_GUARDS - 1])}

    def _unfit(
        self, tensors: tuple[torch.Tensor, ...], results: tuple[torch.Tensor, ...], has_out: bool
    ) -> str:
        """Why the kernel cannot take these; empty where it can."""
        if len(tensors) != self._count:
            return f"it takes {self._count} tensor(s)"
        count = self._out_count
        if has_out and len(results) != count:
            return f"out is not {count} tensor(s)"
        try:
            for tensor, shapes, dtype in zip(tensors, self._shapes, self._dtypes, strict=False):
                if reason := self._misfit(tensor, shapes, dtype):
                    return f"an input {reason}"
            expected = zip(results, self._out_shapes, self._dtypes[self._count :], strict=False)
            for number, (result, shapes, dtype) in enumerate(expected):
                if reason := self._misfit(result, shapes, dtype):
                    return f"out[{number}] {reason}" if count > 1 else f"out {reason}"
        except RuntimeError:  # torch has no shape or strides to tell: sparse, nested
            return _NO_MEMORY
        return ""

    def _misfit(self, tensor: torch.Tensor, shapes: tuple[torch.Size, ...], dtype: torch.dtype) -> str:
        """Why the kernel cannot take this tensor; empty where it can."""
        if type(tensor) not in _PLAIN:
            return "is not a plain tensor"
        if tensor.shape not in shapes:
            return f"is not of shape {tuple(shapes[0])}, for which the kernel was tuned"
        if tensor.dtype is not dtype:
            return f"is not {dtype}"
        if tensor.device != self._device:
            return f"is not on {self._device}"
        if not tensor.is_contiguous():
            return "is not contiguous"
        if tensor.is_neg():
            return "is negated when it is read, as conj().imag is"
        if tensor.requires_grad and torch.is_grad_enabled():
            return "requires a gradient, which kernels do not give"
        return ""

    def _misplaced(self, pointers: tuple[int, ...]) -> str:
        """Why the kernel cannot work on the memory at these; empty where it can."""
        for pointer in pointers:
            if not pointer:  # inside torch.func.functionalize
                return _NO_MEMORY
            if pointer % self._alignment:
                return f"a tensor does not start at a multiple of {self._alignment} bytes"
        sizes, count = self._sizes, self._count
        for k in range(count, len(pointers)):
            start, end = pointers[k], pointers[k] + sizes[k]
            for j in range(k):
                if j in self._replaceable and pointers[j] == start:
                    continue
                if pointers[j] < end and start < pointers[j] + sizes[j]:
                    return "out overlaps an input" if j < count else "two tensors of out overlap"
        return ""


# ---- torch's short cuts, which are private: where one is missing, the public way --------------------------


_Guards: Any = getattr(getattr(getattr(torch._C, "_dynamo", None), "guards", None), "TensorGuards", None)


def _private(name: str) -> Callable[..., int] | None:
    found: Callable[..., int] | None = getattr(torch._C, name, None)
    return found


def _current_stream(index: int) -> int:
    """The caller's current stream as the driver's handle."""
    stream: int = torch.cuda.current_stream(index).cuda_stream
    return stream


def _empty_strided(device: torch.device) -> Callable[..., torch.Tensor]:
    """(shape, strides, dtype) -> a tensor on that device, which is the current one.

    What compiled graphs allocate with takes half the time of torch.empty_like.
    """
    guards = getattr(getattr(torch._C, "_dynamo", None), "guards", None)
    found: Callable[..., torch.Tensor] | None = getattr(guards, f"_empty_strided_{device.type}", None)

    def public(shape: tuple[int, ...], strides: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        return torch.empty_strided(shape, strides, dtype=dtype, device=device)

    return found or public


def _strides(shape: torch.Size) -> tuple[int, ...]:
    """Of a contiguous tensor."""
    strides = [1]
    for dim in reversed(shape[1:]):
        strides.append(strides[-1] * dim)
    return tuple(reversed(strides))[: len(shape)]
