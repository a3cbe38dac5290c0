"""Records of promotions and rollbacks: a tag on the version, an audit run, and the version's model card."""

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from math import isfinite
from typing import Any

from mlflow.tracking import MlflowClient

from segray.config import PromoteConfig
from segray.core.numbers import nan_to_none
from segray.evaluation.evaluate import Evaluation, flat_metrics
from segray.promotion.gates import Decision, ModelMeasurements
from segray.promotion.measure import Candidate, Measurements
from segray.tracking.client import UNAVAILABLE, all_pages, error_summary
from segray.tracking.metric_names import log_metrics_and_params
from segray.tracking.model_card import SplitScores, render_card
from segray.tracking.registry import card_data
from segray.tracking.tags import (
    DECISION_TAG,
    INTERRUPTED_TAG,
    KIND_TAG,
    MODEL_TAG,
    MOVED_TAG,
    PROMOTION,
    PROMOTION_TAG,
    ROLLBACK_TAG,
    VERSION_TAG,
)

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


def write_audit_run(client: MlflowClient, entry: AuditEntry) -> str:
    """Writes an audit run and returns its id. Its tag states that the aliases have not moved yet.

    Raises:
        MlflowException: the store does not respond.
    """
    experiment_id = client.get_run(entry.run_id).info.experiment_id if entry.run_id else DEFAULT_EXPERIMENT
    tags = {KIND_TAG: PROMOTION, DECISION_TAG: entry.verdict, MOVED_TAG: "no"}
    tags |= {MODEL_TAG: entry.model, VERSION_TAG: entry.version}
    kind = "rollback" if entry.verdict == "rollback" else "promotion"
    run = client.create_run(experiment_id, tags=tags, run_name=f"{kind} of {entry.model} {entry.version}")
    run_id = str(run.info.run_id)
    try:
        log_metrics_and_params(client, run_id, entry.step, entry.metrics, entry.params)
        client.log_dict(run_id, dict(entry.document), "decision.json")
    except Exception as error:
        with suppress(*UNAVAILABLE):  # end_interrupted_audits ends a run that remains
            client.set_tag(run_id, INTERRUPTED_TAG, error_summary(error))
            client.set_terminated(run_id, "FAILED")
        raise
    client.set_terminated(run_id, "FINISHED")
    return run_id


def end_interrupted_audits(client: MlflowClient, model: str) -> None:
    """Ends the audit runs of a model whose process died before it completed them.

    The caller holds the lock of the model. No other process writes an audit run then.

    Raises:
        MlflowException: the store does not respond.
    """
    experiments = all_pages(client.search_experiments)
    query = f"attributes.status = 'RUNNING' and tags.`{KIND_TAG}` = '{PROMOTION}'"
    runs = all_pages(client.search_runs, [experiment.experiment_id for experiment in experiments], query)
    for run in runs:
        if run.data.tags.get(MODEL_TAG) == model:
            client.set_tag(run.info.run_id, INTERRUPTED_TAG, "the process stopped before the record was complete")
            client.set_terminated(run.info.run_id, "KILLED")


def record_decision(
    client: MlflowClient,
    model: str,
    challenger: Candidate,
    measurements: Measurements,
    decision: Decision,
    options: PromotionOptions,
) -> str:
    """Records a decision in an audit run, on the version and in its model card, and returns the id of the audit run.

    Args:
        client: client of the store.
        model: name of the registered model.
        challenger: candidate that was evaluated.
        measurements: measurements of the challenger and the champion.
        decision: decision of the gates.
        options: user options of the promotion.

    Raises:
        MlflowException: the store does not respond.
    """
    document = decision_to_dict(measurements, decision, options)
    run_id = write_audit_run(
        client,
        AuditEntry(
            model=model,
            version=challenger.version,
            run_id=challenger.run_id,
            verdict=document["verdict"],
            params=_params(measurements.evaluation, decision, options),
            metrics=_metrics(measurements),
            step=measurements.evaluation.step,
            document=document,
        ),
    )
    keys = ("verdict", "reason", "champion", "split", "dataset_digest", "checks")
    record = {"at": _now(), "audit": run_id} | {key: document[key] for key in keys}
    client.set_model_version_tag(model, challenger.version, PROMOTION_TAG, json.dumps(record))
    if challenger.run_id:
        scores = [_split_scores(measurements.evaluation)]
        card = render_card(card_data(client, challenger.run_id, challenger.folder, model, scores))
        client.update_model_version(model, challenger.version, card)
    return run_id


