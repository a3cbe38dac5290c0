"""Resuming a run: bit-exact, or rejected with the differences."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch

from segray import config
from segray.config import paths
from segray.core.errors import ConfigError, ResumeError
from segray.data.manifest import MANIFEST, read_manifest
from segray.models import checkpoint
from segray.tracking.journal import Journal
from segray.training import checkpoint_store, runs
from segray.training import resume as resuming
from segray.training.fit import fit

pytestmark = pytest.mark.usefixtures("ray_cluster")


RUN = {"train.keep_every": 1, "train.ema_decay": 0.5, "data.bad_rows": "skip", "data.crop": 32, "optim.lr": 1e-3} | {
    f"train.{name}": value for name, value in {"steps": 4, "batch": 4, "log_every": 1, "val_every": 2}.items()
}


@pytest.fixture
def settings(streets, tmp_path, empty_store):
    """Settings of a run whose results lie in the test's own folder."""
    shutil.copy(empty_store, tmp_path)

    def changed(**changes):
        places = {"results": str(tmp_path / "results"), "data.root": str(streets), "optim.warmup_steps": 1}
        return config.build(RUN | places | {key.replace("__", "."): value for key, value in changes.items()})

    return changed


@pytest.fixture(scope="module")
def finished(streets, tmp_path_factory):
    """A run that was never interrupted."""
    places = {"results": str(tmp_path_factory.mktemp("finished") / "results"), "data.root": str(streets)}
    return Path(fit(config.build(RUN | places | {"optim.warmup_steps": 1}), say=lambda _line: None).folder)


@pytest.fixture
def died(finished, tmp_path):
    """The same run as if it had died behind step 2 of 4: what it had on the disk by then."""
    run = Path(shutil.copytree(finished, tmp_path / "results" / "died"))
    records = [record for record in Journal(run).records() if record.get("step", 0) <= 2]
    kept = [record for record in records if record["kind"] not in ("end", "model")]
    (run / "journal.jsonl").write_text("".join(json.dumps(record) + "\n" for record in kept))
    (run / "uploaded.json").unlink()
    shutil.rmtree(run / "step-000004")
    return run


def auto(settings):
    return resuming.find_latest_run(settings, read_manifest(settings.data.root).digest)


def rates(run):
    return [
        (record["step"], record["values"]["train/lr"])
        for record in Journal(run).records()
        if record["kind"] == "metrics"
    ]


def losses(run):
    return [
        (record["step"], record["values"]["train/loss"])
        for record in Journal(run).records()
        if record["kind"] == "metrics"
    ]


def test_a_resumed_run_equals_an_uninterrupted_run(died, finished, settings):
    """Its newest checkpoint was only half written: it is skipped, and said so."""
    half = shutil.copytree(finished / "step-000004", died / "step-000003")
    (half / checkpoint.META).unlink()
    said = []
    result = fit(settings(), resume="auto", say=said.append)
    assert Path(result.folder) == died
    assert any("step-000003 contains no meta.json" in line and "is skipped" in line for line in said)
    assert "resuming from step 2." in said
    assert losses(died) == losses(finished)
    for live in (False, True):
        ours, theirs = (checkpoint.load_weights(one / "step-000004", live=live) for one in (died, finished))
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert runs.is_finished(died)
    assert auto(settings()) is None


@pytest.mark.parametrize("named", [".", "step-000002"])
def test_resume_accepts_a_run_folder_or_its_latest_checkpoint(died, settings, named):
    assert resuming.resolve_run(str(died / named)) == died


def test_free_and_allowed_changes_are_accepted_and_listed(died, settings):
    said = []
    changes = {"train__workers": 2, "train__val_every": 4, "optim__lr": 2e-3}
    fit(settings(**changes), resume=str(died), allowed=["optim.lr"], say=said.append)
    assert "changed: train.workers: 1 -> 2" in said
    assert "changed: train.val_every: 2 -> 4" in said
    assert "changed: optim.lr: 0.001 -> 0.002" in said
    assert losses(died)[-1][0] == 4
    before, after = dict(rates(died)[:2]), dict(rates(died)[2:])
    assert before[2] == pytest.approx(1e-3 * 3 / 4)  # step 2 of 4
    assert after[3] == pytest.approx(2e-3 * 2 / 4)
    assert checkpoint.load_config(died).optim.lr == 2e-3  # the next time there is nothing to allow


def test_exactly_the_differences_are_listed(died, settings):
    changes = {
        "data__bad_rows": "fail",
        "model__activation_checkpointing": True,
        "tracking__model": "other",
        "train__hang_timeout_s": 5,
    }
    said = resuming.diff_settings(
        died, paths.resolve_paths(settings(**changes)), read_manifest(settings().data.root), []
    )
    assert [line for line in said if not line.startswith("tracking.uri: ")] == [  # the copy's lies elsewhere
        "data.bad_rows: skip -> fail",
        "model.activation_checkpointing: False -> True",
        "train.hang_timeout_s: 900.0 -> 5.0",
        "tracking.model: segray -> other",
    ]


