"""A split's scores, beside the loop people write: transformers' model, one image after the other, and torchmetrics."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from time import perf_counter

import numpy as np
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F

from segray import checkpoint, cluster
from segray.benchmark import machine
from segray.benchmark.contenders import in_transformers
from segray.benchmark.turns import Report, compared, seconds
from segray.config import Config
from segray.data.augment.sizes import fit_to_model
from segray.data.images import decode_image, decode_mask
from segray.data.pieces import Source
from segray.data.schema import read_manifest
from segray.errors import DataError, ModelError
from segray.evaluate import evaluate
from segray.metrics.counts import Confusion
from segray.model import SegFormer
from segray.model.segformer import MEAN, STD

PEER = "transformers + torchmetrics"
MOST_DIFFERENT = 1e-3
"""Share of the pixels that may be counted elsewhere; a model that has learned nothing has many near ties."""


def measured(root: str, split: str, config: Config, turns: int, say: Callable[[str], None]) -> Report:
    """Returns ours beside the peer's loop, both from the shards to the confusion matrix.

    The cluster is there before; how long its start takes is said.

    Raises:
        ModelError: torchmetrics or transformers is missing, or the two count otherwise.
    """
    manifest = read_manifest(root)
    source = Source(root, manifest.split(split))
    torch.manual_seed(0)
    model = checkpoint.build_model(config, manifest.classes)
    say("starting the cluster ...")
    started = perf_counter()
    cluster.connect()
    say(f"started in {perf_counter() - started:.1f} s")
    with tempfile.TemporaryDirectory() as folder:
        meta = checkpoint.Meta(step=0, metrics={}, confusion=[], dataset_digest=manifest.digest, versions={})
        checkpoint.contents(model, {}, config, manifest.classes, meta).write(Path(folder))
        found: dict[str, Confusion] = {}

        def ours() -> None:
            found["ours"] = evaluate(Path(folder), root, split).counts.confusion

        def theirs() -> None:
            found["theirs"] = _loop(model, source, config, manifest.classes.num_classes, manifest.classes.ignore_id)

        series: list[list[float]] = [[], []]
        for turn in range(turns):
            say(f"turn {turn + 1} of {turns} ...")
            for times, one in zip(series, (ours, theirs), strict=True):
                times.append(seconds(one, torch.device("cpu")))
    differs = np.abs(found["ours"] - found["theirs"]).sum() / 2 / found["theirs"].sum()
    if differs > MOST_DIFFERENT:
        raise ModelError(f"the two count {differs:.1e} of the pixels elsewhere: there is nothing to compare.")
    case: dict[str, str | int] = {"data": root, "split": split, "images": source.split.rows}
    case |= {"variant": config.model.variant, "counted_elsewhere": f"{differs:.1e}", "turns": turns}
    return Report(machine.described(torch.device("cpu")), case, [compared("split", PEER, series[0], series[1], "s")])


def _loop(model: SegFormer, source: Source, config: Config, num_classes: int, ignore_id: int) -> Confusion:
    try:
        from torchmetrics.classification import MulticlassConfusionMatrix  # noqa: PLC0415 - a peer's, no dependency
    except ImportError as error:
        raise ModelError(f"the peer's loop needs torchmetrics ({error}); pip install torchmetrics.") from error
    peer = in_transformers(model).eval()
    counted = MulticlassConfusionMatrix(num_classes, ignore_index=ignore_id, validate_args=False)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    for shard in source.split.shards:
        table = pq.read_table(Path(source.root, shard.path), columns=["image", "mask"])
        for image, mask in zip(table["image"], table["mask"], strict=True):
            pixels = fit_to_model(decode_image(image.as_py()), config.data.short_side, config.eval.align)
            truth = torch.from_numpy(decode_mask(mask.as_py()).astype(np.int64))
            with torch.inference_mode():
                logits = peer(pixel_values=(torch.from_numpy(pixels).permute(2, 0, 1)[None] - mean) / std).logits
                full = F.interpolate(logits, truth.shape, mode="bilinear", align_corners=False)
                counted.update(full.argmax(1), truth[None])
    matrix: Confusion = counted.compute().numpy()
    return matrix


def check_local(root: str) -> None:
    """Refuses data in a store: the peer's loop reads files.

    Raises:
        DataError: it is in one.
    """
    if "://" in root:
        raise DataError(f"data.root is {root}; expected a folder: the peer's loop reads files.")
