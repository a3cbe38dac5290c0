"""Command `predict`: segments images and writes their masks."""

import argparse
from pathlib import Path
from time import monotonic
from typing import Any

from rich.console import Console

from segray.cli.parser import make_console
from segray.cli.progress import progress_reporter
from segray.config import Config, paths
from segray.core.errors import ConfigError, SegrayError, format_list
from segray.data.storage import content_hash
from segray.inference.batch.inputs import Inputs
from segray.inference.batch.outputs import Outputs
from segray.inference.batch.progress import ChunkResult
from segray.inference.batch.sources import open_inputs
from segray.inference.batch.worker import BatchTask, segment_locally
from segray.inference.predictor import Predictor
from segray.models import checkpoint
from segray.tracking.references import open_model


def run(flags: argparse.Namespace, config: Config) -> None:
    """Segments the images."""
    out, source = paths.absolute_path("--out", flags.out), paths.absolute_path("--source", flags.source)
    _check(flags, source, out)
    with open_model(flags.model, config) as folder:
        _segment_images(flags, config, folder, source, out)


def _segment_images(flags: argparse.Namespace, config: Config, folder: Path, source: str, out: str) -> None:
    step, overrides = checkpoint.load_meta(folder).step, config.eval.model_dump(exclude_unset=True)
    predictor = Predictor(folder, config=checkpoint.load_config(folder).with_eval_overrides(overrides))
    inputs = open_inputs(source, flags.split)
    outputs = Outputs(out, predictor.classes, flags.format, flags.overlay, flags.probabilities)
    task = BatchTask(predictor, inputs.are_normalized, outputs)
    console = make_console(flags.quiet)
    start = monotonic()
    if inputs.is_single:
        result = segment_locally(inputs, task, config.train.device)
    else:
        settings = _job_settings(flags, folder, step, predictor)
        result = _on_cluster(inputs, task, settings, flags.workers, config, console)
    _print_result(console, inputs, result, out, monotonic() - start)
    if result.problems:
        count, subject = len(result.problems), "image" if len(result.problems) == 1 else "images"
        raise SegrayError(f"{count} {subject} could not be segmented:{format_list(result.problems)}")


def _check(flags: argparse.Namespace, source: str, out: str) -> None:
    if not flags.out or not flags.source:
        raise ConfigError("--out or --source is empty; expected a folder for the results and a path of images.")
    folders = [path if paths.is_uri(path) else str(Path(path).resolve()) for path in (out, source)]
    if Path(folders[0]).is_relative_to(folders[1]) or Path(folders[1]).is_relative_to(folders[0]):
        raise ConfigError(f"--out {out} and --source {source} contain each other; choose another folder for --out.")


def _job_settings(flags: argparse.Namespace, folder: Path, step: int, predictor: Predictor) -> dict[str, Any]:
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
    inputs: Inputs, task: BatchTask, settings: dict[str, Any], workers: int | None, config: Config, console: Console
) -> ChunkResult:
    from segray.inference.batch.job import run_batch_job  # noqa: PLC0415 Ray takes half a second to import; one image does not need it

    with progress_reporter(console) as show:
        return run_batch_job(inputs, task, settings, workers, config.train.device, show)


def _print_result(console: Console, inputs: Inputs, result: ChunkResult, out: str, seconds: float) -> None:
    if not inputs.is_single:
        console.print(f"{result.images} images in {seconds:.0f} s, including the start", highlight=False)
    if inputs.num_skipped:
        console.print(f"{inputs.num_skipped} files of other types were ignored", highlight=False)
    console.print(f"masks  {out}", highlight=False, soft_wrap=True)
