"""Records of promotions and rollbacks: a tag on the version, an audit run, and the version's model card."""

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
    """User options of a promotion.

    Attributes:
        gates: settings of the gates.
        is_forced: True to promote the challenger even if a gate fails.
        reason: reason for the record.
    """

    gates: PromoteConfig
    is_forced: bool = False
    reason: str | None = None

    def outcome(self, decision: Decision) -> str:
        """Returns the outcome for a challenger: passed, forced or refused."""
        return "passed" if decision.is_passed else "forced" if self.is_forced else "refused"


@dataclass(frozen=True)
class AuditEntry:
    """Content of the audit run of a promotion or rollback.

    Attributes:
        model: name of the registered model.
        version: version that is promoted or rolled back to.
        run_id: id of its training run, whose experiment holds the audit run; `None` uses the default experiment.
        verdict: outcome: passed, refused, forced or rollback.
        params: parameters of the decision.
        metrics: measured metrics.
        step: step of the checkpoint.
        document: complete machine-readable record.
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
    """Writes an audit run and returns its id. Its tag states that the aliases have not moved yet.

    Raises:
        MlflowException: the store does not respond.
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
    """Records a decision in an audit run, on the version and in its model card, and returns the id of the audit run.

    Args:
        client: client of the store.
        model: name of the registered model.
        challenger: candidate that was evaluated.
        measured: measurements of the challenger and the champion.
        decision: decision of the gates.
        told: user options of the promotion.

    Raises:
        MlflowException: the store does not respond.
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
    """Records a rollback in an audit run and on the replaced version, and returns the id of the audit run.

    Raises:
        MlflowException: the store does not respond.
    """
    document = {"verdict": "rollback", "version": back.version, "instead_of": away, "reason": reason}
    params = {"model": model, "version": back.version, "instead_of": str(away), "reason": reason or ""}
    run_id = write_audit_run(client, AuditEntry(model, back.version, back.run_id, "rollback", params, {}, 0, document))
    if away is not None:
        noted = {"at": _now(), "audit": run_id, "to": back.version, "reason": reason}
        client.set_model_version_tag(model, away, ROLLBACK_TAG, json.dumps(noted))
    return run_id


def decision_to_dict(measured: Measurements, decision: Decision, told: PromotionOptions) -> dict[str, Any]:
    """Returns the measurements and the decision as JSON-compatible data. A mean IoU that is not finite is `None`."""
    evaluation, comparison = measured.evaluation, measured.comparison
    return {
        "verdict": told.outcome(decision),
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
    if measured.champion_evaluation is not None:
        found |= {f"champion/{name}": value for name, value in flat_metrics(measured.champion_evaluation).items()}
    if measured.champion is not None:
        found |= _costs("champion/", measured.champion)
    if measured.comparison is not None:
        found |= _gain(measured.comparison.miou)
    return {name: value for name, value in found.items() if isfinite(value)}


def _costs(prefix: str, evidence: ModelMeasurements) -> dict[str, float]:
    return {f"{prefix}latency_ms": evidence.latency_ms, f"{prefix}size_mib": evidence.size_mib}


def _gain(miou: MetricDelta) -> dict[str, float]:
    return {"gain/miou": miou.delta, "gain/miou_low": miou.interval.low, "gain/miou_high": miou.interval.high}


def _scored(evaluation: Evaluation) -> SplitScores:
    found = evaluation.results
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
