"""Study files, bundles and databases of anyone's making."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ksearch import operators, records
from ksearch.errors import BundleError, StoreError, UsageError
from ksearch.export.kernel import ExportedKernel
from ksearch.launch import Launch
from ksearch.runtime.bundle_file import BundleFile
from ksearch.store import Store
from ksearch.types import Winner, digest
from tests.fuzz import targets
from tests.fuzz.values import examples, scalars, texts, values

_KEYS = ("op", "shape", "shapes", "dtype", "dtypes", "policy", "options", "needs", "weight", "calls", "x")


def toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return json.dumps(value.encode("utf-8", "replace").decode())
    if isinstance(value, list):
        return f"[{', '.join(map(toml, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{toml(str(key))} = {toml(each)}' for key, each in value.items())}}}"
    return "inf" if value is None else str(value)


@examples(250)
@given(
    head=st.dictionaries(
        st.sampled_from(["name", "budget_s", "trials", "dtype", "device", "y"]), values, max_size=3
    ),
    tables=st.lists(st.dictionaries(st.sampled_from(_KEYS), values, max_size=4), max_size=2),
    valid=st.booleans(),
)
def test_a_study_of_any_values_is_read_or_refused(
    head: dict[str, Any], tables: list[dict[str, Any]], valid: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.getbasetemp()
    lines = ["[study]", *(f"{key} = {toml(value)}" for key, value in head.items())]
    for table in tables:
        facts = {"op": "softmax", "shape": [4, 8], **table} if valid else table
        lines += ["[[workload]]", *(f"{key} = {toml(value)}" for key, value in facts.items())]
    targets.read_study("\n".join(lines).encode("utf-8", "replace"), folder)


@examples(150)
@given(content=st.one_of(st.binary(max_size=200), texts.map(lambda text: text.encode("utf-8", "replace"))))
def test_any_bytes_are_no_study(content: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    targets.read_study(content, tmp_path_factory.getbasetemp())


def test_a_study_that_nests_without_end_is_refused(tmp_path: Path) -> None:
    for text in ("a = " + "[" * 100_000, "a = " + "{b=" * 50_000, "a = " + "9" * 10_000):
        path = tmp_path / "s.toml"
        path.write_text(text)
        with pytest.raises(UsageError, match="is not TOML"):
            targets.study_file.read(path)


# ---- bundles --------------------------------------------------------------------------------------------


@examples(150)
@given(at=st.integers(0, 10_000), some=st.binary(min_size=1, max_size=40), cut=st.booleans())
def test_a_bundle_with_other_bytes_is_refused_or_the_same(
    at: int, some: bytes, cut: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    whole = targets.bundle()
    at %= len(whole)
    content = whole[:at] + some + (b"" if cut else whole[at + len(some) :])
    targets.open_bundle(content, tmp_path_factory.mktemp("bundle", numbered=True))


def _put(value: Any, where: list[int]) -> Callable[[Any], Any]:
    """In the place of a part, which a list of numbers leads to."""

    def change(tree: Any) -> Any:
        node, path = tree, list(where)
        while path:
            keys = sorted(node) if isinstance(node, dict) else list(range(len(node)))
            if not keys:
                return value
            key = keys[path.pop(0) % len(keys)]
            if not path or not isinstance(node[key], dict | list):
                node[key] = value
                return tree
            node = node[key]
        return value

    return change


@examples(150)
@given(
    part=st.sampled_from(["header", "page", "winner"]),
    where=st.lists(st.integers(0, 30), max_size=4),
    value=values,
)
def test_a_crafted_bundle_is_refused_with_one_clear_error(
    part: str, where: list[int], value: Any, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Every digest in it is right: whoever made it knew how."""
    content = targets.sealed(targets.parts_of_bundle(), **{part: _put(value, where)})  # type: ignore[arg-type]
    targets.open_bundle(content, tmp_path_factory.mktemp("crafted", numbered=True))


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("header", lambda it: {}),
        ("header", lambda it: [1]),
        ("header", lambda it: {**it, "pages": [["a", 1]]}),
        ("header", lambda it: {**it, "pages": [["a", 0, 2**60, "x"]]}),
        ("page", lambda it: {key: {} for key in it}),
        ("page", lambda it: {key: {**parts, "binary": [-1, 5, "x"]} for key, parts in it.items()}),
        ("winner", lambda it: {**it, "workload": {**it["workload"], "op": "../../.ssh/keys"}}),
        ("winner", lambda it: {**it, "workload": {**it["workload"], "op": "evil.py:run"}}),
        ("winner", lambda it: {**it, "workload": {**it["workload"], "shape": [0, 8]}}),
        ("winner", lambda it: {**it, "time_us": 0}),
        ("winner", lambda it: {**it, "artifact": "../../x"}),
        ("winner", lambda it: {**it, "launch": {"block": "; rm"}}),
        ("winner", lambda it: {**it, "config": {"a": [1]}}),
        ("winner", lambda it: {**it, "certificate": {"near": [[1]]}}),
        ("winner", lambda it: {**it, "environment": {"torch": 2}}),
        ("winner", lambda it: 7),
    ],
)  # fmt: skip
def test_what_no_bundle_of_ours_holds_is_a_bundle_error(part: str, change: Any, tmp_path: Path) -> None:
    path = tmp_path / "b.ksb"
    path.write_bytes(targets.sealed(targets.parts_of_bundle(), **{part: change}))
    with pytest.raises(BundleError) as caught:
        list(BundleFile(path).members())
    targets.clear(caught.value)
    assert str(path) in str(caught.value)


