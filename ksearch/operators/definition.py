"""An Op: what is computed, by the name that people use for it.

It is defined by a plain PyTorch function alone; the Program, the cost and the float64 reference all
follow from that function.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

from ksearch.errors import BadShape, TraceError, UnsupportedDtype, UsageError
from ksearch.operators.program import Input, Program, Role, as_tuple
from ksearch.operators.roles import reduced, shapes_of
from ksearch.operators.shape import Shape, check_shape, split_dims
from ksearch.operators.signature import NONE, check_option, check_role, parse_option
from ksearch.types import ITEMSIZE, POLICIES, PREPACKED, Option, Workload

if TYPE_CHECKING:
    from torch import Tensor

    from ksearch.operators.template_op import TemplateOp

_Options: TypeAlias = tuple[tuple[str, Option], ...]

_LAST = "-1"
"""The option `dim` of an op that is over the last dim, if nothing is said."""

_MOST_KEPT = 1024
"""Programs of one op, and its workloads that were checked: an option may be a number that changes with every
call."""

Adapter: TypeAlias = Callable[..., Mapping[str, Any] | str]
"""A function with PyTorch's own parameters, of which those that are named like the op's tensors, and the
first, are these tensors. It gives the op's options for such a call, or why only PyTorch can answer it."""


@dataclass(frozen=True, slots=True, eq=False)
class Op:
    """What is computed: a function of tensors, and what is known about it."""

    name: str
    function: Callable[..., Any]
    """Gives a tensor, or a tuple of tensors where the op has several outputs."""
    inputs: tuple[Input, ...]
    """Every tensor of the function in order, each in the first role of its definition; see `inputs_for`."""
    options: Mapping[str, Option]
    """Every option with its default: the function's keywords, and the names in `choices`."""
    location: str
    """Text from which `resolve` finds this op in another process: `softmax`, `/home/me/my_ops.py:swish`."""
    template_op: TemplateOp | None = None
    """The user's class where the op brings its own template; then nothing is traced."""
    choices: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """The tensors that may have several roles, or be absent (`none`), with those roles. Which one a
    workload has is its option of that name."""
    torch_function: str = ""
    """Dotted path of the PyTorch function that this op equals, such as `torch.nn.functional.gelu`."""
    adapter: Adapter | None = None
    """Reads a call as PyTorch's function is called, where that differs from the op's own parameters."""
    _programs: dict[_Options, Program] = field(default_factory=dict, init=False, repr=False)
    _checked: dict[Workload, list[Shape]] = field(default_factory=dict, init=False, repr=False)
    """The shapes of the outputs of workloads that the function was run on."""

    def bind(self, options: Mapping[str, object]) -> _Options:
        """All options sorted by name: those given and the others' defaults. Raises UsageError."""
        bound = dict(self.options)
        for name, value in options.items():
            default = self._default(name)
            if name in self.choices:
                bound[name] = check_role(self.name, name, value, self.choices[name])
            else:
                bound[name] = check_option(self.name, name, value, default)
        if bound.get("dim") == self.options.get("dim") == _LAST:
            del bound["dim"]  # so that ops keep the keys that they had before others dims were an option
        return tuple(sorted(bound.items()))

    def parse_option(self, name: str, text: str) -> Option:
        """An option as written on a command line, such as `eps` and `1e-5`. Raises UsageError."""
        default = self._default(name)
        if name in self.choices:
            return check_role(self.name, name, text, self.choices[name])
        return parse_option(self.name, name, text, default)

    def _default(self, name: str) -> Option:
        if name not in self.options:
            known = ", ".join(self.options) or "it has none"
            raise UsageError(f"{self.name} has no option {name!r}; its options: {known}")
        return self.options[name]

    def program(self, **options: Option) -> Program:
        """What the function computes with these options; traced once for each set. Raises TraceError."""
        bound = self.bind(options)
        program = self._programs.get(bound)
        if program is None:
            program = self._trace(dict(bound))
            if len(self._programs) >= _MOST_KEPT:
                self._programs.clear()
            self._programs[bound] = program
        return program

    def _trace(self, options: Mapping[str, Option]) -> Program:
        if self.template_op is not None:
            return self.template_op.program(self.inputs_for(options))
        from ksearch.operators.trace import trace  # imports torch

        program = trace(self.function, self._slots(options), self.keywords(options))
        for item in program.inputs:
            allowed = self.choices.get(item.name, (item.role,))
            if item.role.is_operand and item.name in self.choices:
                raise TraceError(f"{self.name}: {item.name!r} is what a linear takes: it can have no choice")
            if item.role not in allowed:
                others = tuple(role for role in allowed if role == NONE)
                remedy = f"say so, as in @op({item.name}={(str(item.role), *others)})"
                raise TraceError(
                    f"{self.name}: {item.name!r} is the {str(item.role)!r} of a linear: {remedy}"
                )
        return program

    def workload(
        self,
        shape: Iterable[int],
        dtype: str = "float32",
        *,
        policy: str = "strict",
        prepacked: bool = False,
        **options: Option,
    ) -> Workload:
        """This op on tensors of one shape and dtype (`float32` or `torch.float32`).

        `shape` is that of the first tensor; of an op with a linear BATCH, IN and OUT, where BATCH may be
        several dims. `prepacked`: the linear's weight is a constant, packed once. Raises BadShape,
        UnsupportedDtype, UsageError for an option, the policy or what has no weight, TraceError.
        """
        dtype = str(dtype).removeprefix("torch.")
        if dtype not in ITEMSIZE:
            raise UnsupportedDtype(f"{self.name} has no kernel for {dtype}; supported: {', '.join(ITEMSIZE)}")
        bound = self.bind(options)
        program = self.program(**dict(bound))
        self.check_policy(policy, dtype, **dict(bound))
        self.check_prepacked(prepacked, **dict(bound))
        dims, inner = check_shape(shape), 0
        if program.linear is not None:
            dims, inner = split_dims(self.name, dims)
        if (program.groups or program.has_channels) and len(dims) < 2:
            raise BadShape(f"{self.name} needs a second dim, that of the channels, such as 32x64x56x56")
        digest, layout = program.digest, program.layout
        regime = PREPACKED if prepacked else "cold"
        workload = Workload(self.name, dims, dtype, bound, digest, layout, policy, regime, inner)
        self.output_shapes(workload)  # refuses what the function does not run on
        return workload

    @property
    def states_linear(self) -> bool:
        """Whether the definition says that a linear takes the first tensor; else only the function tells."""
        return self.inputs[0].role is Role.LEFT

    def check_policy(self, policy: str, dtype: str, **options: Option) -> None:
        """Raises UsageError where there is no such policy, or it has no meaning for the op in that dtype."""
        if policy not in POLICIES:
            raise UsageError(f"there is no policy {policy!r}; known: {', '.join(POLICIES)}")
        if policy == "strict":
            return
        what = "" if dtype == "float32" else f"this is {dtype}"
        if not (self.states_linear or self.program(**options).linear is not None):
            what = f"{self.name} has none"
        if what:
            raise UsageError(f"policy {policy!r} is for linear layers in float32, and {what}: leave it out")

    def check_prepacked(self, prepacked: bool, **options: Option) -> None:
        """Raises UsageError where there is no weight to pack."""
        if prepacked and not (self.states_linear or self.program(**options).linear is not None):
            raise UsageError(f"prepacked is for linear layers, and {self.name} has none: leave it out")

    def _slots(self, options: Mapping[str, Option]) -> list[Input | None]:
        """The tensors of the function in order, in the roles that `options` name; None for an absent one."""
        roles = {name: str(options.get(name, self.options[name])) for name in self.choices}
        return [
            None if roles.get(item.name) == NONE else Input(item.name, Role(roles.get(item.name, item.role)))
            for item in self.inputs
        ]

    def inputs_for(self, options: Mapping[str, Option]) -> tuple[Input, ...]:
        """The tensors that a workload of these options has, in the roles that it gives them.

        Raises TraceError: only the function tells which of them a linear takes.
        """
        if self.template_op is None:
            return self.program(**options).inputs
        return tuple(item for item in self._slots(options) if item is not None)

    def roles(self, item: Input) -> tuple[str, ...]:
        """Every role that one of `inputs` may have, the default first. Raises TraceError."""
        if item.name in self.choices:
            return self.choices[item.name]
        return tuple(str(each.role) for each in self.inputs_for({}) if each.name == item.name)

    def keywords(self, options: Mapping[str, Option]) -> dict[str, Option]:
        """Those of `options` that the function itself is called with."""
        return {name: value for name, value in options.items() if name not in self.choices}

    def input_shapes(
        self, shape: Shape, options: Mapping[str, Option] | None = None, inner: int = 0
    ) -> list[Shape]:
        """The shape of each input of a workload of these options, whose `shape` and `inner` are given."""
        return [each[0] for each in self._shapes(shape, options or {}, inner)]

    def accepted_shapes(
        self, shape: Shape, options: Mapping[str, Option], inner: int = 0
    ) -> list[list[Shape]]:
        """Every shape in which each input may come, the usual one first.

        Where roles are a choice, PyTorch broadcasts, and all shapes of a role mean the same; where there is
        one role, the function may insist on its shape, as layer_norm does.
        """
        accepted = []
        for item, shapes in zip(self.inputs_for(options), self._shapes(shape, options, inner), strict=True):
            is_chosen = len({*self.roles(item)} - {NONE}) > 1
            accepted.append(shapes if is_chosen else shapes[:1])
        return accepted

    def _shapes(self, shape: Shape, options: Mapping[str, Option], inner: int) -> list[list[Shape]]:
        """For each input every shape that its role allows."""
        over = self.program(**options).over if self.template_op is None else (-1,)
        return [shapes_of(item.role, shape, inner, over) for item in self.inputs_for(options)]

    def output_dtypes(self, workload: Workload) -> tuple[str, ...]:
        """What each output holds: the workload's dtype, or int64."""
        return self.program(**dict(workload.options)).output_dtypes(workload.dtype)

    def output_shapes(self, workload: Workload) -> list[Shape]:
        """The shape of each output: the workload's, (..., 1) or (...,) of one value a row, () of one for all.

        Raises BadShape and UnsupportedDtype where the function does not run, or gives something else.
        """
        if self.template_op is not None:
            return [workload.shape] * self.template_op.outputs
        if workload not in self._checked:
            shapes = self._check_result(workload)
            if len(self._checked) >= _MOST_KEPT:
                self._checked.clear()
            self._checked[workload] = shapes
        return self._checked[workload]

    def caller(self, options: Mapping[str, object]) -> Callable[..., Any]:
        """The plain function of the tensors that `inputs_for` lists, with None for those that are absent.

        What depends on the options is worked out once. Raises UsageError, as does a call with too few.
        """
        bound = dict(self.bind(options))
        slots, keywords = self._slots(bound), self.keywords(bound)
        names = [item.name for item in slots if item is not None]

        def call(*tensors: Tensor) -> Any:
            if len(tensors) != len(names):
                listed = ", ".join(names)
                raise UsageError(f"{self.name} takes {len(names)} tensors ({listed}), not {len(tensors)}")
            if len(tensors) == len(slots):
                return self.function(*tensors, **keywords)
            given = iter(tensors)
            return self.function(*[slot and next(given) for slot in slots], **keywords)

        return call

    def reference(self, *tensors: Tensor, **options: Option) -> Any:
        """The plain function on the tensors of `inputs_for`: any dtype and device, whole or some rows."""
        return self.caller(options)(*tensors)

    def _check_result(self, workload: Workload) -> list[Shape]:
        """The shapes of the outputs, where the function keeps the shape and dtype as a kernel does."""
        import torch

        options = dict(workload.options)
        program = self.program(**options)
        shapes = self.input_shapes(workload.shape, options, workload.inner)
        tensors = [
            torch.empty(shape, dtype=getattr(torch, item.dtype(workload.dtype)), device="meta")
            for item, shape in zip(self.inputs_for(options), shapes, strict=True)
        ]
        try:
            result = self.caller(options)(*tensors)
        except Exception as error:  # the user's own code: it may raise anything
            text = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise BadShape(f"{self.name} does not run on shape {workload.shape_text}: {text}") from error
        results = as_tuple(result)
        for number, each in enumerate(results):
            name = self.name if len(results) == 1 else f"output {number} of {self.name}"
            role = program.output_roles[number]
            allowed: dict[Role, list[Shape]] = {
                Role.FULL: [workload.shape],
                Role.COLUMN: [reduced(workload.shape, program.over, keepdim=kept) for kept in (False, True)],
                Role.SCALAR: [()],
            }
            if tuple(each.shape) not in allowed[role]:
                shape = "x".join(map(str, each.shape)) or "()"
                must = {
                    Role.FULL: "it must keep the shape",
                    Role.COLUMN: "it must have one value for each row",
                    Role.SCALAR: "it must be one value for all rows",
                }[role]
                raise BadShape(f"{name} has shape {shape} for {workload.shape_text}: {must}")
            gives = str(each.dtype).removeprefix("torch.")
            if gives != program.output_dtypes(workload.dtype)[number]:
                remedy = f"end it with .to({self.inputs[0].name}.dtype)"
                raise UnsupportedDtype(f"{name} gives {gives} for {workload.dtype}: {remedy}")
        return [tuple(each.shape) for each in results]
