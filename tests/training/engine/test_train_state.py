"""A restored training state continues bit-exactly, with the current settings."""

import pytest
import torch

from segray import config
from segray.core.classes import Classes
from segray.models import checkpoint
from segray.models.build import build_model
from segray.training.engine.train_state import build_train_state
from segray.training.losses.build import build_loss

CLASSES = Classes.from_names(["road", "car", "sky"])
CPU = torch.device("cpu")


def built(**changes):
    given = {"optim.lr": 1e-3, "optim.warmup_steps": 0, "train.steps": 100, "train.ema_decay": 0.5}
    given |= {"model.drop_path": 0, "model.dropout": 0} | {key.replace("__", "."): changes[key] for key in changes}
    torch.manual_seed(0)
    settings = config.build(given)
    return build_train_state(settings, build_model(settings, CLASSES), CPU)


def batches(count, first=0):
    for number in range(first, first + count):
        drawn = torch.Generator().manual_seed(number)
        image = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8, generator=drawn)
        yield {"image": image, "mask": torch.randint(0, 3, (2, 32, 32), generator=drawn)}


def trained(one, count, first=0):
    loss = build_loss(one.config.loss, 3)
    made = one.train_steps(one.training_model, loss, batches(count, first), ignore_id=255, start=first)
    return [float(step.loss) for step in made]


def restored(one, folder, **changes):
    """Returns a new training state restored from what the other one writes to disk."""
    meta = checkpoint.Meta(step=0, dataset_digest="d", versions={})
    average = one.ema and one.ema.model
    checkpoint.snapshot(one.model, one.state_dict(), one.config, CLASSES, meta, average).write(folder)
    after = built(**changes)
    live, used = (checkpoint.load_weights(folder, live=which) for which in (True, False))
    after.load_state_dict(live, used, checkpoint.load_state(folder))
    return after


@pytest.mark.parametrize(
    "changes", [{}, {"train__channels_last": True}, {"train__ema_decay": 0}, {"optim__max_grad_norm": 0.1}]
)
def test_a_restored_state_continues_bit_exactly(changes, tmp_path):
    whole, first = built(**changes), built(**changes)
    expected = trained(whole, 6)
    found = trained(first, 3)
    second = restored(first, tmp_path, **changes)
    assert found + trained(second, 3, 3) == expected
    for mine, theirs in ((second.model, whole.model), (second.eval_model, whole.eval_model)):
        pairs = zip(mine.state_dict().values(), theirs.state_dict().values(), strict=True)
        assert all(torch.equal(*pair) for pair in pairs)


def test_the_loss_scale_is_restored(tmp_path):
    first = built(train__precision="fp16")
    first.stepper.load_state_dict({"scale": torch.tensor(8.0), "clean": torch.tensor(7)})
    state = restored(first, tmp_path, train__precision="fp16").stepper.state_dict()
    assert (state["scale"], state["clean"]) == (8, 7)


def test_learning_rates_and_decay_follow_the_current_settings(tmp_path):
    first = built()
    trained(first, 2)
    after = restored(first, tmp_path, optim__lr=2e-5, optim__weight_decay=0.5, optim__beta1=0.5)
    fresh = built(optim__lr=2e-5, optim__weight_decay=0.5, optim__beta1=0.5)
    for mine, theirs in zip(after.optimiser.param_groups, fresh.optimiser.param_groups, strict=True):
        kinds = ("peak_lr", "weight_decay", "betas")
        assert [mine[kind] for kind in kinds] == [theirs[kind] for kind in kinds]


@pytest.mark.parametrize(
    "changes", [{"optim__layer_decay": 0.9}, {"optim__head_lr_factor": 1}, {"train__freeze_encoder": True}]
)
def test_moments_are_restored_by_parameter_for_any_groups(changes, tmp_path):
    first = built()
    trained(first, 2)
    after = restored(first, tmp_path, **changes)
    theirs = dict(first.model.named_parameters())
    known = [(name, one) for name, one in after.model.named_parameters() if one in after.optimiser.state]
    assert len(known) == sum(len(group["params"]) for group in after.optimiser.param_groups)
    for name, parameter in known:
        for kind in ("step", "exp_avg", "exp_avg_sq"):
            assert torch.equal(after.optimiser.state[parameter][kind], first.optimiser.state[theirs[name]][kind])
    trained(after, 1, 2)


def test_a_formerly_frozen_parameter_starts_without_moments(tmp_path):
    first = built(train__freeze_encoder=True)
    trained(first, 2)
    after = restored(first, tmp_path)
    assert {name.split(".")[0] for name, one in after.model.named_parameters() if one in after.optimiser.state} == {
        "head"
    }
    trained(after, 1, 2)
    assert all(one in after.optimiser.state for one in after.model.parameters())


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # inductor's own import
def test_a_compiled_run_validates_the_bare_module():
    for decay in (0, 0.5):
        state = built(train__compile=True, train__ema_decay=decay)
        assert state.eval_model._compiled_call_impl is None
        assert not isinstance(state.eval_model, torch._dynamo.OptimizedModule)
        assert isinstance(state.training_model, torch._dynamo.OptimizedModule)
        assert next(state.training_model.parameters()) is next(state.model.parameters())
        assert not any("_orig_mod" in name for name in state.model.state_dict())
