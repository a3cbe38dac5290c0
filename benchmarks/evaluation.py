"""Benchmark of evaluation on a split. The baseline is a loop over single images with transformers and torchmetrics."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from time import perf_counter

import numpy as np
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F

from benchmarks import machine
from benchmarks.interleave import BenchmarkReport, time_row
from benchmarks.peers import to_transformers
from segray.cluster.connect import connect
from segray.config import Config
from segray.core.errors import DataError, ModelError
from segray.data.images import decode_image, decode_mask
from segray.data.manifest import read_manifest
from segray.data.preprocess import preprocess
from segray.data.reader import SplitReader
from segray.evaluation.evaluate import EvaluationRequest, evaluate
from segray.evaluation.metrics.confusion import Confusion
from segray.inference.timing import time_call
from segray.models import checkpoint
from segray.models.architecture import SegmentationModel
from segray.models.build import build_model
from segray.models.segformer.model import MEAN, STD

PEER = "transformers + torchmetrics"
MAX_DIFFERENT = 1e-3
"""Permitted fraction of pixels with a different prediction; an untrained model has many near ties."""


def run_benchmark(root: str, split: str, config: Config, turns: int, log: Callable[[str], None]) -> BenchmarkReport:
    """Compares segray's evaluation with the peer's loop, from the shards to the confusion matrix.

    The cluster is started before the measurement. Its start-up time is reported separately.

    Raises:
        ModelError: torchmetrics or transformers is not installed, or the confusion matrices differ.
    """
    manifest = read_manifest(root)
    source = SplitReader(root, manifest.split(split))
    torch.manual_seed(0)
    model = build_model(config, manifest.classes)
    log("starting the cluster ...")
    started = perf_counter()
    connect()
    log(f"started in {perf_counter() - started:.1f} s")
    with tempfile.TemporaryDirectory() as folder:
        meta = checkpoint.Meta(step=0, metrics={}, confusion=[], dataset_digest=manifest.digest, versions={})
        checkpoint.snapshot(model, {}, config, manifest.classes, meta).write(Path(folder))
        confusions: dict[str, Confusion] = {}

        def ours() -> None:
            confusions["ours"] = evaluate(Path(folder), EvaluationRequest(root, split)).counts.confusion

        def theirs() -> None:
            confusions["theirs"] = _run_peer_loop(
                model, source, config, manifest.classes.num_classes, manifest.classes.ignore_id
            )

        series: list[list[float]] = [[], []]
        for turn in range(turns):
            log(f"turn {turn + 1} of {turns} ...")
            for times, candidate in zip(series, (ours, theirs), strict=True):
                times.append(time_call(candidate, torch.device("cpu")))
    difference = np.abs(confusions["ours"] - confusions["theirs"]).sum() / 2 / confusions["theirs"].sum()
    if difference > MAX_DIFFERENT:
        raise ModelError(
            f"the confusion matrices differ in {difference:.1e} of the pixels; expected at most {MAX_DIFFERENT:.0e}."
        )
    case: dict[str, str | int] = {"data": root, "split": split, "images": source.split.rows}
    case |= {"variant": config.model.variant, "counted_elsewhere": f"{difference:.1e}", "turns": turns}
    return BenchmarkReport(
        machine.describe_machine(torch.device("cpu")), case, [time_row("split", PEER, series[0], series[1], "s")]
    )


def _run_peer_loop(
    model: SegmentationModel, source: SplitReader, config: Config, num_classes: int, ignore_id: int
) -> Confusion:
    try:
        from torchmetrics.classification import MulticlassConfusionMatrix  # noqa: PLC0415 - a peer's dependency
    except ImportError as error:
        raise ModelError(f"the peer's loop needs torchmetrics ({error}); run pip install torchmetrics.") from error
    peer = to_transformers(model).eval()
    confusion = MulticlassConfusionMatrix(num_classes, ignore_index=ignore_id, validate_args=False)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    for shard in source.split.shards:
        table = pq.read_table(Path(source.root, shard.path), columns=["image", "mask"])
        for image, mask in zip(table["image"], table["mask"], strict=True):
            pixels = preprocess(decode_image(image.as_py()), config.data.short_side, config.eval.size_multiple)
            truth = torch.from_numpy(decode_mask(mask.as_py()).astype(np.int64))
            with torch.inference_mode():
                logits = peer(pixel_values=(pixels - mean) / std).logits
                full = F.interpolate(logits, truth.shape, mode="bilinear", align_corners=False)
                confusion.update(full.argmax(1), truth[None])
    matrix: Confusion = confusion.compute().numpy()
    return matrix


def require_local(root: str) -> None:
    """Validates that the dataset is in a local folder, because the peer's loop reads files.

    Raises:
        DataError: the dataset is in an object store.
    """
    if "://" in root:
        raise DataError(f"data.root is {root}; expected a local folder, because the peer's loop reads files.")
