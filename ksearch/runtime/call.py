"""One call of a kernel: is this what it was tuned for, then start it on raw pointers.

A kernel is tuned for one shape, dtype, device and alignment and believes what it is told, so everything is
checked on every call.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch.autograd import forward_ad

from ksearch.backends import Entry, Kernel, LaunchError
from ksearch.invoke import Starter
from ksearch.launch import Launch
from ksearch.operators.program import Role, as_tuple
from ksearch.packing import Packer
from ksearch.runtime import launcher, quick
from ksearch.runtime.outputs import Outputs
from ksearch.runtime.precision import allows_tf32
from ksearch.types import Target, Workload

if TYPE_CHECKING:
    from ksearch.operators import Op

_PLAIN = (torch.Tensor, torch.nn.Parameter)
"""Other classes (fake, distributed, quantized tensors) are more than their memory."""

_NO_MEMORY = "a tensor has no memory of its own"
_NO_ROOM = "the device's memory is full"

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
        self.inputs = len(self._shapes)
        self._out_shapes = tuple((torch.Size(shape),) for shape in op.output_shapes(workload))
        self.outputs = len(self._out_shapes)
        inputs = op.inputs_for(options)
        names = [*(item.dtype(workload.dtype) for item in inputs), *op.output_dtypes(workload)]
        self._dtypes: list[torch.dtype] = [getattr(torch, name) for name in names]
        """Of each tensor, the inputs first."""
        self._dtype = self._dtypes[0]
        self.index = target.index if target.backend == "cuda" else None
        self._device = torch.device("cpu" if self.index is None else f"cuda:{self.index}")
        shapes = [first for first, *_ in (*self._shapes, *self._out_shapes)]
        pairs = zip(shapes, self._dtypes, strict=True)
        self._sizes = [shape.numel() * dtype.itemsize for shape, dtype in pairs]
        """Bytes of each tensor, the inputs first."""
        roles = [item.role for item in inputs]
        self._replaceable = {j for j, role in enumerate(roles) if launch.in_place and role is Role.FULL}
        """The inputs that an output may overwrite."""
        results = zip(self._out_shapes, self._dtypes[self.inputs :], strict=True)
        self.layouts = [(tuple(shape), _strides(shape), dtype) for (shape,), dtype in results]
        """Of each output: shape, strides, dtype."""
        self.empty = _empty_strided(self._device)
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
        self.looks, self.looks_out = quick.Looks(), quick.Looks()
        """Of inputs, and of inputs and outputs together."""
        self._good: set[tuple[int, ...]] = set()
        """Places in memory, of inputs and outputs, that were found good."""
        self.ready: dict[tuple[int, ...], Callable[[], int | None]] = {}
        """Starts for some of them, with the stream as a last number: as `Kernel.ready` gives them."""
        self._alignment = launch.alignment
        entry = kernel.entry(self._rows) if starter.is_plain else None
        self.is_plain = entry is not None
        """A start takes the places and the rows, and nothing else, so that it can be made ready."""
        self.launcher = self._make_launcher(entry)
        self.stream: Callable[[Any], int] = _no_stream
        self.is_elsewhere: Callable[[], bool] | None = None
        """Whether another device is the current one; None where there is no other."""
        if self.index is not None:
            self.stream = _private("_cuda_getCurrentRawStream") or _current_stream
            if (_private("_cuda_getDeviceCount") or torch.cuda.device_count)() > 1:
                self.is_elsewhere = functools.partial(_is_elsewhere, self.index)

    def _make_launcher(self, entry: Entry | None) -> Any:
        """The compiled one, with all that a call is checked against; None where there is none."""
        if entry is None:
            return None
        return launcher.make(
            inputs=self.inputs,
            out_shapes=tuple(tuple(shape) for (shape,) in self._out_shapes),
            out_dtypes=tuple(self._dtypes[self.inputs :]),
            index=-1 if self.index is None else self.index,
            rows=self._rows,
            alignment=self._alignment,
            bytes=tuple(self._sizes),
            replaceable=tuple(place in self._replaceable for place in range(self.inputs)),
            start=entry.start,
            steps=entry.steps,
            threads=entry.threads,
            current_stream=_private("_cuda_getCurrentRawStream") or _current_stream,
        )

    def __call__(self, tensors: tuple[torch.Tensor, ...], out: Outputs | None) -> Outputs | str:
        """The result, or why the kernel cannot give it."""
        given = tensors if out is None else (*tensors, *as_tuple(out))
        if reason := self._unfit(tensors, given[self.inputs :], out is not None):
            return reason
        if forward_ad._current_level >= 0:
            return "forward-mode derivatives are being taken"
        away = self.is_elsewhere is not None and self.is_elsewhere()
        try:
            with torch.cuda.device(self.index) if away else nullcontext():
                made = () if out is not None else tuple([self.empty(*layout) for layout in self.layouts])
                result = self.start(tensors, (*given, *made), has_out=out is not None)
        except torch.OutOfMemoryError:
            return _NO_ROOM
        if not isinstance(result, str):
            self._learn(given)
        return result

    def start(
        self, tensors: tuple[torch.Tensor, ...], given: tuple[torch.Tensor, ...], *, has_out: bool
    ) -> Outputs | str:
        """Start it on tensors that fit (`tensors`: the inputs; `given`: those and the outputs), where
        its device is the current one. It gives the outputs, or says why it did not start."""
        if self._keeps_float32 and allows_tf32():
            return "PyTorch may use TF32 now, and the product that the kernel goes on from was tuned without"
        packed = self._packed  # once: another thread may pack anew
        if self._packer is not None and packed is None:
            return "its weight is not packed, because it does not fit, or a graph is captured"
        try:
            pointers = tuple([tensor.data_ptr() for tensor in given])
        except RuntimeError:  # inside vmap
            return _NO_MEMORY
        stream = self.stream(self.index)
        ready = None
        if pointers in self._good:
            if self.is_plain:
                ready = self._make_ready(pointers, stream)
        elif reason := self._misplaced(pointers):
            return reason
        else:
            if len(self._good) >= _MOST_PLACES:
                self._good.clear()
            self._good.add(pointers)
        results = given[self.inputs :]
        if has_out:
            quick.increment_version(results)  # autograd must see that they were written
        try:
            if self._starter is not None:
                self._starter(tensors, pointers, self._rows, stream, packed)
            elif ready is None or ready():
                self._kernel(pointers, self._rows, stream)
        except LaunchError as error:
            return f"the kernel did not start: {error}"
        except torch.OutOfMemoryError:  # for the memory that the kernel needs besides: PyTorch may need less
            return _NO_ROOM
        return results[0] if self.outputs == 1 else results

    def _make_ready(self, pointers: tuple[int, ...], stream: int) -> Callable[[], int | None] | None:
        """For places that come a second time: many never do."""
        start = self._kernel.ready(pointers, self._rows, stream)
        if start is not None:
            if len(self.ready) >= _MOST_PLACES:
                self.ready.clear()
            self.ready[*pointers, stream] = start
        return start

    def pack(self, weight: torch.Tensor) -> bool:
        """Pack the weight of a prepacked workload, for the calls that follow; False where that cannot be done
        now, and they are refused. Waits until it is there, whatever the stream of a call is."""
        assert self._packer is not None
        place = self._weight
        fits = not self._misfit(weight, self._shapes[place], self._dtypes[place])
        fits = fits and weight.data_ptr() % self._alignment == 0
        on_gpu = self.index is not None
        self._packed = None
        if not fits or (on_gpu and torch.cuda.is_current_stream_capturing()):
            return False
        try:
            with torch.cuda.device(self.index) if on_gpu else nullcontext():
                stream = self.stream(self.index) if self.index is not None else 0
                self._held = self._packer(weight, stream, self._held)
                if on_gpu:
                    torch.cuda.current_stream().synchronize()
        except (LaunchError, torch.OutOfMemoryError):
            return False
        self._packed = self._held
        return True

    def _learn(self, given: tuple[torch.Tensor, ...]) -> None:
        """These fit: what looks as they do is not looked at again."""
        if self.launcher is not None:
            self.launcher.learn(given)
            return
        (self.looks if len(given) == self.inputs else self.looks_out).learn(given)

    def _unfit(
        self, tensors: tuple[torch.Tensor, ...], results: tuple[torch.Tensor, ...], has_out: bool
    ) -> str:
        """Why the kernel cannot take these; empty where it can."""
        if len(tensors) != self.inputs:
            return f"it takes {self.inputs} tensor(s)"
        count = self.outputs
        if has_out and len(results) != count:
            return f"out is not {count} tensor(s)"
        try:
            for tensor, shapes, dtype in zip(tensors, self._shapes, self._dtypes, strict=False):
                if reason := self._misfit(tensor, shapes, dtype):
                    return f"an input {reason}"
            expected = zip(results, self._out_shapes, self._dtypes[self.inputs :], strict=False)
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
        sizes, count = self._sizes, self.inputs
        for k in range(count, len(pointers)):
            start, end = pointers[k], pointers[k] + sizes[k]
            for j in range(k):
                if j in self._replaceable and pointers[j] == start:
                    continue
                if pointers[j] < end and start < pointers[j] + sizes[j]:
                    return "out overlaps an input" if j < count else "two tensors of out overlap"
        return ""


# ---- torch's short cuts, which are private: where one is missing, the public way --------------------------


def _private(name: str) -> Callable[..., int] | None:
    found: Callable[..., int] | None = getattr(torch._C, name, None)
    return found


_current_device: Callable[[], int] = _private("_cuda_getDevice") or torch.cuda.current_device


def _current_stream(index: int) -> int:
    """The caller's current stream as the driver's handle."""
    stream: int = torch.cuda.current_stream(index).cuda_stream
    return stream


def _no_stream(_: None) -> int:
    return 0


def _is_elsewhere(index: int) -> bool:
    return _current_device() != index


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
