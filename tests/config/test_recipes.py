"""The recipes in pipelines/configs are the published ones."""

from pathlib import Path

import pytest

from segray import config
from segray.config import Config

FOLDER = Path(__file__).parents[2] / "pipelines" / "configs"
# crop and images a step: paper, section 4.1; B5 on ADE20K has crops of 640.
PUBLISHED = {f"ade20k_b{size}": (640 if size == 5 else 512, 16) for size in range(6)} | {
    f"cityscapes_b{size}": (1024, 8) for size in range(6)
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_recipe_is_the_papers(name):
    found = config.load([FOLDER / f"{name}.yaml"])
    assert (found.data.crop, found.train.batch) == PUBLISHED[name]
    assert name.endswith(found.model.variant)
    assert found.model.init == f"nvidia/mit-{found.model.variant}"
    optim, data = found.optim, found.data
    assert (optim.lr, optim.head_lr_factor, optim.weight_decay, optim.beta1, optim.beta2) == (
        6e-5,
        10,
        0.01,
        0.9,
        0.999,
    )
    assert (optim.schedule, optim.warmup_steps, optim.warmup_lr_ratio, optim.power) == ("poly", 1500, 1e-6, 1.0)
    assert (found.train.steps, found.train.ema_decay, optim.max_grad_norm, found.model.aux_head) == (
        160_000,
        0,
        None,
        False,
    )
    assert (data.scale_min, data.scale_max, data.cat_max_ratio, data.flip_prob, data.photometric) == (
        0.5,
        2.0,
        0.75,
        0.5,
        True,
    )
    assert found.loss.weight_by_loss() == {"cross_entropy": 1.0}
    assert (found.model.drop_path, found.model.dropout, found.model.head) == (0.1, 0.1, "official")


@pytest.mark.parametrize("file", sorted(FOLDER.glob("*.yaml")), ids=lambda file: file.stem)
def test_every_recipe_is_a_config(file):
    assert config.load([file]) != Config()
