"""How often rows are drawn: the formulas by hand and by a two-stage draw, and what they do to CamVid."""

import os

import numpy as np
import pytest

from segray import config
from segray.core.errors import DataError
from segray.data.class_balance import class_probabilities, draws_per_epoch, rare_class_sampling, repeat_factor_sampling
from segray.data.convert.convert import convert_dataset
from segray.data.manifest import read_manifest
from segray.data.reader import SplitReader
from segray.data.sampler import EpochPlan
from segray.data.sources import folder
from segray.data.sources.sample import SourceListing

PIXELS = np.array([[90, 10, 0], [100, 0, 0], [60, 30, 10], [98, 0, 2]])
TOTAL = PIXELS.sum(axis=0)


def test_class_probabilities_are_a_softmax_of_the_complement_of_the_frequency():
    shares = TOTAL / TOTAL.sum()
    expected = np.exp((1 - shares) / 0.3)
    assert class_probabilities(TOTAL.tolist(), 0.3) == pytest.approx(expected / expected.sum())
    assert class_probabilities([5, 0, 5], 0.01) == pytest.approx(
        [0.5, 0, 0.5]
    )  # a class that nobody has is never drawn
    assert class_probabilities([999_999, 1], 1e-4) == pytest.approx([0, 1])  # no overflow


def test_rare_class_sampling_equals_drawing_a_class_and_then_a_pixel():
    random = np.random.default_rng(0)
    times = rare_class_sampling([PIXELS[:1], PIXELS[1:]], TOTAL.tolist(), 0.3)
    classes = random.choice(3, 40_000, p=class_probabilities(TOTAL.tolist(), 0.3))
    observed = np.bincount([random.choice(4, p=PIXELS[:, one] / TOTAL[one]) for one in classes]) / 10_000
    assert times == pytest.approx(observed, abs=0.05)
    assert times.sum() == pytest.approx(4)


def test_a_high_temperature_samples_classes_uniformly():
    assert rare_class_sampling([PIXELS], TOTAL.tolist(), 1e6) == pytest.approx(4 / 3 * (PIXELS / TOTAL).sum(axis=1))


def test_repeat_factors_match_the_paper():
    shares = (PIXELS > 0).mean(axis=0)
    assert shares.tolist() == [1, 0.5, 0.5]
    assert repeat_factor_sampling([PIXELS], 0.5) == pytest.approx([1, 1, 1, 1])
    assert repeat_factor_sampling([PIXELS[:2], PIXELS[2:]], 1.0) == pytest.approx([2**0.5, 1, 2**0.5, 2**0.5])


def test_uniform_sampling_returns_none(streets):
    source = SplitReader(str(streets), read_manifest(str(streets)).split("train"))
    assert draws_per_epoch(source, config.build({}).data) is None


def test_a_split_of_ignored_pixels_is_an_error(streets):
    source = SplitReader(str(streets), read_manifest(str(streets)).split("train"))
    nothing = SplitReader(source.root, source.split.model_copy(update={"class_pixels": (0,) * 8}))
    with pytest.raises(DataError, match="data.sampler is rare_class, but every pixel of the split .* is ignored"):
        draws_per_epoch(nothing, config.build({"data.sampler": "rare_class"}).data)


def test_class_pixels_come_from_the_parquet_column(streets):
    source = SplitReader(str(streets), read_manifest(str(streets)).split("train"))
    pixels = np.concatenate(list(source.class_pixels()))
    assert len(pixels) == source.split.rows
    assert pixels.sum(axis=0).tolist() == list(source.split.class_pixels)


@pytest.fixture(scope="module")
def camvid(ray_cluster, tmp_path_factory):
    """CamVid's training split, converted."""
    out = str(tmp_path_factory.mktemp("data") / "camvid")
    samples = folder.list_samples(os.environ["SEGRAY_CAMVID"]).samples
    result = SourceListing(tuple(sample for sample in samples if sample.split == "train"), None)
    manifest = convert_dataset(result, out, ignore_ids=[11])
    return SplitReader(out, manifest.split("train"))


@pytest.mark.skipif("SEGRAY_CAMVID" not in os.environ, reason="SEGRAY_CAMVID does not name CamVid's folder")
@pytest.mark.parametrize("temperature", [0.01, 0.1])
def test_camvid_class_frequencies_match_the_formula(camvid, temperature):
    pixels = np.concatenate(list(camvid.class_pixels()))
    data = config.build({"data.sampler": "rare_class", "data.rare_class_temperature": temperature}).data
    times = draws_per_epoch(camvid, data)
    plan = EpochPlan(camvid.rows_per_group(), 8, 0, 64, times)
    rows = plan.assignments(0, 20 * plan.epoch_size // 8, range(8)).rows.reshape(-1)
    for name, index in (("pedestrian", 9), ("bicyclist", 10)):
        has = pixels[:, index] > 0
        before, expected, observed = has.mean(), times[has].sum() / times.sum(), has[rows].mean()
        rates = f"{expected:.3f} expected, {observed:.3f} drawn"
        print(f"temperature {temperature}: {name} in {before:.3f} of the images, {rates}")
        assert observed == pytest.approx(expected, abs=0.005)
        assert expected > before
