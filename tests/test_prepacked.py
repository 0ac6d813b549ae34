"""Prepacked linears through the whole loop on the CPU: declared, found and kept apart from plain ones."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import ksearch
from ksearch import env, operators, study_file, tuner
from ksearch.certificate import Certificate
from ksearch.errors import UsageError
from ksearch.export.kernel import ExportedKernel
from ksearch.report import certificate
from ksearch.store import Store
from ksearch.store.narrowed import Filter, count
from ksearch.tuner import tune
from ksearch.types import Winner
from ksearch.verify import verify
from tests.winners import at, put_in_force

OP, SHAPE = "linear_sigmoid_scale_residual", (16, 64, 96)


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("prepacked") / "ksearch.db"


@pytest.fixture(scope="module")
def winners(database: Path) -> dict[bool, Winner]:
    """Of both modes, in one database; the prepacked one out of a search."""
    put_in_force(database.parent, "cpu", [operators.get(OP).workload(SHAPE)])
    with at(database.parent) as patch:
        patch.setattr(tuner, "_FINAL_S", 0.3)
        report = tune(OP, SHAPE, device="cpu", trials=2, prepacked=True, db=database)
    assert report.trials == 2
    with Store.open(database, readonly=True) as store:
        return {winner.workload.is_prepacked: winner for winner in store.winners()}


def test_both_modes_have_their_own_winner(winners: dict[bool, Winner], database: Path) -> None:
    plain, packed = winners[False], winners[True]
    assert (plain.workload.regime, packed.workload.regime) == ("cold", "prepacked")
    with Store.open(database, readonly=True) as store:
        assert store.find(plain.workload, plain.target) == plain
        assert store.find(packed.workload, packed.target) == packed
        assert [count(store, Filter(prepacked=asked)) for asked in (None, False, True)] == [2, 1, 1]
        wide = operators.get(OP).workload((32, *SHAPE[1:]), prepacked=True)
        assert all(each.workload.is_prepacked for each in store.neighbours(wide, packed.target))


def test_the_certificate_tells_what_packing_takes(winners: dict[bool, Winner]) -> None:
    packed = Certificate.read(winners[True].certificate)
    if packed.samples_us is not None:
        assert packed.packing is not None
        assert packed.packing.time_us > 0
        assert packed.packing.size_bytes >= 4 * SHAPE[1] * SHAPE[2]
        said = dict(certificate.lines(winners[True], {}))
        assert "that no sample counts" in said["packing"]
    assert Certificate.read(winners[False].certificate).packing is None


def test_what_shows_the_policy_shows_the_mode(
    winners: dict[bool, Winner], database: Path, run: Callable[..., tuple[int, str, str]]
) -> None:
    def said(*words: str) -> str:
        status, text, error = run(*words, "--db", database)
        assert status == 0, error
        return text

    one = (OP, "--shape", "x".join(map(str, SHAPE)))
    rows = json.loads(said("list", "--json"))
    assert sorted(row["prepacked"] for row in rows) == [False, True]
    assert "strict prepacked" in said("list")
    for narrowing, kept in (("--prepacked", True), ("--plain", False)):
        (row,) = json.loads(said("show", *one, narrowing, "--json"))
        assert row["prepacked"] is kept
    compared = json.loads(said("compare", *one, "--json"))
    assert sorted(row["prepacked"] for row in compared["winners"]) == [False, True]
    assert "strict prepacked" in said("compare", *one)
    assert "prepacked=weight" in said("show", *one, "--prepacked")


def test_a_certificate_is_done_again(winners: dict[bool, Winner], database: Path) -> None:
    with Store.open(database) as store:
        (verified,) = verify(store, [winners[True]], race_s=0.2)
    kinds = {str(finding.kind) for finding in verified.findings}
    assert not kinds & {"wrong", "digest", "left"}, verified.findings


def test_the_handle_runs_what_was_tuned(winners: dict[bool, Winner], database: Path) -> None:
    x, weight, bias = torch.randn(SHAPE[0], SHAPE[1]), torch.randn(SHAPE[2], SHAPE[1]), torch.randn(SHAPE[2])
    handle = ksearch.load(OP, SHAPE, device="cpu", db=database, prepacked=weight)
    assert handle.winner == winners[True]
    right = operators.get(OP).reference(x.double(), weight.double(), bias.double())
    torch.testing.assert_close(handle(x, bias).double(), right, rtol=1e-5, atol=1e-5)


def test_a_source_file_is_refused(winners: dict[bool, Winner]) -> None:
    packed = replace(winners[False], workload=winners[True].workload)  # a kernel, whoever won
    with pytest.raises(UsageError, match="nothing to pack it with: export a bundle"):
        ExportedKernel.of(operators.get(OP), packed, "// its source")


def test_a_study_declares_it(tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    path.write_text(
        f'[[workload]]\nop = "{OP}"\nshape = "16x64x96"\n'
        f'[[workload]]\nop = "{OP}"\nshape = "16x64x96"\nprepacked = true\n'
    )
    entries = study_file.read(path).entries
    assert [entry.prepacked for entry in entries] == [False, True]
    assert str(entries[1]) == f"{OP} 16x64x96 float32 prepacked"
    path.write_text('[[workload]]\nop = "softmax"\nshape = "4x8"\nprepacked = true\n')
    with pytest.raises(UsageError, match="prepacked: prepacked is for linear layers, and softmax has none"):
        study_file.read(path)
    path.write_text('[[workload]]\nop = "linear"\nshape = "4x8x8"\nprepacked = 1\n')
    with pytest.raises(UsageError, match="1 must be true or false"):
        study_file.read(path)


def test_what_the_cpu_has_no_packed_form_of_is_refused_before_anything_starts() -> None:
    with pytest.raises(UsageError, match=r"float16 has no prepacked kernel on .*leave prepacked out"):
        tune("linear_gelu", (8, 64, 64), dtype="float16", prepacked=True, device="cpu", trials=1)
    assert not env.database_path().exists()
