"""Transforms by name: refused with the nearest when the config is built, masks left whole, seeded by the row."""

import numpy as np
import pytest

from segray import config
from segray.config import Config
from segray.core.errors import ConfigError, DataError
from segray.data.augment.augmenter import Augmenter, validate_augment, validate_transforms


def build(augment, **data):
    tree = {"crop": 64, "augment": augment} | data
    data = config.build({f"data.{name}": value for name, value in tree.items()}).data
    validate_augment(data)
    return data


def crop_of(data, row, seed, ignore_id=255):
    augmenter = Augmenter(data, ignore_id)
    return augmenter([row], augmenter.draw(seed))


@pytest.mark.parametrize(
    ("augment", "message"),
    [
        (
            ["HorizontalFlp"],
            "data.augment contains HorizontalFlp, which is not a transform; did you mean HorizontalFlip?",
        ),
        (["scaledcrop"], "did you mean ScaledCrop?"),
        ([{"Blur": {"blur_limits": 3}}], "data.augment: Blur has no argument blur_limits; did you mean blur_limit?"),
        ([{"HorizontalFlip": {"chance": 1}}], "data.augment: HorizontalFlip has no argument chance; expected p."),
        ([{"ScaledCrop": {"rule": 1}}], "data.augment: ScaledCrop has no argument rule; expected p."),
        (
            ["Xyzzyx"],
            "data.augment contains Xyzzyx, which is not a transform; expected a name from albumentations.ai/docs.",
        ),
        ([{"GaussianBlur": {"blur_limit": "x"}}], "data.augment: GaussianBlur cannot be built: blur_limit"),
        ([{"RandomCrop": {}}], "data.augment: RandomCrop cannot be built: height: Field required."),
        ([{"Affine": {"mask_interpolation": 1}}, "ScaledCrop"], "which mixes class ids; expected 0 (nearest)."),
        (["Morphological"], "data.augment contains Morphological, which segray does not support"),
        ([{"OneOf": {}}, "ScaledCrop"], "data.augment: OneOf needs the argument transforms, a list of transforms."),
        (
            [{"OneOf": {"transforms": ["Blurr"]}}],
            "data.augment contains Blurr, which is not a transform; did you mean Blur?",
        ),
        ([{"RandomCrop": {"height": 32, "width": 32}}], "data.augment returns 32x32 for an image of 128x128; expected"),
        (["HorizontalFlip"], "returns 128x128 for an image of 128x128; expected 64x64 (data.crop); end it with a crop"),
        ([{"Affine": {"mask_interpolation": [1]}}], "which mixes class ids; expected 0 (nearest)."),
        ([{"OneOf": {"transforms": []}}, "ScaledCrop"], "data.augment: OneOf needs the argument transforms, a list of"),
        ([{"Blur": 3}], "data.augment is [{'Blur': 3}]; expected a list of NAME or NAME: {argument: value}"),
        (["ScaledCrop", "Normalize"], "a float32 image and a uint8 mask; expected uint8 and uint8"),
        (["Normalize", "ScaledCrop"], "ScaledCrop got a float32 image"),
        ([{"ResizeToMultiple": {"multiple": 0}}], "ResizeToMultiple cannot be built: multiple is 0"),
        ([{"A": {}, "B": {}}], "expected a list of NAME or NAME: {argument: value}"),
        ([{"OneOf": {"transforms": [{"Blur": 3}]}}], "expected NAME, or NAME: {argument: value, ...}."),
        ([3], "data.augment is [3]; expected a list of NAME or NAME: {argument: value}"),
        ("ScaledCrop", "data.augment is ScaledCrop; expected a list"),
        ("[{", "expected a list of NAME or NAME: {argument: value}"),
    ],
)
def test_invalid_pipelines_are_errors(augment, message):
    with pytest.raises(ConfigError) as raised:
        build(augment)
    assert message in str(raised.value)


def test_a_flag_takes_the_list_as_yaml():
    listed = ["ScaledCrop", {"GaussNoise": {"p": 0.2}}]
    assert build("[ScaledCrop, {GaussNoise: {p: 0.2}}]") == build(listed)
    assert config.flatten(config.build({"data.augment": listed}))["data.augment"] == listed


def test_recipe_transforms_combine_with_other_transforms(scene, encoded):
    data = build(["ScaledCrop", {"HorizontalFlip": {"p": 1}}, "PhotometricDistortion"])
    crops = [crop_of(data, encoded(*scene(100, 150)), seed) for seed in range(5)]
    assert all(image.shape == (64, 64, 3) and mask.shape == (64, 64) for image, mask in crops)
    assert not np.array_equal(crops[0][0], crops[1][0])


ROTATED = [{"Rotate": {"limit": [45, 45], "p": 1}}, {"CenterCrop": {"height": 64, "width": 64}}]


