"""Results as plain dictionaries: the one definition of what `--json` prints.

Numbers that are not finite become null, because JSON has no word for them.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from ksearch.operators.signature import NONE
from ksearch.types import Status, Target, Winner, Workload

if TYPE_CHECKING:
    from ksearch.doctor import Diagnosis
    from ksearch.gains import Gain
    from ksearch.operators import Op
    from ksearch.store import Evaluation
    from ksearch.study_run import Result, StudyReport
    from ksearch.tuner import Report


def workload_row(workload: Workload) -> dict[str, Any]:
    """What names a workload: every row that is about one begins with it."""
    return {
        "op": workload.op,
        "shape": list(workload.dims),
        "dtype": workload.dtype,
        "policy": workload.policy,
        "prepacked": workload.is_prepacked,
        "options": dict(workload.options),
    }


def place_row(workload: Workload, target: Target) -> dict[str, Any]:
    """A workload on a device."""
    return {
        **workload_row(workload),
        "device": target.device,
        "backend": target.backend,
        "arch": target.arch,
    }


def winner_row(winner: Winner, db: str) -> dict[str, Any]:
    """One winner, as `ksearch list` shows it."""
    return {
        **place_row(winner.workload, winner.target),
        "status": winner.status,
        "time_us": winner.time_us,
        "baseline_us": winner.baseline_us,
        "speedup": winner.speedup,
        "speedup_ci": winner.certificate.get("speedup_ci"),
        "ceiling_us": winner.ceiling_us,
        "percent_of_ceiling": winner.percent_of_ceiling,
        "config": winner.config,
        "created": winner.created,
        "db": db,
    }


def tuned_row(report: Report) -> dict[str, Any]:
    """The result of one tuning run, as `ksearch tune --json` prints it."""
    return {
        **winner_row(report.winner, report.db),
        "trials": report.trials,
        "ended": report.ended,
        "failures": report.failures,
        "first_failures": report.first_failures,
        "elapsed_s": report.elapsed_s,
        "phases_s": report.phases_s,
    }


def study_row(report: StudyReport) -> dict[str, Any]:
    """A study and what became of its workloads, as `ksearch tune --study --json` prints it."""
    return {
        "study": report.study,
        "db": report.db,
        "elapsed_s": report.elapsed_s,
        "complete": report.is_complete,
        "interrupted": report.interrupted,
        "workloads": [_result_row(result, report.db) for result in report.results],
    }


def _result_row(result: Result, db: str) -> dict[str, Any]:
    """A winner's row where there is one, else what was asked for; `state` says what became of it."""
    entry = result.entry
    row: dict[str, Any] = {"op": entry.name, "shape": list(entry.shape), "dtype": entry.dtype}
    row |= {"policy": entry.policy, "prepacked": entry.prepacked, "options": dict(entry.options)}
    row |= {"trials": result.trials, "elapsed_s": result.elapsed_s}
    if result.report is not None:
        row |= tuned_row(result.report)
    elif result.winner is not None:
        row |= winner_row(result.winner, db)
    return {**row, "state": str(result.state), "reason": result.reason}


def shown_row(
    winner: Winner,
    evaluations: Iterable[Evaluation],
    environment: Mapping[str, str],
    source: str | None,
    db: str,
) -> dict[str, Any]:
    """One winner with its evidence, as `ksearch show --json` prints it; `source` is a path.

    `environment`: versions, clocks and whatever else the machine said when it was measured.
    """
    statuses = Counter(evaluation.outcome.status for evaluation in evaluations)
    return {
        **winner_row(winner, db),
        "trials": statuses.total(),
        "failures": {str(status): n for status, n in statuses.items() if status is not Status.PASSED},
        "launch": None if winner.launch is None else asdict(winner.launch),
        "artifact": winner.artifact,
        "source": source,
        "certificate": winner.certificate,
        "environment": dict(environment),
    }


def trial_row(evaluation: Evaluation, workload: Workload, target: Target) -> dict[str, Any]:
    """One evaluated candidate, as `ksearch trials` shows it."""
    outcome = evaluation.outcome
    return {
        **workload_row(workload),
        "device": target.device,
        "study": evaluation.study,
        "number": evaluation.number,
        "status": str(outcome.status),
        "time_us": outcome.time_us,
        "spread_us": outcome.spread_us,
        "error": outcome.error,
        "message": outcome.message,
        "config": evaluation.config,
        "registers": evaluation.registers,
        "compile_s": evaluation.compile_s,
    }


def gain_row(gain: Gain) -> dict[str, Any]:
    """What is to be gained of one workload, as `ksearch top` shows it."""
    return {
        **place_row(gain.workload, gain.target),
        "calls": gain.calls,
        "time_us": gain.time_us,
        "ceiling_us": gain.ceiling_us,
        "gain_us": gain.gain_us,
        "state": gain.state,
    }


def op_row(op: Op) -> dict[str, Any]:
    """One op that can be tuned, as `ksearch ops` shows it."""
    return {
        "op": op.name,
        "family": op.program().family,
        "inputs": [_input_row(item.name, op.roles(item)) for item in op.inputs],
        "options": dict(op.options),
        "torch_function": op.torch_function,
    }


def _input_row(name: str, roles: Sequence[str]) -> dict[str, Any]:
    usual = next(role for role in roles if role != NONE)
    return {"name": name, "role": usual, "roles": list(roles)}


def diagnosis_row(diagnosis: Diagnosis) -> dict[str, Any]:
    """What `ksearch doctor` found."""
    return {
        "can_tune": bool(diagnosis.backends),
        "backends": list(diagnosis.backends),
        "findings": [asdict(finding) for finding in diagnosis.findings],
    }


def to_json(value: Any) -> str:
    """Indented JSON of a row or a list of rows."""
    return json.dumps(finite(value), indent=2, default=str, allow_nan=False)


def finite(value: Any) -> Any:
    """The same with null for what JSON has no number for, and every mapping a dict."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value
