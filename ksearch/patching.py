"""`ksearch.patch(model)`: a model's modules run kernels where winners are known, and it can be undone.

A module becomes one of `ksearch.nn` by its class alone: it stays the object that it was, with its parameters,
hooks and mode, wherever it is referred to. Nothing is tuned. With `prepacked` a linear may become one that
keeps its weight packed as well.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import torch

from ksearch import backends, operators
from ksearch.errors import KsearchError, UsageError
from ksearch.nn import MODULES, PrepackedLinear
from ksearch.operators.signature import NONE
from ksearch.runtime import dispatcher, known
from ksearch.runtime.handle import Handle
from ksearch.runtime.layer import PackedLayer
from ksearch.types import Target, Workload

_NORMS_OF_CHANNELS = (torch.nn.GroupNorm, torch.nn.BatchNorm1d, torch.nn.BatchNorm2d, torch.nn.BatchNorm3d)
_ATTRIBUTES = {"groups": "num_groups"}
"""Of modules, by the option that each is."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One module, and what became of it."""

    path: str
    """As `model.get_submodule` takes it; empty for the model itself."""
    kind: str
    """Its class in torch.nn."""
    op: str
    shape: str
    """Of its input, with the dtype; empty where it is not known."""
    match: str
    """How well a kernel fits; empty where there is none, or the shape is not known."""
    is_swapped: bool
    note: str
    """What runs, or why PyTorch does."""
    is_prepacked: bool = False
    """The kernel takes the weight as it was packed."""

    def __str__(self) -> str:
        words = [self.path or "(model)", self.kind, "->" if self.is_swapped else "--", self.op]
        return " ".join([*words, *filter(None, [self.shape, self.match])]) + f": {self.note}"


class Report:
    """What `patch` did. As a context manager it undoes that at the end."""

    def __init__(self, entries: Sequence[Entry], swapped: Mapping[str, torch.nn.Module]) -> None:
        self.entries = tuple(entries)
        self._swapped = dict(swapped)

    @property
    def swapped(self) -> tuple[str, ...]:
        """The paths of the modules that may run kernels now."""
        return tuple(self._swapped)

    def undo(self) -> None:
        """Make every module again what it was; what was changed in it since stays. Twice does no harm."""
        theirs: dict[type, type] = {ours: original for original, ours in MODULES.items()}
        theirs[PrepackedLinear] = torch.nn.Linear
        for module in self._swapped.values():
            if isinstance(module, PrepackedLinear):
                module.unpack()
            module.__class__ = theirs.get(type(module), type(module))
        self._swapped.clear()

    def repack(self) -> None:
        """Pack every packed weight again: after a change that PyTorch keeps no count of, by way of
        `weight.data`. All other changes are seen at the next call."""
        for module in self._swapped.values():
            if isinstance(module, PrepackedLinear):
                module.repack()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.undo()

    def __str__(self) -> str:
        paths = {entry.path for entry in self.entries}
        done = len({entry.path for entry in self.entries if entry.is_swapped})
        return "\n".join([f"{done} of {len(paths)} modules swapped", *map(str, self.entries)])

    __repr__ = __str__


def patch(model: torch.nn.Module, *inputs: Any, prepacked: bool = False, **named: Any) -> Report:
    """Swap the modules of `model` that there are winners for; the report says which, and undoes it.

    With `inputs` the model is called once, in evaluation mode and without gradients, to see the shapes of
    each module's input; without, a module is swapped where a winner for any shape fits it. What has no kernel
    at run time runs PyTorch. Modules of other classes than torch.nn's own are left alone.

    `prepacked`: a linear that a winner of `ksearch tune linear --prepacked` fits becomes a
    `ksearch.nn.PrepackedLinear`. In evaluation it runs that kernel, and its packed weight lies in memory
    beside the weight, with `inputs` from now on. Raises UsageError where `model` is no module, and whatever
    the model raises.
    """
    if not isinstance(model, torch.nn.Module):
        raise UsageError(f"ksearch.patch takes a torch.nn.Module, got a {type(model).__name__}")
    found = {path: module for path, module in model.named_modules() if type(module) in MODULES}
    seen: dict[str, list[torch.Tensor]] = {path: [] for path in found}
    if inputs or named:
        with _watched(model, found, seen):
            model(*inputs, **named)
    device = next((parameter.device for parameter in model.parameters()), None)
    entries: list[Entry] = []
    swapped = {}
    layers: dict[str, PackedLayer] = {}
    for path, module in found.items():
        if prepacked and isinstance(module, torch.nn.Linear):
            layers[path] = PackedLayer(module.weight)
        if inputs or named:
            judged = _by_inputs(path, module, seen[path], layers.get(path))
        else:
            judged = [_by_winners(path, module, device, prepacked=path in layers)]
        entries += judged
        if any(entry.is_swapped for entry in judged):
            swapped[path] = module
    packed = {entry.path for entry in entries if entry.is_prepacked}
    for path, module in swapped.items():
        module.__class__ = PrepackedLinear if path in packed else MODULES[type(module)]
        if isinstance(module, PrepackedLinear):
            module.packed = layers[path]
    return Report(entries, swapped)


