"""The recipe's crops: the right size and type, seeded by the row alone, image and mask alike, padding as published."""

import pickle
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segray import config
from segray.core.errors import DataError
from segray.data.augment.augmenter import Augmenter
from segray.data.augment.crop import PAD_COLOUR
from segray.data.images import decode_image


def data_settings(**data):
    return config.build({f"data.{name}": value for name, value in data.items()}).data


def crop_only_settings(**data):
    fixed = {"scale_min": 1, "scale_max": 1, "flip_prob": 0, "photometric": False, "cat_max_ratio": 1.0}
    return data_settings(**(fixed | data))


def crop_of(augmenter, row, seed):
    """Returns the crop of a row that is mixed with itself if the draw needs partners."""
    draw = augmenter.draw(seed)
    return augmenter([row] * (1 + draw.num_partners), draw)


@pytest.fixture
def crops(encoded):
    def make(data, image, mask, seeds, ignore_id=255):
        augmenter, row = Augmenter(data, ignore_id), encoded(image, mask)
        return [crop_of(augmenter, row, seed) for seed in seeds]

    return make


@settings(deadline=None, max_examples=60)
@given(
    st.integers(3, 200),
    st.integers(3, 200),
    st.integers(0, 2**32 - 1),
    st.sampled_from([None, 16, 64]),
    st.sampled_from([0.0, 1.0]),
    st.sampled_from([".png", ".jpg"]),
)
def test_crops_have_the_crop_size_and_no_new_classes(
    scene, encoded, height, width, seed, short_side, class_crops, kind
):
    image, mask = scene(height, width)
    augmenter = Augmenter(data_settings(crop=96, short_side=short_side, class_crop_prob=class_crops), 255)
    crop = crop_of(augmenter, encoded(image, mask, kind), seed)
    assert crop[0].shape == (96, 96, 3)
    assert crop[0].dtype == np.uint8
    assert crop[1].shape == (96, 96)
    assert set(np.unique(crop[1])) <= set(np.unique(mask)) | {255}


def test_image_and_mask_are_cropped_alike(crops, scene):
    for image, ids in crops(crop_only_settings(crop=64, flip_prob=0.5), *scene(120, 160), range(20)):
        assert np.array_equal(image[..., 0], ids * 40 + 10)


@pytest.mark.parametrize(("short_side", "reduction"), [(300, 2), (150, 4), (70, 8)])
def test_a_downscaled_jpeg_is_decoded_at_reduced_size_and_matches_its_mask(short_side, reduction, monkeypatch, encoded):
    """The same window of a PNG, which cannot be decoded small, is the reference."""
    blocks = np.random.default_rng(1).integers(0, 5, (12, 16))
    mask = np.kron(blocks, np.ones((64, 64))).astype(np.uint8)
    image = np.stack([mask * 40 + 10] * 3, axis=-1).astype(np.uint8)
    rows = encoded(image, mask, ".jpg", cv2.IMWRITE_JPEG_QUALITY, 100), encoded(image, mask)
    sizes = []
    watched = "segray.data.augment.crop.decode_image"
    monkeypatch.setattr(watched, lambda result, step: sizes.append(step) or decode_image(result, step))
    augmenter = Augmenter(crop_only_settings(crop=64, short_side=short_side), 255)
    for seed in range(10):
        small, whole = (crop_of(augmenter, row, seed) for row in rows)
        assert np.array_equal(small[1], whole[1])
        assert np.abs(small[0].astype(int) - whole[0]).mean() < 3
    assert set(sizes) == {reduction, 1}


def test_crops_depend_only_on_the_seed_across_threads_and_pickling(scene, encoded):
    row = encoded(*scene(120, 160))
    augmenter = Augmenter(data_settings(crop=64, mosaic_prob=0.3, cut_mix_prob=0.3), 255)

    def crop(seed, augmenter=augmenter):
        return crop_of(augmenter, row, seed)

    once = [crop(seed) for seed in range(50)]
    with ThreadPoolExecutor(4) as pool:
        again = list(pool.map(crop, range(50)))
    elsewhere = [crop(seed, pickle.loads(pickle.dumps(augmenter))) for seed in range(50)]
    for several in zip(once, again, elsewhere, strict=True):
        for image, mask in several[1:]:
            assert np.array_equal(image, several[0][0])
            assert np.array_equal(mask, several[0][1])
    assert not all(np.array_equal(once[0][0], other) for other, _ in once[1:])


def test_a_small_image_is_padded_with_the_mean_colour_and_the_ignore_id(crops, scene):
    image, mask = scene(40, 40)
    cropped, ids = crops(crop_only_settings(crop=96), image, mask.astype(np.uint16), [0], 65535)[0]
    assert tuple(cropped[-1, -1]) == PAD_COLOUR == (124, 116, 104)
    assert ids[-1, -1] == 65535
    assert ids.dtype == np.uint16
    assert np.array_equal(ids[:40, :40], mask)


