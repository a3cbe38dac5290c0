"""Command `promote`: promotes a challenger to champion if it passes the gates, or rolls back."""

import argparse
from typing import Any

from rich.console import Console

from segray.cli.parser import make_console, write_json
from segray.cli.tables import print_decision, print_paths
from segray.config import Config, paths
from segray.core.errors import ConfigError, PromotionError, format_list
from segray.evaluation.evaluate import EvaluationRequest
from segray.promotion import audit
from segray.promotion.audit import PromotionOptions
from segray.promotion.gates import Decision
from segray.promotion.measure import Measurements
from segray.promotion.promote import PromotionRequest, PromotionResult, promote, rollback
from segray.tracking.tags import CHAMPION, PREVIOUS


def run(flags: argparse.Namespace, config: Config) -> None:
    """Promotes or rolls back, and prints and writes the result."""
    _check(flags)
    console = make_console()
    result = _roll_back(flags, config, console) if flags.rollback else _promote_version(flags, config, console)
    write_json(flags.json, _to_dict(flags, config, result))
    _print_result(console, flags, config, result)
    if result.plan is None and result.decision is not None:
        raise PromotionError(
            f"version {result.decision.challenger} of {config.tracking.model} does not pass the gates:"
            f"{format_list(result.decision.reasons)}"
        )


def _check(flags: argparse.Namespace) -> None:
    if flags.reason is not None and not flags.reason.strip():
        raise ConfigError("--reason is empty; expected a reason in a few words.")
    if flags.force and flags.reason is None:
        raise ConfigError("--force is given without --reason; expected --reason TEXT for the audit entry.")
    if flags.reason is not None and not (flags.force or flags.rollback):
        raise ConfigError("--reason is given without --force or --rollback; expected one of them.")
    if flags.rollback and (flags.force or flags.version is not None):
        raise ConfigError("--rollback is given with --force or --version; it always restores the previous version.")


def _options(flags: argparse.Namespace, config: Config) -> PromotionOptions:
    return PromotionOptions(config.promote, flags.force, flags.reason)


def _promote_version(flags: argparse.Namespace, config: Config, console: Console) -> PromotionResult:
    root = paths.absolute_path("data.root", config.data.root)
    version = None if flags.version is None else str(flags.version)
    overrides = config.eval.model_dump(exclude_unset=True)
    evaluation = EvaluationRequest(root, flags.split, flags.workers, config.train.device, overrides)
    request = PromotionRequest(version, evaluation, _options(flags, config), flags.dry_run)

    def show(measured: Measurements, decision: Decision) -> None:
        evaluation = measured.evaluation
        print_decision(console, decision, evaluation.split, evaluation.rows)
        if evaluation.bad_rows:
            console.print(f"{len(evaluation.bad_rows)} rows could not be read and were skipped.", highlight=False)

    return promote(config, request, console.print, show)


def _roll_back(flags: argparse.Namespace, config: Config, console: Console) -> PromotionResult:
    return rollback(config, console.print, flags.reason, flags.dry_run)


def _print_result(console: Console, flags: argparse.Namespace, config: Config, result: PromotionResult) -> None:
    name, plan, rows = config.tracking.model, result.plan, dict[str, str]()
    if plan is not None:
        rows["champion"] = f"models:/{name}/{plan.after[CHAMPION]}"
        rows["previous"] = f"models:/{name}/{plan.after[PREVIOUS]}" if plan.after[PREVIOUS] else "none"
    if result.audit is not None:
        rows["mlflow"] = f"{paths.redact(paths.tracking_uri(config))} run {result.audit}"
    if flags.dry_run:
        change = "would move" if plan else "would not move"
        console.print(f"dry run: nothing was written; the aliases {change}.", highlight=False)
    elif flags.force and result.decision is not None:
        passed = "all gates passed" if result.decision.is_passed else "a gate failed"
        console.print(f"forced, {passed}: {flags.reason}", highlight=False)
    if rows:
        print_paths(console, rows)


def _to_dict(flags: argparse.Namespace, config: Config, result: PromotionResult) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "model": config.tracking.model,
        "champion": result.plan.after[CHAMPION] if result.plan else None,
        "previous": result.plan.after[PREVIOUS] if result.plan else None,
        "is_moved": result.is_moved,
        "is_finished": result.was_recovered,
        "audit": result.audit,
        "decision": None,
    }
    if result.measurements is not None and result.decision is not None:
        fields["decision"] = audit.decision_to_dict(result.measurements, result.decision, _options(flags, config))
    return fields
