"""The tables of a ksearch database, as typed SQLAlchemy models: the one definition of its layout.

Optuna keeps its own tables (`studies`, `trials`, ...) in the same file; none of these names meets one
of its. `ksearch.runtime.lookup` reads `winners` and `artifacts` by plain SQL, without SQLAlchemy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from sqlalchemy import JSON, BigInteger, ForeignKey, Index, Integer, LargeBinary, UniqueConstraint, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

from ksearch import records
from ksearch.launch import Launch
from ksearch.store.values import Evaluation
from ksearch.types import Option, Outcome, Status, Target, Winner, Workload, canonical_json, digest


class Base(DeclarativeBase):
    type_annotation_map = {  # noqa: RUF012  (SQLAlchemy's own spelling)
        int: BigInteger,
        bytes: LargeBinary,
        dict[str, Any]: JSON(none_as_null=True),
        list[Any]: JSON(none_as_null=True),
    }


class SchemaRow(Base):
    """One applied migration."""

    __tablename__ = "ksearch_schema"

    version: Mapped[int] = mapped_column(Integer, primary_key=True)
    applied_at: Mapped[str]


class WorkloadRow(Base):
    __tablename__ = "workloads"

    key: Mapped[str] = mapped_column(primary_key=True)
    op: Mapped[str] = mapped_column(index=True)
    shape: Mapped[str]
    """Of the full tensors: `4096x393216`; empty for a shape of no dimensions."""
    rows: Mapped[int]
    cols: Mapped[int]
    inner: Mapped[int] = mapped_column(server_default="0")
    """Features that a linear sums over; 0 where there is none."""
    dtype: Mapped[str]
    options: Mapped[list[Any]]
    """Pairs of name and value, sorted by name."""
    program: Mapped[str]
    layout: Mapped[str]
    policy: Mapped[str]
    regime: Mapped[str]

    __table_args__ = (Index("workload_region", "op", "cols", "inner", "dtype"),)

    @classmethod
    def of(cls, workload: Workload) -> WorkloadRow:
        return cls(
            key=workload.key,
            op=workload.op,
            shape="x".join(map(str, workload.shape)),
            rows=workload.rows,
            cols=workload.cols,
            inner=workload.inner,
            dtype=workload.dtype,
            options=[list(pair) for pair in workload.options],
            program=workload.program,
            layout=workload.layout,
            policy=workload.policy,
            regime=workload.regime,
        )

    def value(self) -> Workload:
        options: tuple[tuple[str, Option], ...] = tuple((name, option) for name, option in self.options)
        workload = Workload(
            op=self.op,
            shape=tuple(int(dim) for dim in self.shape.split("x") if dim),
            dtype=self.dtype,
            options=options,
            program=self.program,
            layout=self.layout,
            policy=self.policy,
            regime=self.regime,
            inner=self.inner,
        )
        return records.check_workload(workload)


class TargetRow(Base):
    """A device as it was found; several may share a key (two equal GPUs of one host)."""

    __tablename__ = "targets"

    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    key: Mapped[str] = mapped_column(index=True)
    backend: Mapped[str]
    arch: Mapped[str]
    device: Mapped[str]
    index: Mapped[int]
    units: Mapped[int]
    memory_bytes: Mapped[int]
    smem_bytes: Mapped[int]
    cache_bytes: Mapped[int]

    FIELDS = ("backend", "arch", "device", "index", "units", "memory_bytes", "smem_bytes", "cache_bytes")
    __table_args__ = (UniqueConstraint(*FIELDS),)

    @classmethod
    def of(cls, target: Target) -> TargetRow:
        return cls(key=target.key, **cls.fields(target))

    @classmethod
    def fields(cls, target: Target) -> dict[str, Any]:
        return {name: getattr(target, name) for name in cls.FIELDS}

    def value(self) -> Target:
        return Target(**{name: getattr(self, name) for name in self.FIELDS})


class EnvironmentRow(Base):
    """The versions under which winners were promoted, kept once."""

    __tablename__ = "environments"

    digest: Mapped[str] = mapped_column(primary_key=True)
    versions: Mapped[dict[str, Any]]
    """ksearch, torch, driver, CUDA, compiler, python, os."""

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> EnvironmentRow:
        versions = dict(environment)
        return cls(digest=digest(canonical_json(versions))[:32], versions=versions)


class ArtifactRow(Base):
    """A winner's binary with the exact source that made it: the database needs no other file."""

    __tablename__ = "artifacts"

    digest: Mapped[str] = mapped_column(primary_key=True)
    """SHA-256 of `binary`."""
    source: Mapped[str]
    binary: Mapped[bytes]
    log: Mapped[str]


