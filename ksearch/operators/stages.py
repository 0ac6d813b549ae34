"""A program laid out for a kernel: the stages of its reductions, and the C++ text that they call."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Kind(enum.StrEnum):
    """How a reduction combines the values of a row."""

    SUM = "sum"
    MAX = "max"
    MIN = "min"
    PROD = "prod"
    ARGMAX = "argmax"
    """The place of the largest value, of equal ones the first; that of a NaN where there is one."""
    ARGMIN = "argmin"
    SUM_EXP = "sum_exp"
    """sum(exp(value - max)), where max is the reduction `anchor` of the same stage: the online form."""
    SUM_SQUARES = "sum_squares"
    """sum((value - mean)^2), where mean is that of the sum `anchor` of the same stage."""


@dataclass(frozen=True, slots=True)
class Reduction:
    """One reduction over the columns; its result is the field `name` of the C++ struct Row."""

    name: str
    kind: Kind
    anchor: int | None = None
    """SUM_EXP and SUM_SQUARES only: index in the stage of the MAX or SUM it is taken relative to."""


@dataclass(frozen=True, slots=True)
class Pick:
    """A value of the one column that an index names; it is the field `name` of the C++ struct Row."""

    name: str
    index: str
    """Name of the INDEX input."""


@dataclass(frozen=True, slots=True)
class Stage:
    """One pass over a row: the reductions that need only the inputs and earlier stages' results."""

    reductions: tuple[Reduction, ...]
    inputs: tuple[str, ...]
    """Names of the FULL and ROW inputs that the pass reads."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """A Program laid out for a kernel: its stages, and the C++ text that they call.

    The text defines (T is float on CUDA, a SIMD vector or float on the CPU; KS_FN is the function
    qualifier that the template defines before it):

        template <class T> struct Element { T x, weight, ...; };   // one field per FULL and ROW input
        struct Row { float r0, r1, ...; };  // reductions, what is derived from them, COLUMN and SCALAR inputs
        template <class T> KS_FN void stage0(const Element<T>& e, const Row& row, T (&value)[K]);
        KS_FN void finish0(Row& row);           // after stage 0's reductions are stored in row
        template <class T> KS_FN void output(const Element<T>& e, const Row& row, T (&value)[OUTPUTS]);

    and of a program that picks values or sums over the rows

        template <class T> KS_FN void pick(const Element<T>& e, const Row& row, T (&value)[PICKED]);
        KS_FN void finish_pick(Row& row);       // after what was picked is stored in row, before stage 0
        KS_FN void terms(const Row& row, float (&value)[TOTALS]);  // what the row adds to each total
        KS_FN void finish_total(Row& all);      // after the totals are stored in a Row of their own
        KS_FN void conclude(const Row& all, float (&value)[OUTPUTS]);  // instead of `output`

    `begin(Row&)` runs once the COLUMN and SCALAR inputs are loaded, before stage 0. Row values enter element
    expressions as `ks::splat<T>(row.r0)`, constants as `ks::splat<T>(0.5f)`, functions as `ks::exp(t3)`.
    A value that several functions compute is `const T t<number> = ...;` by the same name in all of them.
    `COLS` (constexpr long long, the row length) is defined by the template before it. A wide schedule is
    for lanes that are rows: `Row` and the functions on it are templates on T, too, and no row value is splat.
    """

    stages: tuple[Stage, ...]
    output_inputs: tuple[str, ...]
    """Names of the FULL and ROW inputs that the outputs' expressions read."""
    text: str
    picks: tuple[Pick, ...] = ()
    pick_inputs: tuple[str, ...] = ()
    """Names of the FULL and ROW inputs of which `pick` reads one element each."""
    totals: tuple[str, ...] = ()
    """Fields of the struct Row for the sums over the rows, in the order of `terms`."""
    places: tuple[str, ...] = ()
    """For each output the field of the struct Row that it is, a `long long`; empty where it is no place."""
