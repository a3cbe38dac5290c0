"""Estimates of the storage of a run or a sweep, compared with what is written."""

import pytest
import torch

from segray import config
from segray.models import checkpoint
from segray.models.build import build_model
from segray.training import footprint
from segray.training.diagnose import PLACEHOLDER_CLASSES
from segray.training.engine.train_state import build_train_state
from segray.training.losses.build import build_loss

VARIANTS = {"tune.space": {"model.variant": {"choice": ["b1", "b0"]}}}


def test_a_sweep_over_variants_reduces_the_largest_gradients_and_stores_the_mean_checkpoint():
    alone = [config.build({"model.variant": name}) for name in ("b0", "b1")]
    b0, b1 = (footprint.gradient_bytes(one, PLACEHOLDER_CLASSES) for one in alone)
    assert b1 > 3 * b0
    assert footprint.gradient_bytes(config.build(VARIANTS), PLACEHOLDER_CLASSES) == b1
    stored = [footprint.checkpoint_bytes(one, PLACEHOLDER_CLASSES) for one in alone]
    assert stored == [pytest.approx(3 * b0, rel=0.01), pytest.approx(3 * b1, rel=0.01)]  # weights, two moments
    assert footprint.checkpoint_bytes(config.build(VARIANTS), PLACEHOLDER_CLASSES) == sum(stored) // 2


@pytest.mark.parametrize(
    ("settings", "runs"),
    [
        ({}, 1),
        (VARIANTS | {"tune.trials": 7}, 7),
        (VARIANTS | {"tune.trials": 7, "tune.search": "grid"}, 2),
        (VARIANTS | {"tune.trials": 7, "tune.search": "grid", "tune.seeds": 3}, 5),
    ],
)
def test_each_run_of_a_sweep_keeps_its_checkpoints(settings, runs):
    assert footprint.num_kept_checkpoints(config.build(settings | {"train.keep_best": 1})) == 3 * runs


def written_bytes(settings, folder):
    """Returns the size of the checkpoint of a run after a step, and the bytes of the gradients of that step."""
    model = build_model(settings, PLACEHOLDER_CLASSES)
    state = build_train_state(settings, model, torch.device("cpu"))
    batch = {"image": torch.zeros(1, 3, 32, 32, dtype=torch.uint8), "mask": torch.zeros(1, 32, 32, dtype=torch.uint8)}
    loss = build_loss(settings.loss, len(PLACEHOLDER_CLASSES.names))
    list(state.train_steps(state.training_model, loss, [batch], ignore_id=255))
    meta = checkpoint.Meta(step=1, dataset_digest="d", versions={})
    average = state.ema and state.ema.model
    checkpoint.snapshot(model, state.state_dict(), settings, PLACEHOLDER_CLASSES, meta, average).write(folder)
    reduced = [parameter.grad for parameter in model.parameters() if parameter.requires_grad]
    return sum(file.stat().st_size for file in folder.iterdir()), sum(grad.nbytes for grad in reduced)


def compare(settings, folder):
    settings = config.build(settings | {"optim.warmup_steps": 0, "model.drop_path": 0})
    stored, reduced = written_bytes(settings, folder)
    assert footprint.checkpoint_bytes(settings, PLACEHOLDER_CLASSES) == pytest.approx(stored, rel=0.02)
    assert footprint.gradient_bytes(settings, PLACEHOLDER_CLASSES) == reduced


@pytest.mark.parametrize(
    "settings",
    [{}, {"train.ema_decay": 0.99}, {"train.freeze_encoder": True}, {"model.aux_head": True, "train.ema_decay": 0.9}],
    ids=str,
)
def test_a_checkpoint_has_the_estimated_size(settings, tmp_path):
    compare(settings | {"model.variant": "b0"}, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("decay", [0, 0.99])
@pytest.mark.parametrize("variant", ["b1", "b2", "b3", "b4", "b5"])
def test_a_checkpoint_of_every_variant_has_the_estimated_size(variant, decay, tmp_path):
    compare({"model.variant": variant, "train.ema_decay": decay}, tmp_path)
