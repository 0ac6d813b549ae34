"""Shapes and command lines as people, scripts and accidents write them."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from tests.fuzz import targets
from tests.fuzz.values import examples, texts

_SHAPES = st.one_of(
    texts,
    st.from_regex(r"[\d\sxX,×()\[\]-]{0,12}", fullmatch=True),
    st.lists(st.integers(0, 10**30), max_size=4).map(lambda dims: "x".join(map(str, dims))),
)
_OPS = st.one_of(st.sampled_from(["softmax", "linear_relu", "rmsnorm", "nothing.py:f"]), texts)
_VALUES = st.one_of(
    texts,
    st.sampled_from(
        ["float16", "int8", "cuda:9", "cpu", "tf32", "eps=1e-5", "weight=none", "60s", "1h", "no.db"]
    ),
)
_NAMES = [
    "--shape", "--dtype", "--policy", "--device", "--trials", "--budget", "--sampler", "--seed", "--jobs",
    "--option", "--op", "--bundle", "--source", "--sign", "--into", "--key",
]  # fmt: skip
_FLAGS = ["--json", "-q", "--no-progress", "--again", "--help", "--nonsense", "-vv"]
_WORDS = st.one_of(
    st.tuples(st.sampled_from(_NAMES), _VALUES),
    st.tuples(st.just("--shape"), _SHAPES),
    st.sampled_from(_FLAGS).map(lambda flag: (flag,)),
    _VALUES.map(lambda value: (value,)),
)
_COMMANDS = ["tune", "list", "show", "trials", "ops", "export", "import", "merge", "none"]


@examples(250)
@given(text=_SHAPES)
def test_any_text_is_a_shape_or_refused(text: str) -> None:
    targets.read_shape(text)


@examples(200)
@given(command=st.sampled_from(_COMMANDS), op=_OPS, words=st.lists(_WORDS, max_size=5))
def test_any_command_line_ends_with_an_answer_or_one_error(
    command: str, op: str, words: list[tuple[str, ...]]
) -> None:
    targets.fill_default_database()
    arguments = [command, op, *itertools.chain(*words)]
    if command in ("export", "import", "merge", "tune"):  # which would write where they are told
        arguments = [word for word in arguments if "/" not in word]
    targets.run_command([word.replace("\0", "") for word in arguments])