def test_what_is_put_together_again_is_a_bundle(tmp_path: Path) -> None:
    """Else the tests above would see refusals only."""
    path = tmp_path / "b.ksb"
    path.write_bytes(targets.sealed(targets.parts_of_bundle()))
    assert [member.binary for member in BundleFile(path).members()].count(b"binary") == 1


# ---- databases ------------------------------------------------------------------------------------------


@examples(50)
@given(
    cell=st.sampled_from(targets.CELLS),
    value=st.one_of(scalars, st.binary(max_size=9), values.map(json.dumps)),
)
def test_a_cell_of_any_value_is_read_or_refused(
    cell: tuple[str, str], value: Any, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.getbasetemp()
    targets.read_database(targets.database(), folder, (*cell, value))


@examples(30)
@given(at=st.integers(0, 1_000_000), some=st.binary(min_size=1, max_size=200))
def test_a_database_with_other_bytes_is_read_or_refused(
    at: int, some: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    whole = targets.database()
    at %= len(whole)
    content = whole[:at] + some + whole[at + len(some) :]
    targets.read_database(content, tmp_path_factory.getbasetemp())


def test_an_op_of_a_database_names_no_file(tmp_path: Path) -> None:
    """It becomes part of a path, and of what is resolved, which runs files."""
    for name in ("../../x", "/tmp/evil.py:run", "a b", ""):
        path = tmp_path / "k.db"
        targets.read_database(targets.database(), tmp_path, ("workloads", "op", name))
        with pytest.raises(StoreError, match="op is "), Store.open(path, readonly=True) as store:
            store.winners()


@pytest.mark.parametrize("value", ['"""\nimport os\n', "x\\", "*/ int main() {", "\u2028", "a\nb"])
def test_no_text_of_a_database_ends_a_comment_of_an_exported_source(value: str) -> None:
    """Names of devices and values of a config stand in the head of the file."""
    target = replace(targets.TARGET, device=value)
    launch = Launch(threads=2)
    workload = operators.get("softmax").workload((4, 8))
    winner = Winner(workload, target, {"mode": value}, launch, digest(b"x"), 1.0, 2.0, 0.5)
    try:
        records.check_winner(winner)
    except ValueError:
        assert not value.isprintable()
        return
    kernel = ExportedKernel.of(operators.get("softmax"), winner, "int x;")
    assert all(not set('"\\\n') & set(line) for line in kernel.summary)
