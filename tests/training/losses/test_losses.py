"""Every loss: against torch, torchmetrics, scipy or a loop over pixels; gradients by gradcheck; sums over any split."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import ndimage

from segray.config import LossConfig
from segray.core.errors import ConfigError, DataError
from segray.training.losses.build import build_loss, class_weights
from segray.training.losses.pixel import CrossEntropyLoss, FocalLoss, OhemLoss
from segray.training.losses.region import BoundaryLoss, LovaszSoftmaxLoss, TverskyLoss, dice_loss

CLASSES, IGNORE = 4, 255
WEIGHTS = torch.tensor([1.0, 0.25, 3.0, 0.5])
ALL = {
    "cross_entropy": CrossEntropyLoss(),
    "weighted": CrossEntropyLoss(WEIGHTS, 0.1),
    "focal": FocalLoss(),
    "focal_weighted": FocalLoss(WEIGHTS, 1.0),
    "ohem": OhemLoss(CrossEntropyLoss(WEIGHTS), 0.4, 0.25),
    "dice": dice_loss(),
    "tversky": TverskyLoss(),
    "lovasz": LovaszSoftmaxLoss(),
    "boundary": BoundaryLoss(),
}


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def sample(images=2, small=(3, 4), size=(11, 13), dtype=torch.float64):
    logits = (torch.randn(images, CLASSES, *small, dtype=dtype) * 2).requires_grad_()
    mask = torch.randint(0, CLASSES, (images, *size))
    mask[:, :4, :5] = 2  # something larger than a pixel
    mask[-1][mask[-1] == 3] = 0  # and an image that lacks a class
    mask[torch.rand(images, *size) < 0.1] = IGNORE
    return logits, mask


def resized(logits, mask):
    return F.interpolate(logits, size=mask.shape[1:], mode="bilinear", align_corners=False)


def pixels(logits, mask):
    """(probabilities (K,), id) of each valid pixel of an image, as floats."""
    probabilities = resized(logits, mask).softmax(1).detach().numpy()
    for image, ids in zip(probabilities, mask.numpy(), strict=True):
        yield [(image[:, i, j], ids[i, j]) for i, j in np.ndindex(ids.shape) if ids[i, j] != IGNORE]


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_cross_entropy_is_torchs(weights, smoothing):
    logits, mask = sample()
    found = CrossEntropyLoss(weights, smoothing)(logits, mask, IGNORE)
    given = None if weights is None else weights.double()
    expected = F.cross_entropy(
        resized(logits, mask), mask, given, ignore_index=IGNORE, reduction="sum", label_smoothing=smoothing
    )
    assert found.item() == pytest.approx(expected.item(), rel=1e-10)
    ours, theirs = (torch.autograd.grad(value, logits)[0] for value in (found, expected))
    assert torch.allclose(ours, theirs, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("gamma", [1.0, 2.0, 3.5])
def test_focal_is_its_formula_pixel_by_pixel(gamma):
    logits, mask = sample()
    expected = sum(
        -float(WEIGHTS[k]) * (1 - p[k]) ** gamma * np.log(p[k]) for image in pixels(logits, mask) for p, k in image
    )
    assert FocalLoss(WEIGHTS, gamma)(logits, mask, IGNORE).item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("threshold", "share"), [(0.4, 0.0), (0.0, 0.25), (0.3, 0.5), (0.0, 0.0)])
def test_ohem_sums_the_pixels_below_the_threshold_or_the_hardest_share(threshold, share):
    logits, mask = sample()
    expected = 0.0
    for image in pixels(logits, mask):
        own = sorted(p[k] for p, k in image)
        hardest = own[max(1, int(len(own) * share)) - 1]  # a resize makes equal pixels: all of them are kept
        expected += sum(-np.log(p) for p in own if p < threshold or p <= hardest * (1 + 1e-12))
    assert OhemLoss(CrossEntropyLoss(), threshold, share)(logits, mask, IGNORE).item() == pytest.approx(expected)


@pytest.mark.parametrize(("alpha", "beta"), [(0.5, 0.5), (0.3, 0.7)])
def test_tversky_is_its_formula_class_by_class(alpha, beta):
    logits, mask = sample()
    expected = 0.0
    for image in pixels(logits, mask):
        index = []
        for k in sorted({k for _, k in image}):
            hit = sum(p[k] for p, own in image if own == k)
            false_positive = sum(p[k] for p, own in image if own != k)
            false_negative = sum(1 - p[k] for p, own in image if own == k)
            index.append(hit / (hit + alpha * false_positive + beta * false_negative))
        expected += (1 - np.mean(index)) * len(image)
    assert TverskyLoss(alpha, beta)(logits, mask, IGNORE).item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("loss", "score"), [(dice_loss(), "f1_score"), (LovaszSoftmaxLoss(), "jaccard_score")])
def test_certain_predictions_have_scikit_learns_score(loss, score):
    """Dice is F1, and Lovasz meets IoU, where every probability is 0 or 1."""
    theirs = getattr(pytest.importorskip("sklearn.metrics"), score)
    mask, predicted = torch.randint(0, CLASSES, (2, 1, 9, 9))
    logits = F.one_hot(predicted, CLASSES).permute(0, 3, 1, 2).double() * 1000
    expected = 1 - theirs(mask.flatten(), predicted.flatten(), average="macro")
    assert loss(logits, mask, IGNORE).item() / mask.numel() == pytest.approx(expected, rel=1e-9)


def test_lovasz_is_the_extension_of_the_set_function():
    """The sum over pixels, the worst first, of the error times what misjudging it too adds to 1 - IoU."""

    def missed(truth, wrong):
        met, met_or_called = (truth & ~wrong).sum(), (truth | wrong).sum()
        return 1 - met / met_or_called

    logits, mask = sample(images=1, size=(5, 6))
    expected = []
    (image,) = pixels(logits, mask)
    for k in sorted({k for _, k in image}):
        truth = np.array([own == k for _, own in image])
        errors = np.array([abs((own == k) - p[k]) for p, own in image])
        wrong, value = np.zeros(len(image), bool), 0.0
        for i in np.argsort(-errors):
            before = missed(truth, wrong)
            wrong[i] = True
            value += errors[i] * (missed(truth, wrong) - before)
        expected.append(value)
    found = LovaszSoftmaxLoss()(logits, mask, IGNORE).item()
    assert found / len(image) == pytest.approx(np.mean(expected), rel=1e-9)


def test_boundary_is_one_minus_the_f1_of_outlines():
    """On certain predictions: outlines by erosion, met within two pixels by dilation, with scipy."""
    mask = torch.zeros(1, 20, 24, dtype=torch.int64)
    predicted = mask.clone()
    mask[0, 4:12, 5:15], predicted[0, 5:14, 5:18] = 1, 1
    logits = F.one_hot(predicted, 2).permute(0, 3, 1, 2).double() * 1000
    square = np.ones((3, 3), bool)
    scores = []
    for k in range(2):
        drawn, wanted = (
            (ids.numpy()[0] == k) & ~ndimage.binary_erosion(ids.numpy()[0] == k, square, border_value=1)
            for ids in (predicted, mask)
        )
        near = [ndimage.binary_dilation(outline, np.ones((5, 5), bool)) for outline in (drawn, wanted)]
        precision, recall = (drawn & near[1]).sum() / drawn.sum(), (wanted & near[0]).sum() / wanted.sum()
        scores.append(2 * precision * recall / (precision + recall))
    assert 0 < np.mean(scores) < 1
    found = BoundaryLoss(2)(logits, mask, IGNORE).item() / mask.numel()
    assert found == pytest.approx(1 - np.mean(scores), rel=1e-9)


@pytest.mark.parametrize("ignored", [0, 8])
def test_an_image_of_one_class_has_no_outline_and_no_boundary_loss(ignored):
    """Where it ends at ignored pixels, nobody knows whether that is an outline."""
    logits = torch.randn(1, 3, 4, 4, requires_grad=True)
    mask = torch.ones(1, 16, 16, dtype=torch.int64)
    mask[:, :, :ignored] = IGNORE
    total = BoundaryLoss()(logits, mask, IGNORE)
    total.backward()
    assert total.item() == 0
    assert logits.grad.abs().max() == 0


@pytest.mark.parametrize("name", ALL)
def test_gradients_are_those_of_the_value(name):
    logits, mask = sample(images=2, small=(2, 3), size=(7, 8))
    assert torch.autograd.gradcheck(lambda values: ALL[name](values, mask, IGNORE), logits, eps=1e-7, atol=1e-5)


@pytest.mark.parametrize("name", ALL)
def test_shares_of_a_batch_add_up_to_the_whole(name):
    logits, mask = sample(images=3)
    mask[1, :6] = IGNORE
    whole = ALL[name](logits, mask, IGNORE)
    parts = sum(ALL[name](logits[part], mask[part], IGNORE) for part in (slice(0, 1), slice(1, 3)))
    assert parts.item() == pytest.approx(whole.item(), rel=1e-12)


@pytest.mark.parametrize("name", ALL)
def test_ignored_pixels_count_for_nothing(name):
    """Whatever the logits are where the mask is ignored, value and the rest's gradient stay: an image half ignored."""
    logits, mask = sample(images=1, small=(11, 13))
    mask[:, :, 6:] = IGNORE
    other = logits.detach().clone()
    other[:, :, :, 6:] = 50 * torch.randn_like(other[:, :, :, 6:])
    other.requires_grad_()
    pair = [ALL[name](values, mask, IGNORE) for values in (logits, other)]
    assert pair[0].item() == pytest.approx(pair[1].item(), rel=1e-12)
    grads = [torch.autograd.grad(value, values)[0] for value, values in zip(pair, (logits, other), strict=True)]
    assert torch.allclose(*grads, atol=1e-12)
    assert grads[1][..., 6:].abs().max() == 0


