"""Looking at an image whole, in windows, at several scales and mirrored, against loops that say what that means."""

import pytest
import torch
import torch.nn.functional as F

from segray import config
from segray.core.classes import Classes
from segray.core.errors import ConfigError, ModelError
from segray.inference import segment as inference
from segray.inference.segment import (
    WHOLE_IMAGE,
    InferenceConfig,
    logits_per_pass,
    segment,
    segment_with_confidence,
    segment_with_probabilities,
    sliding_window_logits,
)
from segray.models.build import build_model

CLASSES = Classes.from_names(["road", "car", "sky"])


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return build_model(config.build({}), CLASSES).eval()


def images(height, width, count=1, seed=0):
    random = torch.Generator().manual_seed(seed)
    small = torch.randint(0, 256, (count, 3, height // 8, width // 8), generator=random).float()
    return F.interpolate(small, (height, width), mode="bilinear").to(torch.uint8)


class Fake(torch.nn.Module):
    """Scores at a quarter of the size that depend on the window: where it begins is not what the image begins with."""

    def __init__(self, classes=3):
        super().__init__()
        self.weights = torch.nn.Parameter(torch.randn(classes, 3, generator=torch.Generator().manual_seed(1)))
        self.calls = []

    def forward(self, some):
        self.calls.append(tuple(some.shape))
        small = F.avg_pool2d(some.float() / 255, 4)
        scores = torch.einsum("kc,bchw->bkhw", self.weights, small)
        place = torch.arange(scores.shape[-1]).float() / 50 + torch.arange(scores.shape[-2]).float()[:, None] / 70
        return {"seg": scores + place * torch.arange(len(self.weights))[:, None, None]}


@torch.no_grad()
def expected(model, some, size):
    return F.interpolate(model(some)["seg"], size, mode="bilinear", align_corners=False)


@pytest.mark.parametrize("size", [(64, 96), (60, 90), (131, 77), (300, 7)])
def test_whole_is_the_argmax_of_scores_resized_bilinearly(size, monkeypatch):
    monkeypatch.setattr(inference, "MAX_BAND_ELEMENTS", {"cpu": 1000})
    some, fake = images(64, 96, count=2), Fake()
    scores = expected(fake, some, size)
    found = segment(fake, some, size)
    assert found.dtype == torch.uint8
    assert (found != scores.argmax(1)).float().mean() < 1e-3
    ids, probabilities = segment_with_probabilities(fake, some, size)
    assert torch.equal(ids, segment(fake, some, size))
    assert torch.allclose(probabilities, scores.softmax(1), atol=1e-5)
    ids, sure = segment_with_confidence(fake, some, size)
    assert torch.equal(ids, found)
    assert torch.allclose(sure, scores.softmax(1).amax(1), atol=1e-5)


def test_more_than_a_bytes_classes_are_int32():
    found = segment(Fake(300), images(32, 32), (32, 32))
    assert found.dtype == torch.int32
    assert found.max() > 255


@pytest.mark.parametrize("side", [64, 96, 256])
def test_one_window_is_the_whole_image(model, side):
    some = images(64, 64, count=2)
    mode = InferenceConfig(crop=side, stride=32, window_batch=1)
    assert torch.equal(
        segment(model, some, (50, 70), mode), segment(model, some, (50, 70), InferenceConfig(window_batch=9))
    )


def test_windows_are_blended_where_they_overlap(monkeypatch):
    fake, some = Fake(), images(96, 160, count=2)
    total, hits = torch.zeros(2, 3, 24, 40), torch.zeros(24, 40)
    for top in (0, 32):
        for left in (0, 48, 96):
            with torch.no_grad():
                found = fake(some[:, :, top : top + 64, left : left + 64])["seg"]
            total[:, :, top // 4 : top // 4 + 16, left // 4 : left // 4 + 16] += found
            hits[top // 4 : top // 4 + 16, left // 4 : left // 4 + 16] += 1
    with torch.no_grad():
        found = sliding_window_logits(lambda part: fake(part)["seg"], some, 64, 48, window_batch=4)
    assert torch.allclose(found, total / hits, atol=1e-6)


def test_windows_in_one_pass_are_those_of_one_each(model):
    some = images(96, 160)
    one, many = (
        logits_per_pass(model, some, InferenceConfig(crop=64, stride=48, window_batch=windows))[0] for windows in (1, 5)
    )
    assert torch.allclose(one, many, atol=1e-4)
    fake = Fake()
    segment(fake, some, (96, 160), InferenceConfig(crop=64, stride=48, window_batch=4))
    assert [shape[0] for shape in fake.calls] == [4, 2]


def test_an_image_narrower_than_a_window_is_one_window_across():
    fake = Fake()
    segment(fake, images(96, 32), (96, 32), InferenceConfig(crop=64, stride=32, window_batch=8))
    assert fake.calls == [(2, 3, 64, 32)]


def test_scales_and_mirror_images_are_averaged_as_probabilities():
    fake, some = Fake(), images(64, 96)
    mode = InferenceConfig(scales=(0.5, 1.0, 1.5), flip=True)
    passes = []
    for size in ((32, 64), (64, 96), (96, 160)):  # up to the next multiple of 32
        scaled = (
            F.interpolate(some.float(), size, mode="bilinear").round().to(torch.uint8) if size != (64, 96) else some
        )
        passes.append(expected(fake, scaled, (64, 96)).softmax(1))
        passes.append(F.interpolate(fake(scaled.flip(-1))["seg"].flip(-1), (64, 96), mode="bilinear").softmax(1))
    wanted = torch.stack(passes).mean(0)
    assert torch.allclose(segment_with_probabilities(fake, some, (64, 96), mode)[1], wanted, atol=1e-5)
    assert (segment(fake, some, (64, 96), mode) != wanted.argmax(1)).float().mean() < 1e-3


def test_the_mirror_image_of_a_symmetric_one_is_seen_alike(model):
    half = images(64, 64)
    some = torch.cat([half, half.flip(-1)], -1)
    found = segment_with_probabilities(model, some, (64, 128), InferenceConfig(flip=True))[1]
    assert torch.allclose(found, found.flip(-1), atol=1e-5)
    alone = segment_with_probabilities(model, some, (64, 128))[1]
    assert not torch.allclose(alone, alone.flip(-1), atol=1e-3)  # the model itself is not symmetric


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_close_and_full_where_it_is_resized(model, dtype):
    some = images(64, 64)
    (full,), (half,) = (logits_per_pass(model, some, InferenceConfig(dtype=one)) for one in (torch.float32, dtype))
    assert half.dtype == torch.float32
    assert 0 < (full - half).abs().max() < 0.1 * full.abs().max()


def test_settings_make_a_mode_and_impossible_ones_are_refused():
    assert InferenceConfig.from_config(config.build({})) == WHOLE_IMAGE.__class__(window_batch=4)
    made = InferenceConfig.from_config(
        config.build({"eval.mode": "slide", "data.crop": 256, "eval.scales": [0.5, 1], "eval.flip": True})
    )
    assert (made.crop, made.stride, made.scales, made.flip) == (256, 192, (0.5, 1.0), True)
    for wrong, said in (
        ({"eval.crop": 100}, "eval.crop is 100; expected a multiple of 32"),
        ({"eval.stride": 30}, "eval.stride is 30; expected a multiple of 4"),
        (
            {"eval.mode": "slide", "eval.crop": 64, "eval.stride": 96},
            "eval.stride is 96; expected at most the window size 64",
        ),
        (
            {"eval.mode": "slide", "data.crop": 512, "eval.stride": 600},
            "eval.stride is 600; expected at most the window size 512",
        ),
        (
            {"eval.mode": "slide", "eval.size_multiple": 7},
            "eval.size_multiple is 7; expected a multiple of 32 in mode slide",
        ),
        ({"eval.scales": []}, "eval.scales"),
    ):
        with pytest.raises(ConfigError, match=said):
            config.build(wrong)
    small = config.build({"data.crop": 256})
    assert small.with_eval_overrides({"mode": "slide", "stride": 256}).eval.stride == 256
    with pytest.raises(ConfigError, match="eval.stride is 300; expected at most the window size 256"):
        small.with_eval_overrides({"mode": "slide", "stride": 300})


def test_windows_that_leave_pixels_out_are_refused():
    with pytest.raises(ModelError, match="do not cover the image"):
        segment(Fake(), images(64, 200), (64, 200), InferenceConfig(crop=64, stride=96))
