from __future__ import annotations

import sqlite3

import pytest
from sqlalchemy import Connection, inspect, text

from ksearch import database
from ksearch.errors import NewerSchema, StoreError
from ksearch.runtime import lookup
from ksearch.store import Kill, KillTable, Store, engine
from ksearch.store.migrations import STEPS, migrate, version
from ksearch.types import Target, Winner, Workload

OPTUNA_TABLES = {
    "alembic_version",
    "studies",
    "study_directions",
    "study_system_attributes",
    "study_user_attributes",
    "trials",
    "trial_heartbeats",
    "trial_intermediate_values",
    "trial_params",
    "trial_system_attributes",
    "trial_user_attributes",
    "trial_values",
    "version_info",
}


@pytest.fixture
def writer(tmp_path):
    opened = engine.writable(tmp_path / "k.db", timeout_s=1.0).execution_options(writes=True)
    yield opened
    opened.dispose()


def add_note(connection: Connection) -> None:
    connection.execute(text("ALTER TABLE winners ADD COLUMN note TEXT"))


def break_down(connection: Connection) -> None:
    connection.execute(text("CREATE TABLE half_done (x INTEGER)"))
    raise RuntimeError("power cut")


def columns(writer) -> set[str]:
    return {column["name"] for column in inspect(writer).get_columns("winners")}


def test_the_loader_knows_the_number_of_steps():
    assert len(STEPS) == database.SCHEMA_VERSION


def test_a_new_file_gets_every_table_and_a_record_of_it(writer):
    migrate(writer)
    tables = set(inspect(writer).get_table_names())
    expected = {
        "ksearch_schema",
        "workloads",
        "targets",
        "environments",
        "artifacts",
        "evaluations",
        "winners",
        "kill_tables",
    }
    assert tables == expected
    assert not tables & OPTUNA_TABLES
    with writer.connect() as connection:
        assert version(connection) == database.SCHEMA_VERSION
        applied = connection.execute(text("SELECT version, applied_at FROM ksearch_schema")).all()
    assert [number for number, _ in applied] == list(range(1, database.SCHEMA_VERSION + 1))
    assert all(at.startswith("20") for _, at in applied)


def test_an_older_file_is_walked_forward_once_and_keeps_its_rows(writer):
    migrate(writer)
    with writer.begin() as connection:
        connection.execute(text("INSERT INTO environments VALUES ('d', '{}')"))
    assert "note" not in columns(writer)
    migrate(writer, [*STEPS, add_note])
    migrate(writer, [*STEPS, add_note])
    assert "note" in columns(writer)
    with writer.connect() as connection:
        assert version(connection) == len(STEPS) + 1
        assert connection.scalar(text("SELECT count(*) FROM environments")) == 1


def test_workloads_from_before_there_were_linears_have_none(writer, tmp_path):
    """The file as version 1 had it: its winners are still found, by the loader even before it is mended."""
    path = tmp_path / "k.db"
    workload, target = Workload("softmax", (4, 8)), Target("cpu", "x86_64", "CPU")
    winner = Winner(workload, target, None, None, None, 1.0, 1.0, 1.0)
    with Store.open(path) as store:
        store.promote(winner, source=None, binary=None, environment={})
    with writer.begin() as connection:
        connection.execute(text("DROP INDEX winner_figures"))
        connection.execute(text("DROP TABLE kill_tables"))
        connection.execute(text("DROP INDEX workload_region"))
        connection.execute(text('ALTER TABLE workloads DROP COLUMN "inner"'))
        connection.execute(text("DELETE FROM ksearch_schema WHERE version > 1"))
    assert lookup.find(path, workload, target).winner.workload == workload
    with pytest.raises(StoreError, match="written by an older ksearch"):
        Store.open(path, readonly=True)
    with Store.open(path) as store:
        found = store.find(workload, target)
        table = KillTable("softmax", target.key, {"dtype": "float32"}, (Kill("zeros", "wrong", "unwritten"),))
        store.keep_kills(table)
        assert store.kills("softmax", target, {"dtype": "float32"}) == table
    assert found is not None
    assert (found.workload, found.workload.inner) == (workload, 0)


def test_a_step_that_fails_leaves_the_file_as_it_was(writer):
    migrate(writer)
    with pytest.raises(RuntimeError, match="power cut"):
        migrate(writer, [*STEPS, add_note, break_down])
    with writer.connect() as connection:
        assert version(connection) == len(STEPS) + 1, "the step before it holds"
    assert "half_done" not in inspect(writer).get_table_names()


def test_a_newer_file_is_refused(writer, tmp_path):
    migrate(writer, [*STEPS, add_note])
    with pytest.raises(NewerSchema, match=r"k\.db was written by a newer ksearch"):
        migrate(writer)


def test_one_winner_in_force_is_a_rule_of_the_database_itself(tmp_path):
    with Store.open(tmp_path / "k.db"):
        pass
    connection = sqlite3.connect(tmp_path / "k.db")
    row = "NULL, 'w', 1, 't', NULL, NULL, NULL, 1, 1, 1, '{}', 'e', 'now'"
    connection.execute(f"INSERT INTO winners VALUES ({row}, 'before')")
    connection.execute(f"INSERT INTO winners VALUES ({row}, NULL)")
    with pytest.raises(sqlite3.IntegrityError):
        connection.execute(f"INSERT INTO winners VALUES ({row}, NULL)")
    connection.close()
