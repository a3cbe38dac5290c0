"""Command `evaluate`: computes exact pixel counts and metrics of a model on a split."""

import argparse
import json
from pathlib import Path

from rich.console import Console

from segray.cli.command import CommandParser, run_command
from segray.cli.console import make_console
from segray.cli.tables import print_comparison, print_results
from segray.config import paths
from segray.core.errors import ConfigError, DataError, RegistryError, SegrayError, format_list
from segray.evaluation.compare import Comparison
from segray.evaluation.evaluate import Evaluation, compare_evaluations, evaluate, evaluation_to_dict, flat_metrics
from segray.evaluation.report.page import Baseline
from segray.evaluation.report.write import prepare_output_dir, write_report
from segray.models import checkpoint
from segray.tracking import evaluations
from segray.tracking.references import resolve_checkpoint


def main() -> None:
    """Runs the command."""
    run_command(_evaluate)


def _evaluate() -> None:
    flags, config = _parser().parse()
    root = paths.absolute_path("data.root", flags.data or config.data.root)
    asked = config.eval.model_copy(update={"calibration": True}) if flags.report else config.eval
    slices = dict(_slice(text) for text in flags.slice)
    folder, other = (model and resolve_checkpoint(model, config) for model in (flags.model, flags.against))
    _check(flags, folder, other)

    groups = dict([_slice(flags.group_by)]) if flags.group_by else None

    def evaluated(one: Path) -> Evaluation:
        return evaluate(one, root, flags.split, flags.workers, config.train.device, asked, slices, groups)

    evaluation, console = evaluated(folder), make_console()
    print_results(
        console,
        f"{flags.model} on {flags.split}, {evaluation.rows} images",
        evaluation.results,
        "groups" if groups else "images",
    )
    comparison = compare_evaluations(evaluation, evaluated(other)) if other else None
    if comparison:
        print_comparison(console, comparison, flags.model, flags.against)
    _write_json(flags, evaluation, comparison)
    files = _report(console, flags, evaluation, folder, comparison)
    _log(console, evaluation, flags.model, folder, paths.tracking_uri(config), files)
    if evaluation.bad_rows:
        count, lines = len(evaluation.bad_rows), format_list(evaluation.bad_rows)
        raise SegrayError(f"{count} rows could not be read and were left out:{lines}")


def _check(flags: argparse.Namespace, folder: Path, other: Path | None) -> None:
    """Rejects errors that would otherwise appear only after the evaluation."""
    if flags.workers is not None and flags.workers < 1:
        raise ConfigError(f"--workers is {flags.workers}; expected at least 1.")
    if flags.report:
        prepare_output_dir(flags.report)
    for one in filter(None, (folder, other)):
        checkpoint.load_meta(one)
    if other and checkpoint.load_classes(other).names != checkpoint.load_classes(folder).names:
        raise DataError(f"{flags.against} knows other classes than {flags.model}; there is nothing to compare.")


def _write_json(flags: argparse.Namespace, evaluation: Evaluation, comparison: Comparison | None) -> None:
    against = {"against": {"model": flags.against, **comparison.as_json()}} if comparison else {}
    if flags.json:
        try:
            flags.json.write_text(json.dumps(evaluation_to_dict(evaluation) | against, indent=2))
        except OSError as error:
            raise DataError(f"--json {flags.json} cannot be written ({error}).") from error


def _parser() -> CommandParser:
    parser = CommandParser("Evaluates a model on a split of a prepared dataset.", with_config=True)
    known = "checkpoint folder, models:/NAME@ALIAS, models:/NAME/VERSION or runs:/ID/model"
    parser.add_argument("--model", required=True, metavar="MODEL", help=known)
    parser.add_argument("--against", metavar="MODEL", help="another model, to be compared with on the same rows")
    parser.add_argument("--data", metavar="DIR", help="short for --data.root DIR")
    parser.add_argument("--split", default="val", help="split to evaluate on (default: val)")
    parser.add_argument("--workers", type=int, help="tasks that share the rows (default: one a GPU or node)")
    by = "scores by a column of the dataset, by `size`, or by what a regular expression finds in ids; repeatable"
    parser.add_argument("--slice", action="append", default=[], metavar="NAME[=REGEX]", help=by)
    drawn = "as --slice: images that are not independent, such as a video's, are drawn together for the intervals"
    parser.add_argument("--group-by", metavar="NAME[=REGEX]", help=drawn)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result for programs")
    parser.add_argument("--report", type=Path, metavar="DIR", help="write a page for people, and its figures")
    return parser


def _report(
    console: Console, flags: argparse.Namespace, evaluation: Evaluation, folder: Path, comparison: Comparison | None
) -> tuple[Path, ...]:
    """Writes the report if --report is given, and returns its files."""
    if not flags.report:
        return ()
    against = Baseline(flags.against, comparison) if comparison else None
    written = write_report(flags.model, evaluation, folder, flags.report, against)
    console.print(f"report  {written.page}", highlight=False, soft_wrap=True)
    return written.page, *written.figures


def _log(console: Console, evaluation: Evaluation, model: str, folder: Path, uri: str, files: tuple[Path, ...]) -> None:
    """Logs the evaluation to the model's training run. A failure to do so is printed and does not end the command."""
    given = {"model": model, "data": evaluation.root, "dataset_digest": evaluation.dataset_digest}
    settings = {f"eval.{name}": str(value) for name, value in evaluation.settings.model_dump().items()}
    entry = evaluations.EvaluationEntry(
        name=f"evaluation of {evaluation.split}",
        step=evaluation.step,
        metrics=flat_metrics(evaluation),
        params=given | {"split": evaluation.split} | settings,
        summary=evaluation_to_dict(evaluation),
        files=files,
    )
    try:
        run_id = evaluations.log_evaluation(entry, model, folder, uri)
    except RegistryError as error:
        console.print(f"not logged: {error}")
        return
    told = f"{paths.redact(uri)} run {run_id}" if run_id else "not logged: the model's training run is not known there"
    console.print(f"mlflow  {told}", highlight=False, soft_wrap=True)


def _slice(text: str) -> tuple[str, str | None]:
    name, equals, pattern = text.partition("=")
    return name, pattern if equals else None
