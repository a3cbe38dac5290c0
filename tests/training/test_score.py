"""The score of a run is a setting: it selects what is kept and registered, and when a run ends."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from segray import config
from segray.core.classes import Classes
from segray.core.errors import ConfigError
from segray.models import checkpoint
from segray.tracking.journal import Journal
from segray.training.checkpoint_store import CheckpointInfo, CheckpointWriter, best_checkpoint, list_checkpoints
from segray.training.fit import fit
from segray.training.score import available_scores, signed_score, validate_score
from segray.training.worker_state import RunProgress
from segray.tune.objectives import validate_objectives, with_objective_score

NAMES = ("road", "car")


class Dataset:
    """Manifest of a dataset with three classes, whose validation split does not contain the last one."""

    classes = Classes(names=(*NAMES, "bus"), palette=((0, 0, 0),) * 3)

    @staticmethod
    def split(name):
        pixels = {"train": (5, 5, 5), "val": (5, 5, 0)}[name]
        return SimpleNamespace(class_pixels=pixels)


META = checkpoint.Meta(step=0, dataset_digest="d", versions={})
CURVE = {  # the mean IoU, the IoU of a class and the loss are best at different steps
    1: {"val/miou": 0.7, "val/iou/car": 0.1, "train/loss": 0.9},
    2: {"val/miou": 0.6, "val/iou/car": 0.5, "train/loss": 0.3},
    3: {"val/miou": 0.5, "val/iou/car": 0.3, "train/loss": 0.1},
    4: {"val/miou": 0.4, "train/loss": 0.2},  # the class is neither true nor predicted
}


def write_curve(run, **settings):
    writer = CheckpointWriter(run, **settings)
    for step, metrics in CURVE.items():

        def write(folder, step=step, metrics=metrics):
            meta = META.model_copy(update={"step": step, "metrics": metrics})
            (folder / checkpoint.META).write_text(meta.model_dump_json())

        writer.submit(step, write)
    writer.wait()


@pytest.mark.parametrize(("score", "best"), [("val/miou", 1), ("val/iou/car", 2), ("train/loss", 3)])
def test_the_best_checkpoint_is_that_of_the_score(tmp_path, score, best):
    write_curve(tmp_path, num_best=1, score=score)
    kept = list_checkpoints(tmp_path, score=score)
    assert [info.step for info in kept] == sorted({best, 4})
    assert best_checkpoint(kept).step == best


def test_checkpoints_without_the_setting_are_compared_by_the_mean_iou(tmp_path):
    write_curve(tmp_path, num_best=1)
    assert best_checkpoint(list_checkpoints(tmp_path)).step == 1
    assert [info.step for info in list_checkpoints(tmp_path)] == [1, 4]
    assert config.build({}).train.score == "val/miou"


def test_a_missing_value_is_no_score():
    assert signed_score({}, "val/miou") is None
    assert signed_score({"val/miou": float("nan")}, "val/miou") is None
    assert signed_score({"train/loss": 0.25}, "train/loss") == -0.25
    assert best_checkpoint([CheckpointInfo(1, None, Path())]) is None


def settings(**train):
    given = {"steps": 100, "val_every": 1, "batch": 1} | train
    return config.build({"train": given, "optim.warmup_steps": 1})


@pytest.mark.parametrize(("score", "last"), [("val/miou", 2), ("val/iou/car", 3), ("train/loss", 4)])
def test_the_patience_is_that_of_the_score(score, last):
    wanted, progress = settings(score=score, patience=1), RunProgress()
    for step, metrics in CURVE.items():
        progress.step = step
        progress.validated(metrics, wanted)
        if progress.is_over(wanted):
            break
    assert progress.step == last


def test_a_run_that_resumes_with_another_score_starts_its_comparison_again():
    progress = RunProgress(**{"step": 3, "best": 0.9, "stale": 4})  # of a run from before the setting
    wanted = settings(score="val/iou/car", patience=5)
    progress.validated({"val/miou": 0.1, "val/iou/car": 0.2}, wanted)
    assert (progress.score, progress.best, progress.stale) == ("val/iou/car", 0.2, 0)
    assert not progress.is_over(wanted)


def test_an_unknown_score_is_an_error_that_lists_the_scores():
    with pytest.raises(ConfigError, match=r"(?s)train\.score is val/iou/cat, .*did you mean 'val/iou/car'.*val/aacc"):
        validate_score(settings(score="val/iou/cat"), Dataset)
    assert set(available_scores(NAMES)) == {
        *("val/miou", "val/macc", "val/aacc", "val/iou/road", "val/iou/car", "train/loss")
    }


def test_the_iou_of_a_class_that_the_validation_split_does_not_contain_is_no_score():
    message = r"train\.score is val/iou/bus, and split 'val' contains no pixel of class bus; expected a class .* split"
    with pytest.raises(ConfigError, match=message):
        validate_score(settings(score="val/iou/bus"), Dataset)
    validate_score(settings(score="val/iou/car"), Dataset)
    validate_score(settings(score="val/miou"), Dataset)


@pytest.mark.parametrize("metrics", [["val/iou/bus"], ["val/miou", "val/iou/bus"]])
def test_the_iou_of_a_class_that_the_validation_split_does_not_contain_is_no_objective(metrics):
    with pytest.raises(ConfigError, match=r"tune\.metrics is val/iou/bus, and split 'val' contains no pixel"):
        validate_objectives(config.build({"tune.metrics": metrics}), Dataset)


def test_the_trials_of_a_sweep_have_the_score_of_its_first_objective():
    sweep = config.build({"tune.metrics": ["val/iou/car", "cost/gmac"]})
    validate_objectives(sweep, Dataset)
    assert with_objective_score(sweep).train.score == "val/iou/car"
    both = config.build({"tune.metrics": "val/iou/car", "train.score": "val/iou/road"})
    with pytest.raises(
        ConfigError, match=r"train\.score is val/iou/road, and the first of tune\.metrics is val/iou/car"
    ):
        validate_objectives(both, Dataset)


def test_a_run_keeps_and_registers_the_checkpoint_of_its_score(ray_cluster, tiny):
    """The demo's classes are learned at different steps; the loss falls to the last one."""
    wanted = config.build(config.flatten(tiny) | {"train.score": "train/loss", "train.steps": 6, "train.val_every": 1})
    result = fit(wanted, say=lambda _line: None)
    records = Journal(Path(result.folder)).records()
    losses = {
        record["step"]: record["values"]["train/loss"]
        for record in records
        if record["kind"] == "metrics" and "val/miou" in record["values"]
    }
    best = min(losses, key=losses.get)
    mious = {
        record["step"]: record["values"]["val/miou"] for record in records if "val/miou" in record.get("values", {})
    }
    assert max(mious, key=mious.get) != best  # val/miou would choose another checkpoint
    assert result.step == best
    (model,) = [record for record in records if record["kind"] == "model"]
    assert model["folder"] == Path(result.checkpoint).name == f"step-{best:06d}"
    assert json.loads((Path(result.checkpoint) / "meta.json").read_text())["metrics"]["train/loss"] == losses[best]
