"""What is measured of a challenger and of the champion: both on the same rows, the same images and the same machine."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from statistics import median

import mlflow
import numpy as np
import pandas as pd
import torch

from segray.config import Config
from segray.core.errors import DataError
from segray.data.images import Pixels, decode_image, decode_mask
from segray.data.manifest import read_manifest
from segray.data.reader import SplitReader
from segray.evaluation.compare import Comparison
from segray.evaluation.evaluate import Evaluation, compare_evaluations, evaluate
from segray.inference.predictor import Predictor
from segray.inference.timing import time_interleaved
from segray.models import checkpoint
from segray.promotion.gates import ModelMeasurements
from segray.tracking.package import package_digest

NUM_TIMED_IMAGES, NUM_PARITY_IMAGES = 16, 3
"""Images that are timed, and of those, images whose masks are compared with those of what MLflow loads."""

MIB = 2**20


@dataclass(frozen=True)
class Candidate:
    """A version, fetched.

    Attributes:
        version: its number.
        folder: of its checkpoint.
        digest: of its files when they were registered; none if none was kept.
        run_id: of its training run; none if that is not known.
    """

    version: str
    folder: Path
    digest: str | None
    run_id: str | None


@dataclass(frozen=True)
class Measurements:
    """What was measured.

    Attributes:
        challenger, champion: in figures; no champion if none is served.
        comparison: what the challenger gained; none without a champion of its classes.
        evaluation: of the challenger.
        other: of the champion; none if there is none, or its classes are others.
    """

    challenger: ModelMeasurements
    champion: ModelMeasurements | None
    comparison: Comparison | None
    evaluation: Evaluation
    other: Evaluation | None


def measure_candidates(
    challenger: Candidate, champion: Candidate | None, config: Config, root: str, split: str, workers: int | None = None
) -> Measurements:
    """Returns what was measured of both.

    Args:
        challenger: to be judged.
        champion: that is served, none if none is.
        config: how images are looked at, where it says so, and on which device.
        root: of the dataset.
        split: of the dataset.
        workers: tasks that share the rows; none takes one a GPU, or one a node.

    Raises:
        UserError: one cannot be evaluated on the split.
    """

    def evaluated(one: Candidate) -> Evaluation:
        return evaluate(one.folder, root, split, workers, config.train.device, config.eval)

    evaluation = evaluated(challenger)
    is_comparable = champion is not None and _names(champion) == _names(challenger)
    other = evaluated(champion) if champion is not None and is_comparable else None
    encoded = list(_images(evaluation.root, split))
    both = [one for one in (challenger, champion) if one is not None]
    times = latencies_ms(both, [decode_image(one) for one in encoded], config)
    differs = verify_package(challenger, encoded[:NUM_PARITY_IMAGES])
    return Measurements(
        challenger=_evidence(challenger, evaluation, times[0], differs),
        champion=None if champion is None else _evidence(champion, other, times[1]),
        comparison=None if other is None else compare_evaluations(evaluation, other),
        evaluation=evaluation,
        other=other,
    )


def _names(one: Candidate) -> tuple[str, ...]:
    return checkpoint.load_classes(one.folder).names


def _evidence(one: Candidate, evaluation: Evaluation | None, latency_ms: float, differs: str = "") -> ModelMeasurements:
    scores = None if evaluation is None else evaluation.found.scores
    return ModelMeasurements(
        version=one.version,
        classes=_names(one),
        miou=None if scores is None else scores.miou,
        iou={} if scores is None else scores.iou,
        latency_ms=latency_ms,
        size_mib=(one.folder / checkpoint.WEIGHTS).stat().st_size / MIB,
        differs=differs,
    )


def _images(root: str, split: str) -> Iterator[bytes]:
    """Yields some images that can be decoded, from all over a split."""
    source = SplitReader(root, read_manifest(root).split(split))
    rows = set(np.linspace(0, source.split.rows - 1, min(NUM_TIMED_IMAGES, source.split.rows)).astype(int).tolist())
    table = source.read(sorted(set(source.group_of(sorted(rows)).tolist())))
    for row, image in zip(table["row"].to_pylist(), table["image"], strict=True):
        if row in rows and _is_image(image.as_py()):
            yield image.as_py()


def _is_image(encoded: bytes) -> bool:
    try:
        decode_image(encoded)
    except DataError:
        return False
    return True


def latencies_ms(candidates: Sequence[Candidate], images: Sequence[Pixels], config: Config) -> list[float]:
    """Returns each candidate's median time for an image, here, from pixels to mask.

    They take turns, an image each: a machine that is slow for a while is so for all of them.
    """
    if not images:
        raise DataError("no image of the split can be decoded; there is nothing to time a model with.")

    def predicting(one: Candidate) -> "_Turn":
        looked_at = checkpoint.load_config(one.folder).looked_at(config.eval)
        return _Turn(Predictor(one.folder, config.train.device, looked_at), cycle(images))

    rounds = time_interleaved(
        [predicting(one) for one in candidates], len(images), torch.device("cpu")
    )  # masks lie there
    return [median(series) * 1000 for series in rounds]


@dataclass(frozen=True)
class _Turn:
    predictor: Predictor
    images: Iterator[Pixels]

    def __call__(self) -> None:
        self.predictor(next(self.images))


def verify_package(one: Candidate, images: Sequence[bytes]) -> str:
    """Returns how what is stored of a version differs from the checkpoint that was registered; nothing if it does not.

    Args:
        one: the version.
        images: encoded; what MLflow loads has to give the predictor's masks, to the pixel.
    """
    found = package_digest(one.folder)
    if one.digest is None:
        return "no digest of its files was kept when it was registered"
    if found != one.digest:
        return f"its files are not those that were registered: digest {found[:12]}, and {one.digest[:12]} then"
    try:
        loaded = mlflow.pyfunc.load_model(str(one.folder.parents[1]))
        answer = loaded.predict(pd.DataFrame({"image": list(images)}))
        theirs = [decode_mask(mask) for mask in answer["mask"]]
    except Exception as error:  # it is the version's own code that runs here
        return f"MLflow cannot load or run it ({type(error).__name__}: {str(error).splitlines()[0][:200]})"
    ours = [Predictor(one.folder)(decode_image(image)) for image in images]
    wrong = sum(int((mask != their).sum()) for mask, their in zip(ours, theirs, strict=True))
    return f"what MLflow loads gives other masks: {wrong} pixels of {len(images)} images" if wrong else ""