@pytest.mark.parametrize("name", ALL)
def test_an_ignored_batch_gives_zero_and_no_nan(name):
    logits, mask = sample()
    loss = build_loss(LossConfig(terms=("cross_entropy",)), CLASSES)
    for total in (
        ALL[name](logits, torch.full_like(mask, IGNORE), IGNORE),
        loss({"seg": logits}, {"mask": torch.full_like(mask, IGNORE)}, ignore_id=IGNORE)[0],
    ):
        (grad,) = torch.autograd.grad(total, logits)
        assert total.item() == 0
        assert grad.abs().max() == 0


@pytest.mark.parametrize("name", ALL)
def test_bfloat16_logits_are_scored_in_float32(name):
    logits, mask = sample(dtype=torch.float32)
    half = logits.detach().bfloat16().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        total = ALL[name](half, mask, IGNORE)
    total.backward()
    assert total.dtype == torch.float32
    assert half.grad.dtype == torch.bfloat16
    assert total.item() == pytest.approx(ALL[name](half.detach().float(), mask, IGNORE).item(), rel=1e-6)


@pytest.mark.parametrize("name", ["dice", "tversky", "lovasz", "boundary"])
@pytest.mark.parametrize("ignored", [False, True])
def test_float16_logits_whose_sum_overflows_give_no_nan(name, ignored):
    logits, mask = sample(dtype=torch.float32)
    half = (logits.detach() * 100 - 30_000).half().requires_grad_()
    assert half.detach().sum().isinf()
    total = ALL[name](half, torch.full_like(mask, IGNORE) if ignored else mask, IGNORE)
    total.backward()
    assert total.isfinite()
    assert half.grad.isfinite().all()
    assert ignored is (total.item() == 0)


