"""Training loop: equal to a plain torch loop, for any distribution of valid pixels."""

import pytest
import torch
from torch import nn

from segray.training.engine.loop import (
    NO_HOOKS,
    Hooks,
    StepConfig,
    StepResult,
    TrainMeter,
    reduce_normalizer,
    train_steps,
)
from segray.training.engine.optimizer_step import OptimizerStepper
from segray.training.losses.build import cross_entropy

IGNORE = 255


class Tiny(nn.Module):
    """A model of the contract: (B, 3, H, W) uint8 to {"seg": (B, K, H/4, W/4)}."""

    def __init__(self, classes=3):
        super().__init__()
        self.head = nn.Conv2d(3, classes, 4, stride=4)

    def forward(self, images):
        return {"seg": self.head(images.to(self.head.weight.dtype) / 255)}


def batches(count, size=16):
    generator = torch.Generator().manual_seed(0)
    for _ in range(count):
        mask = torch.randint(0, 3, (2, size, size), generator=generator)
        mask[:, :2] = IGNORE
        yield {
            "image": torch.randint(0, 256, (2, 3, size, size), dtype=torch.uint8, generator=generator),
            "mask": mask,
        }


def run(model, count, factor=lambda step: 1.0, optimiser=None, given=None, start=0, hooks=NO_HOOKS, **settings):
    optimiser = optimiser or torch.optim.SGD([{"params": list(model.parameters()), "peak_lr": 0.1}], lr=0.1)
    given = batches(count) if given is None else given
    return list(
        train_steps(
            model,
            cross_entropy,
            OptimizerStepper(optimiser),
            given,
            StepConfig(IGNORE, **settings),
            lr_factor=factor,
            start=start,
            hooks=hooks,
        )
    )


def test_steps_equal_those_of_a_plain_loop():
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


def test_steps_are_numbered_from_the_start():
    seen = []
    made = run(Tiny(), 2, factor=lambda step: seen.append(step) or 1.0, start=7)
    assert [step.step for step in made] == [8, 9]
    assert seen == [7, 8]


def test_the_normalizer_of_an_ignored_batch_is_one():
    assert reduce_normalizer(torch.full((1, 4, 4), IGNORE), IGNORE)[0] == 1
    assert reduce_normalizer(torch.zeros(1, 4, 4, dtype=torch.uint8), IGNORE)[0] == 16


def test_accumulation_equals_one_pass():
    """In float64, with ignored pixels spread unevenly; three parts of two images and one of one."""
    torch.manual_seed(0)
    whole, parts = Tiny().double(), Tiny().double()
    parts.load_state_dict(whole.state_dict())
    generator = torch.Generator().manual_seed(1)
    given = [
        {
            "image": torch.randint(0, 256, (7, 3, 8, 8), dtype=torch.uint8, generator=generator),
            "mask": torch.randint(0, 3, (7, 8, 8), generator=generator),
        }
        for _ in range(5)
    ]
    for batch in given:
        batch["mask"][0] = IGNORE
        batch["mask"][3, :5] = IGNORE
    made = [run(model, 5, given=given, accumulation_steps=count) for model, count in ((whole, 1), (parts, 4))]
    assert [float(step.loss) for step in made[0]] == pytest.approx([float(step.loss) for step in made[1]], rel=1e-12)
    for name, value in whole.state_dict().items():
        assert torch.allclose(parts.state_dict()[name], value, rtol=0, atol=1e-9), name


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_trains_close_to_float32(precision):
    torch.manual_seed(0)
    full, half = Tiny(), Tiny()
    half.load_state_dict(full.state_dict())
    made = [run(model, 4, precision=name) for model, name in ((full, "fp32"), (half, precision))]
    pairs = list(zip(*([float(step.loss) for step in one] for one in made), strict=True))
    assert all(ours == pytest.approx(theirs, rel=2e-2) for ours, theirs in pairs)
    assert any(ours != theirs for ours, theirs in pairs)
    assert all(parameter.dtype == torch.float32 for parameter in half.parameters())


def test_frozen_modules_stay_in_eval_mode():
    model = nn.Sequential(nn.Dropout(0.5), Tiny())
    seen = []
    model[0].register_forward_pre_hook(lambda module, _: seen.append((module.training, model[1].training)))
    run(model, 2, frozen_modules=[model[0]])
    assert seen == [(False, True)] * 2


def test_a_stop_request_belongs_to_the_step_that_starts_after_it():
    started = []
    made = run(Tiny(), 3, hooks=Hooks(on_step_start=started.append, is_stop_requested=lambda: started[-1] == 1))
    assert started == [0, 1, 2]
    assert [bool(step.stop_requested) for step in made] == [False, True, False]


def test_a_non_finite_batch_is_skipped():
    class Spoilt(Tiny):
        def forward(self, images):
            return {"seg": super().forward(images)["seg"] * (float("nan") if images[0, 0, 0, 0] == 0 else 1.0)}

    given = list(batches(4))
    for index, batch in enumerate(given):
        batch["image"][0, 0, 0, 0] = 0 if index == 1 else 1
    model = Spoilt()
    meter, made = TrainMeter(), run(model, 4, given=given)
    assert [bool(step.was_applied) for step in made] == [True, False, True, True]
    for step in made:
        meter.add(step)
    taken = meter.flush()
    assert (taken["skipped"], taken["steps"]) == (1, 4)
    assert taken["loss"] == pytest.approx(sum(float(made[i].loss) for i in (0, 2, 3)) / 3)
    assert meter.skipped_steps == range(2, 3)


def step(number, loss=1.0, finite=True):
    value = torch.tensor(loss)
    return StepResult(
        number, value, {"aux": value / 2}, 0.1, 4, 0.5, value * 3, torch.tensor(finite), torch.tensor(False)
    )


def test_the_meter_averages_and_resets():
    meter = TrainMeter()
    for number, loss in enumerate((1.0, 3.0), 1):
        meter.add(step(number, loss))
    taken = meter.flush()
    assert (taken["loss"], taken["loss/aux"], taken["images"], taken["wait_s"]) == (2.0, 1.0, 8.0, 1.0)
    assert taken["grad_norm"] == 6.0
    assert meter.flush()["images"] == 0


def test_consecutive_skipped_steps_are_counted_across_reports():
    meter = TrainMeter()
    runs = []
    for first, window in ((1, [True, False]), (3, [False, False]), (5, [False, True, False]), (8, [True, True])):
        for number, finite in enumerate(window, first):
            meter.add(step(number, finite=finite))
        meter.flush()
        runs.append(meter.skipped_steps)
    assert runs == [range(2, 3), range(2, 5), range(2, 6), range(0)]