def test_scales_match_the_settings(crops):
    """A gradient tells by its slope how much a crop was scaled."""
    image = np.stack([np.tile(np.arange(200, dtype=np.uint8), (200, 1))] * 3, axis=-1)
    result = crops(
        crop_only_settings(crop=64, scale_min=0.5, scale_max=2.0), image, np.zeros((200, 200), np.uint8), range(300)
    )
    scales = [63 / (float(crop[0, -1, 0]) - float(crop[0, 0, 0])) for crop, _ in result]
    assert 0.48 < min(scales) < 0.56
    assert 1.85 < max(scales) < 2.2
    assert np.mean(scales) == pytest.approx(1.25, abs=0.1)


def test_a_crop_dominated_by_one_class_is_resampled(crops):
    image, mask = np.zeros((256, 256, 3), np.uint8), np.zeros((256, 256), np.uint8)
    mask[96:160, 96:160] = 1

    def share(ratio):
        return np.mean(
            [ids.any() for _, ids in crops(crop_only_settings(crop=64, cat_max_ratio=ratio), image, mask, range(200))]
        )

    assert share(0.75) > share(1.0) + 0.2


def test_ignored_pixels_do_not_count_toward_cat_max_ratio(crops):
    """What counts is half and half everywhere, so the first window is taken, as where anything is."""
    image, mask = np.zeros((256, 256, 3), np.uint8), np.full((256, 256), 255, np.uint8)
    mask[::8, ::2], mask[::8, 1::2] = 0, 1
    image[..., 0] = np.arange(256)  # tells the window
    varied, any_window = (
        crops(crop_only_settings(crop=64, cat_max_ratio=ratio), image, mask, range(10)) for ratio in (0.6, 1.0)
    )
    for one, other in zip(varied, any_window, strict=True):
        assert np.array_equal(one[0], other[0])


def test_class_crops_contain_each_class_equally_often(crops):
    image, mask = np.zeros((256, 256, 3), np.uint8), np.zeros((256, 256), np.uint8)
    mask[:, 128:] = 1
    mask[250, 3] = 2

    def share(class_crops):
        result = crops(crop_only_settings(crop=32, class_crop_prob=class_crops), image, mask, range(300))
        return np.mean([(ids == 2).any() for _, ids in result])

    assert share(0.0) < 0.05
    assert share(1.0) == pytest.approx(1 / 3, abs=0.09)
    assert share(0.5) == pytest.approx(1 / 6, abs=0.07)


def test_flip_and_photometric_frequencies_match_the_settings(crops, scene):
    _, mask = scene(64, 64)
    image = np.stack([mask * 40 + 10, 255 - mask * 40, np.full_like(mask, 90)], axis=-1)
    assert all(np.array_equal(crop, image) for crop, _ in crops(crop_only_settings(crop=64), image, mask, range(20)))
    flipped = crops(crop_only_settings(crop=64, flip_prob=0.5), image, mask, range(200))
    assert 70 < sum(np.array_equal(ids, mask[:, ::-1]) for _, ids in flipped) < 130
    coloured = crops(crop_only_settings(crop=64, photometric=True), image, mask, range(200))
    assert 0 < sum(np.array_equal(crop, image) for crop, _ in coloured) < 40  # one in sixteen stays as it was


def test_undecodable_bytes_are_errors_with_the_index_of_the_row(scene, encoded):
    augmenter, row = Augmenter(data_settings(crop=64, mosaic_prob=1.0), 255), encoded(*scene(64, 64))
    with pytest.raises(DataError, match="not an image") as raised:
        augmenter([row, row, (b"nothing", row[1]), row], augmenter.draw(0))
    assert raised.value.index == 2
    with pytest.raises(DataError, match="not a mask"):
        crop_of(Augmenter(data_settings(crop=64), 255), (row[0], b"nothing"), 0)


def test_an_ignored_crop_has_only_ignored_pixels():
    for ignore_id, dtype in ((255, np.uint8), (65535, np.uint16)):
        image, mask = Augmenter(data_settings(crop=32), ignore_id).ignored_crop()
        assert image.shape == (32, 32, 3)
        assert (mask == ignore_id).all()
        assert mask.dtype == dtype


def test_image_and_mask_of_different_sizes_are_errors(scene, encoded):
    (image, _), (_, mask) = scene(100, 100), scene(400, 400)
    for kind in (".png", ".jpg"):
        row = encoded(image, mask, kind)
        for data in (data_settings(crop=64), data_settings(crop=64, augment=["ScaledCrop"])):
            with pytest.raises(DataError, match="the image is 100x100 and its mask 400x400"):
                crop_of(Augmenter(data, 255), row, 0)