@pytest.mark.parametrize(("ignore_id", "dtype"), [(255, np.uint8), (65535, np.uint16)])
def test_areas_uncovered_by_geometric_transforms_are_padded_and_ignored(encoded, ignore_id, dtype):
    image, mask = np.zeros((64, 64, 3), np.uint8), np.full((64, 64), 7, dtype)
    crop, ids = crop_of(build(ROTATED), encoded(image, mask), 0, ignore_id)
    assert ids.dtype == dtype
    assert set(np.unique(ids)) == {7, ignore_id}
    assert tuple(crop[0, 0]) == (124, 116, 104)
    assert (ids == ignore_id).mean() > 0.1


def test_user_fill_values_are_kept(encoded):
    own = [{"Rotate": {"limit": [45, 45], "fill": 9, "fill_mask": 3, "p": 1}}, ROTATED[1]]
    _, ids = crop_of(build(own), encoded(np.zeros((64, 64, 3), np.uint8), np.full((64, 64), 7, np.uint8)), 0)
    assert set(np.unique(ids)) == {3, 7}


@pytest.mark.parametrize("name", ["PiecewiseAffine", "ShiftScaleRotate", "MaskDropout"])
def test_transforms_with_warnings_or_scalar_fill_are_applied(name, scene, encoded):
    """What one of them does shows in some crop: a dropped object, or a bend, may lie outside of a single one."""
    row, changed = encoded(*scene(100, 150)), []
    used, idle = (build([{name: {"p": chance}}, "ScaledCrop"]) for chance in (1.0, 0.0))
    for seed in range(10):
        (image, ids), (plain, _) = (crop_of(data, row, seed) for data in (used, idle))
        assert image.shape == (64, 64, 3)
        assert set(np.unique(ids)) <= {0, 1, 2, 3, 4, 255}
        changed.append(not np.array_equal(image, plain))
    assert any(changed)


def test_a_crop_larger_than_the_trial_image_is_accepted():
    large = build([{"RandomCrop": {"height": 200, "width": 200}}, {"Resize": {"height": 64, "width": 64}}])
    validate_transforms(large, 200, 300, 255)
    with pytest.raises(ConfigError, match="data.augment fails on an image of 300x199"):
        validate_transforms(large, 199, 300, 255)


def test_a_stored_config_with_unknown_transforms_can_be_loaded():
    text = config.build({"data.augment": ["ScaledCrop"]}).model_dump_json().replace("ScaledCrop", "OfAnotherRelease")
    result = Config.model_validate_json(text)
    assert result.data.augment == ("OfAnotherRelease",)
    with pytest.raises(ConfigError, match="OfAnotherRelease"):
        validate_augment(result.data)


ELASTIC = ["ElasticTransform", "GridDistortion", "OpticalDistortion", "Perspective", "Affine", "RandomRotate90"]


@pytest.mark.parametrize("name", ELASTIC)
def test_geometric_transforms_create_no_new_ids(scene, encoded, name):
    data = build([{name: {"p": 1}}, "ScaledCrop"])
    image, _ = scene(128, 128)
    mask = np.kron(np.random.default_rng(0).choice([0, 100, 200], (16, 16)), np.ones((8, 8))).astype(np.uint8)
    for seed in range(5):
        _, ids = crop_of(data, encoded(image, mask), seed)
        assert set(np.unique(ids)) <= {0, 100, 200, 255}


def test_images_are_resized_to_the_short_side_before_the_first_transform(scene, encoded):
    image, mask = scene(128, 256)
    data = build([{"CenterCrop": {"height": 64, "width": 64}}], short_side=64)
    _, ids = crop_of(data, encoded(image, mask), 0)
    assert np.array_equal(ids, mask[::2, ::2][:, 32:96])


def test_images_too_small_for_the_pipeline_are_errors_before_and_during_a_run(scene, encoded):
    data = build([{"RandomCrop": {"height": 64, "width": 64}}])
    with pytest.raises(ConfigError, match="fails on an image of 50x40: Crop size"):
        validate_transforms(data, 40, 50, 255)
    validate_transforms(data, 64, 64, 65535)
    validate_transforms(config.build({}).data, 1, 1, 255)  # the recipe pads
    with pytest.raises(DataError, match="fails on an image of 32x32"):
        crop_of(data, encoded(*scene(32, 32)), 0)


def test_sides_are_rounded_up_to_a_multiple(scene, encoded):
    data = build(["ResizeToMultiple", {"CenterCrop": {"height": 64, "width": 64}}])
    image, mask = scene(40, 50)
    crop, ids = crop_of(data, encoded(image, mask), 0)
    assert crop.shape == (64, 64, 3)
    assert set(np.unique(ids)) <= set(np.unique(mask))
