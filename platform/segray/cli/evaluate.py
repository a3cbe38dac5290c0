"""Command `evaluate`: computes exact pixel counts and metrics of a model on a split."""

import argparse
from contextlib import ExitStack
from pathlib import Path

from rich.console import Console

from segray.cli.parser import make_console, write_json
from segray.cli.tables import print_comparison, print_results
from segray.config import Config, paths
from segray.core.errors import DataError, RegistryError, SegrayError, format_list
from segray.core.report_folder import check_report_folder
from segray.evaluation.compare import Comparison
from segray.evaluation.evaluate import (
    Evaluation,
    EvaluationRequest,
    compare_evaluations,
    evaluate,
    evaluation_to_dict,
    flat_metrics,
)
from segray.evaluation.report.page import Baseline
from segray.evaluation.report.write import write_report
from segray.models import checkpoint
from segray.tracking import evaluations
from segray.tracking.references import open_model


def run(flags: argparse.Namespace, config: Config) -> None:
    """Evaluates a model, and prints, writes and logs the results."""
    request = _build_request(flags, config)
    with ExitStack() as downloads:
        folder = downloads.enter_context(open_model(flags.model, config))
        baseline_folder = downloads.enter_context(open_model(flags.against, config)) if flags.against else None
        _check(flags, folder, baseline_folder)
        _evaluate_model(flags, config, request, folder, baseline_folder)


def _evaluate_model(
    flags: argparse.Namespace, config: Config, request: EvaluationRequest, folder: Path, baseline_folder: Path | None
) -> None:
    evaluation, console = evaluate(folder, request), make_console()
    print_results(
        console,
        f"{flags.model} on {flags.split}, {evaluation.rows} images",
        evaluation.results,
        "groups" if request.group_by else "images",
    )
    comparison = compare_evaluations(evaluation, evaluate(baseline_folder, request)) if baseline_folder else None
    if comparison:
        print_comparison(console, comparison, flags.model, flags.against)
    against = {"against": {"model": flags.against, **comparison.as_json()}} if comparison else {}
    write_json(flags.json, evaluation_to_dict(evaluation) | against)
    files = _write_report(console, flags, evaluation, folder, comparison)
    _log_to_mlflow(console, evaluation, flags.model, folder, paths.tracking_uri(config), files)
    if evaluation.bad_rows:
        count, lines = len(evaluation.bad_rows), format_list(evaluation.bad_rows)
        raise SegrayError(f"{count} rows could not be read and were skipped:{lines}")


def _build_request(flags: argparse.Namespace, config: Config) -> EvaluationRequest:
    overrides = config.eval.model_dump(exclude_unset=True)
    return EvaluationRequest(
        root=paths.absolute_path("data.root", config.data.root),
        split=flags.split,
        workers=flags.workers,
        device=config.train.device,
        overrides=overrides | {"calibration": True} if flags.report else overrides,
        slices=dict(_parse_slice(text) for text in flags.slice),
        group_by=_parse_slice(flags.group_by) if flags.group_by else None,
    )


def _check(flags: argparse.Namespace, folder: Path, baseline: Path | None) -> None:
    """Rejects errors that would otherwise appear only after the evaluation."""
    for checkpoint_dir in filter(None, (folder, baseline)):
        checkpoint.load_meta(checkpoint_dir)
    if baseline and checkpoint.load_classes(baseline).names != checkpoint.load_classes(folder).names:
        raise DataError(
            f"{flags.against} has other classes than {flags.model}; expected a model with the same classes."
        )
    if flags.report:
        check_report_folder(flags.report)


def _write_report(
    console: Console, flags: argparse.Namespace, evaluation: Evaluation, folder: Path, comparison: Comparison | None
) -> tuple[Path, ...]:
    """Writes the report if --report is given, and returns its files."""
    if not flags.report:
        return ()
    against = Baseline(flags.against, comparison) if comparison else None
    report = write_report(flags.model, evaluation, folder, flags.report, against)
    console.print(f"report  {report.page}", highlight=False, soft_wrap=True)
    return report.page, *report.figures


def _log_to_mlflow(
    console: Console, evaluation: Evaluation, model: str, folder: Path, uri: str, files: tuple[Path, ...]
) -> None:
    """Logs the evaluation to the model's training run. A failure to do so is printed and does not end the command."""
    params = {"model": model, "data": evaluation.root, "dataset_digest": evaluation.dataset_digest}
    settings = {f"eval.{name}": str(value) for name, value in evaluation.settings.model_dump().items()}
    entry = evaluations.EvaluationEntry(
        name=f"evaluation of {evaluation.split}",
        step=evaluation.step,
        metrics=flat_metrics(evaluation),
        params=params | {"split": evaluation.split} | settings,
        summary=evaluation_to_dict(evaluation),
        files=files,
    )
    try:
        run_id = evaluations.log_evaluation(entry, model, folder, uri)
    except RegistryError as error:
        console.print(f"not logged: {error}")
        return
    location = f"{paths.redact(uri)} run {run_id}" if run_id else "not logged: the store does not have the model's run"
    console.print(f"mlflow  {location}", highlight=False, soft_wrap=True)


def _parse_slice(text: str) -> tuple[str, str | None]:
    name, equals, pattern = text.partition("=")
    return name, pattern if equals else None
