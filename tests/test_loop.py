"""The loop: steps as torch would make them, and a loss that means the same however pixels are spread."""

from functools import partial

import pytest
import torch
from torch import nn

from segray import losses
from segray.loop import Meter, Step, global_pixels, steps

IGNORE = 255


class Tiny(nn.Module):
    """A model of the contract: (B, 3, H, W) uint8 to {"seg": (B, K, H/4, W/4)}."""

    def __init__(self, classes=3):
        super().__init__()
        self.head = nn.Conv2d(3, classes, 4, stride=4)

    def forward(self, images):
        return {"seg": self.head(images.float() / 255)}


def batches(count, size=16):
    generator = torch.Generator().manual_seed(0)
    for _ in range(count):
        mask = torch.randint(0, 3, (2, size, size), generator=generator)
        mask[:, :2] = IGNORE
        yield {
            "image": torch.randint(0, 256, (2, 3, size, size), dtype=torch.uint8, generator=generator),
            "mask": mask,
        }


def run(model, count, factor=lambda step: 1.0, start=0):
    optimiser = torch.optim.SGD([{"params": list(model.parameters()), "peak_lr": 0.1}], lr=0.1)
    loss = partial(losses.cross_entropy)
    return list(steps(model, loss, optimiser, batches(count), lr_factor=factor, ignore_id=IGNORE, start=start))


def test_steps_are_what_a_plain_loop_makes():
    torch.manual_seed(0)
    ours, plain = Tiny(), Tiny()
    plain.load_state_dict(ours.state_dict())
    made = run(ours, 4, factor=lambda step: 1 / (step + 1))
    expected = []
    for index, batch in enumerate(batches(4)):
        logits = nn.functional.interpolate(plain(batch["image"])["seg"], size=(16, 16), mode="bilinear")
        loss = nn.functional.cross_entropy(logits, batch["mask"], ignore_index=IGNORE)
        plain.zero_grad()
        loss.backward()
        expected.append(loss.item())
        with torch.no_grad():
            for parameter in plain.parameters():
                parameter.sub_(0.1 / (index + 1) * parameter.grad)
    assert [float(step.loss) for step in made] == pytest.approx(expected, rel=1e-5)
    for name, value in plain.state_dict().items():
        assert torch.allclose(ours.state_dict()[name], value, atol=1e-6), name


def test_steps_count_from_where_the_run_goes_on():
    seen = []
    made = run(Tiny(), 2, factor=lambda step: seen.append(step) or 1.0, start=7)
    assert [step.step for step in made] == [8, 9]
    assert seen == [7, 8]


def test_an_ignored_batch_divides_by_one_and_not_by_zero():
    assert global_pixels(torch.full((1, 4, 4), IGNORE), IGNORE) == 1
    assert global_pixels(torch.zeros(1, 4, 4, dtype=torch.uint8), IGNORE) == 16


def test_the_meter_averages_and_starts_anew():
    meter = Meter()
    for loss in (1.0, 3.0):
        meter.add(Step(1, torch.tensor(loss), {"aux": torch.tensor(loss / 2)}, 0.1, 4, 0.5))
    taken = meter.take()
    assert (taken["loss"], taken["loss/aux"], taken["images"], taken["wait_s"]) == (2.0, 1.0, 8.0, 1.0)
    assert meter.take()["images"] == 0
