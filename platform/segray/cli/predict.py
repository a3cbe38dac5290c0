"""Command `predict`: segments images and writes their masks."""

import argparse
from pathlib import Path
from time import monotonic
from typing import Any

from rich.console import Console

from segray.cli.command import CommandParser, run_command
from segray.cli.console import make_console
from segray.cli.progress import progress_reporter
from segray.config import Config, paths
from segray.core.errors import ConfigError, SegrayError, format_list
from segray.data.storage import content_hash
from segray.inference.batch.inputs import Inputs
from segray.inference.batch.outputs import FORMATS, Outputs
from segray.inference.batch.progress import ChunkResult
from segray.inference.batch.sources import open_inputs
from segray.inference.batch.worker import BatchTask, segment_locally
from segray.inference.predictor import Predictor
from segray.models import checkpoint
from segray.tracking.references import resolve_checkpoint


def main() -> None:
    """Runs the command."""
    run_command(_predict)


def _predict() -> None:
    flags, config = _parser().parse()
    out, source = paths.absolute_path("--out", flags.out), paths.absolute_path("--source", flags.source)
    _check(flags, source, out)
    folder = resolve_checkpoint(flags.model, config)
    step = checkpoint.load_meta(folder).step
    predictor = Predictor(folder, config=checkpoint.load_config(folder).with_eval_overrides(config.eval))
    inputs = open_inputs(source, flags.split)
    outputs = Outputs(out, predictor.classes, flags.format, flags.overlay, flags.probabilities)
    work = BatchTask(predictor, inputs.are_normalized, outputs)
    console = make_console(flags.quiet)
    began = monotonic()
    if inputs.is_single:
        done = segment_locally(inputs, work, config.train.device)
    else:
        done = _on_cluster(inputs, work, _about(flags, folder, step, predictor), flags.workers, config, console)
    _show(console, inputs, done, out, monotonic() - began)
    if done.problems:
        count, were = len(done.problems), "image could not be segmented and was"
        if count > 1:
            were = "images could not be segmented and were"
        raise SegrayError(f"{count} {were} left out:{format_list(done.problems)}")


def _parser() -> CommandParser:
    parser = CommandParser(
        "Segments images and writes their masks, on Ray; a single image at once. A job that was cut off goes on when\n"
        "its command is given again.",
        with_config=True,
    )
    known = "checkpoint folder, models:/NAME@ALIAS, models:/NAME/VERSION or runs:/ID/model"
    parser.add_argument("--model", required=True, metavar="MODEL", help=known)
    source = "image, folder of images, video, parquet file or folder, or prepared dataset; also s3:// or gs://"
    parser.add_argument("--source", required=True, metavar="PLACE", help=source)
    parser.add_argument("--out", required=True, metavar="DIR", help="folder of the results; also s3:// or gs://")
    parser.add_argument("--split", metavar="NAME", help="of a prepared dataset (default: all)")
    parser.add_argument("--format", choices=FORMATS, default=FORMATS[0], help="of the results (default: png)")
    parser.add_argument("--overlay", action="store_true", help="write the images with the masks over them, too")
    parser.add_argument("--probabilities", action="store_true", help="write those of all classes, too (float16 .npy)")
    parser.add_argument("--workers", type=int, metavar="N", help="that segment (default: one a GPU or core)")
    parser.add_argument("--quiet", action="store_true", help="print nothing but errors")
    return parser


def _check(flags: argparse.Namespace, source: str, out: str) -> None:
    if flags.workers is not None and flags.workers < 1:
        raise ConfigError(f"--workers is {flags.workers}; expected at least 1.")
    if not flags.out or not flags.source:
        raise ConfigError("--out and --source name nothing; expected a folder, and what is to be segmented.")
    ends = [one if paths.is_uri(one) else str(Path(one).resolve()) for one in (out, source)]
    if Path(ends[0]).is_relative_to(ends[1]) or Path(ends[1]).is_relative_to(ends[0]):
        raise ConfigError(f"--out {out} and --source {source} lie in each other; choose another folder.")


def _about(flags: argparse.Namespace, folder: Path, step: int, predictor: Predictor) -> dict[str, Any]:
    """Returns all inputs other than the images that affect the results."""
    return {
        "model": flags.model,
        "step": step,
        "weights": content_hash((folder / checkpoint.WEIGHTS).read_bytes()),
        "classes": list(predictor.classes.names),
        "short_side": predictor.config.data.short_side,
        "settings": predictor.config.eval.model_dump(mode="json"),
        "format": flags.format,
        "overlay": flags.overlay,
        "probabilities": flags.probabilities,
    }


def _on_cluster(
    inputs: Inputs, work: BatchTask, about: dict[str, Any], workers: int | None, config: Config, console: Console
) -> ChunkResult:
    from segray.inference.batch.job import run_batch_job  # noqa: PLC0415 Ray takes half a second to import; one image does not need it

    with progress_reporter(console) as show:
        return run_batch_job(inputs, work, about, workers, config.train.device, show)


def _show(console: Console, inputs: Inputs, done: ChunkResult, out: str, seconds: float) -> None:
    if not inputs.is_single:
        console.print(f"{done.images} images in {seconds:.0f} s, start included", highlight=False)
    if inputs.num_skipped:
        console.print(f"{inputs.num_skipped} files of other kinds were left alone", highlight=False)
    console.print(f"masks  {out}", highlight=False, soft_wrap=True)
