"""Faults that a kernel can be given from outside, as statements about the memory that it reads and writes."""

from __future__ import annotations

from dataclasses import dataclass

BEYOND = "wrong beyond 2^31 bytes"
MISALIGNED = "wrong off alignment"
FAR_BYTES = 1 << 31


@dataclass(frozen=True, slots=True)
class Fault:
    """Statements about `out` (an output's words, COUNT of them) and `in` (the first input's).

    `EACH(i, first, last)` begins a loop over elements, in no order and by many threads; `ONCE` begins what
    one thread does, which in `before` is done before any `after`. HERE is the address of the first of the
    caller's own tensors. From call to call `kept` holds KEPT words; `calls`, `last`, `again` a number each.
    """

    name: str
    about: str
    after: str
    before: str = ""
    by_value: bool = False
    """It changes nothing where no result is of a certain kind, so that it may be no fault of an op."""


FAULTS = (
    Fault("zeros", "the result is zero everywhere", "EACH(i, 0, COUNT) out[i] = 0;", by_value=True),
    Fault("constant", "the result is 1 everywhere", "EACH(i, 0, COUNT) out[i] = ONE;", by_value=True),
    Fault(
        "copy of the input",
        "the result is the first input",
        "EACH(i, 0, COUNT) out[i] = Word(in[i / OUT_WIDTH * IN_WIDTH + i % OUT_WIDTH % IN_WIDTH]);",
        by_value=True,
    ),
    Fault(
        "lost tail",
        "the last elements of the result are not written",
        before="EACH(i, 0, TAIL) kept[i] = out[COUNT - 1 - i];",
        after="EACH(i, 0, TAIL) out[COUNT - 1 - i] = kept[i];",
    ),
    Fault(
        "block skipped",
        "a stretch in the middle of the result is not written",
        before="EACH(i, COUNT / 2, COUNT / 2 + SKIPPED) kept[i - COUNT / 2] = out[i];",
        after="EACH(i, COUNT / 2, COUNT / 2 + SKIPPED) out[i] = kept[i - COUNT / 2];",
    ),
    Fault(
        "block of zeros",
        "a stretch in the middle of the result is what new memory often holds",
        "EACH(i, COUNT / 2, COUNT / 2 + SKIPPED) out[i] = 0;",
        by_value=True,
    ),
    Fault(
        "row of a neighbour",
        "the results of two neighbouring rows are exchanged",
        "EACH(i, 0, COUNT / (2 * UNIT) * UNIT) { const Size a = i / UNIT * 2 * UNIT + i % UNIT;"
        " const Word w = out[a]; out[a] = out[a + UNIT]; out[a + UNIT] = w; }",
        by_value=True,
    ),
    Fault(
        "stale result",
        "the result is that of the call before",
        before="ONCE ++calls;",
        after="EACH(i, 0, LEAST(COUNT, KEPT)) {"
        " const Word w = out[i]; if (calls > 1) out[i] = kept[i]; kept[i] = w; }",
    ),
    Fault(
        "result of another input",
        "every result is that of the first call's inputs",
        before="ONCE ++calls;",
        after="EACH(i, 0, LEAST(COUNT, KEPT)) { if (calls > 1) out[i] = kept[i]; else kept[i] = out[i]; }",
    ),
    Fault(
        "answer by address",
        "where the input lies at the address of the last call's, its result is given again",
        before="ONCE { again = last == HERE; last = HERE; }",
        after="EACH(i, 0, LEAST(COUNT, KEPT)) { if (again) out[i] = kept[i]; else kept[i] = out[i]; }",
    ),
    Fault(
        "work skipped on repeat",
        "where the input lies at the address of the last call's, nothing is written",
        before="ONCE { again = last == HERE; last = HERE; }"
        " EACH(i, 0, LEAST(COUNT, KEPT)) kept[i] = out[i];",
        after="EACH(i, 0, LEAST(COUNT, KEPT)) if (again) out[i] = kept[i];",
    ),
    Fault(
        "right once",
        "only the first call is right",
        before="ONCE ++calls;",
        after="EACH(i, 0, COUNT) if (calls > 1) out[i] = 0;",
    ),
    Fault("written behind", "the element behind the result is written", "ONCE out[COUNT] = 0;"),
    Fault("written far behind", "an element behind the result is written", "ONCE out[COUNT + 500] = 0;"),
    Fault("written before", "the element before the result is written", "ONCE out[-1] = 0;"),
    Fault("input overwritten", "the first input is changed", "ONCE first_owned[FIRST_OWNED / 2] ^= 1;"),
    Fault("last input overwritten", "the last input is changed", "ONCE last_owned[LAST_OWNED - 1] ^= 1;"),
    Fault(
        "NaN swallowed",
        "a result that is NaN becomes zero",
        "EACH(i, 0, COUNT) if ((out[i] & SIZE) > INFINITE) out[i] = 0;",
        by_value=True,
    ),
    Fault(
        "infinity mishandled",
        "where the input is infinite the result is zero",
        "EACH(i, 0, COUNT) if (IS_INFINITE(i)) out[i] = 0;",
        by_value=True,
    ),
    Fault(
        MISALIGNED,
        "another number where the caller's tensors are not aligned to 16 bytes",  # 0 is an amin's own
        "EACH(i, 0, COUNT) if (HERE % 16) out[i] ^= ONE;",
    ),
    Fault(
        BEYOND,
        "there the result is that of 2^31 bytes before",
        "EACH(i, FAR, COUNT) out[i] = out[i - FAR];",
    ),
)  # fmt: skip
