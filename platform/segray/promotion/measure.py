"""Measurements of challenger and champion on the same rows, the same images and the same node."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from segray.config import ServeConfig
from segray.core.errors import DataError, SegrayError, first_line
from segray.core.numbers import MIB
from segray.data.images import decode_image
from segray.data.manifest import read_manifest
from segray.data.reader import SplitReader
from segray.evaluation.compare import Comparison
from segray.evaluation.evaluate import Evaluation, EvaluationRequest, compare_evaluations, evaluate
from segray.models import checkpoint
from segray.promotion.gates import ModelMeasurements
from segray.promotion.latency import measure_latencies
from segray.tracking.integrity import package_digest
from segray.tracking.pyfunc_model import ImageModel

NUM_TIMED_IMAGES = 16
"""Number of timed images."""


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
    challenger: Candidate, champion: Candidate | None, request: EvaluationRequest, settings: ServeConfig
) -> Measurements:
    """Measures challenger and champion.

    The champion is evaluated and compared only if its classes equal those of the challenger.

    Args:
        challenger: candidate to measure.
        champion: version that is served; `None` if there is none.
        request: split, settings and resources of the evaluation.
        settings: serving configuration, with which the latencies are measured.

    Raises:
        UserError: a candidate cannot be evaluated on the split.
    """
    evaluation = evaluate(challenger.folder, request)
    is_comparable = champion is not None and _class_names(champion) == _class_names(challenger)
    champion_evaluation = evaluate(champion.folder, request) if champion is not None and is_comparable else None
    images = list(_images(evaluation.root, request.split))
    candidates = [challenger] if champion is None else [challenger, champion]
    latencies = measure_latencies([candidate.folder for candidate in candidates], images, settings)
    mismatch = check_integrity(challenger, images[:1])
    return Measurements(
        challenger=_measurements(challenger, evaluation, latencies[0], mismatch),
        champion=None if champion is None else _measurements(champion, champion_evaluation, latencies[1]),
        comparison=None if champion_evaluation is None else compare_evaluations(evaluation, champion_evaluation),
        evaluation=evaluation,
        champion_evaluation=champion_evaluation,
    )


def _class_names(candidate: Candidate) -> tuple[str, ...]:
    return checkpoint.load_classes(candidate.folder).names


def _measurements(
    candidate: Candidate, evaluation: Evaluation | None, latency_ms: float, mismatch: str = ""
) -> ModelMeasurements:
    scores = None if evaluation is None else evaluation.results.scores
    return ModelMeasurements(
        version=candidate.version,
        classes=_class_names(candidate),
        miou=None if scores is None else scores.miou,
        iou={} if scores is None else scores.iou,
        latency_ms=latency_ms,
        size_mib=(candidate.folder / checkpoint.WEIGHTS).stat().st_size / MIB,
        mismatch=mismatch,
    )


def _images(root: str, split: str) -> Iterator[bytes]:
    """Yields encoded images that can be decoded, spread evenly over a split."""
    reader = SplitReader(root, read_manifest(root).split(split))
    num_rows = reader.split.rows
    rows = set(np.linspace(0, num_rows - 1, min(NUM_TIMED_IMAGES, num_rows)).astype(int).tolist())
    table = reader.read(sorted(set(reader.groups_of_rows(sorted(rows)).tolist())))
    for row, image in zip(table["row"].to_pylist(), table["image"], strict=True):
        if row in rows and _is_decodable(image.as_py()):
            yield image.as_py()


def _is_decodable(encoded: bytes) -> bool:
    try:
        decode_image(encoded)
    except DataError:
        return False
    return True


def check_integrity(candidate: Candidate, images: Sequence[bytes]) -> str:
    """Checks that the files of a version are those that were registered, and that MLflow's tools can run them.

    Args:
        candidate: candidate to check.
        images: encoded images that the MLflow model must segment.

    Returns:
        Description of the problem, or an empty string if there is none.
    """
    digest = package_digest(candidate.folder)
    if candidate.digest is None:
        return "the registration did not record a digest of the files"
    if digest != candidate.digest:
        return f"the files differ from the registered files: digest {digest[:12]}, registered {candidate.digest[:12]}"
    try:
        # The installed loader, not MLflow's: that one imports what the files of the version name.
        ImageModel(candidate.folder).predict(pd.DataFrame({"image": list(images)}))
    except SegrayError as error:
        return f"the version cannot be loaded or run ({type(error).__name__}: {first_line(error)})"
    return ""
