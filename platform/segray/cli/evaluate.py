"""`evaluate`: a model and a split in, exact counts and scores out."""

import argparse
import json
from pathlib import Path

from rich.console import Console

from segray import checkpoint, models, places, report
from segray.cli.command import Parser, end
from segray.cli.tables import show_comparison, show_findings
from segray.cli.terminal import terminal
from segray.comparison import Comparison
from segray.errors import ConfigError, DataError, RegistryError, SegrayError, listing
from segray.evaluate import Evaluation, compared, evaluate, metrics, summary
from segray.report.page import Against
from segray.tracking import evaluations


def main() -> None:
    """Runs the command."""
    end(_evaluate)


def _evaluate() -> None:
    flags, config = _parser().parse()
    root = places.absolute("data.root", flags.data or config.data.root)
    asked = config.eval.model_copy(update={"calibration": True}) if flags.report else config.eval
    slices = dict(_slice(text) for text in flags.slice)
    folder, other = (model and models.folder_of(model, config) for model in (flags.model, flags.against))
    _check(flags, folder, other)

    groups = dict([_slice(flags.group_by)]) if flags.group_by else None

    def evaluated(one: Path) -> Evaluation:
        return evaluate(one, root, flags.split, flags.workers, config.train.device, asked, slices, groups)

    evaluation, console = evaluated(folder), terminal()
    show_findings(
        console,
        f"{flags.model} on {flags.split}, {evaluation.rows} images",
        evaluation.found,
        "groups" if groups else "images",
    )
    comparison = compared(evaluation, evaluated(other)) if other else None
    if comparison:
        show_comparison(console, comparison, flags.model, flags.against)
    _write_json(flags, evaluation, comparison)
    files = _report(console, flags, evaluation, folder, comparison)
    _log(console, evaluation, flags.model, folder, places.tracking_uri(config), files)
    if evaluation.bad_rows:
        count, lines = len(evaluation.bad_rows), listing(evaluation.bad_rows)
        raise SegrayError(f"{count} rows could not be read and were left out:{lines}")


def _check(flags: argparse.Namespace, folder: Path, other: Path | None) -> None:
    """Refuses what would fail only when everything is counted."""
    if flags.workers is not None and flags.workers < 1:
        raise ConfigError(f"--workers is {flags.workers}; expected at least 1.")
    if flags.report:
        report.claim(flags.report)
    for one in filter(None, (folder, other)):
        checkpoint.load_meta(one)
    if other and checkpoint.load_classes(other).names != checkpoint.load_classes(folder).names:
        raise DataError(f"{flags.against} knows other classes than {flags.model}; there is nothing to compare.")


def _write_json(flags: argparse.Namespace, evaluation: Evaluation, comparison: Comparison | None) -> None:
    against = {"against": {"model": flags.against, **comparison.as_json()}} if comparison else {}
    if flags.json:
        try:
            flags.json.write_text(json.dumps(summary(evaluation) | against, indent=2))
        except OSError as error:
            raise DataError(f"--json {flags.json} cannot be written ({error}).") from error


def _parser() -> Parser:
    parser = Parser("Evaluates a model on a split of a prepared dataset.", with_config=True)
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
    """Writes the page, if it is wanted, and returns its files."""
    if not flags.report:
        return ()
    against = Against(flags.against, comparison) if comparison else None
    written = report.write(flags.model, evaluation, folder, flags.report, against)
    console.print(f"report  {written.page}", highlight=False, soft_wrap=True)
    return written.page, *written.figures


def _log(console: Console, evaluation: Evaluation, model: str, folder: Path, uri: str, files: tuple[Path, ...]) -> None:
    """Writes the evaluation beside the model's training; where that fails, the scores are not lost for it."""
    given = {"model": model, "data": evaluation.root, "dataset_digest": evaluation.dataset_digest}
    settings = {f"eval.{name}": str(value) for name, value in evaluation.settings.model_dump().items()}
    entry = evaluations.Entry(
        name=f"evaluation of {evaluation.split}",
        step=evaluation.step,
        metrics=metrics(evaluation),
        params=given | {"split": evaluation.split} | settings,
        summary=summary(evaluation),
        files=files,
    )
    try:
        run_id = evaluations.log(entry, model, folder, uri)
    except RegistryError as error:
        console.print(f"not logged: {error}")
        return
    told = f"{places.masked(uri)} run {run_id}" if run_id else "not logged: the model's training run is not known there"
    console.print(f"mlflow  {told}", highlight=False, soft_wrap=True)


def _slice(text: str) -> tuple[str, str | None]:
    name, equals, pattern = text.partition("=")
    return name, pattern if equals else None