def record_rollback(
    client: MlflowClient, model: str, target: Candidate, replaced: str | None, reason: str | None
) -> str:
    """Records a rollback in an audit run and on the replaced version, and returns the id of the audit run.

    Args:
        client: client of the store.
        model: name of the registered model.
        target: version to restore.
        replaced: version that it replaces; `None` if there is no champion.
        reason: reason for the record.

    Raises:
        MlflowException: the store does not respond.
    """
    document = {"verdict": "rollback", "version": target.version, "instead_of": replaced, "reason": reason}
    params = {"model": model, "version": target.version, "instead_of": str(replaced), "reason": reason or ""}
    entry = AuditEntry(model, target.version, target.run_id, "rollback", params, {}, 0, document)
    run_id = write_audit_run(client, entry)
    if replaced is not None:
        record = {"at": _now(), "audit": run_id, "to": target.version, "reason": reason}
        client.set_model_version_tag(model, replaced, ROLLBACK_TAG, json.dumps(record))
    return run_id


def decision_to_dict(measurements: Measurements, decision: Decision, options: PromotionOptions) -> dict[str, Any]:
    """Returns the measurements and the decision as a JSON-compatible dict; nan becomes `None`."""
    evaluation, comparison = measurements.evaluation, measurements.comparison
    return {
        "verdict": options.outcome(decision),
        "reason": options.reason,
        "version": decision.challenger,
        "champion": decision.champion,
        "checks": [check.as_json() for check in decision.checks],
        "gates": options.gates.model_dump(mode="json"),
        "data": evaluation.root,
        "dataset_digest": evaluation.dataset_digest,
        "split": evaluation.split,
        "rows": evaluation.rows,
        "bad_rows": list(evaluation.bad_rows),
        "measured": {
            "challenger": _measurements_to_dict(measurements.challenger),
            "champion": _measurements_to_dict(measurements.champion) if measurements.champion else None,
        },
        "comparison": comparison.as_json() if comparison else None,
    }


def _measurements_to_dict(measurements: ModelMeasurements) -> dict[str, Any]:
    values: dict[str, Any] = nan_to_none(asdict(measurements))
    values["differs"] = values.pop("mismatch")
    return values


def _params(evaluation: Evaluation, decision: Decision, options: PromotionOptions) -> dict[str, str]:
    gates = {f"promote.{name}": str(value) for name, value in options.gates.model_dump(mode="json").items()}
    return gates | {
        "version": decision.challenger,
        "champion": str(decision.champion),
        "data": evaluation.root,
        "split": evaluation.split,
        "dataset_digest": evaluation.dataset_digest,
        "reason": options.reason or "",
    }


def _metrics(measurements: Measurements) -> dict[str, float]:
    metrics = flat_metrics(measurements.evaluation) | _costs("", measurements.challenger)
    if measurements.champion_evaluation is not None:
        champion = flat_metrics(measurements.champion_evaluation)
        metrics |= {f"champion/{name}": value for name, value in champion.items()}
    if measurements.champion is not None:
        metrics |= _costs("champion/", measurements.champion)
    if measurements.comparison is not None:
        miou = measurements.comparison.miou
        metrics |= {"gain/miou": miou.delta, "gain/miou_low": miou.interval.low, "gain/miou_high": miou.interval.high}
    return {name: value for name, value in metrics.items() if isfinite(value)}


def _costs(prefix: str, measurements: ModelMeasurements) -> dict[str, float]:
    return {f"{prefix}latency_ms": measurements.latency_ms, f"{prefix}size_mib": measurements.size_mib}


def _split_scores(evaluation: Evaluation) -> SplitScores:
    results = evaluation.results
    return SplitScores(
        split=evaluation.split,
        digest=evaluation.dataset_digest,
        means={name: getattr(results.scores, name) for name in ("miou", "macc", "aacc")},
        interval=results.miou_interval,
        classes=results.scores.iou,
        intervals=results.iou_intervals,
        rows=evaluation.rows,
    )


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
