"""The main job on a real cluster: trained, tracked, registered, evaluated, and the same again from the same seed."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from mlflow.tracking import MlflowClient

from segray import config
from segray.core.errors import CapacityError, CheckpointError, ConfigError, DataError, ModelError, TrainingError
from segray.data.manifest import read_manifest
from segray.evaluation.evaluate import EvaluationRequest, evaluate
from segray.models import checkpoint
from segray.tracking.journal import Journal
from segray.tracking.registry import download_checkpoint
from segray.tracking.tags import CHALLENGER
from segray.training.fit import fit

pytestmark = pytest.mark.usefixtures("ray_cluster")


def with_settings(tiny, **changes):
    return config.build(config.flatten(tiny) | {key.replace("__", "."): value for key, value in changes.items()})


def records(result, kind):
    lines = (Path(result.folder) / "journal.jsonl").read_text().splitlines()
    return [record for record in map(json.loads, lines) if record["kind"] == kind]


def losses(result):
    return [record["values"]["train/loss"] for record in records(result, "metrics")]


def quiet(line):
    del line


@pytest.fixture(scope="module")
def trained(streets, tmp_path_factory):
    """Two workers, the whole way to the registry."""
    run = {
        "results": str(tmp_path_factory.mktemp("run") / "results"),
        "data": {"root": str(streets), "crop": 32},
        "optim": {"lr": 1e-3, "warmup_steps": 1},
        "train": {"steps": 4, "batch": 4, "workers": 2, "log_every": 1, "val_every": 2},
    }
    return fit(config.build(run), say=quiet)


def test_mlflow_has_the_parameters_the_metrics_the_dataset_and_the_config(trained, streets):
    client = MlflowClient(trained.tracking_uri)
    run = client.get_run(trained.run_id)
    assert run.info.status == "FINISHED"
    assert run.info.run_name == trained.name
    assert run.data.params["optim.lr"] == "0.001"
    assert run.data.params["train.workers"] == "2"
    assert len(run.data.tags["mlflow.source.git.commit"]) >= 40
    assert run.inputs.dataset_inputs[0].dataset.digest == read_manifest(str(streets)).digest
    steps = [metric.step for metric in client.get_metric_history(trained.run_id, "train/loss")]
    assert steps == [1, 2, 3, 4]
    validated = client.get_metric_history(trained.run_id, "val/miou")
    assert [metric.step for metric in validated] == [2, 4]
    assert max(metric.value for metric in validated) == pytest.approx(trained.scores.miou, abs=1e-12)
    assert "val/iou/road" in run.data.metrics
    assert {file.path for file in client.list_artifacts(trained.run_id)} >= {"config.json", "model", "predictions"}
    shown = [file.path for file in client.list_artifacts(trained.run_id, "predictions")]
    assert shown == ["predictions/step-000002.png", "predictions/step-000004.png"]
    assert {"system/cpu_percent", "system/memory_gib", "train/grad_norm", "train/images_per_s"} <= set(run.data.metrics)


def test_the_best_checkpoint_is_registered_as_challenger_and_loads_from_there(trained, tmp_path):
    client = MlflowClient(trained.tracking_uri)
    version = client.get_model_version_by_alias("segray", CHALLENGER)
    assert (str(version.version), version.run_id) == (trained.version, trained.run_id)
    folder = download_checkpoint(f"models:/segray@{CHALLENGER}", trained.tracking_uri, tmp_path)
    ours, theirs = checkpoint.load_weights(Path(trained.checkpoint)), checkpoint.load_weights(folder)
    assert all((ours[name] == theirs[name]).all() for name in ours)


@pytest.mark.parametrize("workers", [1, 2])
def test_evaluation_equals_the_validation_for_any_number_of_workers(trained, streets, workers):
    counted = json.loads((Path(trained.checkpoint) / checkpoint.META).read_text())["confusion"]
    found = evaluate(Path(trained.checkpoint), EvaluationRequest(str(streets), "val", workers))
    assert np.array_equal(found.counts.confusion, counted)
    assert found.results.scores == trained.scores
    split = read_manifest(str(streets)).split("val")
    assert found.counts.confusion.sum() == sum(split.class_pixels)
    assert found.counts.confusion.sum(axis=1).tolist() == list(split.class_pixels)


def test_the_same_seed_gives_the_same_losses_and_a_repeated_name_a_new_run_and_version(trained, tmp_path):
    """The second run lies where the first did, which is moved aside."""
    aside = shutil.move(trained.folder, tmp_path / "aside")
    expected = [record["values"]["train/loss"] for record in Journal(aside).records() if record["kind"] == "metrics"]
    try:
        again = fit(with_settings(checkpoint.load_config(aside), name=trained.name), say=quiet)
        assert again.folder == trained.folder
        assert losses(again) == expected
        assert again.tracking_uri == trained.tracking_uri
        assert again.run_id != trained.run_id
        assert int(again.version) > int(trained.version)
    finally:
        shutil.rmtree(trained.folder, ignore_errors=True)
        shutil.move(aside, trained.folder)


@pytest.mark.slow
def test_another_seed_gives_other_losses(trained, tiny):
    other = fit(with_settings(tiny, train__seed=1, train__workers=2), say=quiet)
    assert losses(other) != losses(trained)
    assert other.folder != trained.folder


def test_a_run_starts_from_the_given_weights(trained, tiny, streets):
    said = []
    source = f"models:/segray/{trained.version}"
    settings = {"model__init": source, "tracking__uri": trained.tracking_uri, "train__steps": 2, "optim__lr": 1e-12}
    continued = fit(with_settings(tiny, **settings), say=said.append)
    assert any(line.startswith("initial weights: ") and "tensors of the model" in line for line in said), said
    ours, theirs = (checkpoint.load_weights(Path(result.checkpoint)) for result in (continued, trained))
    learned = {name for name in ours if "running" not in name and "num_batches" not in name}
    assert all((ours[name] - theirs[name]).abs().max() < 1e-6 for name in learned)


@pytest.fixture(scope="module")
def own(streets, plugins, tmp_path_factory):
    """A run with the parts that docs/plugins.md shows, whose MLflow server is away; and what it said."""
    document = (Path(__file__).parents[2] / "docs" / "plugins.md").read_text()
    module = re.findall(r"```python\n(.*?)```", document, re.DOTALL)[0]
    (plugins / "my_parts.py").write_text(module)
    run = {
        "results": str(tmp_path_factory.mktemp("own") / "results"),
        "data": {"root": str(streets), "crop": 32},
        "model": {"encoder": "my_parts:ConvEncoder", "head": "my_parts:AuxiliaryHead"},
        "loss.terms": "my_parts:loss",
        "optim": {"lr": 1e-3, "warmup_steps": 1},
        "train": {"steps": 2, "batch": 4, "workers": 1, "log_every": 1, "val_every": 2},
        "tracking.uri": "http://127.0.0.1:9",
    }
    said = []
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(plugins)
        return fit(config.build(run), say=said.append), said


def test_custom_heads_and_losses_are_trained_and_loss_parts_recorded(own):
    values = records(own[0], "metrics")[0]["values"]
    assert values["train/loss"] == pytest.approx(
        values["train/loss/cross_entropy"] + 0.4 * values["train/loss/coarse"], rel=1e-5
    )


def test_an_unreachable_server_is_reported_once_and_uploaded_to_later(own):
    result, said = own
    complaints = [line for line in said if "127.0.0.1:9" in line]
    assert len(complaints) == 2, said
    assert "training continues" in complaints[0]
    assert f"segray tracking sync {result.folder}" in complaints[1]
    assert (result.run_id, result.version) == (None, None)
    assert result.scores.pixels > 0


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"train__workers": 3}, CapacityError, "it has 2 CPUs and 0 GPUs"),
        ({"train__device": "cuda"}, CapacityError, "0 GPUs"),
        ({"data__val_split": "valid"}, DataError, "it has train, val, test"),
        ({"data__root": "/nowhere"}, DataError, "/nowhere contains no dataset"),
        ({"model__init": "nowhere.pth"}, CheckpointError, "nowhere.pth"),
        ({"loss__terms": "nowhere:loss"}, ModelError, "nowhere"),
        ({"model__head": "nowhere:Head"}, ModelError, "nowhere"),
    ],
)
def test_invalid_settings_are_rejected_and_leave_no_folder(tiny, changes, error, said):
    with pytest.raises(error, match=said):
        fit(with_settings(tiny, **changes), say=quiet)
    assert not Path(tiny.results).exists()


def test_an_existing_name_is_rejected(tiny):
    named = with_settings(tiny, name="mine")
    (Path(tiny.results) / "mine").mkdir(parents=True)
    with pytest.raises(ConfigError, match="choose another name"):
        fit(named, say=quiet)


def test_a_non_finite_loss_ends_the_run(tiny):
    said = r"not finite in 3 consecutive steps, \d+ to \d+; likely cause: the learning rate 1e\+30 is too high"
    with pytest.raises(TrainingError, match=said):
        fit(with_settings(tiny, optim__lr=1e30, train__steps=20, train__max_nonfinite_steps=3), say=quiet)


def test_a_relative_path_is_rejected_in_a_submitted_job(tiny, monkeypatch):
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    with pytest.raises(ConfigError, match="results is results, a relative path"):
        fit(with_settings(tiny, results="results"), say=quiet)
    with pytest.raises(ConfigError, match=r"data\.root is data/x, a relative path"):
        fit(with_settings(tiny, data__root="data/x"), say=quiet)
    with pytest.raises(ConfigError, match=r"tracking\.uri is mlflow\.db, a relative path"):
        fit(with_settings(tiny, tracking__uri="sqlite:///mlflow.db"), say=quiet)


def test_transforms_that_do_not_fit_the_images_are_rejected_before_the_run(tiny):
    crop = [{"RandomCrop": {"height": 160, "width": 160}}]
    large = with_settings(tiny, data__crop=160, data__augment=crop)
    with pytest.raises(ConfigError, match="data.augment fails on an image of 192x144: Crop size"):
        fit(large, say=quiet)
    assert not Path(tiny.results).exists()


@pytest.mark.slow
def test_a_damaged_shard_ends_the_run_and_is_named(tiny, streets, tmp_path):
    copy = shutil.copytree(streets, tmp_path / "copy")
    for shard in sorted((copy / "train").iterdir()):
        content = bytearray(shard.read_bytes())
        content[len(content) // 2] ^= 0xFF
        shard.write_bytes(content)
    with pytest.raises(DataError, match=r"copy/train/part-0000\d\.parquet cannot be read"):
        fit(with_settings(tiny, data__root=str(copy)), say=quiet)
    assert list(Path(tiny.results).iterdir()) == []


@pytest.mark.slow
def test_a_bad_row_ends_the_run_and_is_named(tiny, spoilt):
    changes = EVERY_PART | {"data__root": str(spoilt), "data__bad_rows": "fail"}
    with pytest.raises(
        DataError, match=r"train/part-0000\d.parquet, row \d+ \(train/street_000\d\d\): .* not an image"
    ):
        fit(with_settings(tiny, train__steps=11, train__val_every=11, **changes), say=quiet)


EVERY_PART = {  # of the data plane: a sampler that draws every row, crops of the user's own made by tasks, mixed
    "data__sampler": "repeat",
    "data__repeat_threshold": 1.0,
    "data__class_crop_prob": 0.5,
    "data__augment": ["ScaledCrop", {"GaussNoise": {"p": 0.5}}],
    "data__cut_mix_prob": 0.5,
    "data__augment_on": "cluster",
    "data__bad_rows": "skip",
}
ENGINE = {  # half precision, parts, clipping, an average, a frozen encoder and frozen norms
    "train__precision": "bf16",
    "train__accumulation_steps": 2,
    "train__ema_decay": 0.9,
    "train__freeze_encoder": True,
    "train__batch_norm": "frozen",
    "train__channels_last": True,
    "train__deterministic": True,
    "model__aux_head": True,
    "optim__max_grad_norm": 0.5,
    "optim__schedule": "cosine",
    "loss__class_weights": "balanced",
}


@pytest.mark.slow
def test_all_options_of_data_and_engine_together(tiny, spoilt):
    """Two rows are left out and counted; only the head moves, but for its norms."""
    changes = EVERY_PART | ENGINE | {"data__root": str(spoilt), "train__workers": 2}
    result = fit(with_settings(tiny, train__steps=11, train__val_every=11, **changes), say=quiet)
    values = records(result, "metrics")[-1]["values"]
    assert result.step == 11
    assert values["train/bad_rows"] >= 1
    assert {"train/loss/cross_entropy", "train/loss/aux"} <= set(values)
    live = checkpoint.load_weights(Path(result.folder) / "step-000011", live=True)
    used = checkpoint.load_weights(Path(result.folder) / "step-000011")
    moved = {name for name in live if not torch.equal(live[name], used[name])}
    assert "head.classifier.weight" in moved
    assert not any(name.startswith("encoder.") or "running" in name for name in moved)


ANNOUNCING = '''
from pathlib import Path

import ray
from ray.train.v2._internal.execution.context import get_train_context
from ray.train.v2.api.preemption import PreemptionInfo
from segray.models.segformer.heads import SegFormerHead

PLAN = Path("{plan}")


class Head(SegFormerHead):
    """Tells its worker of a preemption when it is called as the first line of the plan says, which it takes out."""

    def __init__(self, dims, strides, num_classes, dropout):
        super().__init__(dims, 256, num_classes, dropout)
        self.calls = 0

    def forward(self, maps):
        first, *others = PLAN.read_text().splitlines() or ["never 1"]
        kind, count = first.split()
        self.calls += kind == ("training" if self.training else "validation")
        if self.calls == int(count):
            PLAN.write_text("\\n".join(others))
            node = ray.get_runtime_context().get_node_id()
            get_train_context().preemption_context.preemption_info = PreemptionInfo(None, {{node: [0]}})
        return super().forward(maps)
'''


@pytest.mark.slow
def test_a_preemption_during_validation_loses_no_validation(tiny, plugins, monkeypatch, tmp_path):
    """Behind a step that a validation is due after, in the midst of that validation, and behind the last step."""
    plan = tmp_path / "plan"
    plan.write_text("")
    (plugins / "announcing.py").write_text(ANNOUNCING.format(plan=plan))
    monkeypatch.syspath_prepend(plugins)
    own = with_settings(tiny, model__head="announcing:Head", train__steps=6, train__val_every=3)
    undisturbed = fit(own, say=quiet)
    plan.write_text("training 1\nvalidation 2\ntraining 1\n")
    result = fit(own, say=quiet)
    assert plan.read_text() == ""
    assert [event["text"].rpartition(" ")[2] for event in records(result, "event")] == ["3.", "3.", "6."]
    found, expected = (records(one, "metrics") for one in (result, undisturbed))
    assert [record["step"] for record in found] == list(range(1, 7))
    assert [record["step"] for record in found if "val/miou" in record["values"]] == [3, 6]
    assert [record["values"].keys() for record in found] == [record["values"].keys() for record in expected]
    # To the bit it is with a thread a worker, which test_faults.py shows.
    assert losses(result) == pytest.approx(losses(undisturbed), rel=1e-4)
