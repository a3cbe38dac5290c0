"""What is kept of a promotion: a decision on the version, a run for whoever asks later, and the version's card."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from math import isfinite
from typing import Any

from mlflow.tracking import MlflowClient

from segray.config import PromoteConfig
from segray.evaluation.compare import MetricDelta
from segray.evaluation.evaluate import Evaluation, flat_metrics
from segray.promotion.aliases import MOVED_TAG
from segray.promotion.gates import Decision, ModelMeasurements
from segray.promotion.measure import Candidate, Measurements
from segray.tracking.evaluations import KIND_TAG, log_metrics_and_params
from segray.tracking.model_card import SplitScores, render_card
from segray.tracking.registry import card_data

PROMOTION, DECISION_TAG = "promotion", "segray.decision"

PROMOTION_TAG, ROLLBACK_TAG = "segray.promotion", "segray.rollback"

MODEL_TAG, VERSION_TAG = "segray.model", "segray.version"

DEFAULT_EXPERIMENT = "0"


@dataclass(frozen=True)
class PromotionOptions:
    """What the user said to a promotion.

    Attributes:
        gates: what was asked of the challenger.
        is_forced: whether it is promoted whatever they say.
        reason: why.
    """

    gates: PromoteConfig
    is_forced: bool = False
    reason: str | None = None

    def verdict(self, decision: Decision) -> str:
        """Returns what becomes of a challenger."""
        return "passed" if decision.is_passed else "forced" if self.is_forced else "refused"


@dataclass(frozen=True)
class AuditEntry:
    """The run that is written of a promotion or rollback.

    Attributes:
        model: registered model.
        version: that is promoted, or gone back to.
        run_id: of its training run, whose experiment the audit belongs to; none takes the default one.
        verdict: passed, refused, forced or rollback.
        params: what it was decided by.
        metrics: what was measured.
        step: of the checkpoint.
        document: all of it, for programs.
    """

    model: str
    version: str
    run_id: str | None
    verdict: str
    params: Mapping[str, str]
    metrics: Mapping[str, float]
    step: int
    document: Mapping[str, Any]


def write_audit_run(client: MlflowClient, audit: AuditEntry) -> str:
    """Writes the run of an audit and returns its id; the aliases have not moved yet, and it says so.

    Raises:
        MlflowException: the store does not answer.
    """
    known = client.get_run(audit.run_id).info.experiment_id if audit.run_id else DEFAULT_EXPERIMENT
    tags = {KIND_TAG: PROMOTION, DECISION_TAG: audit.verdict, MOVED_TAG: "no"}
    tags |= {MODEL_TAG: audit.model, VERSION_TAG: audit.version}
    what = "rollback" if audit.verdict == "rollback" else "promotion"
    run = client.create_run(known, tags=tags, run_name=f"{what} of {audit.model} {audit.version}")
    run_id = str(run.info.run_id)
    log_metrics_and_params(client, run_id, audit.step, audit.metrics, audit.params)
    client.log_dict(run_id, dict(audit.document), "decision.json")
    client.set_terminated(run_id, "FINISHED")
    return run_id


def record_decision(
    client: MlflowClient,
    model: str,
    challenger: Candidate,
    measured: Measurements,
    decision: Decision,
    told: PromotionOptions,
) -> str:
    """Writes down what was decided, on the version, its card and in an audit, and returns the audit's run.

    Args:
        client: of the store.
        model: registered model.
        challenger: that was judged.
        measured: of it and the champion.
        decision: of it.
        told: what the user said to it.

    Raises:
        MlflowException: the store does not answer.
    """
    document = decision_to_dict(measured, decision, told)
    run_id = write_audit_run(
        client,
        AuditEntry(
            model=model,
            version=challenger.version,
            run_id=challenger.run_id,
            verdict=document["verdict"],
            params=_params(measured.evaluation, decision, told),
            metrics=_metrics(measured),
            step=measured.evaluation.step,
            document=document,
        ),
    )
    short = {name: document[name] for name in ("verdict", "reason", "champion", "split", "dataset_digest", "checks")}
    noted = {"at": _now(), "audit": run_id, **short}
    client.set_model_version_tag(model, challenger.version, PROMOTION_TAG, json.dumps(noted))
    if challenger.run_id:
        facts = card_data(client, challenger.run_id, challenger.folder, model, [_scored(measured.evaluation)])
        client.update_model_version(model, challenger.version, render_card(facts))
    return run_id


def record_rollback(client: MlflowClient, model: str, back: Candidate, away: str | None, reason: str | None) -> str:
    """Writes down that a version is gone back to, and returns the audit's run.

    Raises:
        MlflowException: the store does not answer.
    """
    document = {"verdict": "rollback", "version": back.version, "instead_of": away, "reason": reason}
    params = {"model": model, "version": back.version, "instead_of": str(away), "reason": reason or ""}
    run_id = write_audit_run(client, AuditEntry(model, back.version, back.run_id, "rollback", params, {}, 0, document))
    if away is not None:
        noted = {"at": _now(), "audit": run_id, "to": back.version, "reason": reason}
        client.set_model_version_tag(model, away, ROLLBACK_TAG, json.dumps(noted))
    return run_id


def decision_to_dict(measured: Measurements, decision: Decision, told: PromotionOptions) -> dict[str, Any]:
    """Returns what was measured and decided, for programs; what is not a number is none."""
    evaluation, comparison = measured.evaluation, measured.comparison
    return {
        "verdict": told.verdict(decision),
        "reason": told.reason,
        "version": decision.challenger,
        "champion": decision.champion,
        "checks": [asdict(check) for check in decision.checks],
        "gates": told.gates.model_dump(mode="json"),
        "data": evaluation.root,
        "dataset_digest": evaluation.dataset_digest,
        "split": evaluation.split,
        "rows": evaluation.rows,
        "bad_rows": list(evaluation.bad_rows),
        "measured": {
            "challenger": _figures(measured.challenger),
            "champion": _figures(measured.champion) if measured.champion else None,
        },
        "comparison": comparison.as_json() if comparison else None,
    }


def _figures(evidence: ModelMeasurements) -> dict[str, Any]:
    found = asdict(evidence)
    return found | {"miou": found["miou"] if found["miou"] is not None and isfinite(found["miou"]) else None}


def _params(evaluation: Evaluation, decision: Decision, told: PromotionOptions) -> dict[str, str]:
    given = {f"promote.{name}": str(value) for name, value in told.gates.model_dump(mode="json").items()}
    return given | {
        "version": decision.challenger,
        "champion": str(decision.champion),
        "data": evaluation.root,
        "split": evaluation.split,
        "dataset_digest": evaluation.dataset_digest,
        "reason": told.reason or "",
    }


def _metrics(measured: Measurements) -> dict[str, float]:
    found = flat_metrics(measured.evaluation) | _costs("", measured.challenger)
    if measured.other is not None:
        found |= {f"champion/{name}": value for name, value in flat_metrics(measured.other).items()}
    if measured.champion is not None:
        found |= _costs("champion/", measured.champion)
    if measured.comparison is not None:
        found |= _gain(measured.comparison.miou)
    return {name: value for name, value in found.items() if isfinite(value)}


def _costs(prefix: str, evidence: ModelMeasurements) -> dict[str, float]:
    return {f"{prefix}latency_ms": evidence.latency_ms, f"{prefix}size_mib": evidence.size_mib}


def _gain(miou: MetricDelta) -> dict[str, float]:
    return {"gain/miou": miou.gain, "gain/miou_low": miou.interval.low, "gain/miou_high": miou.interval.high}


def _scored(evaluation: Evaluation) -> SplitScores:
    found = evaluation.found
    return SplitScores(
        split=evaluation.split,
        digest=evaluation.dataset_digest,
        means={name: getattr(found.scores, name) for name in ("miou", "macc", "aacc")},
        interval=found.miou_interval,
        classes=found.scores.iou,
        intervals=found.iou_intervals,
        rows=evaluation.rows,
    )


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