def test_weights_of_another_shape_are_rejected_even_if_allowed(died, settings):
    with pytest.raises(
        ResumeError, match=r"weights of .*step-000002 do not match the model:\n  encoder[\s\S]*--model\.init"
    ):
        fit(settings(model__variant="b1"), resume=str(died), allowed=["model.variant"], say=lambda _line: None)
    assert Journal(died).last_step() == 2


def test_auto_selects_by_name_and_dataset(died, settings, streets, tmp_path):
    other = Path(shutil.copytree(died, died.with_name("other")))
    os.utime(other / "journal.jsonl", (2e9, 2e9))
    assert auto(settings()) == other
    assert auto(settings(name="died")) == died
    assert auto(settings(name="third")) is None
    assert resuming.find_latest_run(settings(), "another digest") is None


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"optim__lr": 2e-3}, "optim.lr: 0.001 -> 0.002"),
        ({"model__variant": "b1"}, "model.variant: b0 -> b1"),
        ({"train__batch": 8}, "train.batch: 4 -> 8"),
        ({"loss__terms": "dice"}, r"loss.terms: ['cross_entropy'] -> ['dice']"),
    ],
)
def test_changes_of_training_settings_are_rejected(died, settings, changes, said):
    with pytest.raises(ResumeError) as raised:
        fit(settings(**changes), resume=str(died), say=lambda _line: None)
    name = said.partition(":")[0]
    assert said in str(raised.value)
    assert f"--allow {name}" in str(raised.value)
    assert not runs.is_locked(died)
    assert Journal(died).last_step() == 2


def test_an_unknown_allowed_name_is_rejected(died, settings):
    with pytest.raises(ConfigError, match=r"--allow is optim.lrr; expected a setting .* dataset or classes"):
        fit(settings(), resume=str(died), allowed=["optim.lrr"])


def test_another_dataset_and_other_classes_are_rejected(died, settings, streets, tmp_path):
    copy = shutil.copytree(streets, tmp_path / "copy")
    manifest = read_manifest(str(copy))
    names = ("sky", "building", "road", "pavement", "tree", "car", "person", "sign")
    other = manifest.model_copy(update={"classes": manifest.classes.model_copy(update={"names": names})}).with_digest()
    (copy / MANIFEST).write_text(other.model_dump_json())
    with pytest.raises(ResumeError) as raised:
        fit(settings(data__root=str(copy)), resume=str(died))
    assert f"dataset: {manifest.digest} -> {other.digest}" in str(raised.value)
    assert "'vegetation'" in str(raised.value)
    assert "'tree'" in str(raised.value)


@pytest.mark.slow
def test_a_run_without_a_checkpoint_starts_at_step_0(died, finished, settings):
    shutil.rmtree(died / "step-000002")
    said = []
    fit(settings(), resume=str(died), say=said.append)
    assert "no checkpoint yet; starting at step 0." in said
    assert losses(died) == losses(finished)


def test_a_finished_run_and_an_older_checkpoint_are_rejected(died, finished, settings):
    with pytest.raises(ResumeError, match="is finished; start a new run from it with --model.init"):
        fit(settings(), resume=str(finished))
    shutil.copytree(finished / "step-000004", died / "step-000004")
    with pytest.raises(ResumeError, match=r"latest checkpoint is .*step-000004"):
        fit(settings(), resume=str(died / "step-000002"))


@pytest.mark.slow
def test_auto_starts_a_new_run_if_the_settings_differ(died, settings):
    said = []
    other = fit(settings(train__steps=2), resume="auto", say=said.append)
    assert Path(other.folder) != died
    assert any("contains no unfinished run with these settings" in line for line in said)


def test_a_locked_run_is_rejected_before_its_comparison_and_skipped_by_auto(died, settings):
    with runs.lock_run(died):
        with pytest.raises(ResumeError, match="another process trains in"):
            fit(settings(optim__lr=2e-3), resume=str(died))  # the lock comes first
        with pytest.raises(ResumeError, match="another process trains in"):
            fit(settings(), resume=str(died))
        assert auto(settings()) is None
    assert auto(settings()) == died


@pytest.mark.slow
def test_early_stopping_ends_a_run_without_improvement(settings):
    result = fit(
        settings(train__steps=20, train__val_every=1, train__patience=1, train__min_delta=0.9, train__min_steps=3),
        say=lambda _line: None,
    )
    assert losses(Path(result.folder))[-1][0] == 3  # stale after 2, but not before step 3
    assert [one.step for one in checkpoint_store.list_checkpoints(Path(result.folder))] == [1, 2, 3]
