"""Measurements of challenger and champion on the same rows, the same images and the same machine."""

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
"""Number of timed images, and number of those whose masks are compared with the masks of the MLflow model."""
MIB = 2**20


@dataclass(frozen=True)
class Candidate:
    """Downloaded model version.

    Attributes:
        version: version number.
        folder: folder of its checkpoint.
        digest: digest of its files at registration; `None` if none was stored.
        run_id: id of its training run; `None` if it is unknown.
    """

    version: str
    folder: Path
    digest: str | None
    run_id: str | None


@dataclass(frozen=True)
class Measurements:
    """Measurements of challenger and champion.

    Attributes:
        challenger: measurements of the challenger.
        champion: measurements of the champion; `None` if there is none.
        comparison: metric differences between both; `None` if there is no champion with the same classes.
        evaluation: evaluation of the challenger.
        champion_evaluation: evaluation of the champion; `None` if there is no champion with the same classes.
    """

    challenger: ModelMeasurements
    champion: ModelMeasurements | None
    comparison: Comparison | None
    evaluation: Evaluation
    champion_evaluation: Evaluation | None


def measure_candidates(
    challenger: Candidate, champion: Candidate | None, config: Config, root: str, split: str, workers: int | None = None
) -> Measurements:
    """Measures challenger and champion.

    The champion is evaluated and compared only if its classes equal those of the challenger.

    Args:
        challenger: candidate to measure.
        champion: version that is served; `None` if there is none.
        config: settings with the device and the overrides of the evaluation settings.
        root: root folder of the dataset.
        split: name of the split.
        workers: number of evaluation tasks; defaults to one per GPU, or one per node without GPUs.

    Raises:
        UserError: a candidate cannot be evaluated on the split.
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
        champion_evaluation=other,
    )


def _names(one: Candidate) -> tuple[str, ...]:
    return checkpoint.load_classes(one.folder).names


def _evidence(one: Candidate, evaluation: Evaluation | None, latency_ms: float, differs: str = "") -> ModelMeasurements:
    scores = None if evaluation is None else evaluation.results.scores
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
    """Yields encoded images that can be decoded, spread evenly over a split."""
    source = SplitReader(root, read_manifest(root).split(split))
    rows = set(np.linspace(0, source.split.rows - 1, min(NUM_TIMED_IMAGES, source.split.rows)).astype(int).tolist())
    table = source.read(sorted(set(source.groups_of_rows(sorted(rows)).tolist())))
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
    """Returns each candidate's median time (ms) for an image on this machine, from pixels to mask.

    The candidates alternate after each image, so a temporary slowdown of the machine affects all of them.

    Raises:
        DataError: there is no image.
    """
    if not images:
        raise DataError("no image of the split can be decoded; there is nothing to time a model with.")

    def predicting(one: Candidate) -> "_Turn":
        looked_at = checkpoint.load_config(one.folder).with_eval_overrides(config.eval)
        return _Turn(Predictor(one.folder, config.train.device, looked_at), cycle(images))

    rounds = time_interleaved(
        [predicting(one) for one in candidates], len(images), torch.device("cpu")
    )  # the masks are on the CPU
    return [median(series) * 1000 for series in rounds]


@dataclass(frozen=True)
class _Turn:
    predictor: Predictor
    images: Iterator[Pixels]

    def __call__(self) -> None:
        self.predictor(next(self.images))


def verify_package(one: Candidate, images: Sequence[bytes]) -> str:
    """Compares the stored files of a version with the registered checkpoint.

    Args:
        one: candidate to check.
        images: encoded images, for which the MLflow model must return exactly the masks of the predictor.

    Returns:
        Description of the difference, or an empty string if there is none.
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
    except Exception as error:  # this runs the code of the version, which may raise anything
        return f"MLflow cannot load or run it ({type(error).__name__}: {str(error).splitlines()[0][:200]})"
    ours = [Predictor(one.folder)(decode_image(image)) for image in images]
    wrong = sum(int((mask != their).sum()) for mask, their in zip(ours, theirs, strict=True))
    return f"what MLflow loads gives other masks: {wrong} pixels of {len(images)} images" if wrong else ""
