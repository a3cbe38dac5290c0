"""Evaluations on a real cluster: settings, slices, rows that cannot be read, and what MLflow gets."""

import json
from pathlib import Path

import numpy as np
import pytest
from mlflow.tracking import MlflowClient

from segray import config
from segray.core.classes import Classes
from segray.core.errors import ConfigError, DataError
from segray.data.manifest import read_manifest
from segray.data.reader import SplitReader
from segray.evaluation.evaluate import EvaluationRequest, evaluate, evaluation_to_dict, flat_metrics
from segray.evaluation.slices import slice_labels
from segray.models import checkpoint
from segray.models.build import build_model
from segray.tracking import evaluations
from segray.tracking.registry import register_checkpoint


@pytest.fixture(scope="module")
def plain(folder, streets):
    return evaluate(folder, EvaluationRequest(str(streets), "val", slices={"size": None, "last": r"(\d)$"}))


def test_everything_said_is_of_the_same_counts(plain, streets):
    counts = plain.counts
    assert (plain.split, plain.rows, plain.step, plain.bad_rows) == ("val", 7, 7, ())
    assert plain.settings.size_multiple == 64
    total = sum(image.dense(plain.classes.num_classes) for image in counts.images.values())
    assert np.array_equal(total[:, 0], np.diag(counts.confusion))
    assert np.array_equal(total[:, 1], counts.confusion.sum(1))
    assert sorted(counts.images) == list(range(7))
    assert sum(one.pixels for one in plain.results.slices["last"].values()) == plain.results.scores.pixels
    assert len(plain.results.slices["last"]) == 7
    assert [image.id.split("/")[0] for image in plain.results.images] == ["val"] * 7


def test_the_summary_is_json_and_metrics_are_numbers(plain):
    found = json.loads(json.dumps(evaluation_to_dict(plain), allow_nan=False))
    assert found["confusion"] == plain.counts.confusion.tolist()
    assert found["scores"]["miou"] == plain.results.scores.miou
    assert found["settings"]["mode"] == "whole"
    named = flat_metrics(plain)
    assert named["val/miou"] == plain.results.scores.miou
    assert named["val/miou_low"] <= named["val/miou"] <= named["val/miou_high"]
    assert all(np.isfinite(value) for value in named.values())


def test_settings_that_are_given_are_laid_over_the_models_own(folder, streets, plain):
    overrides = {"mode": "slide", "crop": 64, "stride": 32, "calibration": True, "boundary": (2,), "trimap": (3,)}
    found = evaluate(folder, EvaluationRequest(str(streets), "val", workers=2, overrides=overrides))
    assert (found.settings.size_multiple, found.settings.mode) == (64, "slide")
    assert found.counts.confusion.sum() == plain.counts.confusion.sum() == found.counts.bins[:, 0].sum()
    assert not np.array_equal(found.counts.confusion, plain.counts.confusion)
    assert found.results.calibration is not None
    assert 0 < found.results.trimap[3].pixels < found.results.scores.pixels
    assert found.counts.boundary[2][:, 1].sum() > 0
    named = flat_metrics(found)
    assert {"val/ece", "val/boundary_2/miou", "val/trimap_3/miou"} <= named.keys()


def test_rows_that_cannot_be_read_are_left_out_and_listed(folder, spoilt, streets):
    found = evaluate(folder, EvaluationRequest(str(spoilt), "train", workers=2))
    assert found.rows == 39
    assert len(found.bad_rows) == 2
    assert all("part-" in line for line in found.bad_rows)
    whole = evaluate(folder, EvaluationRequest(str(streets), "train"))
    expected = set(range(41)) - {5, 30}
    assert set(found.counts.images) == expected
    for row in expected:
        ours, theirs = (one.counts.images[row].dense(found.classes.num_classes) for one in (found, whole))
        assert np.array_equal(ours, theirs)


def test_a_split_a_column_or_classes_that_are_not_there_are_named(folder, streets, tmp_path):
    with pytest.raises(DataError, match="train, val, test"):
        evaluate(folder, EvaluationRequest(str(streets), "nowhere"))
    source = SplitReader(str(streets), read_manifest(str(streets)).split("val"))
    for slices, said in (
        ({"camera": None}, "camera"),
        ({"a": "("}, "not a valid regular expression"),
        ({"a": "xyz"}, "does not match the id"),
    ):
        with pytest.raises(DataError, match=said):
            slice_labels(source, slices)
    other = Classes.from_names(["road", "moose"])
    meta = checkpoint.Meta(step=1, metrics={}, confusion=[], dataset_digest="", versions={})
    settings = config.build({})
    (tmp_path / "other").mkdir()
    checkpoint.snapshot(build_model(settings, other), {}, settings, other, meta).write(tmp_path / "other")
    with pytest.raises(DataError, match="the model has 2 classes and .* they differ in .*moose"):
        evaluate(tmp_path / "other", EvaluationRequest(str(streets), "val"))


def test_it_is_logged_below_the_models_training(plain, folder, empty_store, tmp_path):
    (tmp_path / "mlflow.db").write_bytes(empty_store.read_bytes())
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    client = MlflowClient(uri, uri)
    parent = client.create_run(client.create_experiment("x", str(tmp_path / "artifacts"))).info.run_id
    version = register_checkpoint(client, parent, folder, "segray", ["challenger"])
    entry = evaluations.EvaluationEntry(
        "evaluation of val", 7, flat_metrics(plain), {"split": "val"}, evaluation_to_dict(plain)
    )
    for reference in ("models:/segray@challenger", f"models:/segray/{version}", f"runs:/{parent}/model"):
        run = client.get_run(evaluations.log_evaluation(entry, reference, folder, uri))
        assert run.data.tags["mlflow.parentRunId"] == parent
        assert run.info.status == "FINISHED"
        assert run.data.metrics["val/miou"] == plain.results.scores.miou
        assert run.data.params == {"split": "val"}
        file = client.download_artifacts(run.info.run_id, "evaluation.json", str(tmp_path))
        assert json.loads(Path(file).read_text())["confusion"] == plain.counts.confusion.tolist()
    assert evaluations.log_evaluation(entry, str(folder), folder, uri) is None
    (folder.parent / "uploaded.json").write_text(json.dumps({"uri": uri, "run_id": parent}))
    assert evaluations.log_evaluation(entry, str(folder), folder, uri) is not None
    (folder.parent / "uploaded.json").write_text(json.dumps({"uri": "elsewhere", "run_id": parent}))
    assert evaluations.log_evaluation(entry, str(folder), folder, uri) is None
    (folder.parent / "uploaded.json").unlink()


def test_settings_of_a_wrong_name_or_value_are_refused(folder):
    trained = checkpoint.load_config(folder)
    for overrides in ({"mod": "slide"}, {"mode": "windows"}, {"crop": 65}):
        with pytest.raises(ConfigError, match=next(iter(overrides))):
            trained.with_eval_overrides(overrides)


def test_a_rebuilt_config_keeps_the_models_own_settings(folder):
    trained = checkpoint.load_config(folder)
    rebuilt = config.build(trained.model_dump(mode="json"))
    assert rebuilt.with_eval_overrides({"flip": True}).eval == trained.eval.model_copy(update={"flip": True})


def test_groups_of_rows_are_resampled_together(folder, streets):
    found = evaluate(folder, EvaluationRequest(str(streets), "val", group_by=("half", r"([0-3])$|.")))
    assert set(found.groups) == set(range(7))
