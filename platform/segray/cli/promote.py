"""Command `promote`: promotes a challenger to champion if it passes the gates, or rolls back."""

import argparse
import json
from pathlib import Path
from typing import Any

from rich.console import Console

from segray.cli.command import CommandParser, run_command
from segray.cli.console import make_console
from segray.cli.tables import print_decision, print_paths
from segray.config import Config, paths
from segray.core.errors import ConfigError, DataError, PromotionError, format_list
from segray.promotion import audit
from segray.promotion.aliases import CHAMPION, PREVIOUS
from segray.promotion.audit import PromotionOptions
from segray.promotion.gates import Decision
from segray.promotion.measure import Measurements
from segray.promotion.promote import PromotionRequest, PromotionResult, promote, rollback


def main() -> None:
    """Runs the command."""
    run_command(_promote)


def _promote() -> None:
    flags, config = _parser().parse()
    _check(flags)
    if flags.name:
        config = config.model_copy(update={"tracking": config.tracking.model_copy(update={"model": flags.name})})
    console = make_console()
    outcome = _rolled_back(flags, config, console) if flags.rollback else _promoted(flags, config, console)
    _write_json(flags, config, outcome)
    _show_outcome(console, flags, config, outcome)
    if outcome.plan is None and outcome.decision is not None:
        raise PromotionError(
            f"version {outcome.decision.challenger} of {config.tracking.model} is refused:"
            f"{format_list(outcome.decision.reasons)}"
        )


def _check(flags: argparse.Namespace) -> None:
    if flags.reason is not None and not flags.reason.strip():
        raise ConfigError("--reason is empty; expected why, in a few words.")
    if flags.force and flags.reason is None:
        raise ConfigError("--force stands without --reason; expected --reason TEXT, for the record.")
    if flags.reason is not None and not (flags.force or flags.rollback):
        raise ConfigError("--reason stands alone; expected it with --force or --rollback.")
    if flags.rollback and (flags.force or flags.version is not None):
        raise ConfigError("--rollback stands with --force or --version; it goes back to the version before, always.")
    if flags.workers is not None and flags.workers < 1:
        raise ConfigError(f"--workers is {flags.workers}; expected at least 1.")


def _parser() -> CommandParser:
    parser = CommandParser("Has a registered model served, if it passes the gates.", with_config=True)
    parser.add_argument("--name", metavar="NAME", help="short for --tracking.model NAME")
    parser.add_argument("--version", type=int, metavar="N", help="version to promote (default: the challenger)")
    parser.add_argument("--data", metavar="DIR", help="short for --data.root DIR")
    parser.add_argument("--split", default="test", help="split that it is judged on (default: test)")
    parser.add_argument("--workers", type=int, help="tasks that share the rows (default: one a GPU or node)")
    parser.add_argument("--dry-run", action="store_true", help="decide, and write and move nothing")
    parser.add_argument("--force", action="store_true", help="promote whatever the gates say; needs --reason")
    parser.add_argument("--reason", metavar="TEXT", help="why, for the record")
    parser.add_argument("--rollback", action="store_true", help="have the version before served again")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result for programs")
    return parser


def _told(flags: argparse.Namespace, config: Config) -> PromotionOptions:
    return PromotionOptions(config.promote, flags.force, flags.reason)


def _promoted(flags: argparse.Namespace, config: Config, console: Console) -> PromotionResult:
    root = paths.absolute_path("data.root", flags.data or config.data.root)
    version = None if flags.version is None else str(flags.version)
    wish = PromotionRequest(version, root, flags.split, _told(flags, config), flags.dry_run, flags.workers)

    def show(measured: Measurements, decision: Decision) -> None:
        evaluation = measured.evaluation
        print_decision(console, decision, evaluation.split, evaluation.rows)
        if evaluation.bad_rows:
            console.print(f"{len(evaluation.bad_rows)} rows could not be read and were left out.", highlight=False)

    return promote(config, wish, console.print, show)


def _rolled_back(flags: argparse.Namespace, config: Config, console: Console) -> PromotionResult:
    return rollback(config, console.print, flags.reason, flags.dry_run)


def _show_outcome(console: Console, flags: argparse.Namespace, config: Config, outcome: PromotionResult) -> None:
    name, plan, rows = config.tracking.model, outcome.plan, dict[str, str]()
    if plan is not None:
        rows["champion"] = f"models:/{name}/{plan.wanted[CHAMPION]}"
        rows["previous"] = f"models:/{name}/{plan.wanted[PREVIOUS]}" if plan.wanted[PREVIOUS] else "none"
    if outcome.audit is not None:
        rows["mlflow"] = f"{paths.redact(paths.tracking_uri(config))} run {outcome.audit}"
    if flags.dry_run:
        would = "would move" if plan else "would not move"
        console.print(f"dry run: nothing was written; the aliases {would}.", highlight=False)
    elif flags.force and outcome.decision is not None:
        passed = "all gates were passed" if outcome.decision.is_passed else "against the gates"
        console.print(f"forced, {passed}: {flags.reason}", highlight=False)
    if rows:
        print_paths(console, rows)


def _write_json(flags: argparse.Namespace, config: Config, outcome: PromotionResult) -> None:
    if not flags.json:
        return
    found: dict[str, Any] = {
        "model": config.tracking.model,
        "champion": outcome.plan.wanted[CHAMPION] if outcome.plan else None,
        "previous": outcome.plan.wanted[PREVIOUS] if outcome.plan else None,
        "is_moved": outcome.is_moved,
        "is_finished": outcome.was_recovered,
        "audit": outcome.audit,
        "decision": None,
    }
    if outcome.measured is not None and outcome.decision is not None:
        found["decision"] = audit.decision_to_dict(outcome.measured, outcome.decision, _told(flags, config))
    try:
        flags.json.write_text(json.dumps(found, indent=2))
    except OSError as error:
        raise DataError(f"--json {flags.json} cannot be written ({error}).") from error
