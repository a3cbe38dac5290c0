"""The cross-entropy on small logits: against torch's resize and cross-entropy."""

import pytest
import torch
import torch.nn.functional as F

from segray.core.errors import DataError
from segray.training.losses import fused
from segray.training.losses.build import cross_entropy
from segray.training.losses.pixel import CrossEntropyLoss, FocalLoss, OhemLoss

WEIGHTS = torch.tensor([1.0, 1.0, 8000.0])
"""Balanced class weights, if a class has a millionth of the pixels."""


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def plain(logits, mask, ignore_id):
    resized = F.interpolate(logits, size=mask.shape[1:], mode="bilinear", align_corners=False)
    return F.cross_entropy(resized, mask.to(torch.int64), ignore_index=ignore_id)


def sample(num_classes=5, small=(7, 9), size=(25, 33), dtype=torch.uint8, ignore_id=255):
    logits = (torch.randn(2, num_classes, *small) * 3).requires_grad_()
    mask = torch.randint(0, num_classes, (2, *size))
    mask[torch.rand(2, *size) < 0.2] = ignore_id
    return logits, mask.to(dtype)


@pytest.mark.parametrize("chunk", [1, 500, 1 << 30])
@pytest.mark.parametrize("size", [(25, 33), (28, 36), (7, 9), (64, 50), (5, 4)])
def test_value_and_gradient_are_torchs(size, chunk, monkeypatch):
    monkeypatch.setitem(fused.CHUNK_ELEMENTS, "cpu", chunk)
    logits, mask = sample(size=size)
    expected = plain(logits, mask, 255)
    total, parts = cross_entropy({"seg": logits}, {"mask": mask}, ignore_id=255)
    assert total.item() == pytest.approx(expected.item(), rel=1e-5)
    assert parts["cross_entropy"].item() == total.item()
    assert not parts["cross_entropy"].requires_grad
    (ours,) = torch.autograd.grad(total * 3, logits)
    (theirs,) = torch.autograd.grad(expected * 3, logits)
    assert (ours - theirs).abs().max() < 1e-5 * theirs.abs().max()


@pytest.mark.parametrize(
    ("dtype", "num_classes", "ignore_id"), [(torch.uint8, 1, 255), (torch.uint16, 300, 65535), (torch.int64, 3, 255)]
)
def test_masks_of_every_integer_type_are_taken(dtype, num_classes, ignore_id):
    logits, mask = sample(num_classes, dtype=dtype, ignore_id=ignore_id)
    total, _ = cross_entropy({"seg": logits}, {"mask": mask}, ignore_id=ignore_id)
    assert total.item() == pytest.approx(plain(logits, mask, ignore_id).item(), rel=1e-5, abs=1e-6)


def test_a_batch_without_a_valid_pixel_gives_zero_and_zero_gradients():
    logits, mask = sample()
    total, _ = cross_entropy({"seg": logits}, {"mask": torch.full_like(mask, 255)}, ignore_id=255)
    total.backward()
    assert total.item() == 0.0
    assert logits.grad.abs().max() == 0.0


def test_shares_of_a_batch_divided_by_the_global_count_add_up_to_the_whole():
    logits, mask = sample()
    mask[0, :20] = 255
    whole, _ = cross_entropy({"seg": logits}, {"mask": mask}, ignore_id=255)
    valid = (mask != 255).sum()
    shares = [
        cross_entropy({"seg": logits[i : i + 1]}, {"mask": mask[i : i + 1]}, ignore_id=255, normaliser=valid)[0]
        for i in range(2)
    ]
    assert sum(shares).item() == pytest.approx(whole.item(), rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits_are_scored_in_float32(dtype):
    logits, mask = sample()
    half = logits.detach().to(dtype).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        total, _ = cross_entropy({"seg": half}, {"mask": mask}, ignore_id=255)
    total.backward()
    assert total.dtype == torch.float32
    assert total.item() == pytest.approx(plain(half.detach().float(), mask, 255).item(), rel=1e-5)
    assert half.grad.dtype == dtype


def test_large_logits_neither_overflow_nor_lose_the_loss():
    logits = torch.tensor([[[[200.0]], [[-200.0]]]], requires_grad=True)
    total, _ = cross_entropy({"seg": logits}, {"mask": torch.ones(1, 4, 4)}, ignore_id=255)
    total.backward()
    assert total.item() == 400.0
    assert logits.grad.flatten().tolist() == [1.0, -1.0]


def test_an_id_that_is_no_class_is_named():
    logits, mask = sample()
    mask[1, 3, :2] = 77
    with pytest.raises(DataError, match=r"ids \[77\] in 2 pixels; expected 0..4, or 255"):
        cross_entropy({"seg": logits}, {"mask": mask}, ignore_id=255)


def test_evaluation_without_gradients_keeps_none():
    logits, mask = sample()
    with torch.no_grad():
        total, _ = cross_entropy({"seg": logits}, {"mask": mask}, ignore_id=255)
    assert not total.requires_grad


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("loss_scale", [1.0, 512.0])
@pytest.mark.parametrize(
    "term",
    [CrossEntropyLoss(WEIGHTS, 0.1), FocalLoss(WEIGHTS), OhemLoss(CrossEntropyLoss(WEIGHTS))],
    ids=["cross_entropy", "focal", "ohem"],
)
def test_a_gradient_that_half_precision_can_hold_is_not_lost_on_the_way(term, loss_scale, dtype):
    """The sum over pixels with such weights exceeds float16's maximum of 65504, its mean does not."""
    logits = torch.randn(1, 3, 8, 8, dtype=torch.float64)
    mask = torch.randint(0, 3, (1, 256, 256))
    gradients = []
    for leaf in (logits.to(dtype), logits.to(dtype).double()):
        loss = term(leaf.requires_grad_(), mask, 255) / mask.numel()
        gradients.append(torch.autograd.grad(loss * loss_scale, leaf)[0].double())
    half, exact = gradients
    assert 1 < exact.abs().max() < 65504
    torch.testing.assert_close(half, exact, rtol=2 * torch.finfo(dtype).eps, atol=1e-3 * exact.abs().max().item())