@contextmanager
def _watched(
    model: torch.nn.Module, found: Mapping[str, torch.nn.Module], seen: Mapping[str, list[torch.Tensor]]
) -> Iterator[None]:
    """One input of each look that the modules get is put into `seen`; the model's modes come back."""
    modes = {module: module.training for module in model.modules()}
    hooks = []
    for path, module in found.items():

        def note(_: torch.nn.Module, args: tuple[Any, ...], path: str = path) -> None:
            looks = [(each.shape, each.dtype, each.device) for each in seen[path]]
            first = args[0] if args else None
            if isinstance(first, torch.Tensor) and (first.shape, first.dtype, first.device) not in looks:
                seen[path].append(first.new_empty(()).expand(first.shape))  # its looks, without its memory

        hooks.append(module.register_forward_pre_hook(note))
    try:
        model.eval()
        with torch.no_grad():
            yield
    finally:
        for hook in hooks:
            hook.remove()
        for module, mode in modes.items():
            module.training = mode


def _by_inputs(
    path: str, module: torch.nn.Module, inputs: Sequence[torch.Tensor], layer: PackedLayer | None
) -> list[Entry]:
    """What runs for each input that the module got; `layer`: of a linear whose weight may be packed."""
    kind = MODULES[type(module)]
    name = type(module).__name__
    if not inputs:
        return [Entry(path, name, kind.op, "", "", False, "it was not called with a tensor")]
    entries = []
    for each in inputs:
        args, named = kind.arguments(module, each)  # type: ignore[arg-type]  # it may become one
        shape = f"{'x'.join(map(str, each.shape))} {str(each.dtype).removeprefix('torch.')}"
        besides = ""
        if layer is not None:
            packed = layer.find(each, args[2])
            if isinstance(packed, Handle):
                note = f"{_speedup(packed)} with its weight packed, in evaluation"
                entries.append(Entry(path, name, kind.op, shape, str(packed.match), True, note, True))
                continue
            besides = f"; its weight is not packed: {packed}"
        handle = dispatcher(kind.op).find(*args, **named)
        if not isinstance(handle, Handle):
            entries.append(Entry(path, name, kind.op, shape, "", False, handle + besides))
        elif handle.kernel is None:
            reason = (handle.reason or "PyTorch is the fastest that was found") + besides
            entries.append(Entry(path, name, kind.op, shape, str(handle.match), False, reason))
        else:
            note = _speedup(handle) + besides
            entries.append(Entry(path, name, kind.op, shape, str(handle.match), True, note))
    return entries


def _speedup(handle: Handle) -> str:
    return f"{handle.winner.speedup if handle.winner is not None else 1.0:.2f} x PyTorch"


def _by_winners(path: str, module: torch.nn.Module, device: torch.device | None, *, prepacked: bool) -> Entry:
    """Whether there are kernels for some shape that the module may get; `prepacked`: with its weight packed,
    too, which are then preferred."""
    kind, name = MODULES[type(module)], type(module).__name__
    own = next(module.parameters(), None)
    place = device if own is None else own.device
    try:
        target = _target(place)
    except KsearchError as error:
        return Entry(path, name, kind.op, "", "", False, str(error))
    for packs in (True, False) if prepacked else (False,):
        there = known.kernels(kind.op, target, prepacked=packs)
        if kernels := [each for each in there if _may_fit(each, module, own)]:
            shapes = ", ".join(sorted({f"{each.shape_text} {each.dtype}" for each in kernels}))
            note = f"winners {'with its weight packed ' if packs else ''}for {shapes}"
            return Entry(path, name, kind.op, "", "", True, note, packs)
    return Entry(path, name, kind.op, "", "", False, f"no winner fits it on {target.device}")


def _target(device: torch.device | None) -> Target:
    backend, index = backends.parse_device(None if device is None else str(device))
    return backends.get(backend).target(index)


def _may_fit(workload: Workload, module: torch.nn.Module, own: torch.nn.Parameter | None) -> bool:
    """Whether the module may be called so that it means this workload."""
    if own is not None and str(own.dtype).removeprefix("torch.") != workload.dtype:
        return False
    if isinstance(module, torch.nn.Linear):
        fits = (module.in_features, module.out_features) == (workload.inner, workload.cols)
    elif isinstance(module, torch.nn.LayerNorm | torch.nn.RMSNorm):
        fits = tuple(module.normalized_shape) == (workload.cols,)
    elif isinstance(module, torch.nn.Softmax | torch.nn.LogSoftmax):
        fits = module.dim in (-1, len(workload.shape) - 1)
    elif isinstance(module, _NORMS_OF_CHANNELS):
        fits = getattr(module, "num_features", getattr(module, "num_channels", 0)) == workload.channels
    else:
        fits = True
    op = operators.get(workload.op)
    for name, value in workload.options:
        held = getattr(module, _ATTRIBUTES.get(name, name), None)
        if name in op.choices:
            fits &= (held is None) == (value == NONE)
        else:
            fits &= held == value
    return fits
