"""What is measured of two versions: both on the same rows, and whatever differs from what was registered."""

import shutil
from dataclasses import replace

import numpy as np
import pytest

from segray.config import ServeConfig
from segray.data.manifest import read_manifest
from segray.data.reader import SplitReader
from segray.evaluation.evaluate import EvaluationRequest
from segray.models import checkpoint
from segray.promotion import measure as evidence
from segray.promotion.measure import (
    NUM_TIMED_IMAGES,
    Candidate,
    _images,
    check_integrity,
    measure_candidates,
)
from segray.tracking.integrity import CHECKPOINT_FILES, package_digest, packaged_checkpoint
from segray.tracking.package import build_package

SERVE = ServeConfig(device="cpu")


@pytest.fixture(scope="module")
def candidate(folder, tmp_path_factory):
    """A version as it is fetched."""
    packed = build_package(folder, tmp_path_factory.mktemp("version"))
    return Candidate("2", packaged_checkpoint(packed), package_digest(folder), None)


@pytest.fixture
def copy(candidate, tmp_path):
    """Another of its own, to be spoilt."""
    place = shutil.copytree(candidate.folder.parents[1], tmp_path / "model")
    return replace(candidate, folder=packaged_checkpoint(place))


@pytest.fixture(scope="module")
def images(streets):
    return list(_images(str(streets), "train"))


def test_both_are_counted_on_the_same_rows_and_a_twin_gains_nothing(candidate, streets, monkeypatch):
    monkeypatch.setattr(evidence, "NUM_TIMED_IMAGES", 4)
    found = measure_candidates(
        candidate, replace(candidate, version="1"), EvaluationRequest(str(streets), "val"), SERVE
    )
    assert (found.challenger.version, found.champion.version) == ("2", "1")
    assert found.challenger.miou == found.champion.miou == found.evaluation.results.scores.miou
    assert found.challenger.classes == checkpoint.load_classes(candidate.folder).names
    assert tuple(found.comparison.miou.interval) == (0, 0)
    assert found.comparison.miou.num_samples == 7
    assert found.challenger.mismatch == ""
    assert found.challenger.size_mib == (candidate.folder / checkpoint.WEIGHTS).stat().st_size / 2**20
    assert 0.2 < found.challenger.latency_ms / found.champion.latency_ms < 5


def test_a_champion_of_other_classes_is_timed_and_not_counted(candidate, copy, streets, monkeypatch):
    monkeypatch.setattr(evidence, "NUM_TIMED_IMAGES", 2)
    names = [f"other {name}" for name in checkpoint.load_classes(copy.folder).names]
    classes = checkpoint.load_classes(copy.folder).model_copy(update={"names": tuple(names)})
    (copy.folder / checkpoint.CLASSES).write_text(classes.model_dump_json())
    meta = checkpoint.load_meta(copy.folder).model_copy(update={"checksums": {}})
    (copy.folder / checkpoint.META).write_text(meta.model_dump_json())
    found = measure_candidates(candidate, copy, EvaluationRequest(str(streets), "val"), SERVE)
    assert (found.comparison, found.champion_evaluation, found.champion.miou) == (None, None, None)
    assert found.champion.classes == tuple(names)
    assert found.champion.latency_ms > 0


def test_images_come_from_all_over_the_split_and_each_is_one(streets, spoilt, images):
    source = SplitReader(str(streets), read_manifest(str(streets)).split("train"))
    rows = source.read_columns(["image"])["image"].to_pylist()
    found = [rows.index(one) for one in images]
    assert len(set(found)) == NUM_TIMED_IMAGES
    assert (found[0], found[-1]) == (0, 40)
    assert max(np.diff(found)) <= 3
    assert len(list(_images(str(spoilt), "train"))) == NUM_TIMED_IMAGES - len({5, 30} & set(found))
    assert len(list(_images(str(streets), "test"))) == 5


def test_what_is_stored_as_it_was_trained_differs_in_nothing(candidate, images):
    assert check_integrity(candidate, images[:1]) == ""


@pytest.mark.parametrize("part", CHECKPOINT_FILES)
def test_other_files_than_those_registered_are_told(copy, images, part):
    content = bytearray((copy.folder / part).read_bytes())
    content[-1] ^= 1
    (copy.folder / part).write_bytes(content)
    assert "the files differ from the registered files: digest" in check_integrity(copy, images[:1])


def test_a_version_whose_digest_nobody_kept_cannot_be_told_to_be_the_same(candidate, images):
    assert "did not record a digest of the files" in check_integrity(replace(candidate, digest=None), images[:1])


def test_a_checkpoint_that_cannot_be_loaded_is_reported(copy, images):
    (copy.folder / checkpoint.CLASSES).write_text("{}")
    damaged = replace(copy, digest=package_digest(copy.folder))
    assert "the version cannot be loaded or run (CheckpointError: " in check_integrity(damaged, images[:1])