class EvaluationRow(Base):
    """One evaluated candidate; evaluating the same config again in a study replaces it."""

    __tablename__ = "evaluations"

    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    workload_key: Mapped[str] = mapped_column(ForeignKey("workloads.key"))
    target_id: Mapped[int] = mapped_column(Integer, ForeignKey("targets.id"))
    study: Mapped[str]
    number: Mapped[int]
    """Of the trial in its Optuna study."""
    config: Mapped[dict[str, Any]]
    config_digest: Mapped[str]
    status: Mapped[str]
    time_us: Mapped[float | None]
    spread_us: Mapped[float]
    repeats: Mapped[int]
    error: Mapped[float | None]
    message: Mapped[str]
    artifact_key: Mapped[str | None]
    """Folder of the artifact in the cache; null where nothing was compiled."""
    artifact_digest: Mapped[str | None]
    """SHA-256 of its binary."""
    registers: Mapped[int]
    spill_bytes: Mapped[int]
    compile_s: Mapped[float]
    created: Mapped[str]

    __table_args__ = (UniqueConstraint("workload_key", "target_id", "study", "config_digest"),)

    def value(self) -> Evaluation:
        outcome = Outcome(
            status=Status(self.status),
            time_us=self.time_us,
            spread_us=self.spread_us,
            repeats=self.repeats,
            error=self.error,
            message=self.message,
        )
        records.check_trial(self.number, self.config, outcome)
        return Evaluation(
            study=self.study,
            number=self.number,
            config=self.config,
            outcome=outcome,
            artifact_key=self.artifact_key,
            artifact_digest=self.artifact_digest,
            registers=self.registers,
            spill_bytes=self.spill_bytes,
            compile_s=self.compile_s,
            created=self.created,
        )


class WinnerRow(Base):
    """A promoted answer; the one in force for a (workload, target) is the one not superseded."""

    __tablename__ = "winners"

    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    workload_key: Mapped[str] = mapped_column(ForeignKey("workloads.key"))
    target_id: Mapped[int] = mapped_column(Integer, ForeignKey("targets.id"))
    target_key: Mapped[str]
    config: Mapped[dict[str, Any] | None]
    """Null where PyTorch won."""
    launch: Mapped[dict[str, Any] | None]
    artifact_digest: Mapped[str | None] = mapped_column(ForeignKey("artifacts.digest"))
    time_us: Mapped[float]
    baseline_us: Mapped[float]
    ceiling_us: Mapped[float]
    certificate: Mapped[dict[str, Any]]
    environment_digest: Mapped[str] = mapped_column(ForeignKey("environments.digest"))
    created: Mapped[str]
    superseded: Mapped[str | None]
    """When a newer winner took its place."""

    workload: Mapped[WorkloadRow] = relationship()
    target: Mapped[TargetRow] = relationship()
    environment: Mapped[EnvironmentRow] = relationship()

    __table_args__ = (
        Index(
            "winner_in_force",
            "workload_key",
            "target_key",
            unique=True,
            sqlite_where=text("superseded IS NULL"),
            postgresql_where=text("superseded IS NULL"),
        ),
        # What a list of winners is sorted and narrowed by. In the rows themselves it lies behind certificates
        # of some KB: to rank 100,000 of them took 0.1 s from memory, and takes 0.01 s from this index.
        Index(
            "winner_figures",
            "workload_key",
            "target_key",
            "target_id",
            "artifact_digest",
            "time_us",
            "baseline_us",
            "ceiling_us",
            "created",
            "superseded",
            sqlite_where=text("superseded IS NULL"),
            postgresql_where=text("superseded IS NULL"),
        ),
    )

    @classmethod
    def of(cls, winner: Winner, workload_key: str, target_id: int, environment: EnvironmentRow) -> WinnerRow:
        """In force; the keys are those of the rows that it belongs to."""
        return cls(
            workload_key=workload_key,
            target_id=target_id,
            target_key=winner.target.key,
            config=None if winner.config is None else dict(winner.config),
            launch=None if winner.launch is None else asdict(winner.launch),
            artifact_digest=winner.artifact,
            time_us=winner.time_us,
            baseline_us=winner.baseline_us,
            ceiling_us=winner.ceiling_us,
            certificate=winner.certificate,
            environment_digest=environment.digest,
            created=winner.created,
        )

    def value(self) -> Winner:
        winner = Winner(
            workload=self.workload.value(),
            target=self.target.value(),
            config=self.config,
            launch=None if self.launch is None else Launch.read(self.launch),
            artifact=self.artifact_digest,
            time_us=self.time_us,
            baseline_us=self.baseline_us,
            ceiling_us=self.ceiling_us,
            certificate=self.certificate,
            created=self.created,
        )
        return records.check_winner(winner)


class KillTableRow(Base):
    """What the validator made of planted wrong kernels, kept while nothing that decides it changes."""

    __tablename__ = "kill_tables"

    key: Mapped[str] = mapped_column(primary_key=True)
    """Digest of `facts`, op and target."""
    op: Mapped[str]
    facts: Mapped[dict[str, Any]]
    """Form of the workload, digests of the template and of the validator, versions."""
    target_key: Mapped[str]
    kills: Mapped[list[Any]]
    """A list of mutant, verdict and message for each."""
    created: Mapped[str]
