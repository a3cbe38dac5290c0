"""The recipes in pipelines/configs are the published ones, field by field.

Sources: SegFormer (arXiv 2105.15203), section 4.1; the values of the public configurations
open-mmlab/mmsegmentation: configs/segformer/segformer_mit-b{0..5}_8xb2-160k_ade20k-512x512.py, ..._ade20k-640x640.py,
..._8xb1-160k_cityscapes-1024x1024.py, and their datasets, models and schedules in configs/_base_; and
NVlabs/SegFormer: local_configs/segformer.
"""

from pathlib import Path

import pytest

from segray import config
from segray.config import Config
from segray.core.classes import Classes
from segray.models.build import build_model
from segray.training.engine.optim import lr_multiplier, parameter_groups

FOLDER = Path(__file__).parents[2] / "pipelines" / "configs"

EVERYWHERE = {
    # optimizer, paramwise_cfg, lr_config, runner
    "optim.lr": 6e-5,
    "optim.beta1": 0.9,
    "optim.beta2": 0.999,
    "optim.weight_decay": 0.01,
    "optim.head_lr_factor": 10,
    "optim.layer_decay": 1,
    "optim.max_grad_norm": None,
    "optim.schedule": "poly",
    "optim.power": 1.0,
    "optim.min_lr_ratio": 0,
    "optim.warmup_steps": 1500,
    "optim.warmup_lr_ratio": 1e-6,
    "train.steps": 160_000,
    "train.val_every": 16_000,
    "train.precision": "fp32",
    "train.ema_decay": 0,
    "train.freeze_encoder": False,
    # train_pipeline: Resize with ratio_range, RandomCrop, RandomFlip, PhotoMetricDistortion
    "data.scale_min": 0.5,
    "data.scale_max": 2.0,
    "data.cat_max_ratio": 0.75,
    "data.flip_prob": 0.5,
    "data.photometric": True,
    "data.augment": None,
    "data.mosaic_prob": 0,
    "data.cut_mix_prob": 0,
    "data.class_crop_prob": 0,
    "data.sampler": "all",
    # model: decode_head, backbone
    "model.encoder": "mit",
    "model.head": "official",
    "model.aux_head": False,
    "model.drop_path": 0.1,
    "model.dropout": 0.1,
    "model.norm_eps_from": "official",
    "loss.terms": ("cross_entropy",),
    "loss.class_weights": None,
    "loss.smoothing": 0,
    # test_pipeline: one scale, no flip, AlignedResize with size_divisor 32
    "eval.scales": (1.0,),
    "eval.flip": False,
    "eval.precision": "fp32",
    "eval.size_multiple": 32,
}
ADE20K = {"data.short_side": 512, "data.crop": 512, "train.batch": 16, "eval.mode": "whole"}
ADE20K_640 = {"data.short_side": 640, "data.crop": 640, "train.batch": 16, "eval.mode": "whole"}
CITYSCAPES = {  # the scale (2048, 1024) is the size of every image
    "data.short_side": None,
    "data.crop": 1024,
    "train.batch": 8,
    "eval.mode": "slide",
    "eval.crop": 1024,
    "eval.stride": 768,
}
PUBLISHED = {f"ade20k_b{size}": (ADE20K_640 if size == 5 else ADE20K, 150) for size in range(6)} | {
    f"cityscapes_b{size}": (CITYSCAPES, 19) for size in range(6)
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_recipe_is_complete(name):
    recipe = config.load([FOLDER / f"{name}.yaml"])
    expected = EVERYWHERE | PUBLISHED[name][0] | {"model.variant": name[-2:], "model.init": f"nvidia/mit-{name[-2:]}"}
    found = {key: getattr(getattr(recipe, key.split(".")[0]), key.split(".")[1]) for key in expected}
    assert found == expected


@pytest.mark.parametrize("name", ["ade20k_b0", "cityscapes_b0"])
def test_the_parameter_groups_and_the_schedule_are_the_published_ones(name):
    recipe, names = config.load([FOLDER / f"{name}.yaml"]), [str(number) for number in range(PUBLISHED[name][1])]
    model = build_model(recipe, Classes.from_names(names))
    group_of = {id(tensor): group for group in parameter_groups(model, recipe.optim) for tensor in group["params"]}
    for parameter_name, parameter in model.named_parameters():
        group = group_of[id(parameter)]
        assert group["peak_lr"] == pytest.approx(6e-5 if parameter_name.startswith("encoder.") else 6e-4)
        assert group["weight_decay"] == (0 if "norm" in parameter_name else 0.01)
    rates = {step: lr_multiplier(step, recipe.optim, recipe.train.steps) for step in (0, 750, 1500, 80_000, 160_000)}
    assert rates[0] == pytest.approx(1e-6)
    assert rates[750] == pytest.approx(0.5 * (1 - 750 / 160_000), rel=1e-5)
    assert rates[1500] == pytest.approx(1 - 1500 / 160_000)
    assert rates[80_000] == pytest.approx(0.5)
    assert rates[160_000] == 0


@pytest.mark.parametrize("file", sorted(FOLDER.glob("*.yaml")), ids=lambda file: file.stem)
def test_every_recipe_is_a_config(file):
    assert config.load([file]) != Config()