@pytest.mark.parametrize("name", ["dice", "lovasz", "boundary", "focal", "ohem"])
def test_minimising_it_finds_the_mask(name):
    _, mask = sample(images=1, size=(8, 8))
    mask = mask.where(mask != IGNORE, 0)
    logits = (0.1 * torch.randn(1, CLASSES, 8, 8)).requires_grad_()
    optimiser = torch.optim.Adam([logits], 0.3)
    start = ALL[name](logits, mask, IGNORE).item()
    for _ in range(150):
        optimiser.zero_grad()
        ALL[name](logits, mask, IGNORE).backward()
        optimiser.step()
    assert ALL[name](logits, mask, IGNORE).item() < 0.25 * start


def test_terms_are_weighted_and_named():
    logits, mask = sample()
    config = LossConfig(terms=("cross_entropy", {"dice": 0.5}), aux_weight=0.25)
    auxiliary = torch.randn(2, CLASSES, 1, 1, dtype=torch.float64)
    total, parts = build_loss(config, CLASSES)({"seg": logits, "aux": auxiliary}, {"mask": mask}, ignore_id=IGNORE)
    assert set(parts) == {"cross_entropy", "dice", "aux"}
    valid = (mask != IGNORE).sum()
    assert parts["dice"].item() == pytest.approx((dice_loss()(logits, mask, IGNORE) / valid).item())
    expected = F.cross_entropy(resized(auxiliary, mask), mask, ignore_index=IGNORE)
    assert parts["aux"].item() == pytest.approx(expected.item())
    assert total.item() == pytest.approx(
        sum(parts[n].item() * w for n, w in [("cross_entropy", 1), ("dice", 0.5), ("aux", 0.25)])
    )
    assert not any(part.requires_grad for part in parts.values())


def test_weights_are_made_of_the_pixel_counts():
    counts = [600, 0, 300, 100]
    balanced = class_weights(LossConfig(class_weights="balanced"), 4, counts)
    assert balanced.tolist() == pytest.approx([1000 / 3 / 600, 0, 1000 / 3 / 300, 1000 / 3 / 100])
    median = class_weights(LossConfig(class_weights="median"), 4, counts)
    assert median.tolist() == pytest.approx([0.5, 0, 1, 3])
    given = class_weights(LossConfig(class_weights="[1, 2, 3, 4]"), 4, None)
    assert given.tolist() == [1, 2, 3, 4]
    assert class_weights(LossConfig(), 4, counts) is None


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"class_weights": [1, 2]}, "loss.class_weights has 2 numbers; expected one for each of 4 classes"),
        ({"class_weights": "balanced"}, "loss.class_weights is balanced; expected numbers, because the pixel counts"),
    ],
)
def test_weights_that_do_not_fit_the_classes_are_refused(settings, said):
    with pytest.raises(ConfigError, match=said):
        build_loss(LossConfig(**settings), CLASSES)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"terms": "cross_entrop"}, "loss.terms is cross_entrop; expected cross_entropy, ohem"),
        ({"terms": "[dice, dice]"}, "expected each loss once"),
        ({"terms": "[]"}, "expected a list of NAME or NAME: weight"),
        ({"terms": "{dice: much}"}, "expected a list of NAME or NAME: weight"),
        ({"class_weights": "balance"}, "loss.class_weights is balance; expected balanced, median, or a list"),
        ({"class_weights": "[1, -1]"}, "each at least 0"),
    ],
)
def test_settings_that_name_no_loss_are_refused(settings, said):
    with pytest.raises(ValueError, match=said.replace("[", r"\[")):
        LossConfig(**settings)


@pytest.mark.parametrize("name", ["dice", "ohem"])
def test_an_id_that_is_no_class_is_named_by_every_loss(name):
    logits, mask = sample()
    mask[0, 0, 0] = 77
    with pytest.raises(DataError, match=r"ids \[77\] in 1 pixels"):
        build_loss(LossConfig(terms=(name,)), CLASSES)({"seg": logits}, {"mask": mask}, ignore_id=IGNORE)
